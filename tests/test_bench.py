"""The benchmark: rows, ratios, scaling, memory, the roofline, and the errors that it reports."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from distilldepth import bench as benchmark
from distilldepth import reference
from distilldepth.bench import limits as metadata
from distilldepth.bench import memory, timing
from distilldepth.bench.run import scaling_shapes
from distilldepth.cli import bench
from distilldepth.cli.bench import digits
from distilldepth.cli.main import cli
from distilldepth.ops.backend import available_backends

REPOSITORY = Path(__file__).parents[1]
ROW = {
    "op": str, "backend": str, "direction": str, "dtype": str, "shape": list, "contexts": (str, type(None)),
    "note": str, "median_ms": float, "p20_ms": float, "p80_ms": float, "repeats": int, "first_ms": float,
    "peak_bytes": (int, type(None)), "map_bytes": int, "bytes_min": int, "operations_min": int,
    "bandwidth_fraction": float, "max_error": (float, type(None)),
}  # fmt: skip
METADATA = {
    "commit", "device", "driver", "torch", "triton", "python", "threads", "command", "copy_bytes_per_s",
    "cached_copy_bytes_per_s", "peak_flops_per_s", "cold_cache", "formulas", "started", "load_average", "not_run",
}  # fmt: skip
SHAPE = (2, 31, 45)
USUAL = benchmark.USUAL


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch):
    """A ceiling of the machine that costs no measurement; one test measures it."""
    known = {"copy_bytes_per_s": 1e10, "cached_copy_bytes_per_s": 4e10, "peak_flops_per_s": 1e11}
    monkeypatch.setattr("distilldepth.bench.run.limits", lambda device: known)


@pytest.fixture
def no_memory(monkeypatch):
    """Leave out the measurement of memory, whose processes take seconds."""
    monkeypatch.setattr(memory, "_can_reset_peak", lambda: False)


@pytest.fixture(scope="module")
def four_kernels(tmp_path_factory):
    """One run of the command with everything in it but torch.compile: what it printed and what it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    patch = pytest.MonkeyPatch()
    known = {"copy_bytes_per_s": 1e10, "cached_copy_bytes_per_s": 4e10, "peak_flops_per_s": 1e11}
    patch.setattr("distilldepth.bench.run.limits", lambda device: known)
    args = ["bench", "--kernel", "all", "--contexts", "all", "--shape", "2x31x45", "--repeats", "2", "--device", "cpu"]
    result = CliRunner().invoke(
        cli, [*args, "--json", str(folder / "new" / "bench.json"), "--plot", str(folder / "roofline.svg")]
    )
    patch.undo()
    assert result.exit_code == 0, result.stderr
    return result, json.loads((folder / "new" / "bench.json").read_text()), (folder / "roofline.svg").read_text()


def run(*args: str):
    return CliRunner().invoke(cli, ["bench", "--device", "cpu", *args])


def check_schema(result: dict) -> None:
    """Fail unless `result` has the form of every committed result file."""
    assert set(result) == {"metadata", "results"}
    assert result["metadata"].keys() >= METADATA
    assert result["results"]
    for entry in result["metadata"]["not_run"]:
        assert entry.keys() == {"op", "contexts", "backend", "why", "failed"}
    for row in result["results"]:
        assert row.keys() == ROW.keys()
        for key, kind in ROW.items():
            assert isinstance(row[key], kind), (key, row[key])
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["backend"] in benchmark.BACKENDS
        assert (row["contexts"] is None) == (row["op"] in ("channel_kl", "backproject"))


def test_every_kernel_gives_rows_with_small_errors(four_kernels):
    _, result, _ = four_kernels
    check_schema(result)
    seen = {(row["op"], row["contexts"], row["backend"], row["direction"]) for row in result["results"]}
    for op, usual in USUAL.items():
        for contexts in benchmark.CONTEXTS if op in ("hybrid_norm", "crop_ssi") else (None,):
            for backend in {usual, *available_backends(op, "cpu")}:
                for direction in benchmark.DIRECTIONS:
                    assert (op, contexts, backend, direction) in seen
    assert all(row["max_error"] < 1e-3 for row in result["results"])
    assert all(row["repeats"] == 2 for row in result["results"])
    left_out = {entry["backend"] for entry in result["metadata"]["not_run"]}
    assert "compile" in left_out
    assert not any(entry["failed"] for entry in result["metadata"]["not_run"])


def test_the_table_names_backends_ratios_and_what_was_left_out(four_kernels):
    printed, result, _ = four_kernels
    words = " ".join(printed.stdout.split())
    for word in ("hybrid_norm spatial, forward", "mask-list", "noise", "P*(3*i + 1)"):
        assert word in words
    assert "compile" not in printed.stdout
    assert "not run: compile: not asked for; --backend compile" in printed.stderr
    for row in result["results"]:
        assert digits(row["median_ms"]) in printed.stdout


def test_the_roofline_has_a_label_per_row(four_kernels):
    _, result, picture = four_kernels
    labels = re.findall(r">([\w-]+) (fwd|fwd\+bwd), [\d.e+]+ %<", picture)
    assert len(labels) == len(result["results"])
    for words in ("hybrid_norm, spatial contexts", "copy from memory, 10 GB/s", "matrix product, 100 GFLOP/s"):
        assert words in picture


def test_memory_is_measured_where_the_system_tells_it(four_kernels):
    _, result, _ = four_kernels
    if not memory._can_reset_peak():
        pytest.skip("this system has no resettable high-water mark")
    assert all(row["peak_bytes"] is not None for row in result["results"])


def test_memory_sees_what_one_call_needs():
    with memory.MemoryServer() as server:
        if server._process is None:
            pytest.skip("this system has no resettable high-water mark")
        peak = server.peak_bytes("backproject", (2, 512, 512), "float32", "range", "reference", "forward")
    maps = peak / (2 * 512 * 512 * 4)
    # The points are three maps; the coordinates before they are stacked are at most as much again.
    assert 3 <= maps < 7


@pytest.mark.parametrize("contexts", benchmark.CONTEXTS)
def test_the_usual_formulations_compute_the_same_losses(contexts):
    for kernel in benchmark.KERNELS:
        case = benchmark.make_case(kernel, SHAPE, torch.float32, contexts=contexts)
        value, gradient = case.call(USUAL[case.op], "forward+backward")()
        truth, true_gradient = case.call("reference", "forward+backward", torch.float64)()
        torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-5)
        assert (gradient - true_gradient).norm() <= 1e-3 * true_gradient.norm(), kernel


def test_the_truth_is_not_what_is_measured():
    # A backend that is wrong must show: the error is taken against float64, not against itself.
    case = benchmark.make_case("channel-kl", SHAPE)
    case.functions["native"] = lambda s, t: reference.channel_kl_loss(s, t) * 1.01
    wrong = case.call("native", "forward")()[0]
    assert abs(float(wrong / case.call("reference", "forward", torch.float64)()[0]) - 1) > 5e-3


@pytest.mark.parametrize("kernel", benchmark.KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_work_is_what_the_formulas_say(kernel, dtype):
    case = benchmark.make_case(kernel, SHAPE, dtype)
    pixels = 2 * 31 * 45
    crops = 4 * pixels if kernel == "crop-ssi" else 0
    names = {"P": pixels, "C": crops, "i": dtype.itemsize, "L": 3}
    for what, counted in (("bytes", case.bytes_min), ("operations", case.operations_min)):
        for direction, formula in benchmark.FORMULAS[case.op][what].items():
            assert counted[direction] == eval(formula, {}, names)
    # Every tensor that goes in is read: the formulas leave out only what does not grow with the maps.
    tensors = [x for x in case.inputs if x.numel() >= pixels]
    assert case.bytes_min["forward"] >= sum(x.numel() * x.element_size() for x in tensors)


def test_backends_take_turns_and_slow_ones_are_repeated_less():
    order = []
    clock = timing.Clock(torch.device("cpu"))
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = timing.time_in_turns(calls, clock, repeats=4)
    assert order == [*"aabb", *"ab", *"ba", *"ab", *"ba"]
    assert all(len(found.seconds) == 4 for found in timings.values())
    assert timing.repeats_for(3.0) == timing.SLOW_REPEATS
    assert timing.repeats_for(1.0) == timing.LEAST_REPEATS
    assert timing.repeats_for(0.01) == 50
    assert timing.repeats_for(1e-9) == timing.MOST_REPEATS


def test_a_kernel_that_breaks_is_a_failure_and_a_baseline_that_does_is_left_out(monkeypatch, no_memory):
    def broken(*_, **__):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr("distilldepth.reference.channel_kl_loss", broken)
    monkeypatch.setattr("distilldepth.bench.usual.meshgrid_points", broken)
    left_out = run("--kernel", "backproject", "--shape", "1x8x8", "--repeats", "1")
    assert left_out.exit_code == 0, left_out.stderr
    assert "not run: meshgrid: RuntimeError: out of luck\n" in left_out.stderr
    failed = run("--kernel", "channel-kl", "--shape", "1x8x8", "--repeats", "1")
    assert failed.exit_code == 1
    assert "out of luck" in failed.stderr.splitlines()[-1]


def test_only_what_is_asked_for_runs(no_memory):
    result = run(
        "--kernel", "channel-kl", "--backend", "kl-div", "--shape", "1x8x9", "--dtype", "bfloat16", "--json", "-"
    )
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    assert {(row["backend"], row["dtype"]) for row in rows} == {("kl-div", "bfloat16")}
    assert all(row["shape"] == [1, 8, 9] and row["repeats"] >= timing.SLOW_REPEATS for row in rows)


def test_compile_is_a_row_with_its_first_call(no_memory, monkeypatch):
    # Compiling takes minutes on a small machine; that the function handed over is the reference is what is tested.
    handed = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: handed.append(function) or function)
    result = benchmark.run_benchmark(
        benchmark.Request(["backproject"], (1, 8, 8), backends=["reference", "compile"], repeats=1, device="cpu")
    )
    assert {row["backend"] for row in result["results"]} == {"reference", "compile"}
    assert len(handed) == 1
    ratios = benchmark.speedups(result["results"])
    assert all(ratio["compile"] and ratio["reference"] and ratio["usual"] is None for ratio in ratios)


def test_ratios_compare_medians_of_the_same_case():
    row = {"op": "crop_ssi", "contexts": "range", "direction": "forward", "dtype": "float32", "shape": [1, 2, 3]}
    rows = [
        {**row, "backend": "native", "median_ms": 2.0},
        {**row, "backend": "reference", "median_ms": 10.0},
        {**row, "backend": "grid-sample", "median_ms": 40.0},
        {**row, "backend": "reference", "median_ms": 99.0, "contexts": "spatial"},
    ]
    assert benchmark.speedups(rows)[0] == {"reference": 5.0, "compile": None, "usual": 20.0}
    assert benchmark.speedups(rows)[3]["reference"] == 1.0


def timed(backend: str, median: float, spread: float, repeats: int) -> dict:
    """A row of the table whose middle 60 % of runs lie within median / spread and median * spread."""
    named = {"op": "crop_ssi", "contexts": "range", "direction": "forward", "dtype": "float32", "shape": [1, 2, 3]}
    times = {"median_ms": median, "p20_ms": median / spread, "p80_ms": median * spread, "repeats": repeats}
    rest = {"bandwidth_fraction": 0.1234, "peak_bytes": 1, "map_bytes": 1, "max_error": 1e-7, "bytes_min": 1234567}
    return {**named, **times, **rest, "backend": backend}


@pytest.mark.parametrize(
    ("spread", "repeats", "said", "not_said"),
    [
        (1.001, 50, "36.3x", "noisy"),
        (1.05, 20, "36x", "36.3x"),
        (1.2, 3, "~36x, noisy", "36.3x"),
        (3.0, 3, "noise", "36"),
        (1.0, 2, "noise", "36"),
        (1.0, 1, "noise", "36"),
    ],
)
@pytest.mark.parametrize("columns", ["60", "80", "100", None])
def test_a_ratio_has_the_digits_that_the_timings_leave(spread, repeats, said, not_said, columns, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    rows = [timed("native", 1.234567, spread, repeats), timed("reference", 1.234567 * 36.27, spread, repeats)]
    machine = {"device": "cpu", "torch": "2", "threads": 2, "cold_cache": False, "formulas": benchmark.FORMULAS}
    speeds = dict.fromkeys(("copy_bytes_per_s", "cached_copy_bytes_per_s", "peak_flops_per_s"), 1e9)
    bench._print_table({"metadata": {**machine, **speeds}, "results": rows})
    printed = capsys.readouterr().out
    assert said in " ".join(printed.split())
    table = printed.partition("Copy speed")[0].partition("ratios")[0]
    assert not_said not in table.partition("native")[2].partition("reference")[0]
    assert "1.23" in printed
    assert "1.234567" not in printed
    assert ("--repeats" in printed) == ("nois" in said)
    assert all(len(line) <= int(columns or 100) for line in printed.splitlines())


def test_the_advice_on_repeats_would_be_enough():
    rows = [timed("native", 1.0, 1.5, 5), timed("reference", 20.0, 1.1, 5)]
    (said,) = bench._noise_note([(rows[0], rows[1])])
    repeats = int(re.search(r"--repeats (\d+)", said)[1])
    assert repeats > 5
    assert benchmark.uncertainty(*({**row, "repeats": repeats} for row in rows)) <= bench.NOISY
    assert bench._noise_note([]) == []


def test_digits_that_mean_something():
    assert [digits(value) for value in (0.0, 0.0123456, 1.0, 12.345, 1234.5)] == ["0", "0.0123", "1.00", "12.3", "1234"]


def test_scaling_runs_every_shape_once_and_judges(no_memory):
    result = run("--kernel", "channel-kl", "--scaling", "--shape", "2x32x64", "--repeats", "1")
    assert result.exit_code == 0, result.stderr
    assert "twice the pixels" in result.stdout
    assert re.search(r"channel_kl reference: (holds in all|does not hold in \d+ of) \d+", result.stdout)
    made = run("--kernel", "backproject", "--scaling", "--shape", "2x32x64", "--repeats", "1", "--json", "-")
    parsed = json.loads(made.stdout)
    check_schema(parsed)
    shapes = [tuple(row["shape"]) for row in parsed["results"] if row["backend"] == "reference"]
    assert shapes == scaling_shapes((2, 32, 64))
    assert {row["backend"] for row in parsed["results"]} == set(available_backends("backproject", "cpu"))


def test_scaling_covers_the_documented_sizes():
    shapes = scaling_shapes(benchmark.SCALING_SHAPE)
    sides = [140, 198, 280, 396, 560, 792, 1120]
    assert {(batch, side, side) for batch in (1, 4) for side in sides} <= set(shapes)
    assert {(batch, 280, 280) for batch in (1, 2, 4, 8, 16, 32)} <= set(shapes)


def test_linear_cost_is_judged_by_the_rule():
    def row(shape, milliseconds):
        named = {"op": "channel_kl", "contexts": None, "backend": "native", "direction": "forward", "dtype": "float32"}
        return {**named, "shape": shape, "median_ms": milliseconds}

    rows = [row([1, 10, 10], 1.0), row([1, 20, 20], 4.5), row([4, 10, 10], 4.1), row([1, 14, 14], 2.2)]
    checks = {check["what"]: check for check in benchmark.linear_cost(rows)}
    assert checks.keys() == {"1x10x10 to 1x20x20", "1 to 4 images of 10x10"}
    assert checks["1x10x10 to 1x20x20"]["holds"]
    assert not checks["1 to 4 images of 10x10"]["holds"]
    rows[1]["median_ms"] = 4.7
    assert not benchmark.linear_cost(rows)[0]["holds"]
    grown = benchmark.per_doubling(rows)
    assert grown[3]["pixels"] == 2.2
    assert grown[0]["ns_per_pixel"] == pytest.approx(1e4)


def test_the_limits_of_the_machine_are_measured(monkeypatch):
    monkeypatch.setattr(metadata, "MEMORY_COPY_BYTES", 2**22)
    metadata.limits.cache_clear()
    found = metadata.limits(torch.device("cpu"))
    metadata.limits.cache_clear()
    assert found.keys() == {"copy_bytes_per_s", "cached_copy_bytes_per_s", "peak_flops_per_s"}
    assert all(value > 1e6 for value in found.values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernels": ["hybrid-nrom"]}, "hybrid-norm"),
        ({"dtype": "float8"}, "float"),
        ({"contexts": ["rang"]}, "range"),
        ({"backends": ["nativ"]}, "native"),
        ({"shape": (0, 4, 4)}, "shape"),
        ({"repeats": 0}, "repeats"),
        ({"cold": True}, "cold"),
    ],
)
def test_wrong_arguments_are_named(change, named, no_memory):
    arguments = {"kernels": ["hybrid-norm"], "shape": SHAPE, "device": "cpu", **change}
    with pytest.raises(ValueError, match=named):
        benchmark.run_benchmark(benchmark.Request(**arguments))


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["--backend", "triton", "--kernel", "channel-kl"], "nothing could be run; triton: not for cpu tensors", 1),
        (["--backend", "mask-list", "--kernel", "channel-kl"], "no backend of these kernels", 2),
        (["--backend", "nativ"], "did you mean 'native'?", 2),
        (["--contexts", "spatail"], "did you mean 'spatial'?", 2),
        (["--scaling", "--plot", "x.svg"], "contradict", 2),
        (["--plot", "roofline.jpg"], ".svg or .png", 2),
        (["--cold"], "without a GPU", 2),
        (["--json", "/"], "folder", 2),
        (["--plot", "/dev/null/x.svg"], "/dev/null", 1),
        (["--shape", "100000x1000000x1000000"], "smaller --shape", 2),
        (["--shape", "100000x1000000x1000000", "--scaling"], "smaller --shape", 2),
    ],
)
def test_wrong_options_are_one_line(args, said, code, no_memory, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    result = run("--shape", "1x8x8", *args)
    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_plot_without_matplotlib_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--plot", "x.png")
    assert result.exit_code == 1
    assert result.stderr == "distilldepth: error: --plot needs matplotlib; pip install 'distilldepth[plot]'\n"


def test_the_command_knows_the_words_of_the_library():
    from distilldepth.cli import bench

    assert bench.KERNELS == benchmark.KERNELS
    assert bench.CONTEXTS == benchmark.CONTEXTS
    assert bench.BACKENDS == benchmark.BACKENDS
    assert bench.DEFAULT_SHAPE == benchmark.DEFAULT_SHAPE


def test_committed_results_have_the_schema():
    for path in sorted((REPOSITORY / "benchmarks" / "results" / "kernels").glob("*.json")):
        check_schema(json.loads(path.read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_its_rows(number, tmp_path):
    target = tmp_path / "bench.json"
    command = [sys.executable, "-m", "distilldepth.cli.main", "bench", "--device", "cpu", "--shape", "1x24x32"]
    command += ["--scaling", "--kernel", "backproject", "--backend", "reference", "--json", str(target)]
    # So many repeats that it is not over when two of its rows are.
    process = subprocess.Popen(
        [*command, "--repeats", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seen = [next(line for line in process.stderr if line.startswith("backproject")) for _ in range(2)]
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    result = json.loads(target.read_text())
    check_schema(result)
    assert result["metadata"]["finished"] is None
    assert [f"{digits(row['median_ms'])} ms" for row in result["results"][:2]] == [
        x.split(": ")[1].strip() for x in seen
    ]
    table = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "table.py"), str(target)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cut off before its end" in table.stdout


def test_the_markdown_table_is_derived_from_the_json(four_kernels, tmp_path):
    _, result, _ = four_kernels
    (tmp_path / "a.json").write_text(json.dumps(result))
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "table.py"), str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == len(result["results"]) + 2
    assert len({line.count("|") for line in lines}) == 1
