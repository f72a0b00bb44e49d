"""Distillation through the real command line: what a run leaves behind, kill -9 and resume, and every bad input."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow_pages import check_narrow
from PIL import Image
from safetensors.torch import load_file
from waiting import patience_s, wait_until

import distilldepth as dd
from distilldepth.distill.agreement import measure_agreement
from distilldepth.distill.config import DistillConfig, load_config
from distilldepth.distill.crops import crop_config
from distilldepth.distill.ema import WeightAverage
from distilldepth.distill.guard import watch_gradients
from distilldepth.distill.labels import label_batch
from distilldepth.distill.optimiser import make_optimiser, schedule_factor, set_learning_rate
from distilldepth.distill.processes import make_accelerator
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.record.folder import find_start
from distilldepth.distill.record.log import keep_lines_until
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.trainer import distill
from distilldepth.files import cache_folder
from distilldepth.folders import claim_folder
from distilldepth.images.batches import CropDataset, SourceView, StepBatches, loading, next_batch, split_heldout
from distilldepth.images.crops import Regions
from distilldepth.images.sources import open_source
from distilldepth.losses import distill_any_depth_objective
from distilldepth.models import create_student, save_model
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo, predict_at
from distilldepth.models.preprocess import MAP_INTERPOLATIONS, Preprocessing, nearest_size, target_size
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel, Teacher

SMALL = [
    "--student", "light-mini", "--size", "64x96", "--batch-size", "4", "--workers", "1", "--heldout", "4",
    "--set", "crop.scene_size=64x96", "--set", "crop.min_crop=48", "--set", "crop.patches=2",
    "--set", "crop.patch_share=0.6", "--set", "loss.feature=0", "--set", "optimiser.lr=1e-3",
    "--set", "augment.colour=0.2", "--offline",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    own, usual = tmp_path_factory.getbasetemp() / "cache", cache_folder()
    own.mkdir(exist_ok=True)
    if not (own / "native").exists():
        (own / "native").symlink_to(usual / "native")  # the compiled kernels, if there are any
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLDEPTH_CACHE", str(own))
        yield


def run_cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "distilldepth.cli.main", "distill", *arguments], cwd=cwd, capture_output=True, text=True
    )


def photographs(folder: Path, count: int = 12) -> Path:
    generator = np.random.default_rng(5)
    folder.mkdir(parents=True)
    for index in range(count):
        height, width = generator.integers(70, 160, 2)
        small = generator.integers(0, 255, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((int(width), int(height))).save(folder / f"photo {index}.jpg")
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, _own_cache):
    folder = tmp_path_factory.mktemp("run")
    result = run_cli(
        "--teachers", "oracle", "--images", "scenes:24", "--steps", "6", "--out", "runs/a b", "--set",
        "checkpoint_every=2", "--set", "log_every=2", "--json", "-", *SMALL, cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "a b", result


def test_a_run_leaves_what_it_promises(finished_run):
    run, result = finished_run
    names = {path.name for path in run.iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "student", "samples", "report.html"} <= names
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert {"shared_context", "local_global", "gradient", "anchor"} == set(row["terms"])
        assert abs(sum(row["time"].values()) - 1) < 1e-6
        assert row["skipped"] == 0
        assert row["output_peak"] <= 1
    card = (run / "student" / "README.md").read_text()
    assert "oracle" in card
    assert "distill --teachers oracle" in card
    page = (run / "report.html").read_text()
    check_narrow(page)
    assert "<svg" in page
    assert "data:image/png;base64" in page
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads(result.stdout)["steps"] == 6
    assert load_config(file=run / "config.toml").steps == 6


def test_the_student_is_a_model(finished_run):
    run, _ = finished_run
    for path in (run, run / "student"):
        model = dd.load_model(path)
        prediction = model.predict(np.random.default_rng(0).integers(0, 255, (60, 83, 3), dtype=np.uint8))
        assert prediction.values.shape == (60, 83)
        assert prediction.quantity == "disparity"
        assert model.info.source == "distilled from oracle"


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_kill_and_resume_gives_identical_weights(tmp_path, algorithm):
    arguments = ["--teachers", "oracle", "--images", "scenes:24", "--steps", "15", "--set", "checkpoint_every=3"]
    arguments += [
        "--precision",
        "float32",
        "--set",
        f"optimiser.algorithm={algorithm}",
    ]  # What auto takes is measured anew.
    arguments += ["--set", "optimiser.ema=0.9", "--set", "log_every=5", *SMALL]
    whole = run_cli(*arguments, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "distilldepth.cli.main", "distill", *arguments, "--out", "cut"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoints = tmp_path / "cut" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "student").exists()
    # What a kill in the middle of writing leaves: half a checkpoint and half a line.
    (checkpoints / ".partial-00000099").mkdir()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "lo')
    resumed = run_cli(*arguments, "--out", "cut", "--resume", "auto", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming cut at step" in resumed.stderr
    expected = load_file(tmp_path / "whole" / "student" / "model.safetensors")
    actual = load_file(tmp_path / "cut" / "student" / "model.safetensors")
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 15


def test_an_interrupted_run_says_how_to_continue(tmp_path):
    arguments = ["--teachers", "oracle", "--images", "scenes:24", "--steps", "5000", "--out", "my run", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "distilldepth.cli.main", "distill", *arguments, "--set", "checkpoint_every=1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts its job with & has it ignore Ctrl-C, and the job's children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: any((tmp_path / "my run" / "checkpoints").glob("step-*")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=patience_s())
    assert process.returncode == 130, messages
    assert "distilldepth distill --config 'my run/config.toml' --resume auto" in messages
    assert "Traceback" not in messages


def test_distils_photographs_from_a_model(tmp_path, finished_run):
    photos = photographs(tmp_path / "my photos")
    for name in ("broken.jpg", "z held out.jpg"):
        (photos / name).write_bytes(b"\xff\xd8 not a photograph")
    teacher = finished_run[0] / "student"
    result = run_cli(
        "--teachers", f"{teacher}=2", "--images", str(photos), "--steps", "8", "--out", "run", *SMALL, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["unreadable"] for row in rows) > 0
    assert "warning: " in result.stderr
    assert "broken.jpg: is not an image" in result.stderr
    assert "held-out images (1 unreadable, another in its place): correlation" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--teachers", "dav3"], "unknown teacher 'dav3'; did you mean 'dav2'", 2),
        (["--teachers", "oracle,oracle"], "given twice", 2),
        (["--teachers", "dav2@"], "behind the @", 2),
        (["--teachers", "oracle", "--batch-size", "1", "--size", "32"], "--batch-size 2", 2),
        (["--teachers", "oracle", "--config", ""], "--config must name a file", 2),
        (["--teachers", "oracle=-2"], "must be positive", 2),
        (["--teachers", "oracle", "--steps", "0"], "steps must be at least 1", 2),
        (["--teachers", "oracle", "--student", "topformer-bas"], "did you mean", 2),
        (["--teachers", "oracle", "--images", "nowhere/at all"], "nowhere/at all", 1),
        (["--teachers", "oracle", "--images", "empty"], "empty", 1),
        (["--teachers", "oracle", "--images", "photos"], "procedural scenes only", 1),
        (["--teachers", "oracle", "--images", "scenes:6", "--batch-size", "64"], "larger than", 1),
        (["--teachers", "oracle", "--set", "los.gradient=1"], "did you mean", 2),
        (["--teachers", "oracle", "--device", "gpu"], "device", 2),
        (["--teachers", "oracle", "--preset", "dem"], "did you mean 'demo'", 2),
        (["--teachers", "oracle", "--config", "no.toml"], "no.toml", 1),
        (["--teachers", "oracle", "--resume", "photos"], "not a checkpoint", 1),
        (["--teachers", "oracle", "--out", "photos"], "not empty", 1),
        (["--teachers", "oracle", "--overwrite", "--out", "photos"], "does not carry the mark", 1),
        (["--teachers", "oracle", "--out", "a file"], "is a file", 1),
        (["--teachers", "corrupt.safetensors"], "corrupt.safetensors", 1),
        (["--teachers", "dav2-mini,dav2"], "are the same model", 1),
        (["--teachers", "oracle", "--json", "photos"], "--json must name a file", 2),
        (["--teacher", "oracle"], "--teachers", 2),
        (["--steps", "many"], "--steps", 2),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, words, code):
    photographs(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("x")
    (tmp_path / "corrupt.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    defaults = [] if "--out" in arguments else ["--out", "new"]
    settings = [*SMALL, *([] if "--steps" in arguments else ["--steps", "1"])]
    for flag in ("--batch-size", "--student"):
        if flag in arguments:
            at = settings.index(flag)
            del settings[at : at + 2]
    result = run_cli(*settings, *arguments, *defaults, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    if code == 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("distilldepth: error:")]
        assert len(lines) == 1, result.stderr
    assert len(list((tmp_path / "photos").iterdir())) == 12
    assert not (tmp_path / "new").exists()


def test_a_changed_configuration_is_not_resumed(tmp_path, finished_run):
    run, _ = finished_run
    result = run_cli(
        "--config", str(run / "config.toml"), "--out", str(run), "--resume", "auto", "--batch-size", "3", cwd=tmp_path
    )
    assert result.returncode == 1
    assert "batch_size was 4" in result.stderr


def configured(run: Path, **changes) -> DistillConfig:
    return dataclasses.replace(load_config(file=run / "config.toml"), **changes)


@pytest.fixture
def run_copy(tmp_path, finished_run):
    return Path(shutil.copytree(finished_run[0], tmp_path / "copy"))


def test_a_run_is_replaced_only_when_the_new_one_can_start(run_copy):
    before = sorted(run_copy.rglob("*"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        distill(configured(run_copy, out=str(run_copy), images=["nowhere"], overwrite=True))
    assert sorted(run_copy.rglob("*")) == before


def test_a_failed_start_leaves_the_folder_free(tmp_path, finished_run):
    config = configured(finished_run[0], out=str(tmp_path / "new"))
    with pytest.raises(ValueError, match="unknown student"):
        distill(dataclasses.replace(config, student="light-min"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="unknown student"):
        distill(dataclasses.replace(config, student="light-min", out=str(tmp_path / "mine")))
    assert not any((tmp_path / "mine").iterdir())


def test_resuming_never_removes_a_student(run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    with pytest.raises(ValueError, match="a student but no checkpoint"):
        find_start(configured(run_copy, resume="auto"), run_copy)
    assert find_start(configured(run_copy, overwrite=True), run_copy).checkpoint is None


def test_a_config_of_another_program_is_not_a_run(tmp_path, finished_run):
    (tmp_path / "config.toml").write_text('title = "my site"')
    with pytest.raises(dd.DistillDepthError, match="does not carry the mark"):
        find_start(configured(finished_run[0], overwrite=True), tmp_path)


def test_fewer_steps_than_are_done(finished_run):
    run, _ = finished_run
    with pytest.raises(ValueError, match=r"steps is 5, but .* has 6 done"):
        find_start(configured(run, steps=5, resume="auto"), run)


def test_a_checkpoint_of_another_folder_is_not_resumed(tmp_path, finished_run):
    run, _ = finished_run
    with pytest.raises(ValueError, match="name the run's own folder"):
        find_start(configured(run, resume=str(run / "checkpoints" / "step-00000004")), tmp_path)


def test_a_run_whose_metrics_are_gone_can_be_finished(run_copy):
    (run_copy / "metrics.jsonl").unlink()
    result = distill(configured(run_copy, out=str(run_copy), resume="auto"))
    assert result.steps == 6
    assert "no lines" in (run_copy / "report.html").read_text()


def test_metrics_with_foreign_lines_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[3]\n{"other": 1}\n\xff\n{"step": 3}\n')
    keep_lines_until(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_two_runs_do_not_share_a_folder(tmp_path, finished_run):
    holder = "import sys, pathlib; from distilldepth.folders import claim_folder\n"
    holder += "with claim_folder(pathlib.Path('run'), 'distill'): print('mine', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(dd.DistillDepthError, match="another run is writing"):
            distill(configured(finished_run[0], out=str(tmp_path / "run")))
        other.kill()
    with claim_folder(tmp_path / "run", "distill"):
        pass
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("limit", [2_000_000, 4_000])
def test_a_full_disk_is_one_line(tmp_path, finished_run, limit):
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(dd.DistillDepthError, match=r"cannot be written .*; make room, then continue") as caught:
            distill(configured(finished_run[0], out=str(tmp_path / "run")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_what_fails_in_a_worker_is_one_line(tmp_path):
    (tmp_path / "bad").mkdir()
    for index in range(3):
        (tmp_path / "bad" / f"{index}.jpg").write_text("no picture")
    training, _ = split_heldout(open_source(tmp_path / "bad"), 0)
    dataset = CropDataset(training, crop_config(load_config(settings=["size=64"])), seed=0)
    with (
        loading(dataset, StepBatches(0, 1, 1), 1, pin=False) as loader,
        pytest.raises(dd.DistillDepthError, match=r"^3 images in a row cannot be read; the first: [^\n]*$"),
    ):
        next_batch(loader, "distill")


def test_workers_that_nobody_ended_do_not_keep_python_from_ending(tmp_path):
    # They ignore SIGTERM, which is what multiprocessing sends at the end, and waits.
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    code = f"""
from distilldepth.images.sources import open_source
from distilldepth.distill.config import load_config
from distilldepth.distill.crops import crop_config
from distilldepth.images.batches import CropDataset, StepBatches, loading, split_heldout
training, _ = split_heldout(open_source({str(tmp_path)!r}), 0)
dataset = CropDataset(training, crop_config(load_config(settings=["size=32"])), seed=0)
block = loading(dataset, StepBatches(0, 1000, 1), 1, pin=False)
next(block.__enter__())
raise SystemExit("left")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "left")


def test_two_teachers_of_one_name_are_kept_apart(tmp_path, finished_run):
    run, _ = finished_run
    other = save_model(create_student("light-mini", seed=9), tmp_path / "other")
    settings = {"device": torch.device("cpu"), "offline": True, "has_depth": False, "seed": 0}
    pool = load_teachers(parse_teachers(f"{run}=2,{other}"), **settings)
    assert [teacher.name for teacher in pool.teachers] == [str(run), str(other)]
    with pytest.raises(ValueError, match="are the same model"):
        load_teachers(parse_teachers(f"{run},{run / 'student'}"), **settings)


class _Numbers:
    has_depth = True
    names = None
    description = "numbers"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        depth = np.full((64, 96), index + 1.0, np.float32) + np.arange(96, dtype=np.float32)
        return {"image": np.full((64, 96, 3), index, np.uint8), "name": str(index), "depth": depth}


def test_every_image_is_seen_once_per_epoch_in_a_new_order():
    config = load_config(settings=["size=64x96", "crop.min_crop=64", "crop.patches=0"])
    training, heldout = split_heldout(_Numbers(25), 5)
    dataset = CropDataset(training, crop_config(config), seed=3)
    orders = [[dataset[epoch * 20 + i].name[0] for i in range(20)] for epoch in range(2)]
    assert sorted(map(int, orders[0])) == list(range(20)) == sorted(map(int, orders[1]))
    assert orders[0] != orders[1]
    assert [heldout[i]["name"] for i in range(len(heldout))] == ["20", "21", "22", "23", "24"]


def test_processes_share_the_images_of_a_step():
    whole = list(StepBatches(2, 5, 6))
    parts = [list(StepBatches(2, 5, 3, process, 2)) for process in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_held_out_images_are_a_fifth_at_most():
    training, heldout = split_heldout(_Numbers(10), 100)
    assert (len(training), len(heldout)) == (8, 2)


def test_teachers_are_drawn_with_their_weights():
    specs = parse_teachers("a=7,b=3")
    pool = TeacherPool([_Named(spec.model, spec.weight) for spec in specs], seed=11)
    drawn = [pool.draw(step).name for step in range(4000)]
    assert abs(drawn.count("a") / 4000 - 0.7) < 0.03
    assert drawn[:50] == [pool.draw(step).name for step in range(50)]


class _Named:
    def __init__(self, name, weight):
        self.name, self.weight = name, weight


def test_the_oracle_says_inverse_depth_and_knows_sky_and_holes():
    oracle = Teacher(parse_teachers("oracle")[0], None)
    depth = torch.tensor([[[2.0, float("inf"), float("nan")]]])
    label = oracle.label(torch.zeros(1, 3, 1, 3), depth)
    assert label.disparity[0, 0, :2].tolist() == [0.5, 0.0]
    assert label.valid.tolist() == [[[True, True, False]]]


def test_teachers_label_in_their_own_precision():
    model = create_student("light-mini", seed=2)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    labels = {}
    for precision in (torch.float32, torch.bfloat16):
        teacher = Teacher(parse_teachers("x")[0], model, precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            labels[precision] = teacher.label(images, None).disparity
    assert labels[torch.bfloat16].dtype == torch.float32
    assert not torch.equal(labels[torch.float32], labels[torch.bfloat16])
    torch.testing.assert_close(labels[torch.float32], labels[torch.bfloat16], rtol=0.05, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        again = Teacher(parse_teachers("x")[0], model).label(images, None).disparity
    assert torch.equal(again, labels[torch.float32])


def test_windows_are_labelled_in_the_order_of_their_boxes():
    config = load_config(settings=["size=64x96", "crop.min_crop=64", "crop.patches=3", "crop.patch_share=0.5"])
    training, _ = split_heldout(_Numbers(10), 0)
    dataset = CropDataset(training, crop_config(config), seed=0)
    batch = Regions.collate([dataset[i] for i in range(4)])
    oracle = Teacher(parse_teachers("oracle")[0], None)
    regions, label = label_batch(batch, oracle, config.augment, torch.device("cpu"), features=())
    assert regions.boxes.shape == (4, 3, 4)
    for n in range(12):
        image, box = n // 3, regions.boxes[n // 3, n % 3].tolist()
        inside = label.disparity[image, 5, round(box[0]) : round(box[2])]
        window = label.patch_disparity[n, 5]
        assert abs(float(inside.mean()) - float(window.mean())) < 0.02 * float(inside.mean())


def test_non_finite_teacher_output_is_skipped_counted_and_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = Teacher.label

    def poisoned(self, images, depth, *, features=False):
        label = original(self, images, depth, features=features)
        if len(label.disparity) > 4:  # Regions, then their windows, in one pass.
            label.disparity[1, 3, 4] = float("nan")
            label.valid[1] = True
        return label

    config = load_config(
        settings=[*SMALL[SMALL.index("--set") + 1 : -1 : 2], "log_every=2"],
        flags={
            "teachers": "oracle", "student": "light-mini", "size": "64x96", "batch_size": 4, "workers": 0,
            "heldout": 0, "images": ["scenes:24"], "steps": 4, "out": "run", "max_skipped_share": 0.5,
        },
    )  # fmt: skip
    monkeypatch.setattr(Teacher, "label", poisoned)
    distill(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [2, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    for tensor in load_file(tmp_path / "run" / "student" / "model.safetensors").values():
        assert torch.isfinite(tensor.float()).all()
    config.max_skipped_share, config.out = 0.1, "stopped"
    with pytest.raises(dd.DistillDepthError, match="2 of the last 8 samples are not finite"):
        distill(config)
    saved = load_file(next((tmp_path / "stopped").glob("failed-step-*.safetensors")))
    assert saved["image"].shape == (4, 3, 64, 96)


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(algorithm):
    config = load_config(settings=["optimiser.lr=0.1", f"optimiser.algorithm={algorithm}"])
    accelerator = make_accelerator(load_config(settings=["device=cpu"]), "float32")
    module = torch.nn.Module()
    module.student = create_student("light-mini", seed=0)
    optimiser = make_optimiser(config, module, torch.device("cpu"), torch.float32)
    flag = watch_gradients(accelerator, optimiser, torch.device("cpu"))
    before = {name: value.clone() for name, value in module.named_parameters()}
    for infinite in (True, False):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if infinite else 1.0)
        flag.fill_(float(infinite))
        optimiser.step()
        same = all(torch.equal(value, before[name]) for name, value in module.named_parameters())
        assert same == infinite


def test_weight_average_forgets_the_start_and_follows():
    module = torch.nn.BatchNorm1d(3)
    average = WeightAverage(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(2.0)
        module.num_batches_tracked.fill_(7)
    for step in range(200):
        average.update(module, step)
    assert torch.allclose(average.state_dict()["weight"], torch.full((3,), 5.0))
    assert torch.allclose(average.state_dict()["running_mean"], torch.full((3,), 2.0))
    assert int(average.state_dict()["num_batches_tracked"]) == 7


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_schedule_rises_then_falls(schedule):
    config = load_config(settings=[f"optimiser.schedule={schedule}", "steps=100", "optimiser.warmup=0.1"])
    factors = [schedule_factor(config, step) for step in range(100)]
    assert factors[:11] == sorted(factors[:11])
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[99] == 1 if schedule == "constant" else factors[99] < 0.05


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (37, 0.05), (10, 0.0), (7, 1.0), (1, 0.3)])
def test_one_cycle_is_that_of_torch(steps, warmup):
    settings = ["optimiser.schedule=one-cycle", f"optimiser.warmup={warmup}", "optimiser.final_lr_share=4e-6"]
    config = load_config(settings=[*settings, "optimiser.lr=3e-3", f"steps={steps}", "optimiser.beta2=0.99"])
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    theirs = torch.optim.AdamW(weights[:1], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 3e-3, steps, pct_start=warmup)
    described = [{"params": weights[:1], "lr_share": 1.0}, {"params": weights[1:], "lr_share": 0.1}]
    ours = torch.optim.AdamW(described, betas=(0.9, 0.99))
    for step in range(steps):
        set_learning_rate(ours, config, step)
        expected = theirs.param_groups[0]
        for group, share in zip(ours.param_groups, (1, 0.1), strict=True):
            assert group["lr"] == pytest.approx(share * expected["lr"], rel=1e-9)
            assert group["betas"] == pytest.approx(expected["betas"], rel=1e-9)
        theirs.step()
        if step + 1 < steps:
            schedule.step()


def test_agreement_is_perfect_with_oneself_and_affine_invariant(tmp_path):
    config = load_config(settings=["size=64x96", "batch_size=3"])
    student = create_student("light-mini", seed=1).eval()

    class Scaled(Teacher):
        def label(self, images, depth, *, features=False):
            label = super().label(images, depth, features=features)
            label.disparity = 3 * label.disparity + 7
            return label

    teacher = Scaled(parse_teachers("x")[0], student)
    generator = np.random.default_rng(2)

    class Noise(_Numbers):
        has_depth = False

        def __getitem__(self, index):
            return {"image": generator.integers(0, 255, (64, 96, 3), dtype=np.uint8), "name": str(index)}

    found = measure_agreement(student, [teacher], SourceView(Noise(4), range(4)), config, tmp_path)
    scores = found["teachers"][teacher.name]
    assert scores["correlation"] == pytest.approx(1, abs=1e-4)
    assert scores["ssi_error"] == pytest.approx(0, abs=1e-2)


def test_a_run_without_the_native_library_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "empty"))
    result = run_cli(
        "--teachers", "oracle", "--images", "scenes:8", "--steps", "1", "--out", "run", *SMALL, "--heldout", "1",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "the losses run in plain torch; `distilldepth doctor --build`" in result.stderr


def test_a_compiled_student_makes_the_same_step(monkeypatch):
    # Everything of torch.compile but the code generator, which would need a compiler and most of a minute.
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(4)
    images, labels = torch.rand(3, 3, 32, 48), torch.rand(3, 32, 48)
    regions, label = whole(images), PseudoLabel(labels, labels > 0.05)
    results = []
    for compiled in (False, True):
        student = _Tiny()
        objective = distill_any_depth_objective()
        step = DistillationStep(student, objective, Stopwatch(torch.device("cpu")), compiled=compiled)
        loss = step(regions, label).loss
        loss.backward()
        assert list(step.state_dict()) == ["student.layer.weight", "student.layer.bias"]
        results.append((loss.detach(), student.layer.weight.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("way", MAP_INTERPOLATIONS)
@pytest.mark.parametrize("quantity", ["disparity", "metric_depth"])
def test_training_and_prediction_bring_maps_back_in_one_way(way, quantity):
    """What the loss, the agreement and a teacher's label see of an image of 29 x 45 is what `estimate` gives."""
    ways = {name: Preprocessing(32, 8, "hf", map_interpolation=name) for name in MAP_INTERPOLATIONS}
    model = _Tiny(quantity, ways[way]).eval()
    images = torch.rand(2, 3, 29, 45, generator=torch.Generator().manual_seed(6))
    assert target_size(29, 45, model.preprocessing) == nearest_size(29, 45, 8) == (32, 48)
    with torch.no_grad():
        expected = model.estimate(images)
        for name, other in ways.items():
            assert torch.equal(_Tiny(quantity, other).estimate(images), expected) == (name == way)
        assert torch.equal(predict_at(model, images), expected)
        label = Teacher(parse_teachers("x")[0], model).label(images, None)
    known = expected > 0 if quantity == "metric_depth" else torch.ones_like(expected, dtype=torch.bool)
    assert torch.equal(label.valid, known)
    labelled = 1 / label.disparity if quantity == "metric_depth" else label.disparity
    # In another layout in memory, and with a gradient, some processors round otherwise; another way is 0.2 away.
    torch.testing.assert_close(labelled[known], expected[known], rtol=1e-4, atol=1e-5)
    seen = []

    def objective(student, label, regions):
        seen.append(student.values.detach())
        return student.values.mean(), {}

    step = DistillationStep(model, objective, Stopwatch(torch.device("cpu")))
    step(whole(images), PseudoLabel(expected, torch.ones_like(expected, dtype=torch.bool)))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def whole(images):
    """Regions without windows."""
    count = len(images)
    return Regions(images, images.new_empty(count, 0, 3, 8, 8), images.new_empty(count, 0, 4), ["x"] * count)


class _Tiny(DepthModel):
    """One convolution."""

    def __init__(self, quantity: str = "disparity", preprocessing: Preprocessing | None = None) -> None:
        torch.manual_seed(5)
        super().__init__(ModelInfo("tiny", "tiny", quantity, "MIT", "random"), preprocessing or Preprocessing(32, 8))
        self.layer = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images: torch.Tensor, *, features: bool = False) -> DepthOutput:
        return DepthOutput(self.layer(self.normalise(images))[:, 0])
