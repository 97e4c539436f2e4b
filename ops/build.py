"""Build the deformable-attention operator with the C++ compiler, and nvcc where there is CUDA.

``python ops/build.py`` builds for the PyTorch of this Python and prints where the library lies. A library is kept in
a folder named by all that it depends on, so that another PyTorch, or a change of the sources, builds another one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY = "salience_detr_ops.so"
LOG = "build.log"
# Hopper's vector atomics need 9.0; CUDA 13 starts at 7.5.
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# Products stay apart from sums, so that all instruction sets give the same bits; the other two let GCC vectorise.
CPP_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wno-psabi",
]
# The log then says how many registers each kernel takes, and what it spills.
CUDA_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas=-v"]

# Lines of a compiler's output that tell what is wrong; PyTorch's last two only say that it failed.
SAYS_NOTHING = r"Error building extension|Command '\['ninja'"
SAYS_WHY = rf"^(?!.*({SAYS_NOTHING}))([\w.]+Error: |.*(\berror\b|not found|No such file|\bld: |undefined reference))"


class BuildError(RuntimeError):
    """The operator cannot be built here; the message says what is missing or what the compiler said."""


def cache_root() -> Path:
    """Where libraries that were built on first use are kept.

    Raises:
        BuildError: there is no home folder, and no variable names another.
    """
    if os.environ.get("SALIENCE_DETR_CACHE"):
        return Path(os.environ["SALIENCE_DETR_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "salience_detr"
    except RuntimeError as error:
        raise BuildError(
            f"{error} Set SALIENCE_DETR_CACHE to a folder for the operator."
        ) from error


def compiler() -> str:
    """The C++ compiler.

    Raises:
        BuildError: there is none, or not the one of $CXX.
    """
    asked = os.environ.get("CXX", "").strip()
    if asked:
        with contextlib.suppress(ValueError):  # a quote that is not closed
            if shutil.which(shlex.split(asked)[0]):
                return asked
        raise BuildError(f"the C++ compiler of $CXX was not found: {asked}")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError(
        "no C++ compiler was found (c++, g++, clang++ or $CXX); install one, for example g++"
    )


def nvcc() -> str | None:
    """CUDA's compiler, where PyTorch looks for it too."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes = [home for home in homes if home] or ["/usr/local/cuda"]
    return shutil.which("nvcc") or next(
        (found for home in homes if (found := shutil.which(f"{home}/bin/nvcc"))), None
    )


def architectures() -> str | None:
    """For which GPUs to build, as in TORCH_CUDA_ARCH_LIST; None = no CUDA kernels.

    That takes a CUDA PyTorch, nvcc, and a GPU or FORCE_CUDA=1. It is what TORCH_CUDA_ARCH_LIST says, and the GPUs at
    hand in any case; with neither, all that are supported.
    """
    import torch

    if not torch.version.cuda or nvcc() is None:
        return None
    if not torch.cuda.is_available() and os.environ.get("FORCE_CUDA") != "1":
        return None
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    at_hand = [
        f"{major}.{minor}"
        for major, minor in sorted(set(capabilities()))
        if not serves(listed, (major, minor))
    ]
    return ";".join(filter(None, [*listed.split(";"), *at_hand])) or CUDA_ARCHITECTURES


def capabilities() -> list[tuple[int, int]]:
    """Of the GPUs at hand."""
    import torch

    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for these architectures run on such a GPU: one of its generation, or PTX of an older one."""
    for word in architectures.split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", word)
        if not found:  # a name, such as Hopper
            continue
        built = int(found[1]), int(found[2])
        if built == capability:
            return True
        if found[3] != "a" and built <= capability and (built[0] == capability[0] or found[4]):
            return True
    return False


def common_key() -> str:
    """All that a library depends on, whatever devices it is for."""
    import torch

    digest = hashlib.sha256(repr([CPP_FLAGS, CUDA_FLAGS, platform.machine()]).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    cuda = f"-cu{torch.version.cuda}" if torch.version.cuda else ""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"torch{torch.__version__}{cuda}-{python}-{digest.hexdigest()[:12]}"


def build_key(architectures: str | None) -> str:
    """Name of the folder of a library: for CUDA devices of these architectures too, or for the CPU alone."""
    return f"{common_key()}-" + (
        f"cuda-{architectures.replace(';', '_')}" if architectures else "cpu"
    )


def find(roots: Sequence[Path], architectures: str | None) -> Path | None:
    """A library under one of the folders that serves here.

    It has kernels for the GPUs at hand. Where none are wanted or can be built (``architectures`` is None), one for the
    CPU alone will do.
    """
    prefix = f"{common_key()}-"
    libraries = [library for root in roots for library in sorted(root.glob(f"{prefix}*/{LIBRARY}"))]
    for library in libraries:
        kind, _, listed = library.parent.name.removeprefix(prefix).partition("-")
        if kind == "cuda" and all(
            serves(listed.replace("_", ";"), capability) for capability in capabilities()
        ):
            return library
    if architectures is not None:
        return None
    return next((library for library in libraries if library.parent.name == build_key(None)), None)


def build(root: Path, architectures: str | None) -> Path:
    """The library under ``root`` for GPUs of these architectures, or the CPU alone, built if it is not there.

    Several processes may ask at once: one builds, the others wait. The lock goes with its process, and the library
    gets its name when it is whole, so a build that is killed leaves nothing that the next one stumbles over.

    Raises:
        BuildError: no compiler, or it fails.
    """
    from filelock import FileLock

    compiler()
    key = build_key(architectures)
    library = root / key / LIBRARY
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if library.exists():
                return library
            for left in root.glob(f"{key}.building-*"):
                shutil.rmtree(left, ignore_errors=True)
            parts = (
                f"C++, and CUDA for {architectures}: some minutes"
                if architectures
                else "C++: about half a minute"
            )
            print(
                f"Building the deformable-attention operator in {root} ({parts})",
                file=sys.stderr,
                flush=True,
            )
            folder = Path(tempfile.mkdtemp(prefix=f"{key}.building-", dir=root))
            try:
                compile_into(folder, architectures)
                finished = folder / "finished"
                finished.mkdir()
                for name in (LIBRARY, LOG):
                    shutil.move(folder / name, finished / name)
                shutil.rmtree(library.parent, ignore_errors=True)  # a folder that lost its library
                finished.rename(library.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise BuildError(
            f"the folder {root} cannot be written ({error}); set SALIENCE_DETR_CACHE to another"
        ) from error
    return library


def compile_into(folder: Path, architectures: str | None) -> None:
    """Compile in a process of its own; what it prints goes into a log, and is quoted if it fails."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--compile-into",
        str(folder),
        architectures or "",
    ]
    with open(folder / LOG, "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code or not (folder / LIBRARY).exists():
        printed = (folder / LOG).read_text(errors="replace")
        errors = [line for line in printed.splitlines() if re.search(SAYS_WHY, line, re.IGNORECASE)]
        reason = "\n".join(errors[:8]) or printed[-2000:] or f"exit code {code}"
        raise BuildError(f"the compiler failed:\n{reason}")


def run_compiler(folder: Path, architectures: str) -> None:
    """What the process of :func:`compile_into` does, by PyTorch's own builder."""
    from torch.utils import cpp_extension

    if (
        shutil.which("ninja") is None
    ):  # its package is there, but not on the PATH of an environment that is not active
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    os.environ["CXX"] = compiler()
    sources = sorted(SOURCES.rglob("*.cpp")) + (
        sorted(SOURCES.rglob("*.cu")) if architectures else []
    )
    define = ["-DSALIENCE_DETR_CUDA"] if architectures else []
    cpp_extension.load(
        name=Path(LIBRARY).stem,
        sources=[str(path) for path in sources],
        extra_cflags=CPP_FLAGS + define,
        extra_cuda_cflags=CUDA_FLAGS + define,
        extra_ldflags=["-fopenmp", *(link_cuda_runtime(folder) if architectures else [])],
        build_directory=str(folder),
        with_cuda=bool(architectures),
        is_python_module=False,
        verbose=True,
    )


def link_cuda_runtime(folder: Path) -> list[str]:
    """Linker flags for the CUDA runtime that PyTorch has loaded; a bare nvcc does not say where its own lies."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libcudart.so" in line:
            (folder / "libcudart.so").symlink_to(line.split(maxsplit=5)[5])
            return ["-L."]  # the linker runs in the folder
    return []  # where CUDA_HOME says


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="where to put the folder of the library (default: the cache)"
    )
    parser.add_argument("--compile-into", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile_into:
        run_compiler(Path(arguments.compile_into[0]), arguments.compile_into[1])
        return 0
    try:
        wanted = architectures()
        if wanted is None and os.environ.get("FORCE_CUDA") == "1":
            raise BuildError(
                "FORCE_CUDA=1, but there is no nvcc (on PATH or in CUDA_HOME), or this PyTorch has no CUDA"
            )
        print(build(arguments.output or cache_root(), wanted))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
