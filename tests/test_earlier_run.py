"""What an earlier version wrote is read by this one: configuration, checkpoint, student.

`earlier_run/` was made before the rooms of the package were given their present names: `start` is an untrained student,
`run` a run stopped at step 4 of 8, `finished` what the same version made of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import distilldepth as dd
from distilldepth.distill.config import load_config
from distilldepth.distill.trainer import distill
from distilldepth.settings import to_toml

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    for name in ("start", "run"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    generator = np.random.default_rng(4)
    (tmp_path / "photos").mkdir()
    for index in range(11):
        small = generator.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + index, 70)).save(tmp_path / "photos" / f"photo {index}.png")
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_configuration_says_what_it_said(folder):
    config = load_config(file="run/config.toml")
    text = Path("run/config.toml").read_text(encoding="utf-8")
    kept = {line for line in text.splitlines() if "=" in line}
    assert len(kept) > 50
    assert kept <= set(to_toml(config).splitlines())


def test_the_run_goes_on_where_it_stopped(folder):
    checkpoint = load_file("run/checkpoints/step-00000004/average.safetensors")
    result = distill(load_config(file="run/config.toml", flags={"resume": "auto"}))
    assert result.steps == 8
    expected, found = load_file(EARLIER / "finished/model.safetensors"), load_file("run/student/model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Bit for bit on the machine that made it; other processors add in another order, and four steps carry that on.
        moved = (value.double() - checkpoint[name.removeprefix("student.")].double()).abs().max()
        assert (found[name].double() - value.double()).abs().max() <= 0.02 * moved + 1e-9, name
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for line, row in zip((EARLIER / "finished/metrics.jsonl").read_text().splitlines(), rows[2:], strict=True):
        assert row["terms"] == pytest.approx(json.loads(line)["terms"], rel=1e-3)
        assert row["lr"] == json.loads(line)["lr"]


def test_a_student_is_what_it_was(folder):
    student = dd.load_model(EARLIER / "finished")
    assert student.info.name == "light-tiny"
    depth = student.predict(Path("photos/photo 3.png")).values
    assert depth.shape == (70, 93)
    assert torch.isfinite(torch.as_tensor(depth)).all()


def test_a_trained_student_is_trained_further(folder):
    config = load_config(
        file="run/config.toml", flags={"student": str(EARLIER / "finished"), "out": "again", "steps": 2}
    )
    assert distill(config).steps == 2
