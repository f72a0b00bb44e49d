"""The CUDA kernels in the emulation: all of them, their variations, and that the emulation notices mistakes.

What needs the operations runs in processes of their own, two at a time, because the emulated kernels take the place of
the native CPU library. `tests/cuda_emulation/__init__.py` says what an emulation shows and what it does not.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cuda_emulation
import pytest
from cuda_emulation import ORDERS, SANITIZED, Emulator, TranslationError, build, kernels, sources, translate
from planted_faults import BARRIER, FAULTS, LAST_BLOCK, Fault, noticed
from waiting import patience_s

REPOSITORY = Path(__file__).resolve().parents[1]
MISUSE = REPOSITORY / "tests" / "cuda_emulation" / "misuse.cu"

TESTS = {
    "channel_kl": "precision or second_truth or never_leaks or not_finite or largest_numbers or tower",
    "backproject": "gradcheck or one_camera or empty or cloud_has",
    "crop_ssi": "precision or second_truth or never_leaks or nothing_to_compare or weigh_the_same",
    "hybrid_norm": "test_precision and not large or two_zeros or no_valid_pixel or same_in_float32",
}
"""Of the operations' own tests, those that run here; all of them take minutes."""

PLANTED = [
    fault for fault in FAULTS
    if fault.backend == "emulated" and fault.tests == "channel_kl" and fault.name in (BARRIER, LAST_BLOCK)
]  # fmt: skip
"""Those that compile fastest; `python tests/planted_faults.py --only emulated` plants all."""

needs_emulation = pytest.mark.skipif(
    cuda_emulation.obstacle() is not None, reason=cuda_emulation.obstacle() or "the kernels can be emulated"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str | Fault, Future]]:
    """The processes, by name; they start together, after the kernels are compiled."""
    folder = tmp_path_factory.mktemp("emulated")
    command = [sys.executable, "-m", "tests.cuda_emulation"]
    commands = {"kernels": [*command, "--json", str(folder / "kernels.json")], "sanitized": [*command, "--one-order"]}
    for op, chosen in TESTS.items():
        commands[op] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "emulated"]
        commands[op] += [f"tests/test_{op}.py", "-k", chosen]

    def run(name: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name == "sanitized":
            environment["CUDA_EMULATION_FLAGS"] = " ".join(SANITIZED)
        return subprocess.run(
            commands[name], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
            timeout=patience_s(),
        )  # fmt: skip

    build()
    build(flags=SANITIZED)
    with ThreadPoolExecutor(max_workers=2) as executor:
        processes = {name: executor.submit(run, name) for name in commands}
        yield {"folder": folder, **processes, **{fault: executor.submit(noticed, fault, "cpu") for fault in PLANTED}}


def passed(future: Future) -> str:
    done = future.result()
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@needs_emulation
def test_every_kernel_is_launched_and_agrees_with_the_reference_in_every_order(runs):
    passed(runs["kernels"])
    table = json.loads((runs["folder"] / "kernels.json").read_text())["kernels"]
    defined = {name for path in sources() for name in kernels(path)}
    # Counted without the translator, which could overlook one.
    assert len(defined) == sum(len(re.findall(r"^[^/\n]*__global__", path.read_text(), re.M)) for path in sources())
    assert table.keys() == defined
    for name, row in table.items():
        assert row["launches"] > 0, f"{name} was never launched"
        # A template of the maps' type has code of its own for each of them; clusters hold no float64.
        found = {kind for text in row["variants"] for kind in re.findall(r"\b(?:Map = |Source = [^;]*<)(\w+)", text)}
        wanted = {"float", "__half", "__nv_bfloat16"} | (set() if "cluster" in name else {"double"})
        assert not found or found == wanted, f"{name} was launched for {found}"
    assert set(table["clusters_cuda.cuh:normalise_in_cluster"]["cluster_sizes"]) >= {4, 8, 16}


@needs_emulation
def test_no_kernel_does_what_is_undefined(runs):
    passed(runs["sanitized"])


@needs_emulation
@pytest.mark.parametrize("op", TESTS)
def test_the_operations_own_tests(op, runs):
    assert re.search(r"\b[1-9]\d* passed", passed(runs[op]))


@pytest.fixture(scope="module")
def misuse() -> tuple[Emulator, ctypes._CFuncPtr]:
    emulator = Emulator(build([MISUSE]))
    function = emulator.function("misuse")
    function.restype = ctypes.c_char_p
    return emulator, function


NOTICED = {
    "different_barriers": r"at different barriers: __syncthreads at misuse.cu:\d+ and __syncthreads at misuse.cu:\d+",
    "ends_before_a_barrier": "ended while others of its block wait|threads of the block have ended",
    "lane_ends": "a lane ended while others of its warp wait for it in __shfl_xor_sync|a lane of the mask has ended",
    "lane_is_not_in_its_mask": "the lane is not in its own mask",
    "lanes_at_different_operations": "lanes of a warp are at different operations: .*__ballot_sync",
    "lanes_wait_for_a_barrier_that_waits_for_them": r"deadlock; .* 32 threads wait in __syncthreads at misuse.cu:\d+",
    "beyond_dynamic_shared_memory": r"outside of its shared memory.*thread 63\)",
    "before_dynamic_shared_memory": "wrote outside of its shared memory",
    "beyond_a_shared_variable": "outside of its shared memory",
    "beyond_a_tensor": r"outside of a tensor \(block \d, thread 63\)",
    "null_pointer": "memory that is nobody's",
    "beyond_the_stack": "beyond its stack",
    "reads_a_block_that_has_ended": "maps shared memory of block [01], which has ended",
    "keeps_a_pointer_to_a_block_that_has_ended": "that of a block that has ended",
    "maps_a_block_that_may_not_have_begun": "which may not have begun",
    "more_threads_than_the_bounds": "64 threads per block, __launch_bounds__ allows 32",
    "calls_a_kernel": "calls the kernel misuse.cu:right",
    "half_a_warp": "blocks of 48 threads",
    "an_empty_grid": "the grid is empty",
    "half_a_cluster": "no multiple of the cluster",
    "a_large_cluster_without_permission": "NonPortableClusterSizeAllowed",
    "a_cluster_that_is_no_power_of_two": "no clusters of 3 blocks",
    "much_shared_memory_without_permission": "50176 bytes of dynamic shared memory need",
}
"""What is wrong with a kernel of misuse.cu, and what the emulation says of it."""
ONLY_SOMETIMES = {"keeps_a_pointer_to_a_block_that_has_ended": {"newest"}, "reads_a_block_that_has_ended": set(ORDERS)}


@needs_emulation
@pytest.mark.parametrize("name", NOTICED)
def test_a_mistake_ends_the_launch_with_an_error(name, misuse):
    emulator, function = misuse
    for order in ORDERS:
        emulator.use(order=order, seed=1)
        message = function(name.encode()).decode()
        if order in ONLY_SOMETIMES.get(name, ORDERS):
            assert re.search(NOTICED[name], message), f"{order}: {message!r}"
        # What was left in the middle does not disturb the next launch.
        assert function(b"grants") == b"", order


@needs_emulation
def test_the_sanitized_build_notices_what_is_undefined():
    code = (
        "import ctypes, sys\nfrom pathlib import Path\nfrom tests import cuda_emulation as cuda\n"
        "emulator = cuda.Emulator(cuda.build([Path(sys.argv[1])], flags=cuda.SANITIZED))\n"
        "function = emulator.function('misuse')\nfunction.restype = ctypes.c_char_p\n"
        "for name in (b'grants', b'misaligned_vector'):\n    print(name, function(name), flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(MISUSE)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == "b'grants' b''\n"
    assert re.search(r"misuse.cu:\d+:\d+: runtime error: .*misaligned address", done.stderr), done.stderr


@needs_emulation
def test_every_mistake_is_tried():
    assert {*NOTICED, "misaligned_vector", "grants"} == set(re.findall(r'^      \{"(\w+)"', MISUSE.read_text(), re.M))


def translated(tmp_path: Path, code: str) -> str:
    path = tmp_path / "some.cu"
    path.write_text(code)
    return translate(path)


def test_translation_keeps_lines_and_leaves_comments_alone(tmp_path):
    code = (
        "// __shared__ float x; k<<<1, 2>>>(); __global__\n"
        "template <typename T>\n"
        "__global__ void __launch_bounds__(kMost<T>(1, 2), 3)\n"
        "k(T* x /* ) { */) {\n"
        "#pragma unroll\n"
        "  alignas(16) __shared__ Pair<T, 2> a[4][N], b;\n"
        '  printf("__shared__ <<<");\n'
        "}\n"
        "extern __shared__ __align__(16) unsigned char all[];\n"
        "void f() { k<Pair<int, 1>><<<dim3(g(1, 2)), n>>>(p, q(1, 2)); ns::d<<<1, 32, 0, s>>>(p); }\n"
    )
    text = translated(tmp_path, code)
    lines = text.partition("\n")[2].splitlines()
    assert lines[0] == code.splitlines()[0]
    assert 'k(T* x /* ) { */) { CUDA_EMULATION_KERNEL("some.cu:k", (kMost<T>(1, 2)));' in lines[3]
    assert "struct CudaEmulationShared0 { alignas(16) Pair<T, 2> a[4][N], b; };" in lines[5]
    assert "auto& a = cuda_emulation_shared_0.a; auto& b = cuda_emulation_shared_0.b;" in lines[5]
    assert "#define all (cuda_emulation::dynamic_shared<unsigned char>())\n#line 9\n" in text
    assert "launch(cuda_emulation::config(dim3(g(1, 2)), n), &k<Pair<int, 1>>, p, q(1, 2));" in text
    assert "launch(cuda_emulation::config(1, 32, 0, s), [&](auto... values) { ns::d(values...); }, p);" in text
    assert kernels(tmp_path / "some.cu") == ["some.cu:k"]


@pytest.mark.parametrize(
    "code",
    [
        'void f() { asm volatile("bar.sync 0;"); }',
        "__constant__ float table[4];",
        "__global__ void k() {\n#if __CUDA_ARCH__ >= 900\n#endif\n}",
        "__global__ void k() { __shared__ float x = 1; }",
        "#define SHARED __shared__ float x;",
        "__global__ void k() { extern __shared__ float x[]; x[0] = 1; }",
        "void f(int a, int b) { a <<< b; }",
        "auto x = torch::stable::empty_like(y);",
    ],
)
def test_what_is_not_understood_is_refused(code, tmp_path):
    with pytest.raises(TranslationError, match=r"^some.cu:[12]: "):
        translated(tmp_path, code)


@needs_emulation
@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(fault, runs):
    assert runs[fault].result()
