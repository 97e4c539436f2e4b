"""Building the operator: once, again after a kill, and not at all where it cannot be."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from salience_detr.layers import operator
from salience_detr.layers.operator import import_file

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "ops" / "build.py"

# Stands for a compiler that needs a while.
SLOW_BUILD = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
def compile_into(folder, architectures):
    (folder / "objects").write_text("half")
    time.sleep(float(sys.argv[3]))
    (folder / build.LIBRARY).write_text("library")
    (folder / build.LOG).write_text("log")
build.compile_into = compile_into
print(build.build(Path(sys.argv[2]), None))
"""


def start_build(root, seconds):
    command = [sys.executable, "-c", SLOW_BUILD, str(BUILD), str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_build_does_not_block_the_next(tmp_path):
    killed = start_build(tmp_path, 1000)
    wait_for(lambda: list(tmp_path.glob("*.building-*/objects")))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    output, messages = start_build(tmp_path, 0).communicate(timeout=60)
    assert Path(output.strip()).read_text() == "library"
    assert "Building the deformable-attention operator" in messages
    assert not list(tmp_path.glob("*.building-*"))


def test_two_processes_build_once(tmp_path):
    first = start_build(tmp_path, 2)
    wait_for(lambda: list(tmp_path.glob("*.building-*/objects")))
    second = start_build(tmp_path, 0)
    (one, message), (other, nothing) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert one == other
    assert "Building" in message and "Building" not in nothing


def test_the_folder_is_named_by_all_that_the_library_depends_on(monkeypatch, tmp_path):
    build = import_file(BUILD)
    key = build.build_key(None)
    assert torch.__version__ in key and f"cp{sys.version_info.major}{sys.version_info.minor}" in key
    assert len({key, build.build_key("9.0"), build.build_key("8.0;9.0")}) == 3
    shutil.copytree(build.SOURCES, tmp_path / "csrc")
    (tmp_path / "csrc" / "registration.cpp").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
    assert build.build_key(None) != key


@pytest.fixture
def builder(monkeypatch):
    """The build, on a machine with the GPUs that are told to it."""
    build = import_file(BUILD)

    def gpus(*capabilities):
        monkeypatch.setattr(build, "capabilities", lambda: list(capabilities))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))

    build.set_gpus = gpus
    gpus()
    return build


def keep_library(build, root, architectures):
    folder = root / build.build_key(architectures)
    folder.mkdir(parents=True)
    (folder / build.LIBRARY).touch()
    return folder / build.LIBRARY


def test_the_library_is_one_for_the_gpus_at_hand(builder, tmp_path):
    cpu = keep_library(builder, tmp_path, None)
    assert builder.find([tmp_path], None) == cpu
    builder.set_gpus((9, 0))  # a GPU and nvcc: better to build
    assert builder.find([tmp_path], "9.0") is None
    everything = keep_library(builder, tmp_path, builder.CUDA_ARCHITECTURES)
    assert builder.find([tmp_path], "9.0") == everything
    assert builder.find([tmp_path], None) == everything  # a GPU, and no nvcc
    shutil.rmtree(everything.parent)
    other = keep_library(builder, tmp_path, "8.0")
    assert builder.find([tmp_path], None) == cpu
    builder.set_gpus((8, 6))
    assert builder.find([tmp_path], None) == other


def test_kernels_for_the_gpu_are_found_wherever_they_are(builder, tmp_path):
    keep_library(builder, tmp_path / "ahead", None)
    cuda = keep_library(builder, tmp_path / "cache", "9.0a")
    builder.set_gpus((9, 0))
    assert builder.find([tmp_path / "ahead", tmp_path / "cache"], None) == cuda


def test_kernels_run_on_their_generation_and_ptx_on_later_ones():
    serves = import_file(BUILD).serves
    assert serves("7.5;8.0", (8, 6)) and serves("8.0", (8, 0)) and serves("8.6+PTX", (9, 0))
    assert (
        not serves("8.6", (8, 0))
        and not serves("7.5;8.6", (9, 0))
        and not serves("9.0+PTX", (8, 6))
    )
    assert (
        serves("8.0;9.0a", (9, 0)) and not serves("10.0a+PTX", (10, 3)) and serves("10.0f", (10, 3))
    )
    assert not serves("Hopper", (9, 0)) and not serves("", (9, 0))


@pytest.mark.parametrize(
    ("listed", "gpus", "expected"),
    [
        ("", [], "7.5;8.0;8.6;8.9;9.0+PTX;10.0;12.0+PTX"),
        ("8.0 9.0a", [], "8.0;9.0a"),
        ("", [(9, 0), (8, 0), (9, 0)], "8.0;9.0"),
        ("8.0+PTX", [(9, 0)], "8.0+PTX"),
        ("8.0", [(9, 0)], "8.0;9.0"),
        ("Hopper;", [(9, 0)], "Hopper;9.0"),
    ],
)
def test_kernels_are_built_for_what_is_listed_and_for_the_gpus_at_hand(
    builder, monkeypatch, listed, gpus, expected
):
    monkeypatch.setattr(builder, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    builder.set_gpus(*gpus)
    assert builder.architectures() == expected


def test_every_gpu_since_turing_is_served_by_the_default_list(builder):
    for capability in (
        (7, 5),
        (8, 7),
        (9, 0),
        (10, 0),
        (10, 3),
        (11, 0),
        (12, 0),
        (12, 1),
        (13, 0),
    ):
        assert builder.serves(builder.CUDA_ARCHITECTURES, capability), capability


@pytest.fixture
def tool_chain(builder, monkeypatch, tmp_path):
    """The build with an nvcc and a PyTorch that know the architectures that are told to it."""
    from torch.utils import cpp_extension

    known_flags = cpp_extension._get_cuda_arch_flags

    def set_known(nvcc_knows, torch_knows):
        program = tmp_path / "nvcc"
        listed = "\\n".join(f"compute_{number}" for number in nvcc_knows)
        program.write_text(f"#!/bin/sh\nprintf '{listed}\\n'\n")
        program.chmod(0o755)
        monkeypatch.setattr(builder, "nvcc", lambda: str(program))

        def flags():
            word = os.environ["TORCH_CUDA_ARCH_LIST"]
            version = word.removesuffix("+PTX").removesuffix("a")
            if version[0].isdigit() and version not in torch_knows:
                raise ValueError(f"Unknown CUDA arch ({word}) or GPU not supported")
            return known_flags()

        monkeypatch.setattr(cpp_extension, "_get_cuda_arch_flags", flags)

    builder.set_known = set_known
    return builder


# CUDA 12.1 and PyTorch 2.4: nothing after Hopper.
NVCC_12_1 = ("50", "60", "70", "75", "80", "86", "87", "89", "90")
NVCC_13 = ("75", "80", "86", "89", "90", "100", "103", "110", "120", "121")
TORCH_2_4 = ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0")
TORCH_2_7 = (*TORCH_2_4, "10.0", "12.0")


@pytest.mark.parametrize(
    ("nvcc_knows", "torch_knows", "wanted", "gpus", "expected", "left_out"),
    [
        (NVCC_13, TORCH_2_7, None, [], "7.5;8.0;8.6;8.9;9.0+PTX;10.0;12.0+PTX", ""),
        (NVCC_12_1, TORCH_2_4, None, [], "7.5;8.0;8.6;8.9;9.0+PTX", "10.0, 12.0+PTX"),
        (NVCC_12_1, TORCH_2_7, None, [], "7.5;8.0;8.6;8.9;9.0+PTX", "10.0, 12.0+PTX"),
        (NVCC_13, TORCH_2_4, None, [], "7.5;8.0;8.6;8.9;9.0+PTX", "10.0, 12.0+PTX"),
        (NVCC_13, TORCH_2_7, "7.0;8.0", [], "8.0", "7.0"),
        (NVCC_12_1, TORCH_2_4, "Ampere;9.0a", [(9, 0)], "Ampere;9.0a", ""),
        # A GPU that neither knows runs the PTX of the newest that both know.
        (NVCC_12_1, TORCH_2_4, "12.0", [(12, 0)], "9.0+PTX", "12.0"),
        (NVCC_12_1, TORCH_2_4, "9.0;12.0", [(9, 0), (12, 0)], "9.0;9.0+PTX", "12.0"),
        ((), TORCH_2_4, "9.0;12.0", [], "9.0", "12.0"),
    ],
)
def test_what_nvcc_and_pytorch_do_not_know_is_left_out_with_one_warning(
    tool_chain, capsys, nvcc_knows, torch_knows, wanted, gpus, expected, left_out
):
    tool_chain.set_known(nvcc_knows, torch_knows)
    tool_chain.set_gpus(*gpus)
    assert tool_chain.buildable(wanted or tool_chain.CUDA_ARCHITECTURES) == expected

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(left_out)
    if left_out:
        assert f"warning: no kernels are built for {left_out}: not known to" in lines[0]
        assert lines[0].endswith(f"built: {expected.replace(';', ', ')}")


def test_a_list_of_which_nothing_is_known_is_an_error(tool_chain, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "12.0")
    tool_chain.set_known(NVCC_12_1, TORCH_2_4)
    with pytest.raises(tool_chain.BuildError, match=r"built for 12\.0: .* install a newer CUDA"):
        tool_chain.build(tmp_path, "12.0")
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "12.0"


def test_the_standard_is_one_that_nvcc_knows(builder, monkeypatch, tmp_path):
    program = tmp_path / "nvcc"
    monkeypatch.setattr(builder, "nvcc", lambda: str(program))
    for standards, flag in (("c++14|c++17", "-std=c++17"), ("c++17|c++20", "-std=c++20")):
        program.write_text(f"#!/bin/sh\necho '--std {{{standards}}}'\n")
        program.chmod(0o755)
        assert builder.cuda_standard() == flag


def test_a_cuda_part_that_fails_leaves_the_one_for_the_cpu(builder, monkeypatch, tmp_path):
    def compile_into(folder, architectures):
        if architectures:
            raise builder.BuildError("no room for CUDA")
        for name in (builder.LIBRARY, builder.LOG):
            (folder / name).touch()

    monkeypatch.setattr(builder, "compile_into", compile_into)
    monkeypatch.setattr(builder, "architectures", lambda: "9.0")
    monkeypatch.setattr(builder, "buildable", lambda architectures: architectures)
    monkeypatch.setattr(operator, "BUILT_AHEAD", tmp_path / "ahead")
    monkeypatch.setenv("SALIENCE_DETR_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="CUDA part .* cannot be built: no room for CUDA"):
            assert operator.find_or_build(builder).parent.name == builder.build_key(None)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    build = import_file(BUILD)
    for name in ("/nowhere/g++", "g++ 'half"):
        monkeypatch.setenv("CXX", name)
        with pytest.raises(
            build.BuildError, match=rf"compiler of \$CXX was not found: {re.escape(name)}"
        ):
            build.build(tmp_path, None)
    monkeypatch.setenv("FORCE_CUDA", "1")
    found = run_build(tmp_path, PATH="/bin", CUDA_HOME="/nowhere")
    assert found.returncode == 1 and "error: FORCE_CUDA=1, but there is no nvcc" in found.stderr
    monkeypatch.delenv("SALIENCE_DETR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(build.BuildError, match=r"home directory. Set SALIENCE_DETR_CACHE"):
        build.cache_root()


def run_build(output, **environment):
    return subprocess.run(
        [sys.executable, str(BUILD), "--output", str(output)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_ninja_need_not_be_on_the_path(tmp_path):
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        "case $* in *-c*) echo 'error: reached' >&2; exit 1;; *) echo 'c++ (GCC) 12.2.0';; esac\n"
    )
    compiler.chmod(0o755)
    found = run_build(tmp_path, PATH=str(tmp_path / "bin"), CXX="")
    assert "error: reached" in found.stderr and "ninja" not in found.stderr.partition("failed")[2]


USE = """
import torch, warnings
warnings.simplefilter("always")
import salience_detr.layers.ms_deform_attn as attention
assert not hasattr(torch.ops.salience_detr, "ms_deform_attn"), "importing must not load anything"
value = torch.arange(4.0).view(1, 4, 1, 1)
shapes = torch.tensor([[2, 2]])
start = torch.tensor([0])
where = torch.full((1, 1, 1, 1, 1, 2), 0.5)
weights = torch.ones(1, 1, 1, 1, 1)
for _ in range(2):
    print(attention.ms_deform_attn(value, shapes, start, where, weights))
"""


def use_operator(**environment):
    return subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=environment["PYTHONPATH"],
    )


@pytest.fixture
def nothing_built(tmp_path):
    """A copy of the project without a library, in which nothing can be found built ahead."""
    project = tmp_path / "project"
    for name in ("salience_detr", "ops"):
        shutil.copytree(
            ROOT / name, project / name, ignore=shutil.ignore_patterns("_operator", "__pycache__")
        )
    return {"PYTHONPATH": str(project), "SALIENCE_DETR_CACHE": str(tmp_path / "cache")}


def test_without_a_compiler_the_pytorch_reference_runs_after_one_warning(nothing_built, tmp_path):
    (tmp_path / "empty").mkdir()
    found = use_operator(**nothing_built, PATH=str(tmp_path / "empty"), CXX="")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("1.5") == 2
    assert len(re.findall("no C\\+\\+ compiler was found", found.stderr)) == 1
    assert "ops/build.py' builds the operator" in found.stderr


def test_a_compiler_that_fails_is_quoted(nothing_built, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        'case " $* " in *" -c "*) echo "error: no room" >&2; exit 1;; *) exec g++ "$@";; esac\n'
    )
    compiler.chmod(0o755)
    found = use_operator(**nothing_built, CXX=str(compiler))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("1.5") == 2
    assert "error: no room" in found.stderr


def test_it_can_be_turned_off(nothing_built):
    found = use_operator(**nothing_built, SALIENCE_DETR_OPERATOR="off")
    assert found.stdout.count("1.5") == 2
    assert "operator" not in found.stderr


# A library that dlopen takes and that registers nothing.
EMPTY = 'extern "C" int nothing() { return 0; }'


@pytest.fixture
def cached(nothing_built, tmp_path):
    """A cache with a library without operators; returns its path."""
    build = import_file(BUILD)
    library = keep_library(build, tmp_path / "cache", None)
    library.unlink()
    (tmp_path / "empty.cpp").write_text(EMPTY)
    command = [*build.compiler().split(), "-shared", "-fPIC", "-o", library, tmp_path / "empty.cpp"]
    subprocess.run(command, check=True)
    for path in (tmp_path / "cache", library.parent, library):
        path.chmod(0o755)
    return library


def test_a_library_without_the_operators_is_not_used(nothing_built, cached):
    found = use_operator(**nothing_built)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("1.5") == 2
    assert f"{cached} has no ms_deform_attn, ms_deform_attn_fused" in found.stderr
    assert f"Delete {cached.parent} to have it built again" in found.stderr


@pytest.mark.parametrize("level", [0, 1, 2])  # the library, its folder, the cache
def test_a_cache_that_others_can_write_is_refused(nothing_built, cached, level):
    path = [cached, *cached.parents][level]
    path.chmod(0o777)
    found = use_operator(**nothing_built)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("1.5") == 2
    assert f"other users can write to {path}, and could have put any code there" in found.stderr
    assert "SALIENCE_DETR_CACHE" in found.stderr and "has no ms_deform_attn" not in found.stderr


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_not_trusted(builder, tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(builder.BuildError, match=f"other users can write to {tmp_path}"):
        builder.check_trusted(tmp_path)
    tmp_path.chmod(0o755)
    builder.check_trusted(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_not_trusted(builder, tmp_path, monkeypatch):
    os.chown(tmp_path, 12345, -1)
    monkeypatch.setenv("SALIENCE_DETR_CACHE", str(tmp_path))
    with pytest.raises(builder.BuildError, match=rf"{tmp_path} belongs to .* \(uid 12345\)"):
        builder.cache_root()

    # Root's are: an administrator may build for all users.
    os.chown(tmp_path, 0, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert builder.cache_root() == tmp_path


def test_of_groups_only_the_users_own_may_write(builder, monkeypatch, tmp_path):
    groups = {0: ("root", []), 7: ("ann", []), 8: ("staff", []), 9: ("ann", ["bob"])}

    def group(number):
        name, members = groups[number]
        return SimpleNamespace(gr_name=name, gr_mem=members)

    monkeypatch.setattr(grp, "getgrgid", group)
    for group_id, is_own in ((0, False), (7, True), (8, False), (9, False)):
        user = SimpleNamespace(pw_gid=group_id, pw_name="ann")
        monkeypatch.setattr(pwd, "getpwuid", lambda uid, user=user: user)
        assert builder.is_private_group(group_id) == is_own

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert not builder.is_private_group(7)

    # The group may write here; whether that is refused depends on the group alone.
    tmp_path.chmod(0o775)
    monkeypatch.setattr(builder, "is_private_group", lambda group_id: True)
    builder.check_trusted(tmp_path)
    monkeypatch.setattr(builder, "is_private_group", lambda group_id: False)
    with pytest.raises(builder.BuildError, match="chmod go-w"):
        builder.check_trusted(tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_is_built_is_trusted_whatever_the_umask(builder, monkeypatch, tmp_path, umask):
    def compile_into(folder, architectures):
        for name in (builder.LIBRARY, builder.LOG):
            (folder / name).touch(mode=0o777)

    monkeypatch.setattr(builder, "compile_into", compile_into)
    monkeypatch.setattr(builder, "is_private_group", lambda group_id: False)
    before = os.umask(umask)
    try:
        library = builder.build(tmp_path / "cache", None)
    finally:
        os.umask(before)
    for path in (library, *library.parents[:2]):
        builder.check_trusted(path)


def test_the_module_ops_of_another_project_is_not_run(nothing_built, tmp_path):
    # As in site-packages: the sources are inside of the package, and "ops" is another's.
    project = Path(nothing_built["PYTHONPATH"])
    (project / "ops").rename(project / "salience_detr" / "_ops")
    (project / "ops").mkdir()
    for name in ("__init__.py", "build.py"):
        (project / "ops" / name).write_text("raise SystemExit('a foreign module was run')")
    (tmp_path / "bin").mkdir()
    no_compiler = {"PATH": str(tmp_path / "bin"), "CXX": ""}

    found = use_operator(**nothing_built, **no_compiler)
    assert found.returncode == 0, found.stderr
    assert "_ops/build.py' builds the operator" in found.stderr

    # Without any sources of ours, the foreign module is none.
    shutil.rmtree(project / "salience_detr" / "_ops")
    found = use_operator(**nothing_built, **no_compiler)
    assert found.returncode == 0, found.stderr
    assert "installed without the operator's sources" in found.stderr


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.mark.slow
@pytest.mark.nvcc
@needs_nvcc
@pytest.mark.parametrize("architectures", ["9.0", ""], ids=["one", "all that are supported"])
def test_the_cuda_part_compiles_without_a_gpu_and_spills_no_registers(tmp_path, architectures):
    found = run_build(tmp_path, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=architectures)
    assert found.returncode == 0, found.stderr
    library = Path(found.stdout.strip())
    assert (
        "CUDA" in found.stderr
        and (architectures or "7.5;8.0;8.6;8.9;9.0+PTX;10.0;12.0+PTX") in found.stderr
    )
    load = (
        f"import torch; torch.ops.load_library({str(library)!r}); "
        "has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key; "
        "print(has_kernel('salience_detr::ms_deform_attn', 'CUDA'))"
    )
    assert subprocess.check_output([sys.executable, "-c", load], text=True).strip() == "True"
    spilled = re.findall(
        r"(\d+) bytes spill stores, (\d+) bytes spill loads",
        (library.parent / "build.log").read_text(),
    )
    # Forward and backward, for each architecture: 6 number types x vectors and single numbers, and
    # two known shapes for 5 of them.
    assert len(spilled) == 44 * (1 if architectures else 7)
    assert set(spilled) == {("0", "0")}
