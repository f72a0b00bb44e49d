"""Native libraries: building, finding and loading, on sources of a few lines, in a cache folder of their own."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from waiting import patience_s, wait_until

from distilldepth import native
from distilldepth.errors import DistillDepthError
from distilldepth.native import compiling, loading, recipe

VARIABLES = ("CXX", "DISTILLDEPTH_BUILD", "DISTILLDEPTH_CXXFLAGS", "DISTILLDEPTH_CUDA_ARCHS")

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with two sources and a header; building and loading start from nothing."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "number.h").write_text("#define NUMBER 7\n")
    exported = '#include "number.h"\nextern "C" __attribute__((visibility("default")))'
    (folder / "first_cpu.cpp").write_text(f"{exported} int first() {{ return NUMBER; }}\n")
    (folder / "second_cpu.cpp").write_text(f"{exported} int second() {{ return 2 * NUMBER; }}\n")
    monkeypatch.setattr(recipe, "source_folder", lambda: folder)
    monkeypatch.setattr(loading, "statuses", {})
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "cache"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The real compiler behind a script that writes down every file that it compiles; returns what it wrote."""
    calls = tmp_path / "calls"
    script = tmp_path / "compiler"
    real = " ".join(native.find_compiler())
    script.write_text(
        f'#!/bin/sh\nfor word; do case $word in *_cpu.cpp) echo $word >>{calls};; esac; done\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return lambda: sorted(Path(line).name for line in calls.read_text().split()) if calls.exists() else []


def record_of(built: native.Built) -> dict:
    return json.loads(built.path.with_suffix(".json").read_text())


def forget():
    loading.statuses.clear()


def test_builds_and_loads(sources, tmp_path):
    assert native.load("cpu") == native.Status("cpu", False, None, "not built; run `distilldepth doctor --build`")
    lines = []
    built = native.build("cpu", progress=lines.append)
    assert {line.split(":")[0] for line in lines} == {"first_cpu.cpp", "second_cpu.cpp", "linking"}
    assert built.seconds > 0
    status = native.load("cpu")
    assert status.loaded, status.reason
    assert status.path == built.path
    assert built.path.is_relative_to(tmp_path / "cache")
    library = ctypes.CDLL(str(built.path))
    assert (library.first(), library.second()) == (7, 14)
    record = record_of(built)
    assert record["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["compiler"]
    assert "-march=native" in record["flags"] or "-mcpu=native" in record["flags"]
    assert not any("fast-math" in flag for flag in record["flags"])
    assert not list(built.path.parent.glob(".build-*"))
    assert native.describe("cpu")["loaded"]


def test_an_operation_on_the_stable_abi(sources):
    for path in sources.glob("*_cpu.cpp"):
        path.unlink()
    (sources / "twice_cpu.cpp").write_text(
        "#include <torch/csrc/stable/library.h>\n#include <torch/csrc/stable/ops.h>\n"
        "#include <torch/csrc/stable/tensor.h>\n"
        "using torch::stable::Tensor;\n"
        "Tensor twice(const Tensor& x) {\n"
        "  Tensor y = torch::stable::empty_like(x);\n"
        "  const float* from = x.const_data_ptr<float>();\n"
        "  float* to = y.mutable_data_ptr<float>();\n"
        "  for (int64_t i = 0; i < x.numel(); ++i) to[i] = 2 * from[i];\n"
        "  return y;\n"
        "}\n"
        'STABLE_TORCH_LIBRARY(distilldepth_test_native, m) { m.def("twice(Tensor x) -> Tensor"); }\n'
        'STABLE_TORCH_LIBRARY_IMPL(distilldepth_test_native, CPU, m) { m.impl("twice", TORCH_BOX(&twice)); }\n'
    )
    native.build("cpu")
    status = native.load("cpu")
    assert status.loaded, status.reason
    assert torch.ops.distilldepth_test_native.twice(torch.tensor([1.0, -3.0])).tolist() == [2.0, -6.0]


def test_what_is_there_is_not_compiled_again(sources, compiler):
    first = native.build("cpu")
    assert compiler() == ["first_cpu.cpp", "second_cpu.cpp"]
    again = native.build("cpu")
    assert (again.path, again.seconds) == (first.path, 0.0)
    assert compiler() == ["first_cpu.cpp", "second_cpu.cpp"]


@pytest.mark.parametrize("changed", ["first_cpu.cpp", "number.h"])
def test_a_library_of_other_sources_is_refused(sources, changed):
    old = native.build("cpu")
    with (sources / changed).open("a") as file:
        file.write("// changed\n")
    status = native.load("cpu")
    assert not status.loaded
    assert "other sources" in status.reason
    assert "distilldepth doctor --build" in status.reason
    new = native.build("cpu")
    assert new.path != old.path
    assert native.load("cpu").path == new.path


def test_a_header_that_is_not_included_changes_nothing(sources):
    built = native.build("cpu")
    (sources / "other.h").write_text("#define OTHER 1\n")
    assert native.build("cpu") == native.Built(built.path, 0.0)


def test_a_library_of_other_flags_is_refused(sources, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CXXFLAGS", "-DNUMBER_OF_FLAGS=1 -g0")
    record = record_of(native.build("cpu"))
    assert record["flags"][-2:] == ["-DNUMBER_OF_FLAGS=1", "-g0"]
    monkeypatch.delenv("DISTILLDEPTH_CXXFLAGS")
    assert "other flags" in native.load("cpu").reason


def test_a_library_for_a_better_processor_is_refused(sources, monkeypatch):
    if recipe.cpu_flags() is None:
        pytest.skip("this system does not say what its processor can do")
    built = native.build("cpu")
    record = record_of(built)
    assert set(record["cpu_features"]) <= recipe.cpu_flags()
    record["cpu_features"].append("avx4096")
    built.path.with_suffix(".json").write_text(json.dumps(record))
    status = native.load("cpu")
    assert not status.loaded
    assert "avx4096" in status.reason


def test_a_lesser_processor_of_the_same_home_gets_a_library_of_its_own(sources, monkeypatch):
    flags = recipe.cpu_flags()
    if not flags or "avx2" not in flags:
        pytest.skip("this processor has no AVX2 to do without")
    better = native.build("cpu")
    monkeypatch.setattr(recipe, "cpu_flags", lambda: flags - {"avx2"})
    assert "avx2" in native.load("cpu").reason
    assert recipe.library_path("cpu") != better.path


def test_no_compiler(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DistillDepthError, match="no C\\+\\+ compiler"):
        native.build("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(DistillDepthError, match="CXX=no-such-compiler -v was not found"):
        native.build("cpu")
    assert not native.load("cpu").loaded


@pytest.mark.parametrize("name", ["CXX", "DISTILLDEPTH_CXXFLAGS"])
def test_words_with_an_open_quotation_mark_are_told_by_name(sources, monkeypatch, name):
    monkeypatch.setenv(name, "c++ '-O1")
    with pytest.raises(ValueError, match=f"^{name} must be words as a shell takes them, got .*: No closing quotation"):
        native.build("cpu")


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 1", "the compiler ended with code 1; set CXX to a C++ compiler"), ("exit 0", "made no library: it is no")],
)
def test_what_is_no_compiler_is_told(sources, monkeypatch, tmp_path, script, message):
    (tmp_path / "c++").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(DistillDepthError, match=re.escape(message)) as caught:
        native.build("cpu")
    assert str(tmp_path / "c++") in str(caught.value)
    assert not native.load("cpu").loaded


def test_a_cache_folder_that_cannot_be_written_is_told(sources, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    message = f"distilldepth_cpu cannot be compiled: {tmp_path / 'cache'}.*; set DISTILLDEPTH_CACHE to a folder"
    with pytest.raises(DistillDepthError, match=message):
        native.build("cpu")
    assert not native.load("cpu").loaded


def test_nobody_who_listens_is_not_blamed_on_the_cache(sources, tmp_path):
    def gone(line):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        native.build("cpu", progress=gone)
    assert not list((tmp_path / "cache" / "native").glob(".build-*"))


def test_a_compile_error_is_one_line_with_the_log(sources):
    good = (sources / "first_cpu.cpp").read_text()
    (sources / "first_cpu.cpp").write_text("int first() {\n  return nothing;\n}\n")
    with pytest.raises(DistillDepthError) as caught:
        native.build("cpu")
    message = str(caught.value)
    assert message.startswith("first_cpu.cpp:2:")
    assert "nothing" in message
    assert "\n" not in message
    log = Path(message.rpartition("its log: ")[2])
    assert "return nothing" in log.read_text()
    assert not list(log.parent.glob("*.so"))
    assert not list(log.parent.glob(".build-*"))
    (sources / "first_cpu.cpp").write_text(good)
    native.build("cpu")
    assert native.load("cpu").loaded


def test_sources_that_change_while_they_are_compiled_make_no_library(sources, monkeypatch):
    run_all = compiling.run_all

    def edit(*arguments):
        run_all(*arguments)
        (sources / "number.h").write_text("#define NUMBER 8\n")

    monkeypatch.setattr(compiling, "run_all", edit)
    with pytest.raises(DistillDepthError, match="changed while they were compiled"):
        native.build("cpu")
    assert not native.load("cpu").loaded


def test_a_compiler_that_hangs_is_ended_with_its_children(sources, monkeypatch, tmp_path):
    script = tmp_path / "slow"
    pids = tmp_path / "pids"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*|*-dM*) exit 0;; esac\nsleep 100000 &\necho $! >>{pids}\nwait\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    # The hour that a build may take is over as soon as the compilers have started what they wait for.
    late = types.SimpleNamespace(time=time.time, sleep=time.sleep)
    late.monotonic = lambda: time.monotonic() + (1e6 if pids.is_file() and pids.read_text().endswith("\n") else 0)
    monkeypatch.setattr(compiling, "time", late)
    with pytest.raises(DistillDepthError, match="took too long"):
        native.build("cpu")
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not _running(pid))


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_lock_that_was_left_behind_blocks_nobody(sources, tmp_path):
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True)
    (folder / "cpu.lock").write_text("process 1 on another machine")
    lines = []
    native.build("cpu", progress=lines.append)
    assert not any("waiting" in line for line in lines)


def test_what_killed_builds_left_behind_is_removed_but_not_what_is_being_built(sources, tmp_path):
    folder = tmp_path / "cache" / "native"
    for name in (".build-old", ".build-new"):
        (folder / name).mkdir(parents=True)
    os.utime(folder / ".build-old", (0, 0))
    native.build("cpu")
    assert [path.name for path in folder.glob(".build-*")] == [".build-new"]


def test_a_lock_that_is_held_is_waited_for_but_not_for_ever(sources, monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True)
    clock = itertools.count()
    fast = types.SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(compiling, "time", fast)
    with (folder / "cpu.lock").open("w") as file:
        file.write("process 1 on this machine")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = []
        with compiling.exclusive(folder / "cpu.lock", 5, lines.append):
            assert next(clock) > 5
        assert lines == ["waiting for process 1 on this machine, which is building"]


def test_two_processes_compile_once(sources, compiler):
    code = (
        "from pathlib import Path\nfrom distilldepth import native\n"
        f"native.recipe.source_folder = lambda: Path({str(sources)!r})\n"
        "print(native.build('cpu').path)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=patience_s())[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert paths == {str(native.build("cpu").path)}
    assert compiler() == ["first_cpu.cpp", "second_cpu.cpp"]


def test_building_can_be_forbidden(sources, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_BUILD", "0")
    with pytest.raises(DistillDepthError, match="DISTILLDEPTH_BUILD=0"):
        native.build("cpu")
    monkeypatch.setenv("DISTILLDEPTH_BUILD", "yes")
    with pytest.raises(ValueError, match="auto, 0 or 1, got 'yes'"):
        native.build("cpu")


def test_the_answer_is_remembered(sources, monkeypatch):
    assert not native.load("cpu").loaded
    remembered = loading.statuses["cpu"]
    built = native.build("cpu")
    assert "cpu" not in loading.statuses, "a build must be seen by the process that made it"
    loading.statuses["cpu"] = remembered
    assert native.load("cpu") is remembered
    assert native.build("cpu").seconds == 0
    assert "cpu" not in loading.statuses, "and so must one that another process made"
    loaded = native.load("cpu")
    built.path.unlink()
    assert native.load("cpu") is loaded


def test_a_damaged_library_is_not_loaded_and_built_again(sources):
    # Loading a library that was cut off ends the process with a bus error.
    built = native.build("cpu")
    whole = built.path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], bytes(len(whole))):
        built.path.write_bytes(content)
        forget()
        status = native.load("cpu")
        assert not status.loaded
        assert status.reason == f"{built.path.name} is damaged; run `distilldepth doctor --build`"
    assert native.build("cpu").seconds > 0
    assert native.load("cpu").loaded
    built.path.with_suffix(".json").write_text("{")
    forget()
    assert native.load("cpu").reason.startswith("not built")


def test_a_library_that_is_none_is_told_and_not_fatal(sources):
    built = native.build("cpu")
    content = b"this is no library"
    built.path.write_bytes(content)
    record = record_of(built) | {"sha256": hashlib.sha256(content).hexdigest()}
    built.path.with_suffix(".json").write_text(json.dumps(record))
    status = native.load("cpu")
    assert not status.loaded
    assert "cannot be loaded" in status.reason
    assert status.reason.endswith("; remove it and run `distilldepth doctor --build`")


def test_unknown_kind():
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        native.load("cdua")


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        (["80", "90", "100"], (7, 5), False),
        (["80", "90", "100"], (8, 0), True),
        (["80", "90", "100"], (8, 9), True),
        (["80", "90", "100"], (12, 0), True),
        (["90"], (8, 0), False),
        (["90"], (10, 0), True),
        (["86", "90"], (8, 0), False),
    ],
)
def test_which_gpus_a_library_covers(archs, capability, covered):
    assert loading.covers(archs, capability) == covered


def test_cuda_architectures(sources, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CUDA_ARCHS", "90;75")
    assert recipe.cuda_archs() == ["75", "90"]
    assert recipe.gencode(["75", "90"])[-1] == "-gencode=arch=compute_90,code=compute_90"
    monkeypatch.setenv("DISTILLDEPTH_CUDA_ARCHS", "hopper")
    with pytest.raises(ValueError, match="hopper"):
        recipe.cuda_archs()


@pytest.mark.skipif(native.find_nvcc() is None, reason="no nvcc on this machine")
def test_cuda_is_compiled_without_a_gpu_and_loads_beside_any_torch(sources, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CUDA_ARCHS", "90")
    (sources / "fill_cuda.cu").write_text(
        "__global__ void fill(float* x) { x[threadIdx.x] = 1; }\n"
        'extern "C" __attribute__((visibility("default")))\n'
        "int runtime() { int v = 0; cudaRuntimeGetVersion(&v); return v; }\n"
        "void launch(float* x) { fill<<<1, 32>>>(x); }\n"
    )
    built = native.build("cuda")
    record = record_of(built)
    assert record["archs"] == ["90"]
    assert "ptxas info" in built.path.with_suffix(".log").read_text()
    status = native.load("cuda")
    assert status.loaded, status.reason
    major, minor = map(int, record["cuda"].split("."))
    assert ctypes.CDLL(str(built.path)).runtime() // 10 == major * 100 + minor


def test_importing_the_package_loads_and_compiles_nothing(tmp_path):
    code = (
        "import subprocess, sys\n"
        "def refuse(*_, **__): raise AssertionError('a process was started')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "import distilldepth, distilldepth.native as native\n"
        "assert not native.loading.statuses\n"
        "assert 'torch' not in sys.modules and 'ctypes' not in sys.modules"
    )
    environment = {**os.environ, "DISTILLDEPTH_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
