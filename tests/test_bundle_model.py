"""`benchmarks/bundle_model.py`: rounds of training become one folder, whose card says all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_distill import run_cli

from distilldepth.models import load_model

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bundle_model.py"
ROUND = [
    "--teachers", "oracle", "--images", "scenes:8", "--preset", "scenes", "--size", "64x96", "--batch-size", "2",
    "--workers", "0", "--heldout", "2", "--agreement-every", "0", "--device", "cpu", "--precision", "float32",
    "--log", "none", "--set", "crop.scene_size=64x96", "--set", "crop.min_crop=64",
]  # fmt: skip


def bundle(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True)


def test_two_rounds_become_a_bundle(tmp_path):
    for name, student, steps in (("one", "light-mini", "2"), ("two", "one/student", "3")):
        result = run_cli(*ROUND, "--student", student, "--steps", steps, "--out", name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    result = bundle("tiny", "one/student", "two/student", "--size", "32", "--out", "bundles", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "bundles" / "tiny"
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    model, student = load_model(folder), load_model(tmp_path / "two")
    assert (model.info.name, model.preprocessing.size, student.preprocessing.size) == ("tiny", 32, 64)
    images = torch.rand(1, 3, 40, 72, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(images).values, student(images).values, atol=5e-3, rtol=0)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# tiny\n")
    assert "--model tiny" in card
    first, second = card.index("  1. `distilldepth distill"), card.index("  2. `distilldepth distill")
    assert "--out one`: 2 steps of 2 images at 64x96" in card[first:second]
    assert "--student one/student" in card[second:]
    assert "3 steps of 2 images" in card[second:]
    assert "sees images with 32 pixels" in card
    assert str(tmp_path) not in card


def test_a_folder_that_is_no_student_is_refused(tmp_path):
    result = bundle("tiny", "none", "--out", "bundles", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "none" in result.stderr
    assert not (tmp_path / "bundles").exists()
