"""`python -m benchmarks.ablation`: tables as files, runs that can be killed, verdicts as sure as they say."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from waiting import wait_until

from benchmarks.ablation import jobs as job_module
from benchmarks.ablation.__main__ import derive, main
from benchmarks.ablation.intervals import FAILS, HOLDS, UNKNOWN, estimate
from benchmarks.ablation.jobs import Places, changes, plan, prepare
from benchmarks.ablation.labels import SharedLabels
from benchmarks.ablation.pool import Clock, run_jobs
from benchmarks.ablation.report import above_ramp, judge, make_markdown
from benchmarks.ablation.result import FORMAT, read_result, recall, write_result
from benchmarks.ablation.table import find_table, read_table, table_names
from benchmarks.ablation.worker import training_config, work
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import load_model
from distilldepth.signals import Interrupted, raise_on_signals
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import Teacher

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = """
title = "Two"
seeds = 2
data = ["scenes:2"]
[shared]
preset = "demo"
teachers = "dav2-mini"
images = ["scenes:6", "PHOTOS:3"]
steps = 96
batch_size = 2
size = "32"
crop.scene_size = "32x48"
crop.min_crop = 32
precision = "float32"
teacher_precision = "float32"
loss.local_global = 0.0
"""
TWO = SHARED + '[[cell]]\nname = "a"\n[[cell]]\nname = "b"\nloss.gradient = 0.0\n'


def write_table(folder: Path, text: str = TWO, name: str = "two") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def make_photographs(folder: Path, count: int) -> Path:
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (48, 40), (number, 20, 200)).save(folder / f"photo-{number}.png")
    return folder


# Tables.


@pytest.mark.parametrize("name", table_names())
def test_every_table_of_the_project_is_right(name):
    table = read_table(find_table(name))
    assert len(table.cells) >= 2
    assert table.pairs
    assert table.seconds > 0, "measure it: it is the estimate"
    assert all(cell.model or cell.settings["precision"] == "float32" for cell in table.cells)
    told = [json.dumps([cell.model, cell.settings]) for cell in table.cells]
    assert len(set(told)) == len(told), "two cells are told the same"


def test_tables_share_runs(tmp_path):
    folders = {}
    for name in ("table1", "table2", "table4", "fig8"):
        found = plan(read_table(find_table(name), seeds=1), Places(tmp_path))
        folders |= {(name, job.cell): job.folder for job in found}
    assert folders["table1", "shared, hybrid"] == folders["table2", "shared"]
    assert folders["table2", "both"] == folders["table4", "light, dav2"] == folders["fig8", "ours, 100 %"]
    assert len(set(folders.values())) < len(folders) - 4


def test_scenes_of_another_renderer_are_another_run(tmp_path, monkeypatch):
    table = read_table(find_table("table1"), seeds=1)
    before = [(job.folder, job.score) for job in plan(table, Places(tmp_path))]
    monkeypatch.setattr("benchmarks.ablation.jobs.RENDERER_VERSION", 0)
    after = [(job.folder, job.score) for job in plan(table, Places(tmp_path))]
    baselines = 2  # They are no other models, only scored on other scenes.
    assert all(a[1] != b[1] for a, b in zip(before, after, strict=True))
    assert [a[0] == b[0] for a, b in zip(before, after, strict=True)] == [True] * baselines + [False] * 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("title = 'Two'\nsedes = 3\n", r"Cannot overwrite|unknown key 'sedes'.*seeds|line"),
        ("seed = 3\n", r"unknown key 'seed'.*did you mean 'seeds'"),
        ("seeds = 0\n", r"seeds must be a whole number from 1 to 100, got 0"),
        ("seeds = 1.5\n", r"seeds must be a whole number"),
        ("data = ['nyuv2']\n", r"data must be scenes:COUNT or DATA, which stands for --data, got 'nyuv2'"),
        ("data = ['DATA:3']\n", r"data must be"),
        ("data = []\n", r"data must be a list of texts"),
        ("cell = 3\n", r"cell must be written as \[\[cell\]\]"),
        ("shared = 3\n", r"shared must be written as \[shared\]"),
    ],
)
def test_a_wrong_table_is_one_clear_line(tmp_path, change, said):
    key = change.partition(" ")[0]
    kept = re.sub(rf"^{key} = .*\n", "", TWO, flags=re.MULTILINE)
    if key in ("cell", "shared"):
        kept = kept.partition("[shared]")[0]
    path = write_table(tmp_path, change + kept)
    with pytest.raises(DistillDepthError, match=said) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", r"has no cell"),
        ("[[cell]]\nloss.gradient = 1.0\n", r"name must be a text, and is missing"),
        ('[[cell]]\nname = "a"\n[[cell]]\nname = "a"\nsteps = 3\n', r"two cells are called 'a'"),
        ('[[cell]]\nname = "a|b"\n', r"cell 'a\|b': a name must be"),
        ('[[cell]]\nname = "baseline:ramp"\n', r"that name is taken"),
        (
            '[[cell]]\nname = "a"\nloss.gradeint = 1.0\n',
            r"cell 'a': unknown key 'loss.gradeint' in the cell.*loss.gradient",
        ),
        ('[[cell]]\nname = "a"\nloss.gradient = -1.0\n', r"cell 'a': loss.gradient must be at least 0"),
        ('[[cell]]\nname = "a"\nseed = 4\n', r"cell 'a': seed in the cell is no setting of a cell"),
        ('[[cell]]\nname = "a"\ncheckpoint-every = 4\n', r"is no setting of a cell"),
        ('[[cell]]\nname = "a"\npreset = "dmeo"\n', r"unknown preset 'dmeo'.*demo"),
        ('[[cell]]\nname = "a"\nprecision = "auto"\n', r"precision is auto, which depends on the machine"),
        ('[[cell]]\nname = "a"\nimages = ["/home/me"]\n', r"images must be scenes:COUNT or PHOTOS:COUNT.*'/home/me'"),
        ('[[cell]]\nname = "a"\nimages = ["scenes:0"]\n', r"images must be scenes:COUNT"),
        ('[[cell]]\nname = "a"\nteachers = "python:os:system"\n', r"teachers is Python code"),
        ('[[cell]]\nname = "a"\nteachers = "dav2@here.pth"\n', r"teachers has 'dav2@here.pth', and a table names"),
        ('[[cell]]\nname = "a"\nstudent = "runs/mine"\n', r"student must be known, got 'runs/mine'"),
        ('[[cell]]\nname = "a"\ninitial_weights = "a.pth"\n', r"initial_weights must be one of random, .* in a table"),
        ('[[cell]]\nname = "a"\nteachers = "dav3-mini"\n', r"unknown teacher 'dav3-mini'.*dav2-mini"),
        ('[[cell]]\nname = "a"\nmodel = "dav2-minni"\n', r"model must be known, got 'dav2-minni'.*dav2-mini"),
        ('[[cell]]\nname = "a"\nmodel = "dav2-mini"\nsteps = 3\n', r"unknown key 'steps'"),
        ('[[cell]]\nname = "a"\n[[compare]]\nbetter = "a"\nworse = "c"\n', r"compare: no cell is called 'c'"),
        ('[[cell]]\nname = "a"\n[[compare]]\nbetter = "a"\nworse = "a"\n', r"compared with itself"),
        ('[[cell]]\nname = "a"\n[[compare]]\nbetter = "a"\n', r"worse must be a text, and is missing"),
        ('[[cell]]\nname = "a"\n[[compare]]\nbeter = "a"\n', r"compare: unknown key 'beter'.*better"),
    ],
)
def test_a_wrong_cell_is_one_clear_line(tmp_path, rows, said, capsys):
    path = write_table(tmp_path, SHARED + rows)
    with pytest.raises(DistillDepthError, match=said):
        read_table(path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_table_can_be_named_by_an_option_too(tmp_path, capsys):
    places = ["--images", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    for words in (["smallest"], ["--table", "smallest"]):
        assert main([*words, *places]) == 1
        assert "none" in capsys.readouterr().err


def test_what_is_typed_wrongly_is_usage(tmp_path, capsys):
    path = str(write_table(tmp_path))
    for arguments, said in (
        ([], "no table was given"),
        (["tabel1"], "no table 'tabel1'; did you mean 'table1'"),
        ([path, path], "two tables are called two"),
        ([path, "--images", str(make_photographs(tmp_path / "few", 2))], "3 photographs, and --images has 2"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([path, "--seeds", "0"])
    assert caught.value.code == 2


def test_the_list_names_every_table_with_its_estimate(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^table1 .*\n +8 cells x 5 seeds, .*(h|min).* on \d+ cores$", said, re.MULTILINE)
    assert [line.split()[0] for line in said.splitlines() if line[:1].strip()] == table_names()


# Runs.


def test_a_run_is_known_by_all_that_decides_its_numbers(tmp_path):
    table = read_table(write_table(tmp_path))
    photographs = make_photographs(tmp_path / "photographs", 5)
    found = {job.name: job for job in plan(table, Places(tmp_path / "out", photographs))}
    assert list(found) == ["baseline:constant", "baseline:ramp", "a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    assert len({job.folder for job in found.values()}) == 6
    job = found["a, seed 1"]
    assert len(job.photographs) == 3
    assert plan(table, Places(tmp_path / "out", photographs))[4].folder == job.folder
    moved = tmp_path / "elsewhere"
    photographs.rename(moved)
    assert plan(table, Places(tmp_path / "out", moved))[4].folder == job.folder
    first = Path(job.photographs[0]).name
    (moved / first).rename(moved / "other.png")
    assert plan(table, Places(tmp_path / "out", moved))[4].folder != job.folder
    without = plan(table, Places(tmp_path / "out"))[4]
    assert without.key["settings"]["images"] == ["scenes:6"]
    assert without.folder != job.folder


def test_fewer_photographs_are_some_of_the_more(tmp_path):
    photographs = make_photographs(tmp_path / "photographs", 5)
    text = SHARED + "".join(f'[[cell]]\nname = "{n}"\nimages = ["PHOTOS:{n}"]\n' for n in (1, 3, 5))
    found = plan(read_table(write_table(tmp_path, text), seeds=1), Places(tmp_path, photographs))
    used = [set(job.photographs) for job in found[2:]]
    assert [len(names) for names in used] == [1, 3, 5]
    assert used[0] < used[1] < used[2]
    with pytest.raises(UsageError, match="trained on photographs alone; name a folder"):
        plan(read_table(write_table(tmp_path, text), seeds=1), Places(tmp_path))


def test_other_data_are_scored_anew_without_training(tmp_path):
    table = read_table(write_table(tmp_path, TWO.replace('["scenes:2"]', '["scenes:2", "DATA"]')))
    manifest = tmp_path / "mine.jsonl"
    manifest.write_text("{}\n")
    without, with_data = (plan(table, Places(tmp_path, data=data))[2] for data in (None, manifest))
    assert without.folder == with_data.folder
    assert without.score != with_data.score
    manifest.write_text("{ }\n")
    assert plan(table, Places(tmp_path, data=manifest))[2].score != with_data.score
    with pytest.raises(UsageError, match="must be a manifest"):
        plan(table, Places(tmp_path, data=tmp_path / "none.jsonl"))


def test_changed_settings_are_another_run_and_are_told(tmp_path):
    before = read_table(write_table(tmp_path))
    old = plan(before, Places(tmp_path))
    assert changes(before, old, tmp_path) == []
    assert changes(before, old, tmp_path) == []
    after = read_table(write_table(tmp_path, TWO.replace("loss.gradient = 0.0", "loss.gradient = 0.25")))
    new = plan(after, Places(tmp_path))
    assert changes(after, new, tmp_path) == ["b: loss.gradient was 0.0 and is 0.25"]
    assert [a.folder == b.folder for a, b in zip(old, new, strict=True)] == [True, True, True, False, True, False]
    shorter = read_table(write_table(tmp_path), steps=7)
    assert "every cell: steps was 96 and is 7" in changes(shorter, plan(shorter, Places(tmp_path)), tmp_path)


def test_other_bundled_weights_are_another_run(tmp_path, monkeypatch):
    table = read_table(write_table(tmp_path))
    before = plan(table, Places(tmp_path))[2]
    assert list(before.key["weights"]) == ["dav2-mini"]
    monkeypatch.setattr(job_module, "_bundled_digest", lambda path: "others")
    assert plan(table, Places(tmp_path))[2].folder != before.folder


def test_a_run_folder_that_was_edited_is_refused(tmp_path):
    job = plan(read_table(write_table(tmp_path)), Places(tmp_path))[2]
    prepare(job)
    prepare(job)
    path = job.folder / "run.json"
    path.write_text(path.read_text().replace("96", "95"))
    with pytest.raises(DistillDepthError, match="was changed since its run began"):
        prepare(job)


def test_a_run_is_told_all_of_its_cell_and_little_else(tmp_path):
    photographs = make_photographs(tmp_path / "photographs", 3)
    job = plan(read_table(write_table(tmp_path)), Places(tmp_path, photographs))[5]
    prepare(job)
    config = training_config(json.loads(json.dumps(job.key)), job.folder)
    assert (config.seed, config.loss.gradient, config.steps, config.threads, config.heldout) == (1, 0.0, 96, 1, 0)
    assert config.optimiser.ema == 0.99, "the preset's"
    assert config.images == ["scenes:6", str(job.folder / "photographs.txt")]
    assert len(Path(config.images[1]).read_text().split()) == 3


WORKER = """
import json, pathlib, signal, sys, time
folder, score, *data = sys.argv[1:]
folder = pathlib.Path(folder)
key = json.loads((folder / "run.json").read_text())
def stop(number, frame):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "begun").touch()
if key.get("seed") == 1 and key["settings"].get("loss.gradient") == 0.0:
    print("error: planted", file=sys.stderr)
    sys.exit(1)
if key.get("seed") == 1 and (folder.parent / "wait").exists():
    time.sleep(60)
with (folder / "count").open("a") as file:
    file.write("x")
(folder / score).write_text("{}")
"""


@pytest.fixture
def quick(tmp_path):
    """The runs of a table, and a worker that starts at once and does nothing: cell b fails with seed 1."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    return plan(read_table(write_table(tmp_path)), Places(tmp_path)), (str(worker),)


def test_a_failing_run_stops_no_other_and_what_is_scored_is_not_run_again(quick):
    jobs, worker = quick
    said: list[str] = []
    failed = run_jobs(jobs, 2, 60.0, said.append, worker)
    assert list(failed) == [jobs[-1].folder]
    assert re.fullmatch(r"planted \(see .*log\.txt\)", failed[jobs[-1].folder])
    assert sum(job.scores.is_file() for job in jobs) == 5
    assert any(line.startswith("[6/6] ") for line in said)
    assert any("b, seed 1: FAILED: planted" in line for line in said)
    assert any(" left" in line for line in said)
    assert list(run_jobs(jobs, 2, 60.0, said.append, worker)) == [jobs[-1].folder]
    assert "5 of 6 runs are there already" in said
    assert all((job.folder / "count").read_text() == "x" for job in jobs[:-1])


def test_a_signal_stops_the_runs_and_they_save(quick):
    jobs, worker = quick
    (jobs[0].folder.parent).mkdir(parents=True)
    (jobs[0].folder.parent / "wait").touch()
    raise_on_signals()

    def interrupt() -> None:
        wait_until(lambda: (jobs[4].folder / "begun").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted) as caught:
        run_jobs(jobs, 1, 0.0, lambda text: None, worker)
    assert caught.value.exit_code == 143
    assert (jobs[4].folder / "saved").exists()
    assert not (jobs[5].folder / "begun").exists()


def test_cells_that_are_told_the_same_share_their_run(tmp_path, quick):
    _, worker = quick
    text = SHARED + '[[cell]]\nname = "a"\n[[cell]]\nname = "again"\n'
    jobs = plan(read_table(write_table(tmp_path, text), seeds=1), Places(tmp_path))
    assert jobs[2].folder == jobs[3].folder
    assert run_jobs(jobs, 2, 0.0, lambda text: None, worker) == {}
    assert (jobs[2].folder / "count").read_text() == "x"


def test_the_time_that_is_left(quick):
    jobs, _ = quick
    clock = Clock(0.0, 2)
    assert clock.left(jobs[2:], []) == ""
    clock.taken["a"] = [100.0, 140.0]
    assert clock.left(jobs[2:], []) == "about 4 min left"  # Four runs of 120 s, two at a time.
    assert clock.left([], [(jobs[2], 60.0)]) == "about 1 min left"
    assert Clock(7200.0, 1).left(jobs[2:3], []) == "about 2 h 0 min left"


def test_killed_and_run_again_it_goes_on_and_a_failing_cell_is_named(tmp_path, capsys):
    text = SHARED.replace("seeds = 2", "seeds = 1") + '[[cell]]\nname = "a"\n[[cell]]\nname = "bad"\nbatch_size = 99\n'
    text += '[[compare]]\nbetter = "a"\nworse = "bad"\n'
    path, out = write_table(tmp_path, text), tmp_path / "out"
    baselines = plan(read_table(path), Places(out))[:2]
    job = plan(read_table(path), Places(out))[2]
    for baseline in baselines:  # Here, where torch is loaded already.
        prepare(baseline)
        work(baseline.folder, baseline.score, list(baseline.data))
    arguments = [str(path), "--out", str(out), "--jobs", "2", "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "benchmarks.ablation", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    train = job.folder / "train"
    wait_until(lambda: list(train.glob("checkpoints/step-*")), process)
    process.kill()
    process.wait()
    assert not job.scores.exists()

    # The run that lost its parent saves and ends, and the next one waits for it.
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "2 of 4 runs are there already" in said.err
    last = said.err.splitlines()[-1]
    assert re.match(
        r"ablation: FAILED: two: bad, seed 0: distill: batch_size 99 is larger than the 6 training images", last
    )
    resumed = re.search(r"resuming .* at step (\d+)", (job.folder / "log.txt").read_text())
    assert resumed is not None
    assert 16 < int(resumed[1]) < 96, "every 16 steps is a usual checkpoint"
    assert not (train / "checkpoints").exists()
    result = read_result(tmp_path / "results" / "two.json")
    assert [(run.cell, run.seed) for run in result.runs] == [
        ("baseline:constant", None),
        ("baseline:ramp", None),
        ("a", 0),
    ]
    assert str(tmp_path) not in (tmp_path / "results" / "two.json").read_text()
    assert (tmp_path / "results" / "two.md").read_text() == said.out
    assert "FAILED: bad, seed 0: distill: batch_size 99" in said.out
    assert (tmp_path / "results" / "two.png").read_bytes().startswith(b"\x89PNG")

    # Elsewhere: what the results hold is not run again, other settings are; a file that is no result is passed over.
    (tmp_path / "results" / "other.json").write_text('{"results": 3}')
    elsewhere = plan(read_table(path), Places(tmp_path / "elsewhere"))
    assert recall(elsewhere, tmp_path / "results") == 3
    assert [job.scores.is_file() for job in elsewhere] == [True, True, True, False]
    assert recall(elsewhere, tmp_path / "results") == 0
    again = json.loads(elsewhere[2].scores.read_text())
    first = json.loads(job.scores.read_text())
    assert again["datasets"] == first["datasets"]
    assert again["training"] == first["training"]
    shorter = plan(read_table(path, steps=95), Places(tmp_path / "elsewhere"))
    assert recall(shorter, tmp_path / "results") == 0


@pytest.mark.parametrize("features", [(), ("encoder",)])
def test_a_shared_label_is_what_would_have_been_computed(tmp_path, monkeypatch, features):
    random = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 42, 56, generator=random).contiguous(memory_format=torch.channels_last)
    spec = parse_teachers("dav2-mini")[0]
    asked = []
    run = Teacher._run
    monkeypatch.setattr(Teacher, "_run", lambda *given, **more: asked.append(1) or run(*given, **more))
    plain = Teacher(spec, load_model("dav2-mini")).label(images, None, features=features)
    shared = SharedLabels(tmp_path / "labels")
    with shared.asked_first():
        first = Teacher(spec, load_model("dav2-mini")).label(images, None, features=features)
        assert len(asked) == 2
        again = Teacher(spec, load_model("dav2-mini")).label(images, None, features=features)
        assert len(asked) == 2, "read, not computed"
        other = Teacher(spec, load_model("genpercept-mini")).label(images, None, features=features)
        half = Teacher(spec, load_model("dav2-mini"), torch.bfloat16).label(images, None, features=features)
        turned = Teacher(spec, load_model("dav2-mini")).label(images.flip(-1), None, features=features)
        assert len(asked) == 5, "another teacher, precision or image is another label"
    for label in (first, again):
        assert torch.equal(label.disparity, plain.disparity)
        assert torch.equal(label.valid, plain.valid)
        assert (label.teacher, label.inverse_depth, label.quantity) == ("dav2-mini", False, "disparity")
        assert label.features.keys() == set(features)
        for name, value in label.features.items():
            assert torch.equal(value, plain.features[name])
            assert value.stride() == plain.features[name].stride()
    assert all(not torch.equal(label.disparity, plain.disparity) for label in (other, half, turned))
    Teacher(spec, load_model("dav2-mini")).label(images, None, features=features)
    assert len(asked) == 6, "outside the block teachers are asked"

    # Damaged or cut, it is asked for again; what others laid there stays.
    files = sorted((tmp_path / "labels").glob("*/*.safetensors"))
    assert len(files) == 4
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    (files[0].parent / "mine.safetensors").write_bytes(b"mine")
    with shared.asked_first():
        mended = Teacher(spec, load_model("dav2-mini")).label(images, None, features=features)
    assert len(asked) == 7
    assert torch.equal(mended.disparity, plain.disparity)
    shared.clear()
    left = [path for path in (tmp_path / "labels").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["mine.safetensors"]


def test_a_full_disk_keeps_no_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.ablation.labels.FREE_BYTES", 1 << 60)
    with SharedLabels(tmp_path / "labels").asked_first():
        Teacher(parse_teachers("dav2-mini")[0], load_model("dav2-mini")).label(torch.rand(1, 3, 28, 28), None)
    assert not list((tmp_path / "labels").rglob("*.safetensors"))


# Cells that teach others.

TAUGHT = """
title = "Taught"
seeds = 2
data = ["stereo-scenes:2"]
protocol = "metric"
[shared]
preset = "adu-teacher"
student = "newcrfs-micro"
images = ["stereo-scenes:6"]
steps = 3
batch_size = 2
size = "64"
crop.scene_size = "64x96"
crop.min_crop = 64
precision = "float32"
teacher_precision = "float32"
[[cell]]
name = "first"
[[cell]]
name = "second"
two_views = false
loss.response_uncertainty = 1.0
teachers = "cell:first"
"""


def test_a_cell_is_taught_by_the_student_of_another_of_its_seed(tmp_path):
    jobs = plan(read_table(write_table(tmp_path, TAUGHT)), Places(tmp_path))
    assert [(job.cell, job.seed) for job in jobs] == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert all(job.protocol == "metric" for job in jobs), "and no baselines, which know no metres"
    assert [job.after for job in jobs] == [None, jobs[0].folder, None, jobs[2].folder]
    prepare(jobs[1])
    config = training_config(json.loads((jobs[1].folder / "run.json").read_text()), jobs[1].folder)
    assert config.teachers == str(jobs[0].folder / "train" / "student")
    other = plan(read_table(write_table(tmp_path, TAUGHT.replace("steps = 3", "steps = 4"))), Places(tmp_path))
    assert other[1].folder != jobs[1].folder
    longer = TAUGHT.replace('name = "first"', 'name = "first"\nsteps = 9')
    taught = plan(read_table(write_table(tmp_path, longer)), Places(tmp_path))
    assert taught[1].folder != jobs[1].folder, "another teacher, another student"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("cell:first", "cell:frist"), "no cell before it that is trained is called so; did you mean 'first'"),
        (("cell:first", "cell:second"), "no cell before it"),
        (('protocol = "metric"', 'protocol = "meters"'), "protocol must be affine-disparity or metric"),
    ],
)
def test_a_cell_taught_by_none_is_one_clear_line(tmp_path, change, said):
    with pytest.raises(DistillDepthError, match=said):
        read_table(write_table(tmp_path, TAUGHT.replace(*change)))


def test_who_teaches_is_trained_first_and_again_where_only_its_scores_are_known(tmp_path):
    jobs = plan(read_table(write_table(tmp_path, TAUGHT)), Places(tmp_path))[:2]
    begun = tmp_path / "begun.txt"
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        f"file = open({str(begun)!r}, 'a')\n"
        "file.write(folder.name + ' begins\\n'); file.flush(); time.sleep(0.5)\n"
        "(folder / 'train' / 'student').mkdir(parents=True, exist_ok=True)\n"
        "(folder / sys.argv[2]).write_text('{}')\n"
        "file.write(folder.name + ' ends\\n')\n"
    )
    first, second = (job.folder.name for job in jobs)
    order = [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
    for job in jobs:
        prepare(job)
    jobs[0].scores.write_text("{}")
    assert run_jobs(jobs, 2, 0, lambda text: None, worker=(str(worker),)) == {}
    assert begun.read_text().splitlines() == order
    assert run_jobs(jobs, 2, 0, lambda text: None, worker=(str(worker),)) == {}
    assert begun.read_text().splitlines() == order, "nothing is run twice"


# Intervals and verdicts.


def planted(random: np.random.Generator, effect: float, seeds: int, frames: tuple[int, ...]) -> list[np.ndarray]:
    """Differences with an effect of seeds, of frames, of both together, and one planted."""
    of_seeds = random.normal(0, 0.01, (seeds, 1))
    return [
        effect
        + of_seeds
        + random.normal(0, 0.03, (1, count)) * random.choice([0.3, 2.0], (1, count))
        + random.normal(0, 0.02, (seeds, count))
        for count in frames
    ]


@pytest.mark.parametrize(("seeds", "frames"), [(2, (20,)), (3, (5, 9, 1)), (5, (20, 1, 4, 7, 12)), (5, (100,))])
def test_without_an_effect_nothing_is_told_but_at_the_nominal_rate(seeds, frames):
    random = np.random.default_rng(3)
    trials = 400
    verdicts = [estimate(planted(random, 0, seeds, frames), resamples=1000).verdict for _ in range(trials)]
    told = {verdict: verdicts.count(verdict) / trials for verdict in (HOLDS, FAILS)}
    assert sum(told.values()) < 0.09
    assert sum(told.values()) > 0.005
    assert max(told.values()) < 0.06


@pytest.mark.parametrize(("effect", "verdict"), [(0.1, HOLDS), (-0.1, FAILS)])
def test_a_planted_effect_is_found(effect, verdict):
    random = np.random.default_rng(4)
    found = [estimate(planted(random, effect, 5, (20, 9, 1)), resamples=1000) for _ in range(50)]
    assert all(one.verdict == verdict for one in found)
    assert np.mean([one.low < effect < one.high for one in found]) > 0.8
    assert np.isclose(np.mean([one.value for one in found]), effect, atol=0.01)


def test_an_estimate_of_little_is_none():
    one = estimate([np.array([[0.5, 0.7]])])
    assert one.value == pytest.approx(0.6)
    assert np.isnan(one.low)
    assert one.verdict == UNKNOWN
    assert np.isfinite(estimate([np.array([[0.5, 0.7]])], seeds=False).low)
    for grids in ([], [np.zeros((2, 0))], [np.array([[1.0, np.nan], [1.0, 1.0]])]):
        assert np.isnan(estimate(grids).value)
        assert estimate(grids).verdict == UNKNOWN


def make_values(tmp_path: Path, better: float = 0.05) -> dict:
    """A result of two cells, a teacher and the baselines, two datasets; a is better, the third seed of b is missing."""
    random = np.random.default_rng(5)
    frames = {"scenes": 30, "nyu": 12}
    base = {name: random.uniform(0.4, 0.6, count) for name, count in frames.items()}

    def row(cell: str, seed: int | None, offset: float) -> dict:
        noise = 0.0 if seed is None else random.normal(0, 0.003)
        delta1 = {name: base[name] + offset + noise + random.normal(0, 0.005, count) for name, count in frames.items()}
        datasets = {
            name: {
                "frames": count,
                "names": "0123",
                "metrics": {"delta1": float(delta1[name].mean())},
                "per_frame": {"delta1": delta1[name].tolist(), "abs_rel": (1 - delta1[name]).tolist()},
            }
            for name, count in frames.items()
        }
        return {"cell": cell, "seed": seed, "commit": "abc", "datasets": datasets}

    rows = [row("baseline:constant", None, -0.2), row("baseline:ramp", None, 0.0), row("teacher", None, 0.3)]
    rows += [row("a", seed, better) for seed in range(3)] + [row("b", seed, 0.0) for seed in range(2)]
    cell = {"settings": {"steps": 9}, "model": ""}
    cells = [{"name": "a", **cell}, {"name": "b", **cell}, {"name": "teacher", "settings": {}, "model": "dav2-mini"}]
    pairs = [
        {"better": a, "worse": b, "paper": p} for a, b, p in (("a", "b", "1|2"), ("b", "a", ""), ("a", "teacher", ""))
    ]
    table = {
        "name": "t",
        "title": "T",
        "source": "S",
        "claim": "c",
        "notes": "",
        "seconds": 1,
        "seeds": 3,
        "data": ["x"],
    }
    metadata = {"format": FORMAT, "command": "typed", "photographs": False, "device": "cpu"}
    return {
        "metadata": metadata,
        "table": table | {"cells": cells, "pairs": pairs},
        "failures": {"b, seed 2": "lost"},
        "results": rows,
    }


def test_claims_are_judged_on_the_seeds_and_frames_that_both_have(tmp_path):
    values = make_values(tmp_path)
    path = tmp_path / "t.json"
    write_result(values, path)
    assert json.loads(path.read_text()) == values
    result = read_result(path)
    judged = judge(result)
    assert [one.group for one in judged] == ["scenes"] * 3 + ["nyu"] * 3
    assert [one.verdict for one in judged] == [HOLDS, FAILS, FAILS] * 2
    assert [one.seeds for one in judged[:3]] == [2, 2, 3], "a model belongs to every seed"
    assert [one.better_on for one in judged[:3]] == [1, 0, 0]
    a, b = (
        np.array([row["datasets"]["nyu"]["per_frame"]["delta1"] for row in values["results"] if row["cell"] == cell])
        for cell in "ab"
    )
    assert judged[3].difference.value == pytest.approx((a[:2] - b).mean())
    assert judged[3].abs_rel.value == pytest.approx(-judged[3].difference.value), "AbsRel here is 1 - delta1"
    assert above_ramp(result, "a", ["scenes", "nyu"]) == 2
    assert above_ramp(result, "baseline:constant", ["scenes", "nyu"]) == 0
    lost = dataclasses.replace(result, runs=[run for run in result.runs if run.cell != "baseline:ramp"])
    assert above_ramp(lost, "a", ["scenes", "nyu"]) is None
    assert "| a |" in make_markdown(lost)
    assert "not measured" in make_markdown(lost)


def test_the_table_says_what_holds_and_what_failed(tmp_path):
    path = tmp_path / "t.json"
    write_result(make_values(tmp_path, better=0.0), path)
    text = derive(path)
    assert text == make_markdown(read_result(path)) == path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size > 1000
    assert "FAILED: b, seed 2: lost" in text
    assert "without photographs in training" in text
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    claim = next(row for row in rows if row[0].strip() == "a > b")
    assert claim[3].strip() == f"**{UNKNOWN}**"
    assert claim[-1].strip() == r"1\|2"
    lengths = [len(row) for row in rows]
    assert set(lengths) == {6, 8, 7}, "every row has the columns of its table"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metadata", {}),
        ("metadata", {"format": "other"}),
        ("table", {"name": "t"}),
        ("results", []),
        ("results", [3]),
        ("failures", 3),
    ],
)
def test_a_file_that_is_no_result_is_one_line(tmp_path, key, value, capsys):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(make_values(tmp_path) | {key: value}))
    assert main(["--table", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{path}: is no result of benchmarks.ablation, or damaged" in said[0]


def test_runs_on_different_frames_are_refused(tmp_path):
    for change in ({"names": "4567"}, {"frames": 11}, {"per_frame": {"delta1": ["x"] * 12, "abs_rel": [1.0] * 12}}):
        values = make_values(tmp_path)
        values["results"][4]["datasets"]["nyu"] |= change
        write_result(values, tmp_path / "t.json")
        with pytest.raises(DistillDepthError, match="is no result of"):
            read_result(tmp_path / "t.json")


def test_the_results_of_the_project_are_read():
    for path in sorted((REPOSITORY / "benchmarks" / "results" / "ablation").glob("*.json")):
        assert make_markdown(read_result(path)) == path.with_suffix(".md").read_text(), path
