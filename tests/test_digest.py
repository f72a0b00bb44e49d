"""The digest of a model: what it tells apart, and what it does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from distilldepth.models import create_student, load_model, model_digest, save_model
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing


@pytest.fixture
def student():
    return create_student("light-mini", seed=5)


def test_a_saved_and_moved_model_is_the_same(student, tmp_path):
    first = model_digest(student)
    assert len(first) == 64
    saved = load_model(save_model(student, tmp_path / "a" / "student"))
    assert model_digest(saved) == first == model_digest(create_student("light-mini", seed=5))


def test_any_changed_bit_is_another_model(student):
    first = model_digest(student)
    assert model_digest(create_student("light-mini", seed=6)) != first
    # One weight in the middle of the largest tensor, which a sample of them would miss.
    weight = max(student.parameters(), key=torch.Tensor.numel).data.view(-1)
    position = len(weight) // 2 + 1
    before = weight[position].clone()
    weight[position] = torch.nextafter(before, before + 1)
    assert model_digest(student) != first
    weight[position] = before
    assert model_digest(student) == first


@pytest.mark.parametrize("field", ["quantity", "family"])
def test_what_the_numbers_mean_counts_and_who_made_them_does_not(student, field):
    first = model_digest(student)
    student.info = dataclasses.replace(
        student.info, name="other", licence="CC-BY-4.0", source="elsewhere", notes=("x",)
    )
    assert model_digest(student) == first
    student.info = dataclasses.replace(student.info, **{field: "metric_depth"})
    assert model_digest(student) != first


def test_preprocessing_counts(student):
    first = model_digest(student)
    student.preprocessing = dataclasses.replace(student.preprocessing, resize_policy="square")
    assert model_digest(student) != first


class Odd(DepthModel):
    """Tensors that are easily left out: a scalar, bfloat16, an empty one, a view, a buffer that is not saved."""

    def __init__(self, hidden: float = 1.0) -> None:
        super().__init__(ModelInfo("odd", "test", "depth", "MIT", "test"), Preprocessing(1, 1))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("brief", torch.arange(6, dtype=torch.bfloat16).view(2, 3).T)
        self.register_buffer("none", torch.empty(0, 3))
        self.register_buffer("hidden", torch.tensor([hidden]), persistent=False)

    def forward(self, images, *, features=False):
        return DepthOutput(images.mean(1))


def test_odd_tensors():
    first = model_digest(Odd())
    assert model_digest(Odd()) == first
    assert model_digest(Odd(hidden=2.0)) != first
    other = Odd()
    other.count += 1
    assert model_digest(other) != first
    other = Odd()
    other.brief = other.brief.contiguous().view(2, 3)
    assert model_digest(other) != first  # The same bytes in another shape.
    other = Odd()
    other.brief = other.brief.float()
    assert model_digest(other) != first
