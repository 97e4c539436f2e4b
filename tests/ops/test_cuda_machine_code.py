"""Loads in flight and registers in the machine code of the CUDA kernels; needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from salience_detr.layers.operator import import_file

pytestmark = [pytest.mark.nvcc, pytest.mark.xdist_group("cuda_machine_code")]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "ops" / "csrc" / "cuda"
CORNERS = 4

# Of the multiprocessors with 64 K registers, threads of 128 to a block.
REGISTERS = 65536
THREADS = 128
FORWARD_BLOCKS = {"float32": 8, "bfloat16": 7}
BACKWARD_BLOCKS = 5

FUNCTION = re.compile(
    r"^\s*Function : (\S+)\n(.*?)(?=^\s*Function : |\Z)", re.DOTALL | re.MULTILINE
)
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);")
ROW_LOAD = re.compile(r"\bLDG\.E\.128\S* R(\d+),")
BRANCH = re.compile(r"\b(BRA|BRX|BSYNC|CALL|RET|EXIT|WARPSYNC)\b")


def find_disassembler():
    """Return cuobjdump of CUDA, or the one that Triton brings along, or None."""
    on_path = shutil.which("cuobjdump")
    if on_path:
        return on_path

    triton = pytest.importorskip("triton", reason="there is neither cuobjdump nor Triton")
    brought = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(brought) if brought.exists() else None


@pytest.fixture(scope="module", params=sorted(FORWARD_BLOCKS))
def compiled(request, tmp_path_factory):
    """Compile the kernels of a number type for Hopper; return instructions, log and type."""
    builder = import_file(ROOT / "ops" / "build.py")
    compiler, disassembler = builder.nvcc(), find_disassembler()
    if compiler is None:
        pytest.skip("needs nvcc")
    if disassembler is None:
        pytest.skip("needs cuobjdump, of CUDA or Triton")

    binary = tmp_path_factory.mktemp("machine_code") / "kernels.cubin"
    headers = Path(torch.__file__).parent / "include"
    command = [
        *(compiler, *builder.CUDA_FLAGS, builder.cuda_standard(), f"-I{headers}"),
        *("-gencode=arch=compute_90,code=sm_90", "-cubin", "-o", binary),
        SOURCES / f"kernels_{request.param}.cu",
    ]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    # Its own disassembler lies beside it.
    path = os.pathsep.join([str(Path(disassembler).parent), os.environ["PATH"]])
    printed = subprocess.run(
        [disassembler, "-sass", binary],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    ).stdout
    instructions = {name: INSTRUCTION.findall(body) for name, body in FUNCTION.findall(printed)}
    return instructions, log, request.param


def loads_in_flight(instructions):
    """Return for each group of row loads how many are issued before one is used, or a branch."""
    groups = []
    pending: set[int] = set()
    count = 0
    for instruction in instructions:
        load = ROW_LOAD.search(instruction)
        if load:
            first = int(load[1])
            pending |= set(range(first, first + 4))
            count += 1
            continue

        # The first operand is written, the others are read.
        operands = instruction.partition(",")[2]
        used = {int(number) for number in re.findall(r"\bR(\d+)", operands)}
        if count and (used & pending or BRANCH.search(instruction)):
            groups.append(count)
            pending, count = set(), 0
    return groups


def select(instructions, kernel):
    """Return the instructions of the kernels of a direction that read 16 bytes at a time."""
    found = {name: body for name, body in instructions.items() if kernel in name}
    vectors = {name: body for name, body in found.items() if any(map(ROW_LOAD.search, body))}
    assert len(vectors) >= 3  # two known shapes and the general kernel
    return vectors


def test_the_rows_of_all_corners_are_on_their_way_before_one_is_used(compiled):
    instructions, _, _ = compiled
    for name, body in select(instructions, "forward_kernel").items():
        groups = loads_in_flight(body)
        assert groups and min(groups) >= CORNERS, (name, groups)

    for name, body in select(instructions, "backward_kernel").items():
        groups = loads_in_flight(body)
        # The gradient of the output is read alone.
        corners = [count for count in groups if count != 1]
        assert len(corners) >= CORNERS and min(corners) >= CORNERS, (name, groups)


def test_kernels_of_known_shapes_leave_registers_for_enough_blocks(compiled):
    _, log, dtype = compiled
    pattern = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    kernels = re.findall(pattern, log, re.DOTALL)
    assert kernels
    for name, spilled, registers in kernels:
        assert spilled == "0", name
        if not re.search(r"VariantIj", name):  # offsets of 32 bits: a known shape
            continue
        blocks = FORWARD_BLOCKS[dtype] if "forward" in name else BACKWARD_BLOCKS
        assert int(registers) * THREADS * blocks <= REGISTERS, (name, registers)
