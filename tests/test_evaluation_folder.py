"""The folder of an evaluation: ours or not, one writer, any file name, hostile records."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.evaluate.record.result import read_evaluation


def run(*arguments):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    done = run("--model", "baseline:ramp", "--data", "scenes:3", "--out", folder, "--save-predictions", "npy")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def copy(tmp_path, made):
    return Path(shutil.copytree(made, tmp_path / "out"))


def again(folder: Path, *options: str):
    return run("--model", "baseline:ramp", "--data", "scenes:3", "--out", folder, "--save-predictions", "npy", *options)


def assert_one_line(result, code: int = 1) -> str:
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error: " in line]
    assert "fault of the program" not in line
    return line


def test_an_evaluation_of_ours_is_replaced_with_its_maps(copy):
    (copy / ".distilldepth-0123456789ab.json").write_text("left by a kill")
    assert again(copy, "--overwrite").exit_code == 0
    assert not list(copy.glob(".distilldepth-*"))
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert {"result.json", ".distilldepth.json", "predictions/predictions.json"} <= names


@pytest.mark.parametrize(
    "path", ["thesis.txt", "pictures/mine.jpg", "predictions/mine.npy", "predictions/scenes/x.npy"]
)
def test_a_foreign_file_stops_it_with_its_name(copy, path):
    (copy / path).parent.mkdir(exist_ok=True)
    (copy / path).write_text("mine")
    before = sorted(copy.rglob("*"))
    line = assert_one_line(again(copy, "--overwrite"))
    assert path.split("/")[-1] in line
    assert sorted(copy.rglob("*")) == before


def test_a_link_in_it_is_not_followed(copy, tmp_path):
    shutil.move(copy / "pictures", tmp_path / "elsewhere")
    (copy / "pictures").symlink_to(tmp_path / "elsewhere")
    assert "pictures" in assert_one_line(again(copy, "--overwrite"))
    assert list((tmp_path / "elsewhere").iterdir())


def test_a_run_json_does_not_make_a_folder_ours(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "run.json").write_text("{}")
    (mine / "samples.csv").write_text("mine")
    assert "mark" in assert_one_line(again(mine, "--overwrite"))
    assert (mine / "samples.csv").read_text() == "mine"


def test_an_evaluation_from_before_the_mark_goes_on_and_is_marked(copy):
    (copy / ".distilldepth.json").unlink()
    assert "mark" in assert_one_line(again(copy, "--overwrite"))
    done = again(copy, "--resume", "auto")
    assert done.exit_code == 0, done.stderr
    assert (copy / ".distilldepth.json").is_file()


def test_two_do_not_write_into_one_folder(copy):
    holder = (
        "import sys, pathlib; from distilldepth.folders import claim_folder\n"
        f"with claim_folder(pathlib.Path({str(copy)!r}), 'evaluate'): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "mine\n"
        for option in (("--overwrite",), ("--resume", "auto")):
            assert "another run is writing into" in assert_one_line(again(copy, *option))
        other.kill()
    assert again(copy, "--resume", "auto").exit_code == 0
    assert not (copy / ".lock").exists()


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_no_file_of_an_evaluation_is_ever_executed(tmp_path, copy):
    target = tmp_path / "executed"
    stream = io.BytesIO()
    np.save(stream, np.array([_Bomb(target)], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, facts=np.array([_Bomb(target)], dtype=object))
    contents = (pickle.dumps(_Bomb(target)), stream.getvalue(), zipped.getvalue())
    kept = shutil.copytree(copy, tmp_path / "kept")
    files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    for number, name in enumerate(files):
        content = contents[2] if name.suffix == ".npz" else contents[number % 2]
        for options in (("--resume", "auto"), ("--overwrite",)):
            (copy / name).write_bytes(content)
            result = again(copy, *options)
            assert result.exit_code == 0 or assert_one_line(result), name
        (copy / name).write_bytes(content)
        for words in (("--compare", copy, kept), ("--predictions", copy, "--data", "scenes:3")):
            result = run(*words)
            assert result.exit_code == 0 or assert_one_line(result), name
        assert not target.exists(), name
        shutil.rmtree(copy)
        shutil.copytree(kept, copy)


HUGE = b"9" * 700
EDITS = {
    "nested": b'{"a": ' * 9000,
    "digits": b'{"index": ' + HUGE + b', "dataset": "scenes", "name": "x", "metrics": {}, "sums": {}}\n',
    "list": b"[1, 2]\n",
    "types": b'{"index": "0", "dataset": 3, "name": [], "metrics": 1}\n',
    "metrics": b'{"index": 0, "dataset": "scenes", "name": "x", "metrics": {"abs_rel": "low"}, "sums": {}}\n',
    "bytes": b"\xff\xfe\x00\n",
    "empty": b"",
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", ["run.json", "result.json", "progress.jsonl"])
def test_edited_records_are_one_line(copy, made, name, edit):
    (copy / name).write_bytes(EDITS[edit])
    result = again(copy, "--resume", "auto")
    assert result.exit_code == 0 or assert_one_line(result)
    (copy / name).write_bytes(EDITS[edit])
    result = run("--compare", copy, made)
    assert result.exit_code == 0 or assert_one_line(result)
    if name == "result.json":
        assert result.exit_code == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("datasets", [{}]), ("samples", [{"dataset": "scenes"}]), ("samples", 3), ("mean", {"abs_rel": "x"}),
        ("metadata", []), ("failures", [{"name": 3}]), ("notes", [[]]), ("protocol", {"name": 3}), ("protocol", 7),
    ],
)  # fmt: skip
def test_a_result_with_other_parts_is_one_line(copy, made, key, value):
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, key: value}))
    assert "is not the result of an evaluation" in assert_one_line(run("--compare", copy, made))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_any_file_name_can_be_scored(tmp_path):
    data = tmp_path / "pairs"
    names = [b"caf\xe9", b"=SUM(A1)", b"-1+1", b"@x", b"a|b&c_%", b"</script><b>", "left\u202eright".encode(), b"a\nb"]
    generator = np.random.default_rng(6)
    for folder in ("images", "depth"):
        (data / folder).mkdir(parents=True)
    for name in names:
        if b"/" in name:
            name = name.replace(b"/", b"_")
        stem = os.fsdecode(name)
        rows = np.linspace(1000, 5000, 40)[:, None] + generator.integers(0, 400, (40, 50))
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(data / "images" / f"{stem}.png")
        Image.fromarray(rows.astype(np.uint16)).save(data / "depth" / f"{stem}.png")
    out = tmp_path / "out"
    words = ("--model", "baseline:ramp", "--data", data, "--out", out, "--save-predictions", "npy")
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    evaluation = read_evaluation(out)
    found = {os.fsencode(sample["name"]).rpartition(b"/")[2].removesuffix(b".png") for sample in evaluation.samples}
    assert found == {name.replace(b"/", b"_") for name in names}
    rows = list(csv.reader(io.StringIO((out / "samples.csv").read_bytes().decode())))
    assert len(rows) == 1 + len(names)
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
    assert "<b>" not in (out / "report.html").read_text()
    assert run(*words, "--resume", "auto").exit_code == 0
    assert run("--compare", out, out).exit_code == 0
    assert run(*words, "--overwrite").exit_code == 0
