"""Export a trained model to ONNX, OpenVINO, torch.export or AOTInductor.

%(prog)s --config-file F --weights W --output model.onnx --simplify --verify shots/*.jpg
%(prog)s --config-file F --weights W --output model.xml
%(prog)s --config-file F --weights W --output model.pt2
%(prog)s --config-file F --weights W --output model.pt2 --compile --device cuda

Batch size, height and width of the exported model are free. In Python, OnnxDetector,
OpenVinoDetector and PackagedDetector of salience_detr.export run it with the Predictor's interface;
demo/demo.py takes it for --weights. An .xml has its weights in a .bin beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser

ENDINGS = (".onnx", ".pt2", ".xml")
# Those of export/onnx.py and export/attention.py, which take seconds to import.
DEFAULT_OPSET = 18
LAST_OPSET = 21
SAMPLING = ("grid_sample", "gather")


def parse_args(argv: Sequence[str] | None = None, *, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(prog=prog, description=__doc__)
    config_help = "LazyConfig file or name (default: what the weights name)"
    parser.add_config(required=False, help=config_help)
    add = parser.add_argument
    add("--weights", metavar="FILE", help="checkpoint (default: random weights)")
    parser.add_image_size()
    add("--output", required=True, type=Path, metavar="FILE", help="ends in .onnx, .pt2 or .xml")
    add("--compile", action="store_true", help="compile a .pt2 for this machine (minutes)")
    add("--device", default="cpu", help="what --compile compiles for: cpu (default) or cuda")

    opset_help = f"ONNX opset, up to {LAST_OPSET} (default: {DEFAULT_OPSET})"
    add("--opset", type=int, default=DEFAULT_OPSET, help=opset_help)
    add("--simplify", action="store_true", help="run onnxslim over the ONNX graph")
    sampling_help = "operator of the deformable attention; gather: for runtimes without a good "
    sampling_help += "GridSample, such as TensorRT (default: %(default)s)"
    add("--sampling", choices=SAMPLING, default=SAMPLING[0], help=sampling_help)
    verify_help = "compare with PyTorch on these images (default: images of the test set)"
    add("--verify", nargs="*", metavar="IMAGE", help=verify_help)
    args = parser.parse(argv)

    if args.output.suffix not in ENDINGS:
        parser.error(f"--output {args.output} must end in {', '.join(ENDINGS)}")
    if args.compile and args.output.suffix != ".pt2":
        parser.error(f"--compile writes a .pt2 file, not {args.output}")
    if args.device != "cpu" and not args.compile:
        parser.error(f"--device {args.device} is for packages: add --compile, or leave it out")
    return args
