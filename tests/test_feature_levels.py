"""Terms of features at several levels: what the families offer, what the terms make of it, and runs with them."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from test_label_free import RUN, slow_likeness, slow_spatial_kl
from test_leres import INFO, SMALL
from test_losses import inputs
from test_resume import photographs, weights
from tolerances import assert_loss

from distilldepth.cli.main import cli
from distilldepth.distill.config import load_config
from distilldepth.distill.objective import distill_any_depth_objective, feature_widths
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.terms.feature_mse import FeatureMseTerm
from distilldepth.distill.terms.table import TERMS, level_names
from distilldepth.errors import UsageError
from distilldepth.images.crops import Regions
from distilldepth.losses import channel_kl_loss, channel_mse_loss
from distilldepth.losses.feature import feature_loss
from distilldepth.models import create_student, load_model
from distilldepth.models.families import leres
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import Teacher

NAMES = tuple(name for name, row in TERMS.items() if row.features)
SIZES = ("1/4", "1/8", "1/16", "1/32")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- families --------------------------------------------------------------------------------------------------------


def encoder_alone(model, images):
    """The encoder's levels from 1/4 on, without the decoder that might change them."""
    pixels = model.normalise(images)
    name = model.info.name
    if name == "leres-test":
        return model._encode(pixels)
    if name == "topformer-tiny":
        return model.encoder(pixels)
    if name == "efficientnet-lite0":
        return model.encoder(pixels)[1:]
    levels = []
    x = model.stem(pixels)
    for stage in model.stages:
        x = stage(x)
        levels.append(x)
    return [*levels[:-1], model.context(x)]


@pytest.mark.parametrize("name", ["leres-test", "topformer-tiny", "light-mini", "efficientnet-lite0"])
def test_a_pyramid_has_its_levels_by_size(name):
    torch.manual_seed(1)
    model = leres.build(SMALL, INFO) if name == INFO.name else create_student(name, seed=1)
    images = torch.rand(2, 3, 64, 96, generator=seeded(0))
    with torch.no_grad():
        output = model.eval()(images, features=True)
        expected = encoder_alone(model, images)
        assert model(images).features == {}
    assert list(output.features) == ["encoder", *SIZES]
    assert output.features["encoder"] is output.features["1/32"]
    for size, level in zip(SIZES, expected, strict=True):
        assert torch.equal(output.features[size], level)
        assert level.shape[2:] == tuple(side // int(size[2:]) for side in (64, 96))
    widths = feature_widths(model)
    assert widths == {level: values.shape[1] for level, values in output.features.items()}
    assert len(set(widths.values())) == 4


def test_a_depth_anything_network_has_the_four_that_its_head_takes():
    model = load_model("dav2-mini")
    images = torch.rand(2, 3, 70, 98, generator=seeded(0))
    with torch.no_grad():
        features = model(images, features=True).features
        maps = model.network.backbone(model.normalise(images)).feature_maps
    assert list(features) == ["encoder", *SIZES]
    for size, tokens in zip(SIZES, maps, strict=True):
        for row, column in ((0, 0), (2, 3), (4, 6)):
            torch.testing.assert_close(features[size][1, :, row, column], tokens[1, 1 + row * 7 + column])
    assert torch.equal(features["encoder"], features["1/32"])
    assert feature_widths(model) == dict.fromkeys(("encoder", *SIZES), 192)


def test_a_latent_network_has_the_last_alone_and_a_callable_none():
    assert list(feature_widths(load_model("genpercept-mini"))) == ["encoder"]
    assert feature_widths(None) == {}


def test_only_what_is_asked_for_is_kept(monkeypatch):
    model = load_model("dav2-mini")
    teacher = Teacher(parse_teachers("dav2-mini")[0], model)
    images = torch.rand(3, 3, 56, 70, generator=seeded(2))
    asked, plain = [], model.forward

    def spy(images, *, features=False):
        asked.append(features)
        return plain(images, features=features)

    monkeypatch.setattr(model, "forward", spy)
    assert teacher.label(images, None).features == {}
    assert list(teacher.label(images, None, features=("1/8", "encoder", "1/64")).features) == ["encoder", "1/8"]
    teacher.parts = 2
    whole = plain(images, features=True).features["1/16"]
    torch.testing.assert_close(
        teacher.label(images, None, features=("1/16",)).features["1/16"], whole, atol=1e-4, rtol=1e-3
    )
    step = DistillationStep(model, only("feature_mse"), Stopwatch(torch.device("cpu")))
    regions = Regions(images, torch.empty(3, 0), torch.empty(3, 0, 4), ["a", "b", "c"])
    assert step.run_student(regions, features=()).features == {}
    for step.at_once in (None, 2):
        features = step.run_student(regions, features=("1/4",)).features
        assert {name: len(values) for name, values in features.items()} == {"1/4": 3}
    assert asked == [False, True, True, True, False, True, True, True]


# --- the key ---------------------------------------------------------------------------------------------------------


def test_levels_are_named_by_the_configuration():
    assert load_config().loss.feature_levels == "encoder"
    for text, names in (("encoder", ("encoder",)), ("all", ("all",)), (" 1/8,1/4, 1/8", ("1/8", "1/4"))):
        assert level_names(load_config(settings=[f"loss.feature_levels={text}"]).loss.feature_levels) == names
    for text in ("1/2", "all,1/4", "", "1/4,", "deep", "encodr"):
        with pytest.raises(
            UsageError, match=r"distill: loss.feature_levels must name levels of encoder, 1/4, 1/8, .*got"
        ):
            load_config(settings=[f"loss.feature_levels={text}"])
    with pytest.raises(UsageError, match="did you mean 'encoder'"):
        level_names("encodr")


# --- terms -----------------------------------------------------------------------------------------------------------

STUDENT = {"encoder": 6, "1/4": 3, "1/8": 4, "1/16": 5, "1/32": 6}
TEACHERS = {
    "a": {"encoder": 8, "1/4": 3, "1/8": 7, "1/16": 8, "1/32": 8},
    "b": {"encoder": 8, "1/4": 3, "1/8": 7, "1/32": 8},
    "c": {"encoder": 9},
}
GRIDS = {"1/4": ((9, 11), (6, 7)), "1/8": ((4, 6), (6, 7)), "1/16": ((2, 3), (2, 3)), "1/32": ((2, 2), (4, 1))}
"""Of student and teacher: larger, smaller, the same, and neither."""


def only(name, levels="encoder", **options):
    torch.manual_seed(0)
    values = {**dict.fromkeys(TERMS, 0.0), name: 2.5}
    channels = {"student_channels": STUDENT, "teacher_channels": {"a": TEACHERS["a"], "b": TEACHERS["b"]}}
    return distill_any_depth_objective(weights=values, feature_levels=levels, **{**channels, **options})


def with_levels(teacher="a", dtype=torch.float32):
    student, label, regions = inputs()
    label.teacher = teacher
    for place, (size, (own, other)) in enumerate(GRIDS.items()):
        g = seeded(place)
        student.features[size] = (torch.randn(2, STUDENT[size], *own, generator=g) + 0.3).to(dtype)
        if size in TEACHERS[teacher]:
            label.features[size] = torch.rand(2, TEACHERS[teacher][size], *other, generator=g).square().to(dtype) - 0.2
    return student, label, regions


def slow_resized(values, size):
    """Of one map: the mean of cells where it is not smaller, bilinear by the centres of pixels where it is."""
    rows, columns = values.shape
    if rows >= size[0] and columns >= size[1]:
        cells = [
            [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip((rows, columns), size, strict=True)
        ]
        return np.array([[values[a:b, c:d].mean() for c, d in cells[1]] for a, b in cells[0]])

    def at(place, n, m):
        x = min(max((place + 0.5) * n / m - 0.5, 0), n - 1)
        return int(x), min(int(x) + 1, n - 1), x - int(x)

    made = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            (a, b, u), (c, d, v) = at(i, rows, size[0]), at(j, columns, size[1])
            made[i, j] = (1 - u) * ((1 - v) * values[a, c] + v * values[a, d]) + u * (
                (1 - v) * values[b, c] + v * values[b, d]
            )
    return made


def slow_projected(module, values, size):
    """A 1x1 projection and the way to the teacher's grid, in loops."""
    values = values.double().numpy()
    if isinstance(module, torch.nn.Conv2d):
        kernel, bias = module.weight.detach().double().numpy()[:, :, 0, 0], module.bias.detach().double().numpy()
        values = np.stack([[bias[k] + sum(kernel[k, c] * image[c] for c in range(len(image))) for k in range(len(bias))]
                           for image in values])  # fmt: skip
    return np.array([[slow_resized(plane, size) for plane in image] for image in values])


def truth_at(name, own, target):
    """The value at one level, for arrays `(B, C, h, w)`."""
    s, t = torch.from_numpy(own), torch.from_numpy(target)
    if name == "feature_mse":
        return ((own - target) ** 2).mean()
    if name == "feature_uncertainty":  # Of a student without one.
        return ((own - target) ** 2).mean() / 2
    if name == "feature_spatial_kl":
        return slow_spatial_kl(own, target, 2.0)
    if name == "feature":
        distances = [
            1 - (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
            for x, y in zip(own, target, strict=True)
            for a, b in zip(x.reshape(len(x), -1).T, y.reshape(len(y), -1).T, strict=True)
        ]
        kept = [distance for distance in distances if distance >= 0.15]
        return sum(kept) / len(kept)
    return float(
        {"feature_channel_kl": channel_kl_loss, "feature_channel_mse": channel_mse_loss}[name](s, t, temperature=2.0)
    )


@pytest.mark.parametrize("teacher", ["a", "b"])
@pytest.mark.parametrize("name", NAMES)
def test_a_term_is_the_mean_over_the_levels_of_both(name, teacher):
    module = only(name, "all", temperature=2.0)
    data = student, label, _ = with_levels(teacher)
    sizes = [size for size in SIZES if size in TEACHERS[teacher]]
    for size in sizes:
        student.features[size].requires_grad_()
    total, values = module(*data)
    (term,) = module.terms
    places = [(who, size) for who in "ab" for size in SIZES if size in TEACHERS[who]]
    found = []
    for size in sizes:
        own, target = student.features[size].detach(), label.features[size]
        if name == "feature_pairwise":
            rows, columns = (min(8, own.shape[k], target.shape[k]) for k in (2, 3))
            pairs = zip(own.double().numpy(), target.double().numpy(), strict=True)
            each = [((slow_likeness(a, rows, columns) - slow_likeness(b, rows, columns)) ** 2).mean() for a, b in pairs]
            found.append(sum(each) / len(each))
        else:
            projection = term.projections[places.index((teacher, size))]
            assert isinstance(projection, torch.nn.Identity) == (size == "1/4")
            found.append(truth_at(name, slow_projected(projection, own, target.shape[2:]), target.double().numpy()))
    assert float(values[name]) == pytest.approx(sum(found) / len(found), rel=2e-5)
    assert float(total.detach()) == pytest.approx(2.5 * float(values[name]), rel=1e-6)
    total.backward()
    assert all(student.features[size].grad.abs().sum() > 0 for size in sizes)
    if name != "feature_pairwise":
        used = [places.index((teacher, size)) for size in sizes if size != "1/4"]
        silent = {i for i, each in enumerate(term.projections) if any(p.grad is None for p in each.parameters())}
        assert silent == {i for i, (who, size) in enumerate(places) if who != teacher and size != "1/4"}
        assert all(term.projections[i].weight.grad.abs().sum() > 0 for i in used)


def test_every_position_of_a_finer_student_has_a_part():
    """As many as it has for one of the teacher's, and no fewer: two of three would be left out between them."""
    module = only("feature_mse", "1/4")
    data = student, label, _ = with_levels()
    label.features["1/4"] = label.features["1/4"][:, :, ::3, ::3]
    student.features["1/4"].requires_grad_()
    module(*data)[0].backward()
    assert (student.features["1/4"].grad != 0).all()


def test_the_way_to_one_grid_has_the_gradient_of_its_values():
    term = FeatureMseTerm(1.0, STUDENT, {"a": TEACHERS["a"]})
    for size, (own, other) in GRIDS.items():
        values = torch.randn(1, 2, *own, generator=seeded(1), dtype=torch.float64).requires_grad_()
        target = torch.randn(1, 2, *other, generator=seeded(2), dtype=torch.float64)
        torch.autograd.gradcheck(lambda x, s=size, t=target: term.on_one_grid(s, x, t)[0], values)
        assert [x.shape[2:] for x in term.on_one_grid(size, values, target)] == [torch.Size(other)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_the_last_level_alone_is_what_it_was(name):
    """The same names and draws of parameters, for runs begun before there were others, and the same value."""
    module, before = only(name), only(name, student_channels=6, teacher_channels={"a": 8, "b": 8})
    assert module.levels == {"encoder"}
    state, other = module.state_dict(), before.state_dict()
    names = [] if name == "feature_pairwise" else [
        f"terms.0.projections.{place}.{kind}" for place in (0, 1) for kind in ("weight", "bias")
    ]  # fmt: skip
    assert list(state) == list(other) == names
    assert all(torch.equal(state[key], other[key]) for key in state)
    student, label, regions = with_levels()
    value = module(student, label, regions)[1][name]
    own, target = student.features["encoder"], label.features["encoder"]
    if name == "feature":
        assert_loss(value, feature_loss(module.terms[0].projections[0](own), target).detach(), torch.float32)
    elif name == "feature_mse":
        target = F.interpolate(target, own.shape[2:], mode="bilinear")
        assert_loss(value, (module.terms[0].projections[0](own) - target).square().mean().detach(), torch.float32)
    del student.features["encoder"]
    assert module(student, label, regions)[1] == {}


def test_each_teacher_is_looked_at_where_it_can_be():
    module = only("feature_mse", "all", teacher_channels=TEACHERS)
    assert module.levels == {"encoder", *SIZES}
    shapes = [each.weight.shape[:2] for each in module.terms[0].projections if isinstance(each, torch.nn.Conv2d)]
    assert shapes == [(7, 4), (8, 5), (8, 6), (7, 4), (8, 6), (9, 6)]
    student, label, regions = with_levels()
    label.features["encoder"] = torch.full((2, 8, 3, 4), torch.nan)
    assert torch.isfinite(module(student, label, regions)[0]), "the last level counts once, as 1/32"
    label.teacher, label.features = "c", {"encoder": torch.rand(2, 9, 3, 4), "1/4": torch.full((2, 3, 6, 7), torch.nan)}
    assert torch.isfinite(module(student, label, regions)[0])
    label.features = {}
    assert module(student, label, regions)[1] == {}
    label.teacher, label.features = "d", {"1/8": torch.rand(2, 7, 6, 7)}
    with pytest.raises(ValueError, match=r"one of a \(7\), b \(7\), got 7 channels of d teacher"):
        module(student, label, regions)


def test_a_level_that_one_lacks_is_an_error_that_says_what_each_has():
    for levels, teacher in (("1/16", "b"), ("1/4,1/16", "b"), ("encoder,1/8", "c")):
        with pytest.raises(UsageError) as caught:
            only("feature", levels, teacher_channels={teacher: TEACHERS[teacher]})
        message = str(caught.value)
        assert message.startswith(f"distill: loss.feature_levels = {', '.join(level_names(levels))}, but of these")
        assert "the student has encoder, 1/4, 1/8, 1/16, 1/32" in message
        assert f"{teacher} has {', '.join(TEACHERS[teacher])};" in message
        assert "\n" not in message
    with pytest.raises(UsageError, match="the student has encoder and a has encoder, 1/4"):
        only("feature", "1/4", student_channels=6)
    only("feature", "encoder,1/8", teacher_channels={"b": TEACHERS["b"]})


def test_what_is_not_finite_at_one_level_shows():
    for name in NAMES:
        student, label, regions = with_levels()
        student.features["1/8"] = student.features["1/8"].clone()
        student.features["1/8"][0, 0, 1, 1] = torch.nan
        assert only(name, "1/4,1/8")(student, label, regions)[0].isnan()
        assert torch.isfinite(only(name, "1/4,1/16", teacher_channels={"a": TEACHERS["a"]})(student, label, regions)[0])


def test_autocast_lowers_nothing_and_half_precision_is_taken():
    for name in NAMES:
        truth = only(name, "all")(*with_levels())[0].detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(only(name, "all")(*with_levels())[0], truth)
            half = only(name, "all")(*with_levels(dtype=torch.bfloat16))[0].detach()
        assert half.dtype == torch.float32
        assert float(half) == pytest.approx(float(truth), rel=0.05)


def test_nothing_waits_for_the_device():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # A fake tensor has no values: whatever would wait for one raises instead.
        for name in NAMES:
            data = student, _, _ = with_levels()
            student.features["1/8"].requires_grad_()
            only(name, "all")(*data)[0].backward()
            assert student.features["1/8"].grad is not None


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("levels") / "photos")


def run(photos, out, *arguments, code=0):
    result = CliRunner().invoke(cli, ["distill", *RUN, "--images", str(photos), "--out", str(out), *arguments])
    assert result.exit_code == code, result.output
    return result.output if code else [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_at_several_levels_goes_on_bit_for_bit(photos, tmp_path):
    chosen = [text for name in NAMES for text in ("--set", f"loss.{name}=0.1")]
    arguments = [
        "--steps", "4", "--set", "checkpoint_every=2",
        "--set", "keep_checkpoints=3", "--micro-batch", "1", *chosen, "--set", "loss.feature_levels=all",
    ]  # fmt: skip
    rows = run(photos, tmp_path / "whole", *arguments)
    assert all(
        row["skipped"] == 0 and math.isfinite(row["grad_norm"]) and set(NAMES) < set(row["terms"]) for row in rows
    )
    assert load_config(file=tmp_path / "whole" / "config.toml").loss.feature_levels == "all"
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step-00000004", "student"):
        shutil.rmtree(tmp_path / "cut" / name)
    run(photos, tmp_path / "cut", *arguments, "--resume", "auto")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_from_before_there_were_levels_goes_on(photos, tmp_path):
    arguments = ["--set", "loss.feature=1", "--set", "loss.feature_mse=0.1", "--set", "checkpoint_every=2"]
    run(photos, tmp_path / "run", *arguments, "--steps", "2")
    settings = tmp_path / "run" / "config.toml"
    lines = settings.read_text().splitlines(keepends=True)
    assert sum("feature_levels" in line for line in lines) == 1
    settings.write_text("".join(line for line in lines if "feature_levels" not in line))
    rows = run(photos, tmp_path / "run", *arguments, "--steps", "4", "--resume", "auto")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("genpercept-mini", "the student has encoder, 1/4, 1/8, 1/16, 1/32 and genpercept-mini has encoder;"),
        ("oracle", "light-mini has encoder, 1/4, 1/8, 1/16, 1/32 and oracle has none;"),
    ],
)
def test_a_run_at_a_level_that_is_not_there_ends_before_it_begins(photos, tmp_path, teacher, message):
    told = ["--teachers", teacher, "--set", "loss.feature=1", "--steps", "1", "--set", "loss.feature_levels=1/4"]
    output = run("scenes:20" if teacher == "oracle" else photos, tmp_path / "run", *told, code=2)
    assert message in " ".join(output.split())
    assert not (tmp_path / "run" / "student").exists()
