"""One model over many images: modes, devices and failures, whichever job runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distilldepth.errors import UsageError
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing


class Red(DepthModel):
    """Answers with the red channel, and breaks on images that are white all over."""

    def __init__(self) -> None:
        super().__init__(ModelInfo("red", "test", "disparity", "Apache-2.0", "test"), Preprocessing(4, 1))
        self.seen: list[tuple[int, bool]] = []

    def forward(self, images, *, features=False):
        self.seen.append((len(images), self.training))
        if (images.flatten(1).amin(1) == 1).any():
            raise RuntimeError("too bright")
        return DepthOutput(images[:, 0])


def picture(red: int, height: int = 4) -> np.ndarray:
    return np.stack([np.full((height, 6), red, np.uint8), *np.zeros((2, height, 6), np.uint8)], axis=-1)


def test_every_item_comes_out_with_its_own_map_or_as_a_failure():
    pictures = {"a": picture(51), "b": picture(102, 5), "white": np.full((4, 6, 3), 255, np.uint8), "c": picture(153)}
    failures = {}

    def read(name):
        if name == "lost":
            raise OSError("gone")
        return pictures[name], name.upper()

    model = Red().train()
    with Estimator(model, InferenceOptions(batch_size=3, device="cpu", precision="float32")) as estimator:
        batches = list(estimator.run(["a", "lost", "b", "white", "c"], read, failures.__setitem__))
    found = {loaded.item: (loaded.extra, values) for batch in batches for loaded, values in batch}
    assert {name: extra for name, (extra, _) in found.items()} == {"a": "A", "b": "B", "c": "C"}
    for name, (_, values) in found.items():
        torch.testing.assert_close(values, torch.from_numpy(pictures[name][..., 0] / 255).float())
    assert {name: str(error) for name, error in failures.items()} == {"lost": "gone", "white": "too bright"}
    assert all(batch for batch in batches)
    assert not any(training for _, training in model.seen)
    assert model.training
    assert estimator.model_seconds > 0


def test_the_mode_comes_back_after_an_error():
    model = Red().train()
    estimator = Estimator(model, InferenceOptions(device="cpu"))
    with pytest.raises(KeyError, match="lost"), estimator:
        list(estimator.run(["lost"], lambda name: {}[name], print))
    assert model.training


def test_it_runs_inside_a_with_statement_only():
    with pytest.raises(RuntimeError, match="with statement"):
        next(Estimator(Red()).run(["a"], lambda name: (picture(1), None), print))


def test_images_are_taken_in_batches():
    from distilldepth.inference.batches import LoadedImage

    model = Red()
    with Estimator(model, InferenceOptions(batch_size=2, precision="float32")) as estimator:
        maps = estimator.estimate([LoadedImage(red, picture(red), None, None) for red in range(5)])
    assert [count for count, _ in model.seen] == [2, 2, 1]
    assert [round(float(values[0, 0] * 255)) for values in maps] == list(range(5))


def test_words_become_a_device_and_a_precision():
    settled = InferenceOptions(device="cpu").settle("a name")
    assert settled.device == torch.device("cpu")
    assert settled.precision in ("float32", "bfloat16")
    assert InferenceOptions().settle(Red()).device == torch.device("cpu")
    with pytest.raises(UsageError, match="precision"):
        InferenceOptions(precision="half").settle(Red())
    with pytest.raises(UsageError, match="device"):
        InferenceOptions(device="tpu").settle(Red())
