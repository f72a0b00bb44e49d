"""LeReS: the official architecture written out a second time, official files, and depth that is positive per image."""

from __future__ import annotations

import copy
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from tolerances import OFFICIAL
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError
from distilldepth.models import count_parameters, create_student, describe, load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.encoder import keep_encoder
from distilldepth.models.families.leres import VARIANTS, build, convert_official
from distilldepth.models.load import CheckpointWarning
from distilldepth.models.preprocess import target_size
from distilldepth.models.registry import ENTRIES, lookup, teacher_names
from distilldepth.teachers.spec import check_known, parse_teachers
from distilldepth.teachers.teacher import Teacher

INFO = ModelInfo("leres-test", "leres", "depth", "Apache-2.0", "random")
# No two widths alike where the network lets them differ, and a first bottleneck without a shortcut of its own.
SMALL = {"stem": 8, "widths": [8, 12, 16, 24], "depths": [2, 1, 3, 1], "decoder": [6, 8, 10], "deepest": 14}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


# --- the official layout and what it computes, a second time ---


def official_shapes(stem, widths, depths, decoder, deepest) -> dict[str, tuple[int, ...]]:
    """Official name of every tensor: its shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int, *, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def transform(name: str, inputs: int, outputs: int) -> None:
        convolution(f"{name}.conv1", inputs, outputs, 3, bias=True)
        convolution(f"{name}.conv_branch.1", outputs, outputs, 3, bias=True)
        norm(f"{name}.conv_branch.2", outputs)
        convolution(f"{name}.conv_branch.4", outputs, outputs, 3, bias=True)

    encoder, inputs = "encoder_modules.encoder", stem
    convolution(f"{encoder}.conv1", 3, stem, 7, bias=False)
    norm(f"{encoder}.bn1", stem)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for place in range(depth):
            block, quarter = f"{encoder}.layer{stage + 1}.{place}", width // 4
            steps = [(inputs, quarter, 1), (quarter, quarter, 3), (quarter, width, 1)]
            for step, (wide, out, kernel) in enumerate(steps, 1):
                convolution(f"{block}.conv{step}", wide, out, kernel, bias=False)
                norm(f"{block}.bn{step}", out)
            if place == 0 and (stage > 0 or inputs != width):
                convolution(f"{block}.downsample.0", inputs, width, 1, bias=False)
                norm(f"{block}.downsample.1", width)
            inputs = width
    transform("decoder_modules.conv", widths[3], deepest)
    convolution("decoder_modules.conv1", deepest, decoder[2], 3, bias=True)
    for level in (2, 1, 0):
        transform(f"decoder_modules.ffm{level}.ftb1", widths[level], decoder[level])
        transform(f"decoder_modules.ffm{level}.ftb2", decoder[level], decoder[max(level - 1, 0)])
    out = "decoder_modules.outconv.adapt_conv"
    convolution(f"{out}.0", decoder[0], decoder[0] // 2, 3, bias=True)
    norm(f"{out}.1", decoder[0] // 2)
    convolution(f"{out}.3", decoder[0] // 2, 1, 3, bias=True)
    return shapes


def official_state(architecture: dict) -> dict[str, Tensor]:
    """Weights in the official layout, drawn by numpy from the names; statistics are not the usual 0 and 1."""
    state = {}
    for name, shape in official_shapes(**architecture).items():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) == 4:
            spread = np.float32(np.sqrt(24 / np.prod(shape[1:])))
            state[name] = torch.from_numpy((drawn - np.float32(0.5)) * spread)
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.from_numpy(drawn * np.float32(0.5) + np.float32(0.5))
        else:
            state[name] = torch.from_numpy((drawn - np.float32(0.5)) * np.float32(0.4))
    return state


class Official:
    """What the official network computes from such a state, in float64: raw numbers, of either sign."""

    def __init__(self, state: dict[str, Tensor], *, in_place: bool = True) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.in_place = in_place

    def convolution(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.state[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def transform(self, name: str, x: Tensor) -> Tensor:
        x = self.convolution(f"{name}.conv1", x)
        # The branch begins with a ReLU that writes into the tensor which the skip adds afterwards.
        branch = x.relu_() if self.in_place else x.relu()
        branch = self.convolution(f"{name}.conv_branch.1", branch)
        branch = self.norm(f"{name}.conv_branch.2", branch).relu()
        return (x + self.convolution(f"{name}.conv_branch.4", branch)).relu()

    def bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        y = self.norm(f"{name}.bn1", self.convolution(f"{name}.conv1", x)).relu()
        y = self.norm(f"{name}.bn2", self.convolution(f"{name}.conv2", y, stride)).relu()
        y = self.norm(f"{name}.bn3", self.convolution(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(f"{name}.downsample.1", self.convolution(f"{name}.downsample.0", x, stride))
        return (x + y).relu()

    def __call__(self, images: Tensor) -> Tensor:
        """Raw map `(B, H, W)` of images `(B, 3, H, W)` in [0, 1], with sides that are multiples of 32."""
        encoder = "encoder_modules.encoder"
        x = self.convolution(f"{encoder}.conv1", (images.double() - MEAN.double()) / STD.double(), 2)
        x = F.max_pool2d(self.norm(f"{encoder}.bn1", x).relu(), 3, 2, 1)
        levels = []
        for stage in range(4):
            place = 0
            while f"{encoder}.layer{stage + 1}.{place}.conv1.weight" in self.state:
                x = self.bottleneck(f"{encoder}.layer{stage + 1}.{place}", x, 2 if stage and not place else 1)
                place += 1
            levels.append(x)
        x = doubled(self.convolution("decoder_modules.conv1", self.transform("decoder_modules.conv", levels[3])))
        for level in (2, 1, 0):
            ffm = f"decoder_modules.ffm{level}"
            x = doubled(self.transform(f"{ffm}.ftb2", self.transform(f"{ffm}.ftb1", levels[level]) + x))
        out = "decoder_modules.outconv.adapt_conv"
        x = self.norm(f"{out}.1", self.convolution(f"{out}.0", x)).relu()
        return doubled(self.convolution(f"{out}.3", x))[:, 0]


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def lifted(raw: Tensor) -> Tensor:
    """As official inference makes one image's map positive."""
    return torch.stack([values - values.min() + 0.01 for values in raw])


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def official_file(state: dict[str, Tensor], prefix: str = "module.") -> dict:
    """What `res50.pth` holds."""
    return {
        "depth_model": under(f"{prefix}depth_model.", state),
        "shift_model": {"module.stem.0.kernel": torch.ones(3, 2)},
        "focal_model": {"module.stem.0.kernel": torch.zeros(3, 2)},
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.delenv("DISTILLDEPTH_CHECKPOINTS", raising=False)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(SMALL)


@pytest.fixture(scope="module")
def images() -> Tensor:
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    images[1] *= 0.2  # Another minimum than those of its neighbours.
    return images


@pytest.fixture
def model(state):
    torch.save(official_file(state), "small.pth")
    return load_model("small.pth")


# --- size and cost ---


def test_the_network_has_the_published_size():
    with torch.device("meta"):
        model = build({"variant": "r50"}, INFO)
    groups = model.parameter_groups()
    millions = {name: round(sum(p.numel() for p in group) / 1e6, 3) for name, group in groups.items()}
    assert millions == {"encoder": 23.508, "decoder": 28.618}
    assert count_parameters(model) == sum(p.numel() for group in groups.values() for p in group)
    assert count_parameters(model) == ENTRIES["leres-r50"].parameters == 52_126_529
    shapes = official_shapes(**VARIANTS["r50"])
    assert len(shapes) == len(model.state_dict()) == 406


class Outputs(TorchDispatchMode):
    """Counts what the operations of a network write, and the multiplications of its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.macs, self.written = 0, dict[str, int]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        first = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(first, Tensor):
            name = function.overloadpacket.__name__
            self.written[name] = self.written.get(name, 0) + first.numel()
            if name == "convolution":
                self.macs += first.numel() * args[1][0].numel()
        return output


def test_the_network_has_the_published_cost():
    """96.14 G at 448 x 448, as thop counts: 4 for each number of a normalisation, 11 for each of an enlarged map."""
    with torch.device("meta"):
        model, images = build({"variant": "r50"}, INFO).eval(), torch.empty(1, 3, 448, 448)
    with torch.no_grad(), Outputs() as counted:
        model(images)
    assert round(counted.macs / 1e9, 3) == 95.712
    total = counted.macs + 4 * counted.written["native_batch_norm"] + 11 * counted.written["upsample_bilinear2d"]
    assert round(total / 1e9, 2) == 96.14


# --- the numbers ---


# AdelaiDepth d851819: DepthModel of LeReS/Minist_Test/lib/multi_depth_model_woauxi.py in float64, less its least
# number plus 0.01: mean, deviation and four pixels
OFFICIAL_R50 = (
    66.12933643837859, 53.00609333699733, 196.57164521833568, 18.87341668024167, 145.32023275280136, 174.37861476805074,
)  # fmt: skip


def test_the_numbers_are_those_of_the_official_code():
    state, unknown = convert_official(official_state(VARIANTS["r50"]))
    assert not unknown
    model = build({"variant": "r50"}, INFO).eval()
    model.load_state_dict(state)
    pixels = torch.from_numpy(np.random.default_rng(4).random((1, 3, 32, 64)))
    with torch.no_grad():
        values = model.double()(pixels).values[0]
    found = values.mean(), values.std(), values[0, 0], values[5, 40], values[20, 63], values[31, 17]
    assert [float(number) for number in found] == pytest.approx(OFFICIAL_R50, rel=OFFICIAL)


def test_the_map_is_that_of_the_official_formulas(model, state, images):
    expected = lifted(Official(state)(images))
    values = model.double()(images.double()).values
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    # The ReLU that writes into the skip shows.
    assert (lifted(Official(state, in_place=False)(images)) - expected).abs().max() > 0.01 * expected.max()


def test_float32_is_near_the_truth(model, state, images):
    expected = lifted(Official(state)(images))
    values = model(images).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-4 * expected.max().item())


def test_the_nearest_pixel_of_every_image_is_a_hundredth(model, state, images):
    raw = Official(state)(images)
    least = raw.amin((1, 2))
    assert least.max() - least.min() > 0.01 * (raw.max() - raw.min()), "the images must have different minima"
    values = model.double()(images.double()).values
    assert values.amin((1, 2)).tolist() == pytest.approx([0.01] * 3, rel=1e-9)
    for image, value in zip(images, values, strict=True):
        torch.testing.assert_close(model(image[None].double()).values[0], value, rtol=1e-9, atol=1e-9)


# --- official files ---


@pytest.mark.parametrize(
    "wrapped",
    [
        official_file,
        lambda state: official_file(state, ""),
        lambda state: under("depth_model.", state),
        lambda state: state,
        lambda state: {
            "epoch": 3,
            "model_state_dict": under("module.depth_model.", state)
            | {"module.depth_model.auxi_modules.out_conv.adapt_conv.0.bias": torch.ones(3)}
            | {"module.losses.pn_plane.u_m_u0": torch.ones(2, 3)},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        },
    ],
    ids=["official", "without module", "depth model", "bare", "training"],
)
def test_official_files_load(state, images, wrapped):
    torch.save(wrapped(state), "res50.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        model = load_model("res50.pth")
    assert (model.info.family, model.info.quantity, model.info.notes) == ("leres", "depth", ())
    assert model.architecture == SMALL
    assert not model.training
    named = load_model("leres@res50.pth")
    assert "non-commercial" in named.info.licence
    expected = lifted(Official(state)(images))
    for loaded in (model, named):
        torch.testing.assert_close(loaded.double()(images.double()).values, expected, rtol=1e-9, atol=1e-9)


def test_safetensors_load_too(state, images, model):
    save_file(under("depth_model.", state), "small.safetensors")
    assert torch.equal(load_model("small.safetensors")(images).values, model(images).values)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ("a.pth", lambda s: without(s, "decoder_modules.conv1.bias"), r"1 missing: decoder\.deepest\.1\.bias"),
        ("a.pth", lambda s: without(s, "encoder_modules.encoder.bn1.running_var"), r"1 missing: .*running_var"),
        ("a.pth", lambda s: without(s, "decoder_modules.conv.conv1.weight"), "lacks 'decoder.deepest.0.project.weight"),
        ("a.pth", lambda s: s | {"decoder_modules.ffm3.ftb1.conv1.bias": torch.ones(2)}, r"1 unexpected: decoder_mod"),
        ("a.pth", lambda s: s | {"encoder_modules.encoder.fc.weight": torch.ones(2, 3)}, r"1 unexpected: encoder_mod"),
        ("a.pth", lambda s: s | {"encoder_modules.encoder.bn1.strange": torch.ones(2)}, "1 unexpected: encoder.embed"),
        ("a.pth", lambda s: s | {"decoder_modules.conv1.bias": torch.ones(3)}, r"bias \(3,\) instead of \(10,\)"),
        (
            "a.pth",
            lambda s: s | {"encoder_modules.encoder.layer2.999999.conv1.weight": torch.ones(3, 12, 1, 1)},
            "the last ones have the numbers",
        ),
        (
            "a.pth",
            lambda s: s | {"encoder_modules.encoder.layer1.0.conv2.weight": torch.ones(8, 2, 3, 3)},
            r"ResNeXt \(grouped convolutions of 2 channels\), which is not supported; of the official files res50\.pth",
        ),
        ("a.pth", lambda s: s | {"decoder_modules.conv1.bias": torch.full((10,), torch.nan)}, "not finite"),
        ("leres:r50@a.pth", dict, r"with stem 8, 'leres:r50' has 64; name it leres@a\.pth"),
        ("dav2@a.pth", dict, "holds a LeReS network, but 'dav2' is not one"),
        ("genpercept@a.pth", dict, "a.pth"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(state, spec, change, message):
    torch.save(official_file(change(state)), "a.pth")
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(spec)
    assert "a.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_unit_is_refused(state):
    torch.save(official_file(state), "a.pth")
    with pytest.raises(ValueError, match="leave max_depth out"):
        load_model("a.pth", max_depth=10)


# --- names ---


def test_names():
    assert lookup("leres") is lookup("leres:r50") is lookup("leres-r50") is ENTRIES["leres-r50"]
    assert {"leres", "leres-r50"} <= set(teacher_names())
    check_known(parse_teachers("leres=2,leres:r50"))
    row = next(row for row in describe("teacher") if row["name"] == "leres-r50")
    assert (row["quantity"], row["at_hand"]) == ("depth", False)
    assert "AdelaiDepth" in row["source"]


@pytest.mark.parametrize("spec", ["leres", "leres:r50"])
def test_what_no_hub_has_is_told_where_to_get(spec):
    with pytest.raises(DistillDepthError) as caught:
        load_model(spec)
    for words in ("no weights of 'leres-r50'", "res50.pth", "aim-uofa/AdelaiDepth", "checkpoints/res50.pth", "leres@"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_checkpoints_folder_is_found_by_name(state):
    Path("checkpoints").mkdir()
    torch.save(official_file(state), "checkpoints/res50.pth")
    # It is found, and is not of the size that the name says.
    with pytest.raises(DistillDepthError, match=r"checkpoints/res50\.pth is a LeReS network with stem 8"):
        load_model("leres")


def test_it_is_a_teacher_by_name_and_a_student_by_its_file(model):
    with pytest.raises(ValueError, match=r"'leres' is a teacher only; .* or start from its weights by its path$"):
        create_student("leres")
    assert create_student("small.pth").architecture == SMALL


# --- photographs ---


def photograph(name: str = "a.png", height: int = 60, width: int = 90) -> Tensor:
    values = np.random.default_rng(3).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    image.save(name)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def official_map(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """As the official script goes about a photograph, without its rounding to 8 bits."""
    square = F.interpolate(pixels.double(), (448, 448), mode="bilinear", align_corners=False)
    size = pixels.shape[-2:]
    return F.interpolate(lifted(Official(state)(square))[:, None], size, mode="bilinear", align_corners=False)[0, 0]


def test_a_photograph_is_seen_as_by_the_official_script(model, state):
    pixels = photograph()
    assert target_size(60, 90, model.preprocessing) == target_size(3000, 400, model.preprocessing) == (448, 448)
    prediction = model.predict("a.png")
    expected = official_map(state, pixels).numpy()
    assert (prediction.quantity, prediction.resize_policy) == ("depth", "square")
    np.testing.assert_allclose(prediction.values, expected, rtol=0, atol=1e-4 * expected.max())
    assert prediction.values.min() >= 0.0099


def test_the_command_line(model, state):
    expected = official_map(state, photograph()).numpy()
    for spec in ("small.pth", "leres@small.pth"):
        done = CliRunner().invoke(cli, ["predict", "a.png", "-o", "a.npy", "--precision", "float32", "--model", spec])
        assert done.exit_code == 0, done.output
        assert ": depth" in done.stderr
        np.testing.assert_allclose(np.load("a.npy"), expected, rtol=0, atol=1e-4 * expected.max())
    done = CliRunner().invoke(cli, ["list", "teachers", "--json", "-"])
    assert any(row["name"] == "leres-r50" and row["also"] == "leres" for row in json.loads(done.stdout))


def test_a_teacher_says_minus_depth(model, images):
    """There is no disparity in depth that is known up to a shift: near becomes large, and nothing is inverted."""
    label = Teacher(parse_teachers("leres")[0], model).label(images, None)
    assert label.valid.all()
    assert not label.inverse_depth
    torch.testing.assert_close(label.disparity, -model(images).values)


def test_two_steps_of_a_run(model, tmp_path):
    arguments = [
        "distill", "--teachers", "leres@small.pth", "--student", "light-mini", "--images", "scenes:8",
        "--size", "64x96", "--batch-size", "2", "--workers", "0", "--heldout", "2", "--steps", "2",
        "--agreement-every", "0", "--device", "cpu", "--precision", "float32", "--log", "none",
        "--set", "loss.feature=0", "--out", "run",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "| depth | Adobe Research, non-commercial | small.pth |" in card


# --- as any network here ---


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return build(SMALL, INFO)


@pytest.mark.parametrize("size", [(64, 96), (57, 33), (1, 1), (200, 90)])
def test_any_size_will_do(fresh, size):
    output = fresh.eval()(torch.rand(2, 3, *size), features=True)
    assert output.values.shape == (2, *size)
    assert output.values.isfinite().all()
    assert output.features["encoder"].shape == (2, 24, -(-size[0] // 32), -(-size[1] // 32))


def test_an_empty_batch_gives_an_empty_map(fresh):
    assert fresh.eval()(torch.rand(0, 3, 64, 96)).values.shape == (0, 64, 96)


def test_half_precision_gives_a_fine_float32_map(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        values = model(images).values
    assert values.dtype == torch.float32
    assert values.unique().numel() > values.numel() // 2
    plain = model(images).values
    assert (values - plain).abs().max() < 0.1 * plain.max()


def test_every_parameter_learns_and_computing_again_changes_nothing(model, images):
    found = []
    for again in (False, True):
        trained = copy.deepcopy(model).double().train()
        if again:
            trained.enable_gradient_checkpointing()
        trained(images.double()).values.std().backward()
        counts = {int(v) for k, v in trained.state_dict().items() if k.endswith("num_batches_tracked")}
        assert counts == {8}
        found.append({name: parameter.grad for name, parameter in trained.named_parameters()})
    plain, again = found
    for name, gradient in plain.items():
        assert gradient.isfinite().all()
        # A constant before a normalisation over the batch is taken away by it, and the minimum takes the last one.
        if not name.endswith(("branch.0.bias", "head.0.bias", "head.3.bias")):
            assert gradient.abs().max() > 1e-9, name
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_map(fresh):
    model = copy.deepcopy(fresh).double().eval()
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # Official beginnings, of deviation 0.01, let next to nothing through.
    assert torch.autograd.gradcheck(lambda x: model(x).values[:, ::2, ::3], x, atol=1e-7)


def test_saving_and_building_again(model, images):
    saved = save_model(model, "saved")
    again = load_model(saved)
    assert (again.architecture, again.preprocessing) == (model.architecture, model.preprocessing)
    assert torch.equal(again(images).values, model(images).values)
    kept = keep_encoder(model, seed=1).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(kept[name], tensor) or not name.startswith("encoder."), name
    assert not torch.equal(kept["decoder.head.0.weight"], model.state_dict()["decoder.head.0.weight"])


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"variant": "r5"}, "did you mean 'r50'"),
        ({"variant": "r50", "depth": [1] * 4}, "did you mean 'depths'"),
        ({"stem": 4}, "needs widths, depths, decoder, deepest"),
        (SMALL | {"depths": [1] * 3}, "depths must have 4 entries, got 3"),
    ],
)
def test_a_bad_architecture_says_what_is_wrong(architecture, message):
    with pytest.raises(ValueError, match=message):
        build(architecture, INFO)
