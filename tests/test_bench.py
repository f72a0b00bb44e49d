"""The timing harness: rows, metadata and the errors that it reports."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from distilldepth import benchmark, reference
from distilldepth.cli.main import cli

ROW = {
    "op": str, "backend": str, "direction": str, "dtype": str, "shape": list, "note": str, "median_ms": float,
    "p20_ms": float, "p80_ms": float, "repeats": int, "peak_bytes": (int, type(None)), "bytes_min": int,
    "bandwidth_fraction": float, "max_error": float,
}  # fmt: skip
METADATA = ("commit", "device", "driver", "torch", "triton", "python", "threads", "command", "copy_bytes_per_s")
SHAPE = (2, 31, 45)


def check_schema(result: dict) -> None:
    """Fail unless `result` has the form of every committed result file."""
    assert set(result) == {"metadata", "results"}
    assert set(METADATA) <= result["metadata"].keys()
    assert result["results"]
    for row in result["results"]:
        assert row.keys() == ROW.keys()
        for key, kind in ROW.items():
            assert isinstance(row[key], kind), (key, row[key])
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]


def test_every_kernel_gives_rows_with_small_errors():
    rows = []
    result = benchmark.run_benchmark(benchmark.KERNELS, SHAPE, repeats=2, device="cpu", on_row=rows.append)
    check_schema(result)
    assert result["results"] == rows
    seen = {(row["op"], row["backend"], row["direction"]) for row in rows}
    for op in ("hybrid_norm", "crop_ssi", "channel_kl", "backproject"):
        assert (op, "reference", "forward") in seen
        assert (op, "reference", "forward+backward") in seen
    assert all(row["max_error"] < 1e-3 for row in rows)


@pytest.mark.parametrize("contexts", benchmark.CONTEXTS)
def test_the_mask_list_baseline_computes_the_same_loss(contexts):
    case = benchmark.make_case("hybrid-norm", SHAPE, torch.float64, contexts=contexts)
    ours = reference.hybrid_norm_loss(*case.inputs, segments=benchmark.SEGMENTS, contexts=contexts)
    assert benchmark._max_error(case.backends["mask-list"](*case.inputs), ours) < 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernels": ["hybrid-nrom"]}, "hybrid-norm"),
        ({"dtype": "float8"}, "float"),
        ({"contexts": "rang"}, "range"),
        ({"shape": (0, 4, 4)}, "shape"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_wrong_arguments_are_named(change, named):
    arguments = {"kernels": ["hybrid-norm"], "shape": SHAPE, "device": "cpu", **change}
    with pytest.raises(ValueError, match=named):
        benchmark.run_benchmark(**arguments)


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    target = tmp_path / "results" / "bench.json"
    args = ["bench", "--kernel", "hybrid-norm", "--shape", "1x24x32", "--repeats", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*args, "--json", str(target)])
    assert result.exit_code == 0, result.stderr
    assert "hybrid_norm" in result.stdout
    assert "mask-list" in result.stdout
    check_schema(json.loads(target.read_text()))


def test_json_on_stdout_is_nothing_but_json():
    args = ["bench", "--kernel", "backproject,channel-kl", "--shape", "1x24x32", "--repeats", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*args, "--json", "-"])
    assert result.exit_code == 0, result.stderr
    check_schema(json.loads(result.stdout))


def test_committed_results_have_the_schema():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.json")):
        check_schema(json.loads(path.read_text()))
