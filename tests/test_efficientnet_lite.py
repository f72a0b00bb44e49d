"""The EfficientNet-Lite student: TensorFlow's padding at every size, the published layout, any size in, a map out."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distill import run_cli
from torch.nn import functional as F

from distilldepth.distill.config import load_config
from distilldepth.distill.trainer import distill
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import DepthModel, ModelInfo, count_parameters, create_student, load_model, save_model
from distilldepth.models.encoder import keep_encoder, load_encoder
from distilldepth.models.families.efficientnet_lite import VARIANTS, ConvNorm, build
from distilldepth.models.load import CheckpointWarning
from distilldepth.models.narrow import state_that_fits
from distilldepth.models.registry import ENTRIES, lookup

INFO = ModelInfo("efficientnet-lite-test", "efficientnet-lite", "disparity", "Apache-2.0", "random")
SMALL = {
    "stem": 8,
    "stages": [[3, 1, 8, 1, 1], [5, 3, 8, 2, 2], [3, 2, 16, 2, 1], [3, 2, 24, 1, 2]],
    "decoder": [8, 12],
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shaken(model):
    """The model with statistics and scales that are not the usual 0 and 1."""
    generator = seeded(7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return model


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(3)
    return shaken(build(SMALL, INFO))


@pytest.fixture(scope="module")
def student():
    return create_student("efficientnet-lite0", seed=3)


def tensorflow_same(x, weight, stride, groups):
    """What TensorFlow computes: the total padding makes ceil(n / stride) pixels, the odd row goes below."""
    total = [
        max((-(-side // stride) - 1) * stride + kernel - side, 0)
        for side, kernel in zip(x.shape[-2:], weight.shape[-2:], strict=True)
    ]
    (top, left), (height, width) = (side // 2 for side in total), total
    return F.conv2d(F.pad(x, (left, width - left, top, height - top)), weight, None, stride, groups=groups)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(12, 9), (9, 12), (8, 10), (7, 11), (2, 1), (1, 4)])
def test_padding_is_that_of_tensorflow(kernel, stride, size):
    layer = shaken(ConvNorm(6, 6, kernel, stride, groups=3, act=False)).double()
    torch.nn.init.normal_(layer.convolution.weight, generator=seeded(1))
    x = torch.randn(2, 6, *size, generator=seeded(2), dtype=torch.float64)
    expected = layer.norm.eval()(tensorflow_same(x, layer.convolution.weight, stride, 3))
    assert expected.shape[-2:] == tuple(-(-side // stride) for side in size)
    torch.testing.assert_close(layer(x), expected)
    layer.norm.train()
    if expected[:, 0].numel() > 2:
        trained = layer(x)
        layer.norm.train()
        torch.testing.assert_close(trained, layer.norm(tensorflow_same(x, layer.convolution.weight, stride, 3)))


def test_fixed_statistics_give_the_gradients_of_a_separate_normalisation():
    layer = shaken(ConvNorm(4, 6, 3, 2)).double().eval()
    x = torch.randn(2, 4, 9, 12, generator=seeded(2), dtype=torch.float64)
    pull = torch.randn(2, 6, 5, 6, generator=seeded(3), dtype=torch.float64)
    layer(x).backward(pull)
    together = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer.act(layer.norm(tensorflow_same(x, layer.convolution.weight, 2, 1))).backward(pull)
    assert len(together) == 3
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad)


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (97, 35), (5, 7)])
def test_any_size_gives_a_bounded_map_of_that_size(small, size):
    output = small.eval()(torch.rand(2, 3, *size, generator=seeded(0)), features=True)
    assert output.values.shape == (2, *size)
    assert 0 <= output.values.min() < output.values.max() <= 1
    assert output.features["encoder"].shape == (2, 24, *(math.ceil(side / 8) for side in size))


def test_levels_are_the_last_map_of_each_size(student):
    with torch.no_grad():
        levels = student.eval().encoder(torch.rand(1, 3, 64, 96, generator=seeded(0)))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3),
    ]  # fmt: skip


def test_a_shorter_decoder_begins_at_a_quarter():
    model = build({**SMALL, "decoder": [12]}, INFO)
    assert model.lateral[0].in_channels == 8
    assert len(model.fuse) == 1
    assert model(torch.rand(2, 3, 40, 56)).values.shape == (2, 40, 56)


def test_images_of_a_batch_do_not_see_each_other(small):
    images = torch.rand(3, 3, 64, 80, generator=seeded(1))
    small.eval()
    with torch.no_grad():
        together = small(images).values
        alone = torch.cat([small(image[None]).values for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = shaken(build(SMALL, INFO)).train()
    model(torch.rand(2, 3, 64, 96, generator=seeded(2))).values.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_groups_hold_every_parameter_once(student):
    groups = student.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in student.parameters())
    assert {id(p) for p in groups["encoder"]} == {id(p) for p in student.encoder.parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_registry_knows_its_size_and_its_names(variant):
    name = f"efficientnet-{variant}"
    assert count_parameters(create_student(name, seed=1)) == ENTRIES[name].parameters
    assert lookup(name) is lookup(f"efficientnet-lite:{variant}") is ENTRIES[name]
    assert lookup("efficientnet-lite") is ENTRIES["efficientnet-lite0"]


def test_depth_and_width_grow_as_published():
    assert [[row[4] for row in VARIANTS[name]["stages"]] for name in VARIANTS] == [
        [1, 2, 2, 3, 3, 4, 1], [1, 3, 3, 4, 4, 5, 1], [1, 3, 3, 4, 4, 5, 1],
    ]  # fmt: skip
    assert [row[2] for row in VARIANTS["lite2"]["stages"]] == [16, 24, 48, 88, 120, 208, 352]
    assert all(VARIANTS[name]["stem"] == 32 for name in VARIANTS)


def test_a_saved_folder_is_the_same_network(small, tmp_path):
    images = torch.rand(1, 3, 45, 70, generator=seeded(4))
    loaded = load_model(save_model(small, tmp_path / "student"))
    assert loaded.architecture == small.architecture
    assert loaded.preprocessing == small.preprocessing
    assert torch.equal(loaded(images).values, small.eval()(images).values)


def test_variances_beyond_float16_are_saved_with_the_convolution_before_them(small, tmp_path):
    """Variances of one normalisation from 1e-2 to 1e8: what float16 holds stays, the others give what they gave."""
    small.eval()
    convolution, norm = small.fuse[0].first[0], small.fuse[0].first[1]
    scale = torch.logspace(-1, 4, len(norm.running_var), dtype=torch.float64).float()
    with torch.no_grad():
        convolution.weight.mul_(scale[:, None, None, None])
        norm.running_mean.copy_(scale * torch.randn(len(scale), generator=seeded(5)))
        norm.running_var.copy_(scale**2 * (1 + torch.rand(len(scale), generator=seeded(6))))
    images = torch.rand(2, 3, 45, 70, generator=seeded(4))
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    loaded = load_model(save_model(small, tmp_path / "half", dtype=torch.float16))
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items()), "the model is unchanged"
    saved = loaded.state_dict()
    fits = before["fuse.0.first.1.running_var"] < torch.finfo(torch.float16).max
    assert 0 < fits.sum() < len(fits)
    for key in ("fuse.0.first.0.weight", "fuse.0.first.1.running_var"):
        assert torch.equal(saved[key][fits], before[key][fits].half().float())
        assert not torch.isclose(saved[key][~fits], before[key][~fits]).any()
    torch.testing.assert_close(loaded(images).values, small(images).values, atol=2e-3, rtol=0)
    exact = reload(state_that_fits(small, torch.float16), small)
    torch.testing.assert_close(exact(images).values, small(images).values, atol=1e-6, rtol=0)


def reload(state: dict[str, torch.Tensor], model: DepthModel) -> DepthModel:
    """A copy of a model with other weights."""
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [[4, 1, 8, 1, 1], [3, 1, 8, 2, 1]]}, "kernels must be odd"),
        ({"stages": [[3, 1, 8, 1, 1], [3, 1, 8, 3, 1]]}, "strides 1 or 2"),
        ({"stages": [[3, 1, 8, 2, 1], [3, 1, 8, 2, 1]]}, "first stage must have stride 1"),
        ({"decoder": [8, 8, 8]}, "decoder 1 to 2 entries"),
        ({"variant": "lite9"}, "did you mean 'lite2'"),
        ({"stemm": 3}, "did you mean 'stem'"),
    ],
)
def test_an_architecture_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build({**SMALL, **change}, INFO)


def published(model, layout):
    """Random weights as timm or the packages after efficientnet-pytorch name them, with a classifier; and ours."""
    generator, state, ours = seeded(11), {}, {}

    def norm(theirs, mine, width):
        tensors = {
            **{
                name: torch.rand(width, generator=generator)
                for name in ("weight", "bias", "running_mean", "running_var")
            },
            "num_batches_tracked": torch.tensor(5),
        }
        for name, tensor in tensors.items():
            state[f"{theirs}.{name}"] = tensor
            ours[f"encoder.{mine}.norm.{name}"] = tensor

    def convolution(theirs, mine, *shape):
        state[f"{theirs}.weight"] = torch.randn(*shape, generator=generator)
        ours[f"encoder.{mine}.convolution.weight"] = state[f"{theirs}.weight"]

    timm = layout == "timm"
    convolution("conv_stem" if timm else "_conv_stem", "stem", model.architecture["stem"], 3, 3, 3)
    norm("bn1" if timm else "_bn0", "stem", model.architecture["stem"])
    inputs, flat = model.architecture["stem"], 0
    for stage, (kernel, expansion, outputs, _, count) in enumerate(model.architecture["stages"]):
        for place in range(count):
            mine, width = f"stages.{stage}.{place}", inputs * expansion
            theirs = f"blocks.{stage}.{place}" if timm else f"_blocks.{flat}"
            names = {
                (True, True): [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")],
                (True, False): [None, ("conv_dw", "bn1"), ("conv_pw", "bn2")],
            }.get(
                (timm, expansion > 1),
                [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")],
            )
            shapes = [(width, inputs, 1, 1), (width, 1, kernel, kernel), (outputs, width, 1, 1)]
            steps = ["expand", "depthwise", "project"]
            for step, name, shape in list(zip(steps, names, shapes, strict=True))[expansion == 1 :]:
                convolution(f"{theirs}.{name[0]}", f"{mine}.{step}", *shape)
                norm(f"{theirs}.{name[1]}", f"{mine}.{step}", shape[0])
            inputs, flat = outputs, flat + 1
    state |= {
        ("conv_head.weight" if timm else "_conv_head.weight"): torch.rand(40, inputs, 1, 1),
        ("bn2.weight" if timm else "_bn1.weight"): torch.rand(40),
        ("classifier.weight" if timm else "_fc.weight"): torch.rand(10, 40),
    }
    return state, ours


@pytest.mark.parametrize("layout", ["timm", "plain"])
@pytest.mark.parametrize(
    ("form", "architecture"),
    [("pth", SMALL), ("safetensors", SMALL), ("nested", SMALL), ("half", SMALL), ("pth", {"variant": "lite2"})],
)
def test_published_weights_are_taken_by_name(layout, form, architecture, tmp_path):
    torch.manual_seed(1)
    model = build(architecture, INFO)
    state, ours = published(model, layout)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert ours.keys() == {name for name in before if name.startswith("encoder.")}
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(state, path, metadata={"licence": "MIT", "source": "a test\nof names"})
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    elif form == "half":
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        torch.save({name: tensor for name, tensor in halves.items() if "num_batches" not in name}, path)
        ours = {name: tensor.half().float() for name, tensor in ours.items() if "num_batches" not in name}
    else:
        torch.save(state, path)
    assert load_encoder(model, path) is model
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in ours.items())
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("encoder."))
    assert (model.info.source, model.info.licence) == (
        (f"{path} (a test of names), of it the encoder alone", "MIT")
        if form == "safetensors"
        else (f"{path}, of it the encoder alone", "unknown")
    )


@pytest.mark.parametrize("name", ["light-mini", "topformer-tiny", "efficientnet-lite0", "dav2-mini"])
def test_own_names_are_read_by_every_family_with_an_encoder(name, tmp_path):
    """From a file of the encoder alone, and from that of a whole student."""
    source = shaken(create_student(name, seed=1))
    folder = save_model(source, tmp_path / "student")
    encoder = {id(p) for p in source.parameter_groups()["encoder"]}
    inside = {key for key, p in source.named_parameters() if id(p) in encoder}
    whole = load_encoder(create_student(name, seed=2), folder / "model.safetensors")
    kept = keep_encoder(source, seed=2).state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in whole.state_dict().items())
    parts = {key.rpartition(".")[0] for key in inside}
    alone = {key: tensor for key, tensor in source.state_dict().items() if key.rpartition(".")[0] in parts}
    torch.save(alone, tmp_path / "encoder.pth")
    again = load_encoder(create_student(name, seed=2), tmp_path / "encoder.pth").state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in again.items())


def broken(state, how):
    """A state dictionary of the layout of efficientnet-pytorch with one fault."""
    first = "_blocks.1._expand_conv.weight"
    if how == "missing":
        del state[first]
    elif how == "shape":
        state[first] = state[first][:-1]
    elif how == "left over":
        state["_blocks.9._expand_conv.weight"] = torch.zeros(3)
    elif how == "whole numbers":
        state[first] = (100 * state[first]).to(torch.int8)
    elif how == "not finite":
        state[first][0] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not fit the network; tensors 1 missing: _blocks.1._expand_conv.weight"),
        ("shape", r"1 of another shape: _blocks.1._expand_conv.weight \(23, 8, 1, 1\) instead of \(24, 8, 1, 1\)"),
        ("left over", "1 unexpected: _blocks.9._expand_conv.weight"),
        ("whole numbers", "which have lost the weights: _blocks.1._expand_conv.weight"),
        ("not finite", "numbers that are not finite"),
    ],
)
def test_what_does_not_fit_is_named_as_the_file_names_it(how, message, tmp_path):
    model = build(SMALL, INFO)
    torch.save(broken(published(model, "plain")[0], how), tmp_path / "weights.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DistillDepthError, match=message):
        load_encoder(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_average_goes_before_plain_weights_and_is_told_of(tmp_path):
    model = build(SMALL, INFO)
    state, ours = published(model, "timm")
    plain = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({"state_dict": plain, "state_dict_ema": state}, tmp_path / "weights.pth")
    with pytest.warns(CheckpointWarning, match="'state_dict_ema' was taken"):
        load_encoder(model, tmp_path / "weights.pth")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in ours.items())


class Foreign:
    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


def test_files_that_are_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build(SMALL, INFO)
    torch.save({"a.weight": torch.zeros(3)}, "other.pth")
    torch.save({**published(model, "plain")[0], "extra": Foreign()}, "pickle.pth")
    Path("empty.pth").touch()
    Path("folder.pth").mkdir()
    for name, error, message in (
        ("other.pth", DistillDepthError, "holds no encoder of efficientnet-lite-test, whose first tensor would be "
         "encoder.stem.convolution.weight or conv_stem.weight or _conv_stem.weight; it holds 'a.weight'"),
        ("pickle.pth", DistillDepthError, "holds other objects beside tensors"),
        ("empty.pth", DistillDepthError, "is empty"),
        ("folder.pth", UsageError, "is a folder; name a file of weights in it"),
        ("none.pth", FileNotFoundError, "no such file"),
        ("n" * 300 + ".pth", DistillDepthError, "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            load_encoder(model, name)
    assert not Path("was-run").exists()


ARGUMENTS = [
    "--teachers", "distilldepth-mini", "--student", "efficientnet-lite0", "--images", "scenes:8", "--size",
    "64x96", "--batch-size", "2", "--workers", "0", "--heldout", "2", "--steps", "2", "--agreement-every", "0",
    "--device", "cpu", "--precision", "float32", "--log", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "lite0.safetensors"
    source = shaken(create_student("efficientnet-lite0", seed=9))
    save_file(
        {name: tensor for name, tensor in source.state_dict().items() if name.startswith("encoder.")},
        path,
        metadata={"licence": "Apache-2.0", "source": "ImageNet"},
    )
    return path


def test_a_run_from_an_encoder_file(weights, tmp_path):
    result = run_cli(*ARGUMENTS, "--initial-weights", str(weights), "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = load_config(file=tmp_path / "run" / "config.toml")
    assert config.initial_weights == str(weights)
    assert config.optimiser.encoder_lr_share == -1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["rates"]["encoder"] == pytest.approx(0.1 * rows[-1]["rates"]["decoder"])
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert f"{weights} (ImageNet), of it the encoder alone (Apache-2.0)" in card
    # Two steps leave an encoder near where it came from, far from any that is drawn.
    student, source = load_model(tmp_path / "run"), load_file(weights)
    assert "batch normalisation in the encoder keeps its statistics" in result.stderr
    kept = [name for name in source if name.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(student.state_dict()[name], source[name]) for name in kept)
    name = "encoder.stages.5.1.expand.convolution.weight"
    assert (student.state_dict()[name] - source[name]).abs().max() < 0.01 < source[name].std()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    result = run_cli(*ARGUMENTS, "--initial-weights", "none.safetensors", "--out", "run", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "none.safetensors: no such file" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"initial_weights": "folder"}, UsageError, "folder is a folder; name a file of weights in it"),
        ({"initial_weights": "https://a.org/b.pth"}, UsageError, "URLs are not supported"),
        ({"initial_weights": "encodr"}, UsageError, "did you mean 'encoder'?"),
        ({"initial_weights": ""}, UsageError, "must be one of random, pretrained, encoder, or a file"),
        ({"initial_weights": "text.pth", "student": "student"}, UsageError, "has weights of its own"),
        ({"initial_weights": "text.pth"}, DistillDepthError, "is a text, not weights"),
    ],
)
def test_something_else_in_place_of_an_encoder(change, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.pth").write_text("no weights")
    save_model(build(SMALL, INFO), "student")
    flags = {"teachers": "distilldepth-mini", "student": "efficientnet-lite0", "images": ["scenes:8"], "size": "64"}
    flags |= {"batch_size": 2, "workers": 0, "heldout": 0, "steps": 1, "device": "cpu", "out": "run"}
    with pytest.raises(error, match=re.escape(message)):
        distill(load_config(flags={**flags, **change}))
    assert not Path("run").exists()
