"""Build the deformable-attention operator with the C++ compiler, and nvcc where there is CUDA.

``python ops/build.py`` builds for the PyTorch of this Python and prints where the library lies. A library is kept in
a folder named by all that it depends on, so that another PyTorch, or a change of the sources, builds another one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
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

# Lines of a compiler's output that tell what is wrong; the last is PyTorch's, and says nothing.
SAYS_WHY = r"^(?!RuntimeError: Error building).*(\berror\b|not found|No such file|\bld: |undefined reference)"


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
        raise BuildError(f"{error} Set SALIENCE_DETR_CACHE to a folder for the operator.") from error


def compiler() -> str:
    """The C++ compiler.

    Raises:
        BuildError: there is none, or not the one of $CXX.
    """
    asked = os.environ.get("CXX", "")
    if asked:
        if shutil.which(shlex.split(asked)[0]):
            return asked
        raise BuildError(f"the C++ compiler of $CXX was not found: {asked}")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError("no C++ compiler was found (c++, g++, clang++ or $CXX); install one, for example g++")


def nvcc() -> str | None:
    """CUDA's compiler, where PyTorch looks for it too."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes = [home for home in homes if home] or ["/usr/local/cuda"]
    return shutil.which("nvcc") or next((found for home in homes if (found := shutil.which(f"{home}/bin/nvcc"))), None)


def architectures() -> str | None:
    """For which GPUs to build, as in TORCH_CUDA_ARCH_LIST; None = no CUDA kernels.

    That takes a CUDA PyTorch, nvcc, and a GPU or FORCE_CUDA=1. Without TORCH_CUDA_ARCH_LIST it is the GPUs at hand, or
    all that are supported if there are none.
    """
    import torch

    if not torch.version.cuda or nvcc() is None:
        return None
    if not torch.cuda.is_available() and os.environ.get("FORCE_CUDA") != "1":
        return None
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
    if not torch.cuda.is_available():
        return CUDA_ARCHITECTURES
    return ";".join(f"{major}.{minor}" for major, minor in sorted(set(capabilities())))


def capabilities() -> list[tuple[int, int]]:
    """Of the GPUs at hand."""
    import torch

    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for these architectures run on such a GPU: one of its generation, or PTX of an older one."""
    for word in architectures.split(";"):
        major, minor = (int(part) for part in word.removesuffix("+PTX").split("."))
        same = major == capability[0] and minor <= capability[1]
        if same or (word.endswith("+PTX") and (major, minor) <= capability):
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
    return f"{common_key()}-" + (f"cuda-{architectures.replace(';', '_')}" if architectures else "cpu")


def find(root: Path) -> Path | None:
    """A library under ``root`` that serves here.

    It has kernels for the GPUs at hand; where none can be built, that is what FORCE_CUDA built for other machines, and
    failing that, one for the CPU alone.
    """
    prefix = f"{common_key()}-"
    suffixes = [library.parent.name.removeprefix(prefix) for library in root.glob(f"{prefix}*/{LIBRARY}")]
    for suffix in sorted(suffixes, reverse=True):  # cuda before cpu
        kind, _, listed = suffix.partition("-")
        if kind == "cuda":
            found = all(serves(listed.replace("_", ";"), capability) for capability in capabilities())
        else:
            found = architectures() is None
        if found:
            return root / (prefix + suffix) / LIBRARY
    return None


def build(root: Path, *, again: bool = False) -> Path:
    """The library under ``root``, built if it is not there.

    Several processes may ask at once: one builds, the others wait. The lock goes with its process, and the library
    gets its name when it is whole, so a build that is killed leaves nothing that the next one stumbles over. What the
    compiler refused is remembered, and only tried again if asked for.

    Raises:
        BuildError: no compiler, or it fails.
    """
    from filelock import FileLock

    cuda = architectures()
    if cuda is None and os.environ.get("FORCE_CUDA") == "1":
        raise BuildError("FORCE_CUDA=1, but nvcc was not found (on PATH or in CUDA_HOME), or this PyTorch has no CUDA")
    key = build_key(cuda)
    library, failure = root / key / LIBRARY, root / f"{key}.failed"
    words = compiler()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if library.exists():
                return library
            if failure.exists() and not again and failure.read_text().startswith(f"{words}\n"):
                raise BuildError(failure.read_text().partition("\n")[2])
            for left in root.glob(f"{key}.building-*"):
                shutil.rmtree(left, ignore_errors=True)
            parts = f"C++, and CUDA for {cuda}: some minutes" if cuda else "C++: about half a minute"
            print(f"Building the deformable-attention operator in {root} ({parts})", file=sys.stderr, flush=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{key}.building-", dir=root))
            try:
                compile_into(folder)
                finished = folder / "finished"
                finished.mkdir()
                for name in (LIBRARY, LOG):
                    shutil.move(folder / name, finished / name)
                shutil.rmtree(library.parent, ignore_errors=True)  # a folder that lost its library
                finished.rename(library.parent)
                failure.unlink(missing_ok=True)
            except BuildError as error:
                failure.write_text(f"{words}\n{error}")
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise BuildError(
            f"the folder {root} cannot be written ({error}); set SALIENCE_DETR_CACHE to another"
        ) from error
    return library


def compile_into(folder: Path) -> None:
    """Compile in a process of its own; what it prints goes into a log, and is quoted if it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--compile-into", str(folder)]
    with open(folder / LOG, "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code or not (folder / LIBRARY).exists():
        printed = (folder / LOG).read_text(errors="replace")
        errors = [line for line in printed.splitlines() if re.search(SAYS_WHY, line, re.IGNORECASE)]
        reason = "\n".join(errors[:8]) or printed[-2000:] or f"exit code {code}"
        raise BuildError(f"the compiler failed:\n{reason}")


def run_compiler(folder: Path) -> None:
    """What the process of :func:`compile_into` does, by PyTorch's own builder (ninja)."""
    from torch.utils import cpp_extension

    cuda = architectures()
    os.environ["TORCH_CUDA_ARCH_LIST"] = cuda or ""
    os.environ["CXX"] = compiler()
    sources = sorted(SOURCES.rglob("*.cpp")) + (sorted(SOURCES.rglob("*.cu")) if cuda else [])
    define = ["-DSALIENCE_DETR_CUDA"] if cuda else []
    cpp_extension.load(
        name=Path(LIBRARY).stem,
        sources=[str(path) for path in sources],
        extra_cflags=CPP_FLAGS + define,
        extra_cuda_cflags=CUDA_FLAGS + define,
        extra_ldflags=["-fopenmp", *(link_cuda_runtime(folder) if cuda else [])],
        build_directory=str(folder),
        with_cuda=cuda is not None,
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
    parser.add_argument("--output", type=Path, help="where to put the folder of the library (default: the cache)")
    parser.add_argument("--compile-into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile_into:
        run_compiler(arguments.compile_into)
        return 0
    try:
        print(build(arguments.output or cache_root(), again=True))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
