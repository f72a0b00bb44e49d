"""Teachers of disparity, depth and metres in one pool: all teach in one orientation, and each is measured by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_depth_anything import official_state, tiny_network
from test_latent import tiny_parts, write_base
from torch import Tensor

from distilldepth.cli.main import cli
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.spec import parse_teachers

TEACHERS = """
import torch

def nearness(images):
    rows = torch.linspace(0.1, 0.6, images.shape[2], device=images.device)[:, None]
    return rows + 0.3 * images[:, 0] + 0.1 * images[:, 2].square()

def disparity(images):
    return 3 * nearness(images) + 1

def depth(images):
    return (5 - 2 * nearness(images))[:, None]

def metres(images):
    return 1 / nearness(images)

def feet(images):
    return 3.28 / nearness(images)

disparity.quantity, depth.quantity, metres.quantity, feet.quantity = "disparity", "depth", "metric_depth", "depth"
"""


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(TEACHERS)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_distilldepth_"):
            del sys.modules[name]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(8))


def load(*names: str) -> TeacherPool:
    specs = parse_teachers(",".join(f"python:own.py:{name}" for name in names))
    return load_teachers(specs, device=torch.device("cpu"), offline=True, has_depth=False, seed=0)


def scale_and_shift(values: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Values brought to a target by least squares, and the scale that it took."""
    columns = torch.stack([values.flatten().double(), torch.ones(values.numel(), dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(columns, target.flatten().double()[:, None]).solution
    return (columns @ solution).view(values.shape).float(), float(solution[0])


def test_labels_of_every_quantity_are_one_up_to_scale_and_shift(images):
    labels = {t.info.quantity: t.label(images, None) for t in load("disparity", "depth", "metres").teachers}
    assert labels.keys() == {"disparity", "depth", "metric_depth"}
    nearness = (labels["disparity"].disparity - 1) / 3
    assert nearness.std() > 0.1
    for quantity, label in labels.items():
        assert label.disparity.shape == (3, 40, 56)
        assert label.valid.all()
        assert label.inverse_depth == (quantity == "metric_depth")
        for one, expected in zip(label.disparity, nearness, strict=True):
            aligned, scale = scale_and_shift(one, expected)
            torch.testing.assert_close(aligned, expected, rtol=1e-4, atol=1e-5)
            assert scale > 0, f"{quantity} is the wrong way round"
    # Metres are inverted exactly: nothing is left to fit.
    torch.testing.assert_close(labels["metric_depth"].disparity, nearness, rtol=1e-5, atol=1e-6)


def test_depth_keeps_the_order_of_what_it_cannot_invert(images):
    """Depth up to scale and shift has no exact inverse: every pair of pixels is in the right order, no more."""
    metres, feet = (teacher.label(images, None).disparity for teacher in load("metres", "feet").teachers)
    for exact, negated in zip(metres.flatten(1), feet.flatten(1), strict=True):
        assert (negated[exact.argsort()].diff() >= 0).all()
        assert (scale_and_shift(negated, exact)[0] - exact).abs().max() > 0.01


def test_a_run_measures_each_of_them():
    vae, unet, context = tiny_parts()
    unet.save_pretrained("genpercept-depth/unet")
    write_base(Path("genpercept-depth"), vae, context)
    torch.save(official_state(tiny_network()), "metric.pth")
    own = [f"python:own.py:{name}" for name in ("disparity", "depth", "metres")]
    others = ["dav2-mini", "genpercept-depth@genpercept-depth", "dav2-metric:20@metric.pth=0.5"]
    words = ["distill", "--teachers", ",".join([*own, *others]), "--images", "scenes:40", "--student", "light-mini"]
    words += ["--size", "64", "--batch-size", "2", "--steps", "12", "--heldout", "4", "--workers", "0", "--out", "run"]
    words += ["--device", "cpu", "--precision", "float32", "--offline", "--json", "-", "--set", "log_every=1"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["after"]["teachers"]
    assert set(scores) == {*own, "dav2-mini", "genpercept-depth", "metric"}
    # The three that agree with each other agree with the student to the same degree and sign.
    first, *rest = (scores[name]["correlation"] for name in own)
    assert abs(first) > 0.01
    assert rest == pytest.approx([first, first], abs=1e-4)
    errors = [scores[name]["ssi_error"] for name in own]
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-3)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    taught = {name for row in rows for name, count in row["teachers"].items() if count}
    assert len(taught) >= 4
    assert all(row["skipped"] == 0 for row in rows)
    card = Path("run/student/README.md").read_text()
    for quantity, name in (("depth", own[1]), ("metric_depth", own[2]), ("depth", "genpercept-depth")):
        assert f"| {name} | 1 | {quantity} |" in card
