"""The console command, whose verbs are the programs.

salience-detr train --config-file configs/neu_det_r18.py --data-dir data/mine --output output/mine
salience-detr predict --config-file F --weights W --input folder --output out
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

import salience_detr
from salience_detr.cli.arguments import run_program
from salience_detr.utils.requirements import NO_DETECTRON2

NAME = "salience-detr"


@dataclass(frozen=True)
class Program:
    """Program that a verb runs; it is imported when its flags are parsed.

    Attributes:
        module: its name in this folder.
        help: what it does, in a few words.
        flags: module with its ``parse_args``, by default the one of its name in flags/.
        words: first words of its command line.
        function: that runs it with parsed arguments.
    """

    module: str
    help: str
    flags: str = ""
    words: tuple[str, ...] = ()
    function: str = "run"

    def parse_args(self, words: Sequence[str], prog: str | None = None) -> argparse.Namespace:
        """Parse its command line, which needs no heavy imports; ``prog`` is its name there."""
        module = import_module(f"salience_detr.cli.{self.flags or 'flags.' + self.module}")
        args: argparse.Namespace = module.parse_args([*self.words, *words], prog=prog)
        return args

    def run(self, args: argparse.Namespace) -> int:
        """Import and run it, and return its exit code."""
        program: Callable[[argparse.Namespace], int | None]
        program = getattr(import_module(f"salience_detr.cli.{self.module}"), self.function)
        return program(args) or 0


def convert(format: str, help: str) -> Program:
    """Return the conversion of one of the formats of data sets."""
    return Program("convert_dataset", help, words=(format,))


# By verb and second word. The second word "" is the program of the verb alone.
VERBS: dict[str, dict[str, Program]] = {
    "train": {"": Program("train", "train a model", function="start")},
    "val": {"": Program("train", "evaluate weights", flags="flags.val", function="start")},
    "predict": {"": Program("predict", "detect on images, videos and cameras, and draw")},
    "export": {"": Program("export", "write a model as ONNX or with torch.export")},
    "benchmark": {
        "": Program("benchmark", "time a model, beside other detectors: the default"),
        "model": Program("benchmark", "time a model, beside other detectors"),
        "operator": Program("benchmark_op", "time the deformable-attention operator"),
        "training": Program("benchmark_training", "time training and data loading"),
    },
    "check": {"": Program("check_dataset", "list, and repair, all mistakes of a data set")},
    "convert": {
        "voc": convert("voc", "a Pascal VOC data set, to COCO's format"),
        "yolo": convert("yolo", "a YOLO data set, to COCO's format"),
        "coco": convert("coco", "split a file in COCO's format"),
        "checkpoint": Program("convert_checkpoint", "weights, of the published code too"),
    },
    "visualize": {
        "data": Program("visualize_data", "draw annotations or augmented images"),
        "model": Program("visualize_model", "draw what happens inside a model"),
    },
    "analyze": {
        "errors": Program("analyze_errors", "what a detector gets wrong"),
        "metrics": Program("plot_metrics", "plot losses and AP of runs"),
        "model": Program("analyze_model", "count parameters and GMACs by stage"),
        "results": Program("evaluate_json", "AP of a file of detections"),
    },
    "web": {"": Program("web", "a page on which images are dropped")},
    "make": {
        "surface-defects": Program("make_surface_defects", "generate a data set of six classes"),
        "demo-inputs": Program("make_demo_inputs", "copy images and make a video"),
    },
    "install-detectron2": {
        "": Program("install_detectron2", "install detectron2", flags="install_detectron2")
    },
}


def help_text() -> str:
    """Return what the command is called with, a line for each program."""
    lines = [f"usage: {NAME} VERB [flags] [key=value ...]", "", "verbs:"]
    for verb, programs in VERBS.items():
        lines += program_lines(verb, programs)
    lines += ["", f"{NAME} VERB --help lists the flags of a verb; --version prints the version."]
    return "\n".join(lines)


def program_lines(verb: str, programs: dict[str, Program]) -> list[str]:
    """Return a line of help for each program of a verb."""
    return [f"  {f'{verb} {second}':<24} {x.help}" for second, x in programs.items()]


def find_program(words: Sequence[str]) -> tuple[Program, str, Sequence[str]]:
    """Return the program that a command line names, its name, and the words after it.

    Raises:
        SystemExit: help was asked for and printed, or there is no such verb.
    """
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"{NAME} {salience_detr.__version__}")
        sys.exit(0)

    verb = words[0]
    if verb not in VERBS:
        exit_unknown(NAME, verb, VERBS)
    programs = VERBS[verb]
    name = f"{NAME} {verb}"
    rest = words[1:]

    # A word that is neither a flag nor an override must be one of the second words.
    second = ""
    is_second = bool(rest) and not rest[0].startswith("-") and "=" not in rest[0]
    if len(programs) > 1 and is_second:
        second = rest[0]
        if second not in programs:
            exit_unknown(name, second, filter(None, programs))
        return programs[second], f"{name} {second}", rest[1:]

    if second in programs:
        return programs[second], name, rest
    print(f"usage: {name} WHAT [flags]", "", *program_lines(verb, programs), sep="\n")
    sys.exit(0 if rest and rest[0] in ("-h", "--help") else 2)


def exit_unknown(name: str, word: str, known: Iterable[str]) -> NoReturn:
    """Print that a word is not known, with the nearest one, and exit.

    Raises:
        SystemExit: with the code 2.
    """
    known = list(known)
    remedy = f"use one of {', '.join(known)}"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        remedy = f"did you mean {near[0]}?"
    print(f"error: there is no {name} {word}; {remedy} (see {name} --help)", file=sys.stderr)
    sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that a command line names, and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    program, name, rest = find_program(words)

    # The parser of the formats appends their name itself.
    if program.words:
        name = name.removesuffix(f" {program.words[0]}")
    return run_parsed(program, program.parse_args(rest, name))


def run_script(module: str, *, function: str = "run") -> int:
    """Run the program of a script by its module in this folder, and return its exit code."""
    program = Program(module, help="", function=function)
    return run_parsed(program, program.parse_args(sys.argv[1:]))


def run_parsed(program: Program, args: argparse.Namespace) -> int:
    """Run a program with parsed arguments, and return its exit code."""
    if program.module != "install_detectron2" and find_spec("detectron2") is None:
        print(f"error: {NO_DETECTRON2}", file=sys.stderr)
        return 2
    return run_program(program.run, args)
