"""The network that completes depth: the planes under it, what it must not depend on, and its training."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from distilldepth.cli.main import cli
from distilldepth.distill.agreement import measure_agreement
from distilldepth.distill.config import load_config
from distilldepth.distill.guides import Guides
from distilldepth.distill.objective import DistillationObjective
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.terms.metric_log import MetricLogTerm
from distilldepth.errors import UsageError
from distilldepth.images.batches import CropDataset, SourceView
from distilldepth.images.crops import CropConfig, Regions
from distilldepth.losses import metric_log_loss
from distilldepth.models import count_parameters, create_student, load_model, save_model
from distilldepth.models.base import DepthOutput
from distilldepth.models.families.completion import build
from distilldepth.models.registry import ENTRIES
from distilldepth.scenes import SceneSource
from distilldepth.sparse.corrupt import draw_training_points
from distilldepth.sparse.planes import LocalPlanes
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel, Teacher


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def stirred(seed=0, size=48):
    """A network that is not the one it begins as, working at so many pixels."""
    model = create_student("completion-mini", seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=seeded(number))
    model.preprocessing = dataclasses.replace(model.preprocessing, size=size)
    return model.eval()


def inputs(batch, height, width, seed=0, share=0.03):
    generator = seeded(seed)
    images = torch.rand(batch, 3, height, width, generator=generator)
    depth = 1 + 5 * torch.rand(batch, height, width, generator=generator)
    sparse = depth * (torch.rand(batch, height, width, generator=generator) < share)
    sparse[:, 0, 0], sparse[:, -1, -1] = 1.5, 4.0
    return images, sparse, 1 + 4 * torch.rand(batch, height, width, generator=generator)


def slow_planes(known, values, ridge):
    """The docstring's minimum at every cell of every level, in float64 over the known pixels themselves."""
    height, width = known.shape
    weights = {(r, c): {(r, c): known[r, c]} for r, c in np.ndindex(height, width) if known[r, c]}
    levels, sizes = [weights], [(height, width)]
    binomial = (0.25, 0.75, 0.75, 0.25)
    while max(sizes[-1]) > 1:
        size, finer, coarser = tuple(-(-n // 2) for n in sizes[-1]), levels[-1], {}
        for (row, column), held in finer.items():
            for i, j in np.ndindex(4, 4):
                up, left = row + 1 - i, column + 1 - j
                if up % 2 or left % 2 or not (0 <= up // 2 < size[0] and 0 <= left // 2 < size[1]):
                    continue
                cell = coarser.setdefault((up // 2, left // 2), {})
                for pixel, weight in held.items():
                    cell[pixel] = cell.get(pixel, 0) + weight * binomial[i] * binomial[j]
        levels.append(coarser)
        sizes.append(size)
    planes = None
    for level in reversed(range(len(levels))):
        scale, now = 2**level, np.zeros((*sizes[level], 3))
        for row, column in np.ndindex(*sizes[level]):
            inherited = np.zeros(3)
            if planes is not None:
                for i, j in np.ndindex(4, 4):
                    up, left = row + 3 - i, column + 3 - j
                    if up % 2 or left % 2:
                        continue
                    # Beyond the border the plane of the cell there goes on.
                    wanted = np.array([up, left]) // 2 - 1
                    parent = wanted.clip(0, np.array(sizes[level + 1]) - 1)
                    below, beside = (np.array([i, j]) - 1.5) / 2 + wanted - parent
                    value, right, down = planes[tuple(parent)]
                    offset = (
                        binomial[i]
                        * binomial[j]
                        * np.array([value + right * beside + down * below, right / 2, down / 2])
                    )
                    inherited += offset
            matrix = np.diag([1e-4, 1, 1] if planes is None else [ridge[0], ridge[1], ridge[1]])
            rest = np.zeros(3)
            for (r, c), weight in levels[level].get((row, column), {}).items():
                middle = (np.array([row, column]) + 0.5) * scale - 0.5
                basis = np.array([1, (c - middle[1]) / scale, (r - middle[0]) / scale])
                matrix += weight * np.outer(basis, basis)
                rest += weight * basis * (values[r, c] - basis @ inherited)
            now[row, column] = inherited + np.linalg.solve(matrix, rest)
        planes = now
    return planes[..., 0]


@pytest.mark.parametrize("size", [(7, 10), (8, 5), (1, 6)])
def test_planes_are_what_their_docstring_says(size):
    generator = np.random.default_rng(3)
    known = np.where(generator.random((2, *size)) < 0.3, generator.uniform(0.5, 2, (2, *size)), 0)
    known[0, 0, 1] = 1
    values = generator.normal(size=(2, 2, *size)) + 3
    planes = LocalPlanes(2)
    ridges = [(0.1, 0.3), (3.0, 2.0)]
    found = planes(*(torch.from_numpy(x).float() for x in (known, values * (known > 0)[:, None])), ridges)
    for ridge, maps in zip(ridges, found, strict=True):
        for image, target in np.ndindex(2, 2):
            expected = slow_planes(known[image], values[image, target], ridge)
            np.testing.assert_allclose(maps[image, target], expected, rtol=2e-3, atol=2e-3)


def test_planes_reproduce_planes_and_know_nothing_of_nothing():
    row, column = torch.meshgrid(torch.arange(37.0), torch.arange(50.0), indexing="ij")
    plane = 0.3 * row - 0.7 * column + 5
    known = (torch.rand(2, 37, 50, generator=seeded(1)) < 0.1).float()
    known[1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = LocalPlanes(1)(known, (known * plane)[:, None], [(1e-4, 1e-4)])
    torch.testing.assert_close(found[0, 0], plane, rtol=0, atol=0.05)
    assert (found[1] == 0).all()


def test_planes_have_the_gradient_of_their_values():
    known = (torch.rand(1, 5, 6, generator=seeded(2)) < 0.5).float()
    values = torch.rand(1, 1, 5, 6, generator=seeded(3))
    planes = LocalPlanes(1)
    pull = torch.randn(1, 1, 5, 6, generator=seeded(4))

    def loss(given):
        return (planes(known, given, [(0.2, 0.3)])[0] * pull).sum()

    gradient = torch.autograd.grad(loss(values.requires_grad_()), values)[0]
    # The maps are linear in the values: differences of any size are exact but for rounding.
    for place in ((0, 0, 1, 2), (0, 0, 4, 5), (0, 0, 0, 0)):
        moved = values.detach().clone()
        moved[place] += 1
        assert float((loss(moved) - loss(values)).detach()) == pytest.approx(float(gradient[place]), abs=2e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (48, 64), (47, 61), (75, 130), (130, 49)])
def test_any_size_gives_metres_of_that_size(size):
    images, sparse, aligned = inputs(2, *size)
    model = stirred()
    with torch.no_grad():
        output = model(images, sparse=sparse, aligned=aligned)
    assert output.values.shape == (2, *size)
    assert output.values.dtype == torch.float32
    assert torch.isfinite(output.values).all()
    assert (output.values > 0).all()


def test_the_unit_of_length_does_not_matter():
    model, (images, sparse, aligned) = stirred(), inputs(2, 70, 90)
    with torch.no_grad():
        plain = model.complete(images, sparse, aligned)
        for unit in (1000.0, 0.01):
            got = model.complete(images, sparse * unit, aligned * unit)
            torch.testing.assert_close(got / unit, plain, rtol=1e-3, atol=0)


def test_images_of_a_batch_do_not_see_each_other():
    model, (images, sparse, aligned) = stirred(), inputs(3, 60, 81)
    sparse[1] = 0
    with torch.no_grad():
        together = model.complete(images, sparse, aligned)
        alone = [model.complete(*(x[place : place + 1] for x in (images, sparse, aligned))) for place in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_what_is_no_point_counts_as_none():
    model, (images, sparse, aligned) = stirred(), inputs(1, 48, 64)
    with torch.no_grad():
        plain = model.complete(images, sparse, aligned)
        for rubbish in (torch.nan, torch.inf, -torch.inf, -3.0):
            dirty = torch.where(sparse == 0, rubbish, sparse)
            assert torch.equal(model.complete(images, dirty, aligned), plain)
        # Without a point the aligned map is all there is to begin with.
        untrained = create_student("completion-mini", seed=0)
        slope = torch.linspace(1, 4, 64).expand(1, 48, 64)
        bare = untrained.complete(images, torch.zeros_like(sparse), slope)
        torch.testing.assert_close(bare, slope, rtol=0.2, atol=0)


def test_an_untrained_network_follows_points_over_a_plane_and_stops_at_colours():
    height, width = 96, 128
    images = torch.zeros(1, 3, height, width)
    images[..., 70:] = 0.9
    depth = torch.full((1, height, width), 2.0)
    depth[..., 70:] = 6.0
    sparse = depth * (torch.rand(1, height, width, generator=seeded(5)) < 0.01)
    model = create_student("completion-mini", seed=0)
    with torch.no_grad():
        found, blind = (
            (model.complete(seen, sparse, torch.full_like(depth, 3.5)) / depth - 1).abs()
            for seen in (images, torch.zeros_like(images))
        )
    assert found.mean() < 0.06
    assert found[..., 66:74].mean() < 0.6 * blind[..., 66:74].mean()


def test_points_are_honoured_where_they_agree_at_full_resolution():
    height, width = 120, 160
    depth = (2 + torch.linspace(0, 2, width)).expand(1, height, width).contiguous()
    sparse = depth * (torch.rand(1, height, width, generator=seeded(6)) < 0.05)
    model = create_student("completion-mini", seed=0)
    model.preprocessing = dataclasses.replace(model.preprocessing, size=60)
    with torch.no_grad():
        found = model.complete(torch.full((1, 3, height, width), 0.5), sparse, torch.full_like(depth, 3.0))
    given = sparse > 0
    assert (found / depth - 1).abs()[given].max() < 0.02


def test_every_parameter_gets_a_gradient():
    model, (images, sparse, aligned) = stirred().train(), inputs(2, 48, 64)
    pull = torch.randn(2, 48, 64, generator=seeded(7))
    (model.complete(images, sparse, aligned) * pull).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_computing_again_changes_no_gradient():
    model, (images, sparse, aligned) = stirred().train(), inputs(2, 48, 64)
    found = {}
    for again in (False, True):
        model.zero_grad()
        model._again = again
        model.complete(images, sparse, aligned).log().mean().backward()
        found[again] = [p.grad.clone() for p in model.parameters()]
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_saved_network_is_the_same_one(tmp_path):
    model, (images, sparse, aligned) = stirred(), inputs(1, 50, 70)
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert loaded.architecture == model.architecture
    assert (loaded.guide, loaded.takes_points, loaded.info.quantity) == ("distilldepth-mini", True, "metric_depth")
    with torch.no_grad():
        torch.testing.assert_close(loaded.complete(images, sparse, aligned), model.complete(images, sparse, aligned))
    assert count_parameters(model) == ENTRIES["completion-mini"].parameters


@pytest.mark.parametrize(
    ("change", "words"),
    [({"blocks": [1, 1]}, "blocks must have"), ({"decoder": [1]}, "decoder one less"), ({"rounds": [1] * 5}, "rounds")],
)
def test_an_architecture_that_does_not_fit_is_refused(change, words):
    model = create_student("completion-mini", seed=0)
    with pytest.raises(ValueError, match=words):
        build(model.architecture | change, model.info)


def test_wrong_inputs_are_named():
    model, (images, sparse, aligned) = stirred(), inputs(2, 20, 30)
    for given, words in (
        ((images[0], sparse, aligned), "images must be"),
        ((images, sparse[:1], aligned), "sparse must be"),
        ((images, sparse, aligned[:, :5]), "aligned must be"),
    ):
        with pytest.raises(ValueError, match=words):
            model.complete(*given)
    for run in (model, model.estimate, lambda x: model.predict(list(x))):
        with pytest.raises(UsageError, match="distilldepth complete IMAGE --sparse POINTS"):
            run(images)


def slow_metric_log(prediction, target, valid, gradient, linear):
    values = []
    for p, t, v in zip(prediction, target, valid & (target > 0), strict=True):
        if not v.any():
            continue
        e = np.log(np.where(v, p, 1) / np.where(v, t, 1))
        loss = np.abs(e[v]).mean()
        for axis in (0, 1):
            pairs = np.moveaxis(v, axis, 0)
            rows = np.moveaxis(e, axis, 0)
            both = pairs[1:] & pairs[:-1]
            loss += gradient * np.abs(rows[1:] - rows[:-1])[both].sum() / max(both.sum(), 1)
        loss += linear * np.sqrt(((p - t)[v] ** 2).mean() / t[v].mean() ** 2 + 1e-8)
        values.append(loss)
    return np.mean(values)


@pytest.mark.parametrize(("gradient", "linear"), [(1.0, 0.5), (0.0, 0.0), (0.3, 2.0)])
def test_metric_log_is_what_its_docstring_says(gradient, linear):
    prediction, target = (torch.rand(4, 9, 12, generator=seeded(s), dtype=torch.float64) * 5 + 0.5 for s in (1, 2))
    valid = torch.rand(4, 9, 12, generator=seeded(3)) < 0.7
    target[0, :4] = 0
    valid[2] = False
    loss = partial(metric_log_loss, gradient=gradient, linear=linear)
    expected = slow_metric_log(*(x.numpy() for x in (prediction, target, valid)), gradient, linear)
    assert float(loss(prediction, target, valid)) == pytest.approx(expected, rel=1e-9)
    assert float(loss(7 * prediction, 7 * target, valid)) == pytest.approx(expected, rel=1e-9)
    small = [x[1:3, 2:6, 3:8] for x in (prediction, target, valid)]
    torch.autograd.gradcheck(lambda p: loss(p, *small[1:]), small[0].requires_grad_())
    for rubbish in (torch.nan, torch.inf, -1.0):
        dirty = prediction.masked_fill(~valid | (target <= 0), rubbish)
        assert float(loss(dirty, target, valid)) == pytest.approx(expected, rel=1e-9)
    nothing = prediction.clone().requires_grad_()
    loss(nothing, target, torch.zeros_like(valid)).backward()
    assert (nothing.grad == 0).all()
    prediction[1][valid[1]] = torch.nan
    assert loss(prediction, target, valid).isnan()


def test_metric_log_wants_weights_that_make_sense():
    maps = torch.ones(1, 2, 2)
    for change in ({"gradient": -1.0}, {"linear": float("nan")}):
        with pytest.raises(ValueError, match="finite and not negative"):
            metric_log_loss(maps, maps, **change)


def test_the_term_reads_metres_and_leaves_the_sky_out():
    depth = torch.tensor([[[1.0, 2.0, torch.inf, torch.nan]]])
    label = Teacher(parse_teachers("oracle")[0], None).label(torch.rand(1, 3, 1, 4), depth)
    term, student = MetricLogTerm(1.0, linear=0.0), torch.tensor([[[2.0, 4.0, 9.0, 9.0]]])
    regions = Regions(torch.rand(1, 3, 1, 4), torch.empty(1, 0, 3, 1, 4), torch.empty(1, 0, 4), ["a"])
    assert float(term(DepthOutput(student), label, regions)) == pytest.approx(np.log(2), rel=1e-6)
    assert not term.is_met(DepthOutput(student), PseudoLabel(label.disparity, label.valid))


def test_training_points_are_of_every_kind_and_of_the_map():
    rng = np.random.default_rng(9)
    depth = np.where(rng.random((96, 128)) < 0.8, 2 + rng.random((96, 128)), np.nan).astype(np.float32)
    depth[:10] = np.inf
    image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    counts, exact, off = [], 0, 0
    for _ in range(150):
        drawn = draw_training_points(depth, image, rng)
        assert drawn.dtype == np.float32
        assert drawn.shape == depth.shape
        given = drawn > 0
        assert np.isfinite(drawn).all()
        assert (drawn >= 0).all()
        assert not given[~np.isfinite(depth)].any()
        counts.append(given.sum())
        ratio = np.abs(np.log(drawn[given] / depth[given]))
        exact += bool((ratio == 0).all())
        off += bool((ratio > 0.45).any())
    assert min(counts) >= 2
    assert min(counts) < 30
    assert max(counts) > 1500
    assert 15 < exact < 120
    assert off > 20


def test_training_points_follow_from_the_generator_alone():
    depth = (1 + np.random.default_rng(1).random((40, 50))).astype(np.float32)
    image = np.zeros((40, 50, 3), np.uint8)
    one, other = (draw_training_points(depth, image, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, draw_training_points(depth, image, np.random.default_rng(5)))
    assert draw_training_points(np.full((4, 5), np.inf, np.float32), image[:4, :5], np.random.default_rng(0)).max() == 0


@pytest.fixture(scope="module")
def scenes():
    return SourceView(SceneSource((48, 64), count=4), range(4))


def test_regions_get_points_from_their_own_depth(scenes):
    config = CropConfig((48, 64), min_crop=40)
    with_points, without = (CropDataset(scenes, config, 3, points=points) for points in (True, False))
    batch = Regions.collate([with_points[n] for n in range(4)])
    assert torch.equal(batch.image, Regions.collate([without[n] for n in range(4)]).image)
    assert without[0].sparse is None
    assert batch.sparse.shape == (4, 48, 64)
    assert (batch.sparse.flatten(1) > 0).sum(1).min() >= 2
    assert torch.equal(with_points[2].sparse, batch.sparse[2])


def test_guides_are_drawn_bent_and_aligned():
    models = [load_model("distilldepth-mini"), load_model("genpercept-mini")]
    images, sparse, _ = inputs(3, 64, 96)
    guides = Guides(models, [1.0, 3.0], align="least-squares", jitter=0.5)
    plain = guides.align(images, sparse, plain=True)
    assert torch.equal(plain, guides.align(images, sparse, plain=True))
    torch.manual_seed(5)
    drawn = [guides.align(images, sparse) for _ in range(6)]
    torch.manual_seed(5)
    assert all(torch.equal(each, guides.align(images, sparse)) for each in drawn)
    assert len({float(each.sum()) for each in drawn}) > 3
    for each in (plain, *drawn):
        assert (each > 0.7).all()
        assert (each < 12.1).all()


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    images, sparse, aligned = inputs(4, 48, 64)
    model = stirred().train()
    step = DistillationStep(model, DistillationObjective([MetricLogTerm(1.0)]), Stopwatch(torch.device("cpu")))
    regions = Regions(
        images, torch.empty(4, 0, 3, 48, 64), torch.empty(4, 0, 4), [""] * 4, sparse=sparse, aligned=aligned
    )
    disparity = 1 / (1 + torch.rand(4, 48, 64, generator=seeded(8)))
    label = PseudoLabel(
        disparity, torch.ones_like(disparity, dtype=torch.bool), inverse_depth=True, quantity="metric_depth"
    )
    found = []
    for at_once in (None, 2):
        model.zero_grad()
        step.at_once = at_once
        outputs = step(regions, label)
        outputs.loss.backward()
        found.append((outputs.loss.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)


def test_agreement_is_measured_in_metres(scenes, tmp_path):
    config = load_config(preset="completion", settings=["size=48x64", "batch_size=2"])
    guides = Guides([load_model("distilldepth-mini")], [1.0], align="least-squares", jitter=0.3)
    oracle = Teacher(parse_teachers("oracle")[0], None)
    student = create_student("completion-mini", seed=0)
    found = measure_agreement(student, [oracle], scenes, config, tmp_path, guides=guides)
    assert found == measure_agreement(student, [oracle], scenes, config, guides=guides)
    assert found["images"] == 4
    assert 0 < found["depth"]["abs_rel"] < 1
    assert np.load(tmp_path / "student.npy").shape == (4, 48, 64)


SMALL = [
    "--preset", "completion", "--images", "scenes:12", "--size", "48x64", "--batch-size", "2", "--workers", "0",
    "--heldout", "2", "--set", "crop.scene_size=48x64", "--set", "crop.min_crop=40", "--log", "none", "--offline",
    "--precision", "float32", "--set", "points.guides=distilldepth-mini", "--set", "checkpoint_every=2",
]  # fmt: skip


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, ["distill", *map(str, arguments)])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def test_a_run_is_resumed_bit_for_bit_and_leaves_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*SMALL, "--steps", 4, "--out", "whole")
    run(*SMALL, "--steps", 4, "--out", "cut")
    for path in sorted(tmp_path.glob("cut/checkpoints/step-*"))[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    result = run(*SMALL, "--steps", 4, "--out", "cut", "--resume", "auto")
    assert "resuming cut at step 2" in result.stderr
    expected, actual = (load_file(f"{name}/student/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())
    (row,) = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert set(row["terms"]) == {"metric_log"}
    card = (tmp_path / "whole/student/README.md").read_text()
    assert "distilldepth complete photo.jpg --sparse points.png" in card
    assert "in metres, without a fit" in card
    assert "true depth" in (tmp_path / "whole/report.html").read_text()
    model = load_model("whole")
    assert (model.takes_points, model.info.source, model.preprocessing.size) == (True, "distilled from oracle", 48)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--student", "light-mini"], "takes no points"),
        (["--set", "points.draw=false", "--set", "loss.metric_log=0", "--set", "loss.gradient=1"], "nobody gives it"),
        (["--set", "points.draw=false"], "--preset completion"),
        (["--teachers", "dav2-mini"], "needs true depth"),
        (["--set", "loss.gradient=1"], "set loss.gradient=0"),
        (["--set", "loss.metric_log=0", "--set", "loss.anchor=1"], "nothing to learn from"),
        (["--set", "points.guides=oracle"], "oracle is none"),
        (["--set", "points.guides=dav2-mni"], "dav2-mini"),
        (["--set", "points.jitter=2"], "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run(*SMALL, "--steps", 1, "--out", "o", *arguments, code=2)
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert words in line


@pytest.mark.parametrize("arguments", [["predict", "a.png", "-o", "b.png"], ["evaluate", "--data", "scenes:2"]])
def test_commands_without_points_name_the_one_with(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    save_model(create_student("completion-mini", seed=0), "network")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("a.png")
    result = CliRunner().invoke(cli, [*arguments, "--model", "network"])
    assert result.exit_code == 2, result.stderr
    assert "completes depth that is known at some points" in result.stderr.strip().splitlines()[-1]
