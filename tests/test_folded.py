"""Batch normalisation as part of the convolution before it: equal maps, and a model that is as it was."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from distilldepth.cli.main import cli
from distilldepth.inference.batches import LoadedImage, estimate_batch
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models import DepthModel, DepthOutput, ModelInfo, create_student, load_model, save_model
from distilldepth.models.digest import model_digest
from distilldepth.models.families import efficientnet_lite, leres, light, topformer
from distilldepth.models.folded import fold_norms
from distilldepth.models.preprocess import Preprocessing

ARCHITECTURES = {
    "efficientnet-lite": (
        efficientnet_lite,
        {
            "stem": 8,
            "stages": [[3, 1, 8, 1, 1], [5, 3, 8, 2, 2], [3, 2, 16, 2, 1], [3, 2, 24, 1, 2]],
            "decoder": [8, 12],
        },
    ),
    "light": (light, {"widths": [6, 8, 12], "blocks": [1, 2], "attention": 1, "heads": 3, "decoder": [5, 7]}),
    "topformer": (
        topformer,
        {**topformer.VARIANTS["tiny"], "heads": 2, "injection": [0, 8, 12, 8], "decoder": [8, 8, 12], "deepest": 12},
    ),
    "leres": (
        leres,
        {"stem": 6, "widths": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "decoder": [6, 8, 10], "deepest": 12},
    ),
}
"""Small networks of every family that has batch normalisation."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shake(model: nn.Module) -> None:
    """Statistics, scales and shifts like those of no new network, another for every channel."""
    generator = seeded(11)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, -0.8, 1.7), (module.bias, -0.5, 0.3),
                (module.running_mean, -0.4, 0.9), (module.running_var, 0.05, 3.0),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)


def make(family: str, dtype: torch.dtype = torch.float32) -> DepthModel:
    module, architecture = ARCHITECTURES[family]
    quantity = "depth" if family == "leres" else "disparity"
    torch.manual_seed(5)
    model = module.build(architecture, ModelInfo(family, family, quantity, "Apache-2.0", "random"))
    shake(model)
    if family in ("efficientnet-lite", "light"):
        model.head[1].weight.data *= 20  # A new head hardly tells pixels apart.
    return model.to(dtype).eval()


def images(height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=seeded(3), dtype=dtype)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("size", [(64, 96), (37, 83)])
def test_maps_and_features_are_those_of_separate_layers(family, size):
    model = make(family, torch.float64)
    folded = fold_norms(model)
    assert norms(model) > 5
    assert norms(folded) == 0
    with torch.inference_mode():
        expected = model(images(*size, torch.float64), features=True)
        found = folded(images(*size, torch.float64), features=True)
    assert expected.values.std() > 1e-3
    closeness = 1e-10 if found.values.dtype == torch.float64 else 1e-6  # Some networks end in float32.
    torch.testing.assert_close(found.values, expected.values, rtol=closeness, atol=closeness)
    torch.testing.assert_close(found.features["encoder"], expected.features["encoder"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_in_float32_they_are_equal_up_to_rounding(family):
    model, truth = make(family), make(family, torch.float64)
    with torch.inference_mode():
        exact = truth(images(64, 96).double()).values.double()
        found = fold_norms(model)(images(64, 96)).values
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_under_autocast_weights_come_in_its_dtype(family):
    """What autocast would make of them at every call, and about as far from the truth as separate layers."""
    model, truth = make(family), make(family, torch.float64)
    with torch.inference_mode():
        exact = truth(images(64, 96).double()).values.double()
        with torch.autocast("cpu", torch.bfloat16):
            apart = model(images(64, 96)).values.double()
            cast = fold_norms(model)(images(64, 96)).values.double()
            folded = fold_norms(model, torch.bfloat16)
            found = folded(images(64, 96)).values.double()
    assert sum(p.dtype == torch.bfloat16 for p in folded.parameters()) == 2 * norms(model)
    torch.testing.assert_close(found, cast)
    assert (found - exact).abs().mean() <= 5 * (apart - exact).abs().mean() + 1e-3 * exact.abs().max()
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_model_stays_as_it_was(family):
    model = make(family).train()
    if model.has_encoder_statistics:
        model.freeze_encoder_statistics()
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    before, digest = list(model.modules()), model_digest(model)
    pictures = np.random.default_rng(2).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
    with Estimator(model, InferenceOptions(device="cpu", precision="float32", size=64)) as estimator:
        maps = estimator.estimate([LoadedImage(place, picture, None, None) for place, picture in enumerate(pictures)])
        assert model_digest(estimator.model) == digest
        assert norms(estimator.model) > 5
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(one is other for one, other in zip(model.modules(), before, strict=True))
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    alone = estimate_batch(
        model.eval(), [LoadedImage(0, pictures[0], None, None)], torch.device("cpu"), precision="float32", size=64
    )
    torch.testing.assert_close(maps[0], alone[0], rtol=0, atol=2e-5 * float(alone[0].abs().max()))


def test_weights_that_change_between_two_runs_are_seen():
    model = make("light")
    picture = LoadedImage(0, np.random.default_rng(2).integers(0, 256, (40, 56, 3), dtype=np.uint8), None, None)
    estimator = Estimator(model, InferenceOptions(device="cpu", precision="float32", size=64))
    with estimator:
        (first,) = estimator.estimate([picture])
    model.head[0][1].running_mean.add_(0.7)
    with estimator:
        (second,) = estimator.estimate([picture])
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, torch.from_numpy(model.predict(picture.image, size=64).values))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_not_folded_is_shared(family):
    model = make(family)
    folded = fold_norms(model)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    extra = sum(p.numel() for p in folded.parameters() if p.data_ptr() not in own)
    followed = sum(
        module.weight.numel() + module.out_channels
        for name, module in folded.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.data_ptr() not in own
    )
    assert 0 < extra == followed
    assert not any(p.requires_grad for p in folded.parameters() if p.data_ptr() not in own)
    assert any(p.data_ptr() in own for p in folded.parameters())


def test_a_model_without_batch_normalisation_is_the_same_object():
    model = load_model("dav2-mini")
    assert fold_norms(model) is model
    with Estimator(model, InferenceOptions(device="cpu")) as estimator:
        assert estimator._network is model


def test_training_mode_is_not_folded():
    model = make("light").train()
    assert fold_norms(model) is model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    model.fuse[0].first[1].train()
    assert norms(fold_norms(model)) == 1


class Own(DepthModel):
    """A class of a user's, which looks at its layers."""

    def __init__(self) -> None:
        super().__init__(ModelInfo("own", "test", "disparity", "", ""), Preprocessing(32, 1))
        self.layers = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))

    def forward(self, images, *, features=False):
        return DepthOutput(self.layers(images)[:, 0] + self.layers[1].running_mean)


class Heir(light.LightDepth):
    """A subclass of a user's."""


def test_what_users_made_is_left_alone():
    own = Own().eval()
    assert fold_norms(own) is own
    torch.manual_seed(5)
    heir = Heir(ModelInfo("heir", "light", "disparity", "", ""), Preprocessing(64, 32), **ARCHITECTURES["light"][1])
    assert fold_norms(heir.eval()) is heir
    watched, seen = make("light"), []
    watched.stem[0].register_forward_hook(lambda *_: seen.append(1))
    with Estimator(watched, InferenceOptions(device="cpu", size=64)) as estimator:
        estimator.estimate([LoadedImage(0, np.zeros((40, 56, 3), np.uint8), None, None)])
    assert seen == [1]


def test_a_layer_in_two_places_is_left_as_it_is():
    model = make("light")
    model.fuse[1].first[0] = nn.Conv2d(7, 7, 3, padding=1, bias=False)
    model.fuse[1].second[0] = model.fuse[1].first[0]
    folded = fold_norms(model)
    assert norms(folded) == 2
    with torch.inference_mode():
        torch.testing.assert_close(folded(images(64, 96)).values, model(images(64, 96)).values, rtol=1e-4, atol=1e-5)


def test_a_sum_that_the_dtype_cannot_hold_is_left_as_it_is():
    model = make("light").half()
    with torch.no_grad():
        model.stem[0].weight.fill_(6e4)
        model.stem[1].weight.fill_(3.0)
        model.stem[1].running_var.fill_(0.01)
    assert norms(fold_norms(model)) == 1


def test_the_folder_of_predict_tells_of_the_model_itself(tmp_path):
    """The digest in an origin is that of the unfolded model: `--skip-existing` goes on from earlier outputs."""
    model = create_student("light-mini", seed=4)
    shake(model)
    save_model(model, tmp_path / "student")
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (30, 44, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = [
        "predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "out.png"), "--model", str(tmp_path / "student"),
        "--size", "64", "--device", "cpu", "--precision", "float32", "--as", "png16,npy",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.stderr
    origin = json.dumps({**Image.open(tmp_path / "out.png").text})
    assert model_digest(load_model(tmp_path / "student")) in origin
    expected = load_model(tmp_path / "student").predict(tmp_path / "a.png", size=64).values
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-5)
