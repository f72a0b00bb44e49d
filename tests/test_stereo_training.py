"""Training on pairs and on true depth: what is cut of both views, terms of metres, presets of ADU-Depth, resuming."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from waiting import wait_until

from distilldepth.cli.main import cli
from distilldepth.datasets.open import open_data
from distilldepth.datasets.training import open_truth
from distilldepth.distill.config import AugmentSection, DistillConfig, load_config
from distilldepth.distill.kinds import check_kinds
from distilldepth.distill.labels import label_batch
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.trainer import distill
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.crops import CropConfig, Regions, make_crop
from distilldepth.images.sources import open_source
from distilldepth.images.views import depth_of_right_view, prepare_views
from distilldepth.losses import feature_uncertainty_loss, focal_depth_loss, response_uncertainty_loss, silog_loss
from distilldepth.models import create_student, load_model
from distilldepth.models.base import DepthOutput, ModelInfo, run_resized
from distilldepth.models.families.psmnet import PSMNetDepth
from distilldepth.models.families.psmnet import build as build_psmnet
from distilldepth.scenes.render import CAR, render_scene
from distilldepth.teachers.labelling import label_regions
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel, Teacher

SMALL = [
    "--images", "stereo-scenes:12", "--student", "newcrfs-micro", "--size", "64x96", "--heldout", "2",
    "--set", "crop.scene_size=64x128", "--set", "crop.min_crop=64", "--set", "optimiser.lr=3e-4",
    "--batch-size", "2", "--workers", "0", "--threads", "1",
    "--precision", "float32", "--teacher-precision", "float32",
]  # fmt: skip


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ["distill", *words])


def warp_left(right: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """The left view as the right one shows it, nearest pixel; -1 where it does not."""
    height, width = disparity.shape
    columns = np.rint(np.arange(width) - disparity).astype(int)
    rows = np.arange(height)[:, None].repeat(width, 1)
    seen = right[rows, columns.clip(0, width - 1)].astype(float)
    seen[(columns < 0) | (columns >= width)] = -1
    return seen


def photometric_error(left: np.ndarray, right: np.ndarray, depth: np.ndarray, focal: float, baseline: float) -> float:
    """Mean difference between left view and right view brought to it by the depth, over what both see."""
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = np.where(np.isfinite(depth), focal * baseline / depth, 0)
    seen = warp_left(right, disparity)
    known = (seen[..., 0] >= 0) & ~np.isnan(depth)
    return float(np.mean(np.abs(left - seen).mean(2)[known]))


# Scenes of a fixed rig.


def test_cameras_of_a_rig_never_change_and_see_roads():
    scenes = [render_scene(seed, (48, 96), stereo=True, rig=CAR) for seed in range(4)]
    for scene in scenes:
        assert scene.intrinsics[0, 0] == pytest.approx(0.58 * 96)
        assert scene.intrinsics[0, 2] == pytest.approx(47.5)
        assert scene.baseline_m == 0.54
        assert scene.kind in ("road", "street")
    assert not np.array_equal(scenes[0].image, scenes[1].image)


def test_a_pair_is_rectified_and_its_depth_brings_one_view_to_the_other():
    scene = render_scene(3, (96, 160), stereo=True, rig=CAR)
    focal = scene.intrinsics[0, 0]
    right = photometric_error(scene.image, scene.right, scene.depth, focal, scene.baseline_m)
    wrong = photometric_error(scene.image, scene.right, scene.depth, focal, -scene.baseline_m)
    assert right < 0.6 * wrong


def test_stereo_scenes_are_a_source_with_both_views_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path))
    source = open_source("stereo-scenes:3", size=(48, 64), seed=5)
    assert (source.has_depth, source.has_right, len(source)) == (True, True, 3)
    first = source[1]
    files = list(tmp_path.rglob("*.npz"))
    assert len(files) == 1
    again = open_source("stereo-scenes:3", size=(48, 64), seed=5)[1]
    for key in ("image", "right", "depth", "intrinsics"):
        assert np.array_equal(first[key], again[key])
    assert again["baseline_m"] == 0.54
    plain = open_source("scenes:3", size=(48, 64), seed=5)
    assert not plain.has_right
    assert "right" not in plain[1]
    both = open_source(["scenes:3", "stereo-scenes:3"], size=(48, 64))
    assert not both.has_right
    assert "right" not in both[4]
    with pytest.raises(UsageError, match="stereo-scenes:COUNT"):
        open_source("stereo-scenes:0")


# What is cut.


def make_pair(seed: int = 1, size: tuple[int, int] = (40, 72)) -> dict:
    scene = render_scene(seed, size, stereo=True, rig=CAR)
    return {"image": scene.image, "name": "a", "depth": scene.depth, "intrinsics": scene.intrinsics,
            "right": scene.right, "baseline_m": scene.baseline_m}  # fmt: skip


def test_depth_of_the_right_view_against_a_loop():
    random = np.random.default_rng(2)
    depth = random.uniform(1, 9, (5, 17)).astype(np.float32)
    depth[random.random(depth.shape) < 0.2] = np.nan
    depth[random.random(depth.shape) < 0.2] = np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = 12 / depth
    expected = np.full(depth.shape, np.nan, np.float32)
    for row in range(5):
        for column in range(17):
            if np.isnan(depth[row, column]):
                continue
            to = column - round(0 if np.isinf(depth[row, column]) else float(disparity[row, column]))
            if to >= 0 and not expected[row, to] <= depth[row, column]:
                expected[row, to] = depth[row, column]
    assert np.array_equal(depth_of_right_view(depth, disparity), expected, equal_nan=True)


def test_a_mirrored_pair_is_a_pair_with_its_own_depth():
    pair = make_pair(size=(96, 160))
    mirrored = None
    for seed in range(20):
        made = prepare_views(pair, np.random.default_rng(seed), kb_crop=False, rotate_deg=0, flip=True)
        if made.get("mirrored"):
            mirrored = made
        else:
            assert made["image"] is pair["image"], "as it was"
    assert mirrored is not None
    assert np.array_equal(mirrored["image"], pair["right"][:, ::-1])
    assert np.array_equal(mirrored["right"], pair["image"][:, ::-1])
    assert not np.shares_memory(mirrored["intrinsics"], pair["intrinsics"])
    focal = pair["intrinsics"][0, 0]
    right = photometric_error(mirrored["image"], mirrored["right"], mirrored["depth"], focal, 0.54)
    unswapped = photometric_error(mirrored["image"], mirrored["right"], pair["depth"][:, ::-1], focal, 0.54)
    assert right < unswapped
    assert 0.5 < np.mean(~np.isnan(mirrored["depth"])) <= 1


def test_a_pair_without_cameras_is_not_mirrored_with_its_depth():
    pair = make_pair()
    del pair["baseline_m"]
    made = [prepare_views(pair, np.random.default_rng(s), kb_crop=False, rotate_deg=0, flip=True) for s in range(9)]
    assert not any(sample.get("mirrored") for sample in made)
    del pair["depth"]
    made = [prepare_views(pair, np.random.default_rng(s), kb_crop=False, rotate_deg=0, flip=True) for s in range(9)]
    assert 0 < sum(bool(sample.get("mirrored")) for sample in made) < 9


def test_the_crop_of_kitti_is_that_of_its_benchmark():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    depth = random.uniform(1, 80, (375, 1242)).astype(np.float32)
    camera = np.array([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1]], np.float32)
    sample = {"image": image, "name": "k", "depth": depth, "right": image[::-1], "intrinsics": camera}
    cut = prepare_views(sample, np.random.default_rng(0), kb_crop=True, rotate_deg=0, flip=False)
    assert np.array_equal(cut["image"], image[375 - 352 :, 13 : 13 + 1216])
    assert np.array_equal(cut["right"], image[::-1][375 - 352 :, 13 : 13 + 1216])
    assert np.array_equal(cut["depth"], depth[375 - 352 :, 13 : 13 + 1216])
    assert cut["intrinsics"][:2, 2] == pytest.approx([609.6 - 13, 172.9 - 23])
    small = {"image": image[:300, :900], "name": "s"}
    kept = prepare_views(small, np.random.default_rng(0), kb_crop=True, rotate_deg=0, flip=False)
    assert np.array_equal(kept["image"], small["image"])


def test_both_views_and_the_truth_are_turned_alike():
    image = np.zeros((61, 91, 3), np.uint8)
    image[20:24, 60:64] = 255
    depth = np.full((61, 91), 9, np.float32)
    depth[20:24, 60:64] = 3
    sample = {"image": image, "right": image.copy(), "name": "a", "depth": depth}
    made = prepare_views(sample, np.random.default_rng(4), kb_crop=False, rotate_deg=20, flip=False)
    assert np.array_equal(made["image"], made["right"])
    spot = np.argwhere(made["image"][..., 0] > 128).mean(0)
    assert np.abs(spot - np.argwhere(made["depth"] == 3).mean(0)).max() < 1
    assert np.abs(spot - [21.5, 61.5]).max() > 1, "turned at all"
    assert np.isnan(made["depth"]).any(), "what was outside is not known"
    assert np.array_equal(sample["depth"], depth), "the sample stays as it is"


def test_a_region_of_a_pair_is_cut_from_both_views_at_one_place():
    pair = make_pair(size=(60, 120))
    config = CropConfig(size=(24, 36), min_crop=30, max_crop=40, flip=True)
    mirrored = 0
    for seed in range(6):
        region = make_crop(pair, config, np.random.default_rng(seed))
        assert region.right.shape == region.image.shape
        assert float(region.baseline_m) == pytest.approx(0.54)
        cut = region.cut[0]
        view = pair["image"][:, ::-1] if cut.mirrored else pair["right"]
        window = view[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(window)).resize((36, 24), Image.Resampling.BICUBIC))
        assert np.abs(region.right.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 2
        mirrored += cut.mirrored
    assert 0 < mirrored < 6
    batch = Regions.collate([make_crop(pair, config, np.random.default_rng(seed)) for seed in range(2)])
    assert batch.views(2).shape == (2, 6, 24, 36)
    assert torch.equal(batch.views(2)[:, 3:], batch.right)
    with pytest.raises(ValueError, match="right must be uint8"):
        make_crop({**pair, "right": pair["right"][:, :-1]}, config, np.random.default_rng(0))


def test_both_views_are_augmented_alike():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    sample = {"image": image, "right": image.copy(), "name": "a", "depth": np.ones((24, 32), np.float32)}
    config = CropConfig(size=(24, 32), min_crop=24, flip=False)
    batch = Regions.collate([make_crop(sample, config, np.random.default_rng(0)) for _ in range(3)])
    teacher = Teacher(parse_teachers("oracle")[0], None)
    torch.manual_seed(1)
    regions, _ = label_batch(batch, teacher, AugmentSection(colour=0.3), torch.device("cpu"), features=())
    assert torch.allclose(regions.image, regions.right)
    plain = batch.image.float() / 255
    assert all(not torch.allclose(regions.image[i], plain[i], atol=0.01) for i in range(3))
    assert not torch.allclose(regions.image[0], regions.image[1], atol=0.01), "each pair in its own way"


# Terms.


def make_batch(seed: int = 0, size: tuple[int, int, int] = (3, 16, 20)) -> tuple[DepthOutput, PseudoLabel, Regions]:
    random = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.empty(size).uniform_(low, high, generator=random)

    truth, taught = draw(0.5, 60), draw(0.5, 60)
    truth[torch.rand(size, generator=random) < 0.3] = math.nan
    truth[0, 0] = math.inf
    student = DepthOutput(draw(0.5, 60).requires_grad_(), {"1/8": torch.randn(3, 8, 2, 3, generator=random)},
                          {"log_variance": draw(-1, 1).requires_grad_()})  # fmt: skip
    valid = torch.rand(size, generator=random) > 0.2
    features = {"1/8": torch.randn(3, 8, 2, 3, generator=random)}
    label = PseudoLabel(torch.where(valid, 1 / taught, math.nan), valid, features, teacher="t",
                        inverse_depth=True, quantity="metric_depth")  # fmt: skip
    empty = torch.empty(3, 0, 4)
    return (
        student,
        label,
        Regions(torch.rand(3, 3, 16, 20), torch.empty(3, 0, 3, 16, 20), empty, ["a"] * 3, depth=truth),
    )


def objective(**weights: float | str):
    options = {k: v for k, v in weights.items() if isinstance(v, str) or k in ("nearest", "farthest", "focal_gamma")}
    zero = dict.fromkeys(("shared_context", "local_global", "feature", "gradient", "anchor"), 0.0)
    return distill_any_depth_objective(
        weights=zero | {k: v for k, v in weights.items() if k not in options},
        student_channels={"1/8": 8}, teacher_channels={"t": {"1/8": 8}}, feature_levels="1/8", **options,
    )  # fmt: skip


def test_terms_of_metres_are_their_losses_where_depth_is_looked_at():
    student, label, regions = make_batch()
    terms = objective(silog=1.0, response_uncertainty=0.9, focal_depth=0.8, feature_uncertainty=0.6, nearest=1.0,
                      farthest=40.0)  # fmt: skip
    total, values = terms(student, label, regions)
    taught = 1 / label.disparity.nan_to_num(1.0)
    known = label.valid & (taught > 1) & (taught < 40)
    truth = regions.depth
    expected = {
        "silog": silog_loss(student.values, truth, torch.isfinite(truth) & (truth > 1) & (truth < 40)),
        "response_uncertainty": response_uncertainty_loss(
            student.values, taught, student.extras["log_variance"], known
        ),
        "focal_depth": focal_depth_loss(student.values, taught, known),
        "feature_uncertainty": feature_uncertainty_loss(
            student.features["1/8"], label.features["1/8"], student.extras["log_variance"]
        ),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(values[name], value), name
    weights = {"silog": 1.0, "response_uncertainty": 0.9, "focal_depth": 0.8, "feature_uncertainty": 0.6}
    assert torch.allclose(total, sum(weights[name] * value for name, value in expected.items()))
    total.backward()
    assert torch.isfinite(student.values.grad).all()
    assert student.extras["log_variance"].grad.abs().sum() > 0


def test_without_an_uncertainty_the_same_terms_are_plain():
    student, label, regions = make_batch(4)
    student.extras = {}
    _, values = objective(response_uncertainty=1.0, feature_uncertainty=1.0)(student, label, regions)
    taught = 1 / label.disparity.nan_to_num(1.0)
    error = (student.values - taught).abs()[label.valid].mean()
    assert torch.allclose(values["response_uncertainty"], math.sqrt(2) * error)
    apart = (student.features["1/8"] - label.features["1/8"]).square().mean() / 2
    assert torch.allclose(values["feature_uncertainty"], apart)


@pytest.mark.parametrize("form", ["full", "reduced", "window"])
@pytest.mark.parametrize("term", ["feature_mse", "feature_uncertainty"])
def test_features_are_adapted_by_attention_that_is_trained(term, form):
    student, label, regions = make_batch(7)
    plain = objective(**{term: 1.0})
    assert not list(plain.parameters())
    adapted = objective(**{term: 1.0}, adapter=form)
    value, _ = adapted(student, label, regions)
    assert value.item() != plain(student, label, regions)[0].item()
    value.backward()
    grads = [parameter.grad.abs().sum().item() for parameter in adapted.parameters()]
    assert grads
    assert any(grads)


def test_a_teacher_without_metres_feeds_no_term_of_metres():
    student, label, regions = make_batch()
    label.quantity, label.inverse_depth = "disparity", False
    _, values = objective(silog=1.0, response_uncertainty=1.0, focal_depth=1.0)(student, label, regions)
    assert values.keys() == {"silog"}


def test_newcrfs_names_the_levels_of_its_decoder():
    student = create_student("newcrfs-micro", seed=0).eval()
    features = student(torch.rand(1, 3, 64, 96), features=True).features
    for place, level in enumerate(("1/4", "1/8", "1/16", "1/32")):
        size = (64 >> (2 + place), 96 >> (2 + place))
        assert features[level].shape[2:] == size
        assert features[f"decoder-{level}"].shape[2:] == size
    config = load_config(settings=["loss.feature_levels=1/4,decoder-1/16"])
    assert config.loss.feature_levels == "1/4,decoder-1/16"
    with pytest.raises(UsageError, match="did you mean 'decoder-1/8'"):
        load_config(settings=["loss.feature_levels=decoder1/8"])


# What cannot be compared.


@dataclasses.dataclass
class Known:
    has_depth: bool = True
    has_right: bool = True
    has_cameras: bool = True


def kinds(config: DistillConfig, teacher: str = "oracle", student: str = "newcrfs-micro", **images: bool) -> None:
    spec = parse_teachers(teacher)[0]
    model = None if teacher == "oracle" else load_model(teacher)
    check_kinds(config, create_student(student, seed=0), [Teacher(spec, model)], Known(**images))


def test_metres_and_relative_maps_are_kept_apart():
    adu = load_config(preset="adu-depth", flags={"images": ["stereo-scenes"]})
    kinds(adu)
    with pytest.raises(UsageError, match="teacher dav2-mini says disparity without a scale; name a teacher of metres"):
        kinds(adu, "dav2-mini")
    with pytest.raises(UsageError, match=r"predicts metres, and loss\.shared_context compares maps up to scale"):
        kinds(load_config())
    with pytest.raises(UsageError, match=r"loss\.silog is for students that predict metres, and 'newcrfs-large'"):
        kinds(adu, student="light-mini")
    with pytest.raises(UsageError, match=r"loss\.silog compares with true depth, and not all images have it"):
        kinds(adu, has_depth=False)


def test_networks_of_two_views_want_pairs(tmp_path):
    student = create_student("newcrfs-micro", seed=0)
    config = load_config(preset="adu-teacher", flags={"images": ["scenes"], "student": "newcrfs-micro"})
    student.views = 2
    oracle = Teacher(parse_teachers("oracle")[0], None)
    with pytest.raises(UsageError, match="sees both views of stereo pairs, and the images have one; give pairs"):
        check_kinds(config, student, [oracle], Known(has_right=False))
    config.loss.local_global, config.crop.patches = 0.5, 4
    student.info = load_model("distilldepth-mini").info
    config.loss.silog = 0
    with pytest.raises(UsageError, match="windows are cut from one; set"):
        check_kinds(config, student, [oracle], Known())


# Manifests.


def write_manifest(folder: Path, count: int = 8, **changes) -> Path:
    """A folder of pairs in the forms that users have them: PNG, 16-bit depth, a line of JSON each."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        scene = render_scene(100 + number, (64, 128), stereo=True, rig=CAR)
        for name, view in (("left", scene.image), ("right", scene.right)):
            Image.fromarray(view).save(folder / f"{name}-{number}.png")
        known = np.isfinite(scene.depth) & (scene.depth < 200)
        stored = np.where(known, scene.depth * 256, 0).round().astype(np.uint16)
        Image.fromarray(stored).save(folder / f"depth-{number}.png")
        entry = {"image": f"left-{number}.png", "right": f"right-{number}.png", "depth": f"depth-{number}.png",
                 "scale": 256, "kind": "depth", "focal_px": float(scene.intrinsics[0, 0]), "baseline_m": 0.54,
                 "dataset": "pairs"}  # fmt: skip
        entry.update(changes)
        lines.append(json.dumps({key: value for key, value in entry.items() if value is not None}))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_manifest_gives_pairs_with_metres(tmp_path):
    source = open_truth([str(write_manifest(tmp_path / "a", 2))])
    assert (source.has_depth, source.has_right, len(source)) == (True, True, 2)
    sample = source[1]
    scene = render_scene(101, (64, 128), stereo=True, rig=CAR)
    assert np.array_equal(sample["right"], scene.right)
    known = np.isfinite(scene.depth) & (scene.depth < 200)
    assert np.abs(sample["depth"] - scene.depth)[known].max() < 1 / 256
    assert np.isnan(sample["depth"][~known]).all()
    assert sample["intrinsics"][0, 0] == pytest.approx(scene.intrinsics[0, 0])

    as_disparity = write_manifest(tmp_path / "b", 2, kind="stereo_disparity")
    found = open_truth([str(as_disparity)])[0]
    stored = np.asarray(Image.open(tmp_path / "b" / "depth-0.png")).astype(np.float64) / 256
    expected = found["intrinsics"][0, 0] * 0.54 / stored[stored > 0]
    assert np.allclose(found["depth"][stored > 0], expected, rtol=1e-5)


def test_what_is_wrong_with_pairs_is_said(tmp_path):
    lacking = write_manifest(tmp_path / "a", 1, kind="stereo_disparity", baseline_m=None, focal_px=None)
    with pytest.raises(
        DistillDepthError, match="disparity in pixels, which is no depth in metres without focal_px and baseline"
    ):
        open_truth([str(lacking)])
    small = write_manifest(tmp_path / "b", 1)
    Image.new("RGB", (20, 10)).save(tmp_path / "b" / "right-0.png")
    with pytest.raises(DistillDepthError, match=r"the left view is 64 x 128 and the right one 10 x 20"):
        open_truth([str(small)])[0]
    with pytest.warns(
        UserWarning, match=r"median of .* m, read as 1 stored unit per metre; likely right is 1000 .* or 256"
    ):
        open_truth([str(write_manifest(tmp_path / "c", 1, scale=1))])
    (tmp_path / "d").mkdir()
    one_view = write_manifest(tmp_path / "d", 6, right=None)
    result = typed("--preset", "adu-teacher", *SMALL[2:], "--out", str(tmp_path / "r"), "--data", str(one_view))
    assert result.exit_code == 2
    assert "sees both views of stereo pairs, and the images have one" in result.stderr.splitlines()[-1]


PSMNET = {"width": 4, "depths": [1, 1, 1, 1], "cells": [2, 4, 8, 16], "max_disparity": 32, "align_corners": True}


def psmnet() -> PSMNetDepth:
    torch.manual_seed(0)
    info = ModelInfo("psmnet-test", "psmnet", "disparity", "Apache-2.0", "random")
    return build_psmnet(PSMNET, info).eval()


def test_pixels_of_a_stereo_network_become_inverse_metres_by_the_camera_of_each_region():
    pair = make_pair(size=(64, 128))
    config = CropConfig(size=(64, 96), min_crop=64, flip=False)
    batch = Regions.collate([make_crop(pair, config, np.random.default_rng(seed)) for seed in range(2)])
    batch.intrinsics[1, 0, 0] *= 3
    network = psmnet()
    teacher = Teacher(parse_teachers("oracle")[0], network)
    assert (teacher.views, teacher.info.quantity) == (2, "metric_depth")
    label = label_regions(batch, teacher)
    pixels = run_resized(network, batch.views(2).float() / 255).values
    factor = batch.intrinsics[:, 0, 0] * 0.54
    assert torch.allclose(label.disparity, pixels / factor[:, None, None], rtol=1e-4)
    assert (label.quantity, label.inverse_depth) == ("metric_depth", True)
    assert torch.equal(label.valid, pixels > 0)
    batch.baseline_m[1] = math.nan
    label = label_regions(batch, teacher)
    assert label.valid[0].any()
    assert not label.valid[1].any(), "without a camera nothing is known"
    config = load_config(preset="adu-depth", flags={"images": ["stereo-scenes"], "student": "newcrfs-micro"})
    student = create_student("newcrfs-micro", seed=0)
    check_kinds(config, student, [teacher], Known())
    with pytest.raises(UsageError, match="says disparity in pixels, which is no depth without focal_px and baseline_m"):
        check_kinds(config, student, [teacher], Known(has_cameras=False))


def test_training_images_of_a_benchmark_are_read_with_their_right_views(tmp_path):
    drive, lines = "2011_09_26/2011_09_26_drive_0001_sync", []
    for number in range(6):
        scene = render_scene(200 + number, (48, 96), stereo=True, rig=CAR)
        depth = np.where(scene.depth < 80, scene.depth * 256, 0).round().astype(np.uint16)
        for camera, view in (("02", scene.image), ("03", scene.right)):
            path = tmp_path / drive / f"image_{camera}" / "data" / f"{number:010d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view).save(path)
        truth = tmp_path / "train" / drive.split("/")[1] / "proj_depth/groundtruth/image_02" / f"{number:010d}.png"
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(depth).save(truth)
        lines.append(f"{drive}/image_02/data/{number:010d}.png x.png 721.5377\n")
    (tmp_path / "2011_09_26" / "calib_cam_to_cam.txt").write_text(
        "P_rect_02: 7.2e+02 0 48 4.5e+01 0 7.2e+02 24 0.2 0 0 1 0.003\n"
        "P_rect_03: 7.2e+02 0 48 -3.4e+02 0 7.2e+02 24 2.2 0 0 1 0.003\n"
    )
    with pytest.raises(DistillDepthError, match="needs the list of its training images; put eigen_train_files_with_gt"):
        open_truth(["kitti-eigen"], root=str(tmp_path))
    with pytest.raises(UsageError, match="kitti-eigen needs --root"):
        open_truth(["kitti-eigen"])
    with pytest.raises(UsageError, match="nyuv2 has no training images here; those of kitti-eigen, kitti-official, dr"):
        open_truth(["nyuv2"], root=str(tmp_path))
    for name, listed in (
        ("kitti-eigen", "eigen_train_files_with_gt.txt"),
        ("kitti-official", "kitti_official_train.txt"),
    ):
        (tmp_path / listed).write_text("".join(lines))
        source = open_truth([name], root=str(tmp_path))
        assert (len(source), source.has_right, source.has_cameras) == (6, True, True)
        sample = source[2]
        scene = render_scene(202, (48, 96), stereo=True, rig=CAR)
        assert np.array_equal(sample["right"], scene.right)
        assert sample["baseline_m"] == pytest.approx(385 / 720)
        assert sample["intrinsics"][0, 0] == pytest.approx(720)
        near = scene.depth < 80
        assert np.abs(sample["depth"] - scene.depth)[near].max() < 1 / 256
        assert np.isnan(sample["depth"][~near]).all()
    mine = tmp_path / "mine.txt"
    mine.write_text(lines[4])
    assert len(open_truth(["kitti-eigen"], root=str(tmp_path), split=str(mine))) == 1


def test_training_images_of_driving_stereo_need_no_list(tmp_path):
    sequence = "2018-07-11-14-48-52"
    for number in range(3):
        scene = render_scene(300 + number, (48, 96), stereo=True, rig=CAR)
        depth = np.where(scene.depth < 80, scene.depth * 256, 0).round().astype(np.uint16)
        name = f"{sequence}_2018-07-11-14-50-10-57{number}"
        for folder, view in (("left", scene.image), ("right", scene.right)):
            path = tmp_path / f"train-{folder}-image" / sequence / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view).save(path, quality=95)
        truth = tmp_path / "train-depth-map" / sequence / f"{name}.png"
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(depth).save(truth)
    source = open_truth(["driving-stereo"], root=str(tmp_path))
    assert (len(source), source.has_right, source.has_cameras) == (3, True, False)
    sample = source[1]
    scene = render_scene(301, (48, 96), stereo=True, rig=CAR)
    assert np.abs(sample["right"].astype(int) - scene.right).mean() < 6
    near = scene.depth < 80
    assert np.abs(sample["depth"] - scene.depth)[near].max() < 1 / 256


def test_pairs_that_are_doubtful_are_warned_of(tmp_path):
    swapped = write_manifest(tmp_path / "a", 3)
    lines = [json.loads(line) for line in swapped.read_text().splitlines()]
    swapped.write_text("".join(json.dumps({**e, "image": e["right"], "right": e["image"]}) + "\n" for e in lines))
    with pytest.warns(UserWarning, match=r"left and right views look exchanged \(the first: "):
        open_truth([str(swapped)])
    mixed = write_manifest(tmp_path / "b", 3)
    lines = [json.loads(line) for line in mixed.read_text().splitlines()]
    del lines[1]["right"]
    mixed.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    with pytest.warns(UserWarning, match=r"1 of 3 images have no right view \(the first: .*1.*\), so none is used"):
        source = open_truth([str(mixed)])
    assert not source.has_right
    wide = write_manifest(tmp_path / "c", 1)
    Image.fromarray(np.full((40, 40), 2000, np.uint16)).save(tmp_path / "c" / "depth-0.png")
    with pytest.raises(DistillDepthError, match=r"the depth map has shape \(40, 40\) and the photograph \(64, 128\)"):
        open_truth([str(wide)])[0]
    empty = write_manifest(tmp_path / "d", 1)
    Image.fromarray(np.zeros((64, 128), np.uint16)).save(tmp_path / "d" / "depth-0.png")
    with pytest.raises(DistillDepthError, match=r"pairs/left-0.*: no valid pixel in the ground truth"):
        open_truth([str(empty)])[0]
    for key, value in (("focal_px", 1e308), ("baseline_m", 1e-30), ("right", "")):
        with pytest.raises(DistillDepthError, match=rf"pairs.jsonl:1: `{key}` must be"):
            open_truth([str(write_manifest(tmp_path / "e", 1, **{key: value}))])
    good = str(write_manifest(tmp_path / "f", 1))
    with pytest.raises(UsageError, match="--split is about benchmarks, and --data names none; leave it out"):
        open_truth([good], split="test")
    with pytest.raises(UsageError, match="split must be train, or a list of images, got 'test', which is no file"):
        open_truth(["kitti-eigen"], root=str(tmp_path), split="test")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["--set", "loss.nearest=79.9"],
            2,
            "no true depth of the first images lies between loss.nearest and ",
        ),
        (
            ["--set", "loss.nearest=5", "--set", "loss.farthest=4"],
            2,
            "loss.farthest must be more than loss.nearest, ",
        ),
    ],
)
def test_depth_that_nothing_looks_at_is_refused(tmp_path, words, code, said):
    result = typed("--preset", "adu-teacher", *SMALL, "--steps", "1", "--out", str(tmp_path / "r"), *words)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output


def test_what_pairs_are_wanted_for_is_said_where_there_are_no_images(tmp_path):
    result = typed("--preset", "adu-teacher", "--out", str(tmp_path / "r"))
    assert result.exit_code == 2
    assert "give --data with --root, a manifest, or --images stereo-scenes" in result.stderr


def test_stereo_scenes_are_scored_with_their_right_views(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path))
    (dataset,) = open_data("stereo-scenes:2")
    image, truth = dataset.items[1].read()
    view = dataset.items[1].right.read()
    scene = render_scene(10_000_001, (96, 336), stereo=True, rig=CAR)
    assert np.array_equal(image, scene.image)
    assert np.array_equal(view.image, scene.right)
    assert (view.baseline_m, view.focal_px) == (0.54, pytest.approx(0.58 * 336))
    assert np.array_equal(truth.valid, np.isfinite(scene.depth))
    assert np.array_equal(truth.depth[truth.valid], scene.depth[truth.valid])
    assert len(list(tmp_path.rglob("*.npz"))) == 1, "kept, for it takes long"


# Whole runs.


def test_teacher_and_student_of_adu_depth_are_trained_from_a_manifest(tmp_path):
    data = ["--data", str(write_manifest(tmp_path / "data", 10))]
    run = [*SMALL[2:], "--steps", "4"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    result = typed("--preset", "adu-teacher", *run, *data, "--out", str(teacher))
    assert result.exit_code == 0, result.output
    assert "AbsRel" in result.stderr
    assert "predict IMAGE --right RIGHT" in result.stderr
    card = (teacher / "student" / "README.md").read_text()
    assert "| oracle | 1 | metric_depth | that of the data | true depth: pairs (10 stereo pairs" in card
    made = load_model(teacher / "student")
    assert made.views == 2
    assert "both views of a stereo pair" in (teacher / "student" / "README.md").read_text()
    result = typed("--preset", "adu-depth", *run, *data, "--teachers", str(teacher / "student"), "--out", str(student))
    assert result.exit_code == 0, result.output
    assert "agreement with" in result.stderr
    assert "--uncertainty" in result.stderr.splitlines()[-1]
    assert "predict photo.jpg --uncertainty -o depth.png" in (student / "student" / "README.md").read_text()
    rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["terms"].keys() == {"silog", "response_uncertainty", "feature_uncertainty", "focal_depth"}
    made = load_model(student / "student")
    assert (made.views, made.info.quantity) == (1, "metric_depth")
    output = made.eval()(torch.rand(1, 3, 64, 96))
    assert output.extras["log_variance"].abs().max() <= 5
    # It goes on with the module that it has, and does not become one of two views.
    again = [*run, *data, "--teachers", str(teacher), "--student", str(student / "student")]
    again += ["--out", str(tmp_path / "on")]
    result = typed("--preset", "adu-depth", *again, "--steps", "1")
    assert result.exit_code == 0, result.output
    result = typed("--preset", "adu-depth", *again, "--two-views", "--overwrite")
    assert result.exit_code == 2
    assert "two_views is for students without an uncertainty module" in result.stderr
    # Nothing of the run's own attention goes with the student.
    names = load_file(student / "student" / "model.safetensors").keys()
    assert not any("adapter" in name for name in names)


@pytest.mark.parametrize("preset", ["adu-teacher", "adu-depth"])
def test_killed_and_resumed_both_presets_give_the_same_weights(tmp_path, preset):
    teacher = tmp_path / "teacher"
    if preset == "adu-depth":
        config = load_config(preset="adu-teacher", flags=as_flags(SMALL) | {"steps": 1, "out": str(teacher)},
                             settings=as_settings(SMALL))  # fmt: skip
        distill(config)
    more = ["--teachers", str(teacher / "student")] if preset == "adu-depth" else []
    arguments = ["--preset", preset, *SMALL, *more, "--steps", "9"]
    arguments += ["--checkpoint-every", "3", "--keep-checkpoints", "9"]
    result = typed(*arguments, "--out", str(tmp_path / "whole"))
    assert result.exit_code == 0, result.output
    command = [sys.executable, "-m", "distilldepth", "distill", *arguments, "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "cut" / "checkpoints" / "step-00000003").is_dir(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))
    for later in left[1:]:  # However far it came before it was killed.
        shutil.rmtree(later)
    result = typed(*arguments, "--out", str(tmp_path / "cut"), "--resume", "auto")
    assert result.exit_code == 0, result.output
    whole, cut = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def as_flags(words: list[str]) -> dict:
    pairs = [(a.removeprefix("--").replace("-", "_"), b) for a, b in zip(words[::2], words[1::2], strict=True)]
    numbers = {"heldout", "batch_size", "workers", "threads"}
    flags = {key: int(value) if key in numbers else value for key, value in pairs if key != "set"}
    flags["images"] = [flags["images"]]
    return flags


def as_settings(words: list[str]) -> list[str]:
    return [b for a, b in zip(words[::2], words[1::2], strict=True) if a == "--set"]


def test_a_run_is_not_resumed_with_another_teacher(tmp_path):
    for name, steps in (("one", "1"), ("two", "2")):
        result = typed("--preset", "adu-teacher", *SMALL, "--steps", steps, "--out", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    teacher = tmp_path / "teacher"
    shutil.copytree(tmp_path / "one" / "student", teacher)
    run = ["--preset", "adu-depth", *SMALL, "--teachers", str(teacher), "--out", str(tmp_path / "r")]
    result = typed(*run, "--steps", "2")
    assert result.exit_code == 0, result.output
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "two" / "student", teacher)
    result = typed(*run, "--steps", "4", "--resume", "auto")
    assert result.exit_code == 1
    assert "the teachers are not those that" in result.stderr.splitlines()[-1]


def test_two_views_are_for_newcrfs(tmp_path):
    run = ["--preset", "demo", "--images", "stereo-scenes:12", "--two-views", "--out", str(tmp_path / "r")]
    result = typed(*run, "--student", "light-mini", "--batch-size", "2", "--workers", "0")
    assert result.exit_code == 2
    assert "two_views is for students of the family newcrfs" in result.stderr
