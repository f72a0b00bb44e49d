"""`benchmarks/one_pass.py`: what the sanitizers see is every CUDA kernel, in every variant."""

import re
import runpy
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from distilldepth.bench import CONTEXTS
from distilldepth.ops.backend import available_backends

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "one_pass.py"
SOURCES = {path.name: path.read_text() for path in sorted((REPOSITORY / "csrc").glob("*.cu*"))}
DTYPES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT), run_name="one_pass")


def kernels() -> set[str]:
    """Names of the `__global__` functions, with or without launch bounds."""
    pattern = r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\s*)?(\w+)\s*\("
    found = [(name, kernel) for name, text in SOURCES.items() for kernel in re.findall(pattern, text)]
    marked = sum(len(re.findall(r"^__global__", text, re.MULTILINE)) for text in SOURCES.values())
    assert len(found) == marked, "a kernel is declared in a way that this test does not read"
    return {kernel for _, kernel in found}


def test_every_kernel_has_cases(script):
    assert kernels() == set(script["KERNELS"])
    names = [case.name for case in script["cases"]("cpu")]
    assert len(names) == len(set(names))
    for kernel, patterns in script["KERNELS"].items():
        for pattern in patterns:
            assert any(fnmatch(name, pattern) for name in names), (kernel, pattern)


def test_the_variants_are_those_of_the_sources(script):
    dispatched = re.findall(r"case ScalarType::(\w+):\s+return body", SOURCES["cuda.cuh"])
    assert {DTYPES[name] for name in dispatched} == set(script["FLOATS"])
    sizes = re.findall(r"case (\d+):\s+launch_colours", SOURCES["backproject_cuda.cu"])
    assert sorted(map(int, sizes)) == sorted(dtype.itemsize for dtype in script["COLOURS"])
    assert script["CONTEXTS"] == CONTEXTS
    names = [case.name for case in script["cases"]("cpu")]
    for op in ("hybrid_norm", "crop_ssi", "channel_kl", "backproject", "point_cloud"):
        mine = [name for name in names if name.startswith(f"{op} ")]
        for dtype in script["FLOATS"]:
            for valid in (True, False):
                word = str(dtype).removeprefix("torch.")
                assert any(word in name and (" valid" in name) == valid for name in mine), (op, dtype, valid)
    for op in ("hybrid_norm", "crop_ssi"):
        for contexts in CONTEXTS:
            for size in ("small", "many", "large"):
                assert any(name.startswith(f"{op} {size} {contexts} ") for name in names)
        assert any(name.startswith(op) and name.endswith("forward") for name in names)


def test_the_limits_that_choose_a_variant_are_those_of_the_sources(script):
    threads, items = (
        int(re.search(rf"constexpr int {name} = (\d+);", SOURCES["channel_kl_cuda.cu"])[1])
        for name in ("kShortThreads", "kItems")
    )
    assert threads * items == script["SHORT"]
    largest = int(re.search(r"kLargestCluster = (\d+)", SOURCES["plan_cuda.cuh"])[1])
    height, width = script["BEYOND_CLUSTERS"]
    assert height * width > largest * 65536
    # One block's share of a cluster's memory is at most 227 KB on any GPU with clusters; the fewest bins are 64.
    for contexts, segments in script["SEGMENTS"]["many"].items():
        own = sum(parts**2 if contexts == "spatial" else parts for parts in segments)
        assert own <= 1024
        assert 2 * own * 64 * 4 > 227 * 1024


def test_an_offset_map_begins_in_the_middle_of_a_vector(script):
    for dtype in (*script["FLOATS"], torch.bool):
        tensor = torch.ones(3, 16).to(dtype)
        moved = script["offset"](tensor)
        assert torch.equal(moved, tensor)
        assert moved.is_contiguous()
        assert (moved.data_ptr() - tensor.data_ptr()) % 16 != 0


def test_the_cases_run_on_a_cpu():
    if "native" not in available_backends("hybrid_norm", "cpu"):
        pytest.skip("the native CPU library is not built: distilldepth doctor --build")
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--every", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ cases passed in [\d.]+ s\n\Z", done.stdout, re.MULTILINE)
