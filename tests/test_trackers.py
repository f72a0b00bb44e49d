"""Where a run's numbers go beside its files: event files that go on after a resumption, and trackers by name."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

import distilldepth as dd
from distilldepth.distill import trackers
from distilldepth.distill.config import load_config
from distilldepth.distill.trackers import Trackers, check_trackers, tracker_names
from distilldepth.distill.trainer import distill

FLAGS = {
    "teachers": "distilldepth-mini=2,genpercept-mini", "student": "light-mini", "images": ["scenes:14"],
    "size": "32x64", "batch_size": 2, "workers": 0, "heldout": 2, "checkpoint_every": 2, "log_every": 1,
    "agreement_every": 3, "device": "cpu", "precision": "float32", "teacher_precision": "float32", "offline": True,
}  # fmt: skip
TUNED = ["crop.min_crop=32", "crop.scene_size=32x64", "crop.patches=0", "loss.feature=0"]


def events(folder: Path) -> list[Event]:
    """Every event of a folder in the order in which TensorBoard reads them."""
    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: a session that starts at a step takes back what was told from there on."""
    points: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            points = {tag: [point for point in told if point[0] < event.step] for tag, told in points.items()}
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def run(out: Path, **changes):
    return distill(load_config(settings=TUNED, flags={**FLAGS, "out": str(out), **changes}))


def test_every_number_is_told_once_also_after_a_resumption(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(out, steps=4)
    # As if killed behind step 2, with more told than the checkpoint knows.
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.rmtree(out / "student")
    (first,) = (out / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.0000000001.here"))
    run(out, steps=4, resume="auto")
    assert len(list((out / "tensorboard").iterdir())) == 2
    points = shown(out / "tensorboard")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        flat = {key: value for key, value in row.items() if not isinstance(value, dict) and key != "step"}
        for table in ("terms", "time", "teachers", "rates"):
            flat |= {f"{table}/{name}": value for name, value in row[table].items()}
        assert {"loss", "memory", "lr", "skipped", "images_per_second", "output_peak", "rates/encoder"} <= flat.keys()
        for name, value in flat.items():
            told = [number for step, number in points[name] if step == row["step"]]
            assert told == [pytest.approx(value, rel=1e-6)], name
    assert [step for step, _ in points["loss"]] == [1, 2, 3, 4]
    agreement = [json.loads(line) for line in (out / "agreement.jsonl").read_text().splitlines()]
    for name in ("distilldepth-mini", "genpercept-mini"):
        expected = [(row["step"], pytest.approx(row["teachers"][name]["ssi_error"])) for row in agreement]
        assert points[f"agreement/{name}/ssi_error"] == expected
    assert [row["step"] for row in agreement] == [0, 3, 4]

    page = (out / "report.html").read_text()
    for chart in ("peak memory of a process", "samples of each teacher", "images per second", "time shares"):
        assert page.count(f">{chart}") == 1
    drawn = [sum(row["teachers"].get(name, 0) for row in rows) for name in ("distilldepth-mini", "genpercept-mini")]
    assert sum(drawn) == 4
    for name, count, asked in zip(("distilldepth-mini", "genpercept-mini"), drawn, ("66.7%", "33.3%"), strict=True):
        cells = page.partition(f"<tr><td>{name}</td><td class='number'>")[2].partition("</tr>")[0]
        assert f">{asked}</td><td class='number'>{count / 4:.1%}</td>" in cells
        assert f"<td class='number'>{2 * count}</td>" in cells
    student = dd.load_model(out)
    parts = student.parameter_groups()
    for part in ("encoder", "decoder"):
        lines = [line for line in page.split("<tr>") if line.startswith(f"<td>{part}</td>")]
        numbers = [int(line.rpartition("'number'>")[2].partition("<")[0].replace(",", "")) for line in lines]
        if part == "encoder":
            assert sum(numbers) == sum(parameter.numel() for parameter in parts["encoder"])
        assert len(numbers) == 2  # With decay and without.

    run(out, steps=1, overwrite=True, log="none")
    assert not (out / "tensorboard").exists()


def test_what_is_no_tracker_is_told_by_name():
    assert tracker_names("") == tracker_names("none") == []
    assert tracker_names("Tensorboard,wandb,tensorboard") == ["tensorboard", "wandb"]
    with pytest.raises(dd.errors.UsageError, match="got 'tensorbord'; did you mean 'tensorboard'"):
        load_config(flags={"log": "tensorbord"})
    with pytest.raises(dd.errors.UsageError, match="or be none, got 'none'"):
        tracker_names("wandb,none")


def test_a_tracker_that_is_not_installed_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    check_trackers("tensorboard")
    with pytest.raises(dd.DistillDepthError, match=r"--log comet_ml needs a package: pip install comet_ml, or leave"):
        run(tmp_path / "run", log="tensorboard,comet_ml", steps=1)
    assert not (tmp_path / "run").exists()


class _Tracker:
    requires_logging_directory = False
    made: list = []  # noqa: RUF012

    def __init__(self, project, **options):
        self.project, self.options, self.told = project, options, []
        self.made.append(self)

    def start(self):
        if self.options["name"] == "offline":
            raise OSError("no\nnetwork")

    def store_init_configuration(self, settings):
        self.settings = settings

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


def test_other_trackers_know_a_run_again(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("accelerate.tracking").tracking.LOGGER_TYPE_TO_CLASS, "wandb", _Tracker)
    for start in (0, 4, 0):
        telling = Trackers(["wandb"], tmp_path, start, {"steps": 8})
        telling.begin()
        telling.tell({"step": 5, "loss": 1.5, "terms": {"anchor": 2}, "errors": ["x"]}, 5)
        telling.tell({"x": {"correlation": 0.5}}, 5, "agreement")
        telling.finish()
    first, resumed, again = _Tracker.made
    assert first.told == [(5, {"loss": 1.5, "terms/anchor": 2}), (5, {"agreement/x/correlation": 0.5}), "finished"]
    assert first.settings == {"steps": 8}
    assert not hasattr(resumed, "settings")
    assert first.options == {"name": tmp_path.name, "id": first.options["id"], "resume": "allow"} == resumed.options
    assert again.options["id"] != first.options["id"]
    (tmp_path / trackers.IDENTITY).write_text('{"id": "../x"}')
    assert Trackers(["wandb"], tmp_path, 4, {})
    assert _Tracker.made[-1].options["id"].isalnum()
    (tmp_path / "offline").mkdir()
    with pytest.raises(dd.DistillDepthError, match=r"--log wandb cannot start \(OSError: no[^\n]*\)$"):
        Trackers(["wandb"], tmp_path / "offline", 0, {})
