"""Build of the deformable-attention operator by the C++ compiler, and by nvcc where there is CUDA.

``python ops/build.py`` builds for the PyTorch of this Python and prints the path of the library.
The folder of a library is named after everything that it depends on, so another PyTorch or a change
of the sources builds another library.
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
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY = "salience_detr_ops.so"
LOG = "build.log"
# Hopper's vector atomics need 9.0; CUDA 13 starts at 7.5. PTX of 9.0 serves GPUs between the two
# last ones, such as 11.0, and all later ones where the compiler knows no newer architecture.
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX;10.0;12.0+PTX"
# No contraction of products and sums, so that all instruction sets give the same bits. The other
# two -fno flags let GCC vectorize.
CPP_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wno-psabi",
]
# The log then shows the registers and spills of each kernel.
CUDA_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-Xptxas=-v"]

# Lines of a compiler's output that give the reason; PyTorch's last two only say that it failed.
NO_REASON = r"Error building extension|Command '\['ninja'"
REASON = (
    rf"^(?!.*({NO_REASON}))"
    r"([\w.]+Error: |.*(\berror\b|not found|No such file|\bld: |undefined reference))"
)


class BuildError(RuntimeError):
    """A build that failed, with what is missing or what the compiler printed."""


def cache_root() -> Path:
    """Return the folder for libraries that are built on first use.

    Raises:
        BuildError: there is no home folder, and no variable names another; or others could have
            changed the folder.
    """
    if os.environ.get("SALIENCE_DETR_CACHE"):
        root = Path(os.environ["SALIENCE_DETR_CACHE"])
        check_trusted(root)
        return root

    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        remedy = "Set SALIENCE_DETR_CACHE to a folder for the operator."
        raise BuildError(f"{error} {remedy}") from error

    root = cache / "salience_detr"
    check_trusted(root)
    return root


def check_trusted(path: Path) -> None:
    """Check that nobody else could have changed a folder or library of the cache.

    Whoever can write there can run code as the user who loads the library.

    Raises:
        BuildError: another user owns it or can write to it; the message names the remedy.
    """
    if not hasattr(os, "geteuid") or not path.exists():  # Windows has other rights
        return

    status = path.stat()
    others = stat.S_IWOTH
    if not is_private_group(status.st_gid):
        others |= stat.S_IWGRP

    # Root can change everything anyway.
    if status.st_uid not in (0, os.geteuid()):
        raise BuildError(
            f"{path} belongs to another user (uid {status.st_uid}), who could have put any code "
            "there; set SALIENCE_DETR_CACHE to a folder of your own"
        )
    if status.st_mode & others:
        raise BuildError(
            f"other users can write to {path}, and could have put any code there; set "
            "SALIENCE_DETR_CACHE to a folder of your own, or, if you trust what is there, "
            f"chmod go-w {shlex.quote(str(path))}"
        )


def is_private_group(group_id: int) -> bool:
    """Return whether a group is the user's own, as systems give one to each user, with umask 002.

    Root's is not: containers put users without an account into it.
    """
    import grp
    import pwd

    if group_id == 0:
        return False
    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(group_id)
    except KeyError:  # without an account
        return False
    return user.pw_gid == group_id and group.gr_name == user.pw_name and not group.gr_mem


def compiler() -> str:
    """Return the C++ compiler: $CXX, or the first on the PATH.

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
    """Return CUDA's compiler, or None; PyTorch looks in the same places."""
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path

    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for home in list(filter(None, homes)) or ["/usr/local/cuda"]:
        compiler_path = shutil.which(f"{home}/bin/nvcc")
        if compiler_path:
            return compiler_path
    return None


def architectures() -> str | None:
    """Return the GPU architectures to build for, as in TORCH_CUDA_ARCH_LIST, or None for no CUDA.

    CUDA kernels need a CUDA PyTorch, nvcc, and a GPU or FORCE_CUDA=1. They are built for the
    architectures of TORCH_CUDA_ARCH_LIST and for the GPUs at hand; without either, for all
    supported ones.
    """
    import torch

    if not torch.version.cuda or nvcc() is None:
        return None
    if not torch.cuda.is_available() and os.environ.get("FORCE_CUDA") != "1":
        return None

    # A GPU at hand is served in any case, whatever the variable lists.
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    wanted = list(filter(None, listed.split(";")))
    for major, minor in sorted(set(capabilities())):
        if not serves(listed, (major, minor)):
            wanted.append(f"{major}.{minor}")
    return ";".join(wanted) or CUDA_ARCHITECTURES


def buildable(architectures: str) -> str:
    """Return those of the architectures that nvcc and PyTorch's builder know.

    An old CUDA or PyTorch does not know a new GPU, and ends the whole build at its name. What is
    left out is named in one warning. GPUs at hand that are newer than both are served by PTX.

    Raises:
        BuildError: none of them is known.
    """
    nvcc_knows = nvcc_architectures()
    known: list[str] = []
    unknown: list[str] = []
    for word in architectures.split(";"):
        virtual = virtual_architectures(word)
        is_known = bool(virtual) and (not nvcc_knows or virtual <= nvcc_knows)
        (known if is_known else unknown).append(word)
    if not unknown:
        return architectures

    missing = f"{', '.join(unknown)}: not known to {nvcc()} or to this PyTorch"
    for capability in sorted(set(capabilities())):
        if not serves(";".join(known), capability):
            newest_known = newest_ptx(capability, nvcc_knows)
            if newest_known and newest_known not in known:
                known.append(newest_known)
    if not known:
        raise BuildError(f"no CUDA kernels can be built for {missing}; install a newer CUDA")

    print(
        f"warning: no kernels are built for {missing}; built: {', '.join(known)}",
        file=sys.stderr,
        flush=True,
    )
    return ";".join(known)


def nvcc_architectures() -> set[str]:
    """Return the virtual architectures that nvcc knows ("90"); none if it cannot be asked."""
    command = [nvcc() or "nvcc", "--list-gpu-arch"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return set()
    return set(re.findall(r"compute_(\d+)", listed))


def virtual_architectures(word: str) -> set[str]:
    """Return the virtual architectures ("90") of one word of TORCH_CUDA_ARCH_LIST, such as "9.0a".

    There are none if PyTorch's builder does not know the word. A name ("Ampere") has several.
    """
    from torch.utils import cpp_extension

    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    os.environ["TORCH_CUDA_ARCH_LIST"] = word
    try:
        flags = cpp_extension._get_cuda_arch_flags()
    except ValueError:
        return set()
    finally:
        del os.environ["TORCH_CUDA_ARCH_LIST"]
        if listed is not None:
            os.environ["TORCH_CUDA_ARCH_LIST"] = listed
    return set(re.findall(r"arch=compute_(\d+)", " ".join(flags)))


def newest_ptx(capability: tuple[int, int], nvcc_knows: set[str]) -> str | None:
    """Return the newest supported architecture with PTX that a newer GPU can run, or None."""
    for word in reversed(CUDA_ARCHITECTURES.split(";")):
        ptx = word.removesuffix("+PTX") + "+PTX"
        virtual = virtual_architectures(ptx)
        if virtual and serves(ptx, capability) and (not nvcc_knows or virtual <= nvcc_knows):
            return ptx
    return None


def cuda_standard() -> str:
    """Return nvcc's flag for C++20, or for C++17 where it knows no later one (CUDA 11)."""
    try:
        words = subprocess.run([nvcc() or "nvcc", "--help"], capture_output=True, text=True).stdout
    except OSError:
        words = ""
    return "-std=c++20" if "c++20" in words else "-std=c++17"


def capabilities() -> list[tuple[int, int]]:
    """Return the compute capability (major, minor) of each GPU at hand."""
    import torch

    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Return whether kernels for these architectures run on a GPU of this capability.

    One of them must not be newer, and must be of the same generation or have PTX.
    """
    for word in architectures.split(";"):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", word)
        if not match:  # a name, such as Hopper
            continue

        # Kernels run on later GPUs of their generation, PTX on all later ones. "9.0a" runs on
        # 9.0 only.
        built = int(match[1]), int(match[2])
        if built == capability:
            return True
        is_specific = match[3] == "a"
        is_portable = built[0] == capability[0] or match[4]
        if built <= capability and is_portable and not is_specific:
            return True
    return False


def common_key() -> str:
    """Return a key of everything that a library depends on, except the devices that it serves."""
    import torch

    digest = hashlib.sha256(repr([CPP_FLAGS, CUDA_FLAGS, platform.machine()]).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())

    cuda = f"-cu{torch.version.cuda}" if torch.version.cuda else ""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"torch{torch.__version__}{cuda}-{python}-{digest.hexdigest()[:12]}"


def build_key(architectures: str | None) -> str:
    """Return the folder name of a library for GPUs of these architectures, or for the CPU alone."""
    if architectures is None:
        return f"{common_key()}-cpu"
    return f"{common_key()}-cuda-{architectures.replace(';', '_')}"


def find(roots: Sequence[Path], architectures: str | None) -> Path | None:
    """Return a library in one of the folders that serves all GPUs at hand, or None.

    Where no CUDA kernels can be built (``architectures`` is None), a library for the CPU will do.
    """
    prefix = f"{common_key()}-"
    libraries: list[Path] = []
    for root in roots:
        libraries += sorted(root.glob(f"{prefix}*/{LIBRARY}"))

    for library in libraries:
        devices, _, listed = library.parent.name.removeprefix(prefix).partition("-")
        built_for = listed.replace("_", ";")
        if devices == "cuda" and all(serves(built_for, gpu) for gpu in capabilities()):
            return library

    # There is no GPU, or no way to build for it.
    if architectures is None:
        for library in libraries:
            if library.parent.name == build_key(None):
                return library
    return None


def build(root: Path, architectures: str | None) -> Path:
    """Return the library under ``root`` for these architectures; build it if it is not there.

    Of several processes, one builds and the others wait. A build that is killed does no harm: the
    lock ends with its process, and a library gets its name when it is complete.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    from filelock import FileLock

    compiler()
    if architectures is not None:
        architectures = buildable(architectures)
    key = build_key(architectures)
    library = root / key / LIBRARY
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if not library.exists():
                for leftover in root.glob(f"{key}.building-*"):  # of a build that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                build_locked(library, architectures)
    except OSError as error:
        remedy = "set SALIENCE_DETR_CACHE to another"
        raise BuildError(f"the folder {root} cannot be written ({error}); {remedy}") from error
    return library


def build_locked(library: Path, architectures: str | None) -> None:
    """Build in a temporary folder, and move the library to its place."""
    root = library.parents[1]
    work = "C++: about half a minute"
    if architectures:
        work = f"C++, and CUDA for {architectures}: some minutes"
    message = f"Building the deformable-attention operator in {root} ({work})"
    print(message, file=sys.stderr, flush=True)

    # On the same file system as the library, so that it is moved by a rename.
    prefix = f"{library.parent.name}.building-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        compile_into(folder, architectures)
        finished = folder / "finished"
        finished.mkdir(mode=0o755)  # nobody else may write, whatever the umask
        for name in (LIBRARY, LOG):
            shutil.move(folder / name, finished / name)
        (finished / LIBRARY).chmod(0o755)

        shutil.rmtree(library.parent, ignore_errors=True)  # a folder that lost its library
        finished.rename(library.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compile_into(folder: Path, architectures: str | None) -> None:
    """Compile in a process of its own, whose output goes into a log.

    The environment variables that PyTorch's builder reads are changed in that process only.

    Raises:
        BuildError: the compiler failed; the message quotes the log.
    """
    program = str(Path(__file__).resolve())
    command = [sys.executable, program, "--compile-into", str(folder), architectures or ""]
    with open(folder / LOG, "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode

    # The log is long: the lines that give the reason are quoted, or else its end.
    if code or not (folder / LIBRARY).exists():
        printed = (folder / LOG).read_text(errors="replace")
        errors = [line for line in printed.splitlines() if re.search(REASON, line, re.IGNORECASE)]
        reason = "\n".join(errors[:8]) or printed[-2000:] or f"exit code {code}"
        raise BuildError(f"the compiler failed:\n{reason}")


def run_compiler(folder: Path, architectures: str) -> None:
    """Compile with PyTorch's builder, in the process that :func:`compile_into` starts."""
    from torch.utils import cpp_extension

    if shutil.which("ninja") is None:
        # Its package is installed, but the environment is not active.
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    os.environ["CXX"] = compiler()

    sources = sorted(SOURCES.rglob("*.cpp"))
    define: list[str] = []
    cuda_flags = list(CUDA_FLAGS)
    link_flags = ["-fopenmp"]
    if architectures:
        cuda_flags.append(cuda_standard())
        sources += sorted(SOURCES.rglob("*.cu"))
        define = ["-DSALIENCE_DETR_CUDA"]
        link_flags += link_cuda_runtime(folder)

    cpp_extension.load(
        name=Path(LIBRARY).stem,
        sources=[str(path) for path in sources],
        extra_cflags=CPP_FLAGS + define,
        extra_cuda_cflags=cuda_flags + define,
        extra_ldflags=link_flags,
        build_directory=str(folder),
        with_cuda=bool(architectures),
        is_python_module=False,
        verbose=True,
    )


def link_cuda_runtime(folder: Path) -> list[str]:
    """Return linker flags for the CUDA runtime that PyTorch has loaded.

    A bare nvcc does not tell where its own runtime lies.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libcudart.so" in line:
            (folder / "libcudart.so").symlink_to(line.split(maxsplit=5)[5])
            return ["-L."]  # the linker runs in the folder
    return []  # the linker finds the one of CUDA_HOME


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for the library (default: the cache)")
    parser.add_argument("--compile-into", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.compile_into:
        run_compiler(Path(arguments.compile_into[0]), arguments.compile_into[1])
        return 0

    try:
        wanted = architectures()
        if wanted is None and os.environ.get("FORCE_CUDA") == "1":
            missing = "there is no nvcc (on PATH or in CUDA_HOME), or this PyTorch has no CUDA"
            raise BuildError(f"FORCE_CUDA=1, but {missing}")
        print(build(arguments.output or cache_root(), wanted))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
