#!/usr/bin/env python
"""Keep the model's weights of a training checkpoint only, in a file that can be handed on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

from salience_detr.checkpoint import CheckpointError, read_checkpoint, save_weights
from salience_detr.checkpoint.loading import state_dict_of


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="a checkpoint of train_net.py")
    parser.add_argument("output", metavar="OUT", type=Path, help=".safetensors or .pth")
    parser.add_argument(
        "--half", action="store_true", help="store float16: half the size, about three digits"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights themselves, where there is an average of them",
    )
    args = parser.parse_args(argv)
    try:
        content = read_checkpoint(args.input)
        if args.raw:
            content.pop("ema", None)
        state = state_dict_of(content, args.input)
        if not all(isinstance(x, Tensor) for x in state.values()):
            raise CheckpointError(f"{args.input} holds no weights of a model")
        if args.half:
            state = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
        save_weights(state, args.output)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
