"""Uncertainty of a student's own: a module beside any family, its files, its maps through prediction."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from test_folded import make, shake
from test_newcrfs import INFO, SMALL
from torch import Tensor, nn
from torch.nn import functional as F

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate.baselines import load_baseline
from distilldepth.inference.batches import LoadedImage
from distilldepth.inference.estimator import Estimator, InferenceOptions
from distilldepth.models import DepthModel, DepthOutput, ModelInfo, create_student, load_model, save_model
from distilldepth.models.base import run_resized
from distilldepth.models.digest import model_digest
from distilldepth.models.encoder import keep_encoder, load_encoder
from distilldepth.models.families import depth_anything, newcrfs, psmnet
from distilldepth.models.folded import fold_norms
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.uncertainty import UncertainDepth, with_uncertainty

LEVELS = {
    "efficientnet-lite": "1/4",
    "light": "1/4",
    "topformer": "1/4",
    "leres": "1/4",
    "newcrfs": "decoder-1/4",
    "depth-anything": "1/32",
}
"""Family: the level that its module looks at; all of a transformer's lie on one grid, and the deepest knows most."""
VIT = {
    **depth_anything.VARIANTS["mini"],
    "hidden": 12, "layers": 4, "heads": 2, "taps": [0, 1, 2, 3], "neck": [4, 5, 6, 7], "fusion": 8, "head_hidden": 6,
}  # fmt: skip


def small(family: str) -> DepthModel:
    torch.manual_seed(2)
    if family == "newcrfs":
        return newcrfs.build(SMALL, INFO).eval()
    if family == "depth-anything":
        return depth_anything.build(VIT, ModelInfo(family, family, "disparity", "Apache-2.0", "random")).eval()
    return make(family)


def pictures(model: DepthModel, rows: int = 2, columns: int = 3) -> Tensor:
    side = max(-(-32 // model.preprocessing.multiple), 1) * model.preprocessing.multiple
    return torch.rand(2, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(4))


def loud(model: DepthModel, bias: float = 0.3) -> UncertainDepth:
    """A module whose map is far from flat, and has no value twice."""
    made = with_uncertainty(model, seed=3)
    assert isinstance(made, UncertainDepth)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        made.uncertainty[-1].weight.normal_(0, 0.4, generator=generator)
        made.uncertainty[-1].bias.fill_(bias)
    return made


@pytest.mark.parametrize("family", LEVELS)
def test_values_stay_and_a_log_variance_comes(family):
    model = small(family)
    images = pictures(model)
    made = with_uncertainty(copy.deepcopy(model), seed=3)
    with torch.inference_mode():
        plain, own = model(images, features=True), made(images, features=True)
        torch.testing.assert_close(own.values, plain.values, rtol=0, atol=0)
        assert own.features.keys() == plain.features.keys()
        assert made(images).features == {}
        assert set(model(images).extras) == set()
    spread = own.extras["log_variance"]
    assert spread.shape == plain.values.shape
    assert spread.dtype == torch.float32
    assert 0 < float(spread.abs().max()) < 1
    assert made.level == LEVELS[family]
    assert made.architecture["uncertainty"]["channels"] == plain.features[made.level].shape[1]
    assert {**made.architecture, "uncertainty": None} == {**model.architecture, "uncertainty": None}


@torch.no_grad()
def test_the_map_is_what_the_formula_says():
    made = loud(small("newcrfs"))
    images = pictures(made)
    level = made.network(images, features=True).features["decoder-1/4"].double()
    first, _, last = made.uncertainty
    hidden = F.conv2d(level, first.weight.double(), first.bias.double(), padding=1).clamp(min=0).numpy()
    weight, bias = last.weight.double().numpy(), float(last.bias)
    padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
    batch, _, rows, columns = hidden.shape
    small_map = np.zeros((batch, rows, columns))
    for b in range(batch):
        for y in range(rows):
            for x in range(columns):
                z = (padded[b, :, y : y + 3, x : x + 3] * weight[0]).sum() + bias
                small_map[b, y, x] = -5 + 10 / (1 + np.exp(-z))
    # Bilinear, the corners of the frame in place.
    height, width = images.shape[-2:]
    y, x = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in ((height, rows), (width, columns)))
    y, x = y.clip(0, rows - 1), x.clip(0, columns - 1)
    top, left = np.floor(y).astype(int).clip(0, rows - 2), np.floor(x).astype(int).clip(0, columns - 2)
    down, right = (y - top)[:, None], (x - left)[None]
    corner = lambda dy, dx: small_map[:, top[:, None] + dy, left[None] + dx]  # noqa: E731
    wanted = (corner(0, 0) * (1 - right) + corner(0, 1) * right) * (1 - down)
    wanted += (corner(1, 0) * (1 - right) + corner(1, 1) * right) * down
    got = made(images).extras["log_variance"]
    assert wanted.std() > 0.3
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [-80.0, 80.0])
def test_it_stays_within_its_bounds(bias):
    made = loud(small("light"), bias)
    assert made(pictures(made)).extras["log_variance"].unique().tolist() == [5.0 if bias > 0 else -5.0]


def test_the_seed_decides_the_weights_and_touches_nothing_else():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, same, other = (with_uncertainty(small("light"), seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(9)
    with_uncertainty(one.network, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert model_digest(one) == model_digest(same) != model_digest(other)
    assert model_digest(one) != model_digest(one.network)


def test_it_learns_where_the_error_is_and_teaches_the_encoder_too():
    made = with_uncertainty(small("light")).train()
    images = pictures(made)
    made(images).extras["log_variance"].square().mean().backward()
    groups = made.parameter_groups()
    assert sorted(map(id, groups["encoder"] + groups["decoder"])) == sorted(map(id, made.parameters()))
    own = set(map(id, made.uncertainty.parameters()))
    assert own <= set(map(id, groups["decoder"]))
    assert not own & set(map(id, groups["encoder"]))
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.uncertainty.parameters())
    assert made.network.stem[0].weight.grad.abs().sum() > 0
    assert made.network.head[1].weight.grad is None

    step = torch.optim.Adam(made.uncertainty.parameters(), lr=0.01)
    wanted = torch.full((2, *images.shape[-2:]), -2.0)
    wanted[:, :, images.shape[-1] // 2 :] = 1.5
    with torch.no_grad():
        images[..., : images.shape[-1] // 2] *= 0.1
    losses = []
    for _ in range(80):
        step.zero_grad()
        loss = (made.eval()(images).extras["log_variance"] - wanted).square().mean()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_frozen_statistics_and_recomputed_blocks_go_through():
    made = loud(small("light"))
    shake(made)
    images = pictures(made)
    assert made.has_encoder_statistics
    made.freeze_encoder_statistics()
    made.train()
    before = copy.deepcopy(made.network.stem[1].running_mean)
    plain = made(images).extras["log_variance"]
    again = copy.deepcopy(made)
    again.enable_gradient_checkpointing()
    assert again.network._again
    assert not made.network._again
    for model in (made, again):
        model.zero_grad()
        model(images).extras["log_variance"].sum().backward()
    assert torch.equal(made.network.stem[1].running_mean, before)
    assert float(plain.std()) > 0.05
    for (name, mine), theirs in zip(made.named_parameters(), again.parameters(), strict=True):
        if mine.grad is not None:
            torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", LEVELS)
def test_folded_for_inference(family):
    made = loud(small(family))
    folded = fold_norms(made)
    images = pictures(made)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (folded is made) == (family in ("newcrfs", "depth-anything"))
    assert count == (1 if family == "newcrfs" else 0)
    with torch.inference_mode():
        torch.testing.assert_close(
            folded(images).extras["log_variance"], made(images).extras["log_variance"], rtol=1e-3, atol=1e-3
        )
    if folded is not made:
        hook = made.uncertainty.register_forward_hook(lambda *given: None)
        assert fold_norms(made) is made
        hook.remove()


def test_compiled_it_says_the_same():
    made = loud(small("light"))
    images = pictures(made)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(made.forward, backend=backend, fullgraph=True)
    with torch.no_grad():
        got = run_resized(made, images, network=compiled)
        wanted = made(images)
    assert len(graphs) == 1
    torch.testing.assert_close(got.values, wanted.values)
    torch.testing.assert_close(got.extras["log_variance"], wanted.extras["log_variance"])


# --- files ---


@pytest.mark.parametrize("family", ["light", "newcrfs", "depth-anything"])
def test_it_comes_back_from_its_folder(tmp_path, family):
    made = loud(small(family))
    save_model(made, tmp_path)
    found = load_model(tmp_path)
    assert isinstance(found, UncertainDepth)
    assert found.info.family == family
    assert not found.training
    assert found.architecture == made.architecture
    assert model_digest(found) == model_digest(made)
    assert found.info.max_depth == made.info.max_depth
    images = pictures(made)
    with torch.inference_mode():
        assert torch.equal(found(images).extras["log_variance"], made(images).extras["log_variance"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (True, "architecture.uncertainty must be an object, got True"),
        ("yes", "architecture.uncertainty must be an object, got 'yes'"),
        ({"depth": 3}, "architecture.uncertainty has an unknown entry 'depth'"),
        ({"variant": "mini"}, "architecture.uncertainty has an unknown entry 'variant'"),
        ({"hidden": None}, "architecture.uncertainty.hidden must be a whole number from 1 to 16384, got None"),
        ({"hidden": 10**9}, "architecture.uncertainty.hidden must be a whole number from 1 to 16384, got 1000000000"),
        ({"level": "1/3"}, "architecture.uncertainty.level must be one of 1/4, 1/8, 1/16, 1/32, decoder-1/4, "),
        ({"hidden": 8}, "uncertainty.0.weight (32, 8, 3, 3) instead of (8, 8, 3, 3)"),
        ("remove", "unexpected: network."),
        ("remove hidden", "architecture.uncertainty lacks hidden"),
        ("remove tensor", "1 missing: uncertainty.2.bias"),
    ],
)
def test_a_changed_folder_is_one_line(tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    save_model(with_uncertainty(small("light")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    module = config["architecture"]["uncertainty"]
    if change == "remove":
        del config["architecture"]["uncertainty"]
    elif change == "remove hidden":
        del module["hidden"]
    elif change == "remove tensor":
        state = load_file(tmp_path / "model.safetensors")
        del state["uncertainty.2.bias"]
        save_file(state, tmp_path / "model.safetensors")
    elif isinstance(change, dict):
        module |= change
    else:
        config["architecture"]["uncertainty"] = change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DistillDepthError) as error:
        load_model(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("level", ["1/16", "encoder"])
def test_a_level_that_was_changed_is_said_when_it_runs(tmp_path, level):
    save_model(with_uncertainty(small("newcrfs")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"]["uncertainty"]["level"] = level
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_model(tmp_path)
    with pytest.raises(DistillDepthError, match=f"the level {level} with 12 channels, and the network has 1/4 with 8"):
        found(pictures(found))


def test_encoders_of_other_files_go_into_it(tmp_path):
    from safetensors.torch import save_file

    made, other = loud(small("light")), small("light")
    with torch.no_grad():
        other.stem[0].weight.add_(1)
    save_file(dict(other.state_dict()), tmp_path / "other.safetensors")
    tail = made.network.head[1].weight.clone()
    load_encoder(made, tmp_path / "other.safetensors")
    assert torch.equal(made.network.stem[0].weight, other.stem[0].weight)
    assert torch.equal(made.network.head[1].weight, tail)
    assert "encoder alone" in made.info.source
    kept = keep_encoder(made, seed=8)
    assert isinstance(kept, UncertainDepth)
    assert torch.equal(kept.network.stem[0].weight, other.stem[0].weight)
    assert not torch.equal(kept.network.head[1].weight, tail)
    assert not torch.equal(kept.uncertainty[-1].weight, made.uncertainty[-1].weight)


# --- what has none ---


class NoFeatures(DepthModel):
    def __init__(self) -> None:
        super().__init__(ModelInfo("plain", "plain", "depth", "MIT", "computed"), Preprocessing(8, 1))
        self.layer = nn.Conv2d(3, 1, 1)

    @property
    def architecture(self) -> dict:
        return {}

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        return DepthOutput(self.layer(images)[:, 0])


def test_models_that_cannot_have_one():
    with pytest.raises(UsageError, match="plain: has no features"):
        with_uncertainty(NoFeatures())
    with pytest.raises(TypeError, match="baseline:ramp: an uncertainty module needs a model that can be saved"):
        with_uncertainty(load_baseline("ramp"))
    with pytest.raises(UsageError, match="completion-mini: completes depth"):
        with_uncertainty(create_student("completion-mini", seed=0))
    with pytest.raises(UsageError, match="light: gives its uncertainty already"):
        with_uncertainty(with_uncertainty(small("light")))
    pair = psmnet.build({"variant": "stacked-hourglass"}, ModelInfo("pair", "psmnet", "disparity", "MIT", "random"))
    with pytest.raises(UsageError, match="pair: takes images of any size in a way of its own"):
        with_uncertainty(pair)


# --- through prediction ---


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear-corners", "bilinear"])
def test_resizing_carries_it_and_leaves_values_to_the_bit(interpolation):
    model = small("light")
    model.preprocessing = Preprocessing(64, 32, map_interpolation=interpolation)
    made = loud(copy.deepcopy(model))
    images = torch.rand(2, 3, 50, 77)
    with torch.inference_mode():
        inside = made(F.interpolate(images, (64, 96), mode="bicubic", align_corners=False))
        plain, own = run_resized(model, images, (64, 96)), run_resized(made, images, (64, 96))
        assert torch.equal(own.values, plain.values)
        estimated = made.estimate_output(images, size=64)
        assert torch.equal(made.estimate(images, size=64), estimated.values)
        assert torch.equal(model.estimate(images, size=64), estimated.values)
    assert model.estimate_output(images, size=64).extras == {}
    spread = own.extras["log_variance"]
    assert spread.shape == (2, 50, 77)
    assert spread.dtype == torch.float32
    wanted = F.interpolate(
        inside.extras["log_variance"][:, None],
        (50, 77),
        mode="bilinear",
        align_corners=interpolation.endswith("corners"),
    )[:, 0]
    torch.testing.assert_close(spread, wanted, rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(estimated.extras["log_variance"], spread)


def test_predictions_have_it_where_the_model_has():
    model = small("light")
    made = loud(copy.deepcopy(model))
    array = np.random.default_rng(0).random((2, 40, 70, 3)).astype(np.float32)
    one, batch = made.predict(array[0], size=64), made.predict(array, size=64)
    assert one.log_variance.shape == (40, 70)
    assert one.log_variance.dtype == np.float32
    assert batch.log_variance.shape == batch.values.shape == (2, 40, 70)
    np.testing.assert_allclose(batch.log_variance[0], one.log_variance, rtol=1e-4, atol=1e-4)
    assert not np.allclose(batch.log_variance[1], one.log_variance, atol=1e-3)
    mixed = made.predict([array[1], array[0][:30]], size=64)
    assert [found.log_variance.shape for found in mixed] == [(40, 70), (30, 70)]
    assert made.predict(array[:0]).log_variance.shape == (0, 40, 70)
    for found in (model.predict(array[0], size=64), model.predict(array, size=64), model.predict(array[:0])):
        assert found.log_variance is None
    np.testing.assert_array_equal(model.predict(array[0], size=64).values, one.values)


def test_an_estimator_hands_it_on():
    made = loud(small("light"))
    bytes_of = np.random.default_rng(1).integers(0, 255, (3, 33, 60, 3), dtype=np.uint8)
    wanted = made.predict(bytes_of, size=64)
    with Estimator(made, InferenceOptions(size=64, batch_size=2, precision="float32")) as estimator:
        batches = estimator.run(range(3), lambda place: (bytes_of[place], None), print)
        found: list[tuple[LoadedImage, Tensor]] = [one for batch in batches for one in batch]
    assert len(found) == 3
    for loaded, values in found:
        place = loaded.item
        np.testing.assert_allclose(values.numpy(), wanted.values[place], rtol=1e-3, atol=1e-3)
        assert set(loaded.maps) == {"log_variance"}
        np.testing.assert_allclose(loaded.maps["log_variance"].numpy(), wanted.log_variance[place], atol=1e-2)
