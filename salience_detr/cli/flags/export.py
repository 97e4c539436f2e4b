"""Export a trained model to ONNX, OpenVINO, torch.export or AOTInductor.

%(prog)s --config-file F --weights W --output model.onnx --simplify --verify shots/*.jpg
%(prog)s --config-file F --weights W --output model.xml
%(prog)s --config-file F --weights W --output model.xml --int8 --calibration data/mine/train
%(prog)s --config-file F --weights W --output model.pt2
%(prog)s --config-file F --weights W --output model.pt2 --compile --device cuda

Batch size, height and width of the exported model are free. In Python, OnnxDetector,
OpenVinoDetector and PackagedDetector of salience_detr.export run it with the Predictor's interface;
demo/demo.py takes it for --weights. An .xml has its weights in a .bin beside it.

--int8 measures AP on own data, or on the validation data of the config where they are at hand. If
int8 loses more than --max-ap-drop, groups of layers are given back to float32, one at a time. Its
images of --calibration should be of the training set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from salience_detr.cli.arguments import Parser, number

ENDINGS = (".onnx", ".pt2", ".xml")
# Those of export/onnx.py and export/attention.py, which take seconds to import.
DEFAULT_OPSET = 18
LAST_OPSET = 21
SAMPLING = ("grid_sample", "gather", "operator")
# Flags that have no effect without --int8.
INT8_FLAGS = (
    "calibration", "data_dir", "train_json", "train_images", "val_json", "val_images",
    "val_fraction", "split_by",
)  # fmt: skip


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
    sampling_help += "GridSample, such as TensorRT; operator: this package's own, for an .xml that "
    sampling_help += "OpenVinoDetector runs (default: %(default)s)"
    add("--sampling", choices=SAMPLING, default=SAMPLING[0], help=sampling_help)
    verify_help = "compare with PyTorch on these images (default: images of the test set)"
    add("--verify", nargs="*", metavar="IMAGE", help=verify_help)
    add_int8_arguments(parser)
    args = parser.parse(argv)

    if args.output.suffix not in ENDINGS:
        parser.error(f"--output {args.output} must end in {', '.join(ENDINGS)}")
    if args.compile and args.output.suffix != ".pt2":
        parser.error(f"--compile writes a .pt2 file, not {args.output}")
    if args.device != "cpu" and not args.compile:
        parser.error(f"--device {args.device} is for packages: add --compile, or leave it out")
    if args.sampling == "operator" and args.output.suffix != ".xml":
        parser.error(f"--sampling operator writes an .xml for OpenVinoDetector, not {args.output}")
    check_int8_arguments(parser, args)
    return args


def add_int8_arguments(parser: Parser) -> None:
    """Add --int8 and the flags that go with it."""
    add = parser.add_argument_group("int8, of an .xml").add_argument
    add("--int8", action="store_true", help="compute most layers in int8; needs --calibration")
    source_help = "folder of images, or annotations in COCO's format beside their images"
    add("--calibration", type=Path, metavar="DIR", help=source_help)
    count_help = "images of it to take, evenly spread (default: %(default)s)"
    add("--calibration-size", type=number(int, 1), default=300, metavar="N", help=count_help)
    drop_help = "AP in percent that int8 may lose (default: %(default)s)"
    add("--max-ap-drop", type=number(float, 0), default=0.5, metavar="X", help=drop_help)
    add("--no-validation", action="store_true", help="do not measure AP")

    parser.add_splits()
    parser.set_defaults(drop_empty_categories=False, epochs=None)


def check_int8_arguments(parser: Parser, args: argparse.Namespace) -> None:
    """End with an error if flags of int8 do not go together."""
    given = [name for name in INT8_FLAGS if getattr(args, name) is not None]
    if given and not args.int8:
        parser.error(f"--{given[0].replace('_', '-')} goes with --int8: add it")
    if not args.int8:
        return
    if args.output.suffix != ".xml":
        parser.error(f"--int8 writes OpenVINO's format: --output {args.output} must end in .xml")
    if args.calibration is None:
        parser.error("--int8 needs images to calibrate on: add --calibration DIR")
