"""Local against global least squares: on scenes whose answer is known, and against a loop over the regions."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tolerances import BATCHED

from distilldepth.alignment import align
from distilldepth.datasets.truth import Dataset, Item, Truth
from distilldepth.errors import DistillDepthError
from distilldepth.evaluate.baselines import load_baseline
from distilldepth.evaluate.local_global import LEAST_PIXELS, METRICS, local_global, place_regions
from distilldepth.metrics import depth_metrics
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.preprocess import Preprocessing

SHARED = Path(__file__).parents[2] / "shared" / "data" / "rgbd"


class Brightness(DepthModel):
    """Predicts from the brightness of the picture, and notes what it is shown."""

    def __init__(self, function, quantity: str = "disparity") -> None:
        info = ModelInfo("brightness", "test", quantity, "Apache-2.0", "test")
        super().__init__(info, Preprocessing(1, 1, resize_policy="square"))
        self.function = function
        self.seen: list[tuple[int, ...]] = []

    def estimate(self, images, *, policy=None, size=None):
        self.seen.append(tuple(images.shape))
        return self(images).values

    def forward(self, images, *, features=False):
        return DepthOutput(self.function(images.mean(1)))


def dataset(name: str, *pairs: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """Pairs of brightness (0 to 255) and depth."""

    def item(index: int, brightness: np.ndarray, depth: np.ndarray) -> Item:
        image = np.repeat(brightness.astype(np.uint8)[..., None], 3, axis=2)
        truth = Truth(depth.astype(np.float32), depth > 0, is_metric=True)
        return Item(name, f"{index}.png", lambda: (image, truth))

    return Dataset(name, [item(index, *pair) for index, pair in enumerate(pairs)])


def scene(seed: int, size: tuple[int, int] = (48, 64), missing: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and an inverse depth that is affine in it, with another scale and shift in each quarter."""
    generator = np.random.default_rng(seed)
    brightness = generator.integers(40, 250, size)
    height, width = size
    scale, shift = np.zeros(size), np.zeros(size)
    for rows in (slice(None, height // 2), slice(height // 2, None)):
        for columns in (slice(None, width // 2), slice(width // 2, None)):
            scale[rows, columns], shift[rows, columns] = generator.uniform(0.5, 2), generator.uniform(0.1, 0.5)
    depth = 1 / (scale * brightness / 255 + shift)
    depth[generator.random(size) < missing] = 0
    return brightness, depth


def find(result, share: float, place: str, name: str = "d") -> dict:
    (row,) = [r for r in result.rows if (r["dataset"], r["share"], r["place"]) == (name, share, place)]
    return row


def test_a_fit_per_quarter_is_exact_where_every_quarter_has_its_own_scale():
    result = local_global(Brightness(lambda x: x), [dataset("d", scene(0), scene(1), scene(2))], shares=[0.5])
    row = find(result, 0.5, "grid")
    assert row["images"] == 3
    assert row["regions"] == 12
    assert row["skipped"] == 0
    assert row["local"]["abs_rel"] < 1e-5
    assert row["local"]["delta1"] == 1
    assert row["global"]["abs_rel"] > 0.05
    mean, low, high = row["local_minus_global"]["abs_rel"]
    assert low <= mean <= high < 0
    assert mean == pytest.approx(row["local"]["abs_rel"] - row["global"]["abs_rel"])
    # The ramp cannot be right, and gains all the same.
    assert 0.05 < row["control_local"]["abs_rel"] < row["control_global"]["abs_rel"]
    assert row["negative"] == 0


@pytest.mark.parametrize("quantity", ["disparity", "depth", "metric_depth"])
def test_batched_regions_equal_a_loop(quantity):
    function = {"disparity": lambda x: x, "depth": lambda x: 1.2 - x, "metric_depth": lambda x: 1 / x}[quantity]
    generator = np.random.default_rng(7)
    pairs = []
    for seed in range(3):
        brightness, depth = scene(seed, (37, 53))
        pairs.append((brightness, np.where(depth > 0, depth * generator.uniform(0.8, 1.2, depth.shape), 0)))
    model = Brightness(function, quantity)
    result = local_global(model, [dataset("d", *pairs)], shares=[0.25], batch_size=2)
    space = "depth" if quantity == "depth" else "disparity"
    wanted = {name: {m: [] for m in METRICS} for name in ("global", "local", "control_local")}
    for brightness, depth in pairs:
        values = function(torch.from_numpy(brightness / 255).float())
        values = 1 / values if quantity == "metric_depth" else values
        target, valid = torch.from_numpy(np.where(depth > 0, depth, 1)).float(), torch.from_numpy(depth > 0)
        ramp = torch.linspace(0, 1, 37)[:, None].expand(37, 53)
        whole = align(values, target, valid, space=space).depth
        scores = {name: {m: [] for m in METRICS} for name in wanted}
        for top in np.linspace(0, 37 - 9, 4).round().astype(int):
            for left in np.linspace(0, 53 - 13, 4).round().astype(int):
                window = (slice(top, top + 9), slice(left, left + 13))
                if valid[window].sum() < LEAST_PIXELS:
                    continue
                for name, prediction in (
                    ("global", whole[window]),
                    ("local", align(values[window], target[window], valid[window], space=space).depth),
                    ("control_local", align(ramp[window], target[window], valid[window], space=space).depth),
                ):
                    found = depth_metrics(prediction, target[window], valid[window])
                    for m in METRICS:
                        scores[name][m].append(found[m])
        for name in wanted:
            for m in METRICS:
                wanted[name][m].append(np.mean(scores[name][m]))
    row = find(result, 0.25, "grid")
    for name, by_metric in wanted.items():
        for m in METRICS:
            assert row[name][m] == pytest.approx(np.mean(by_metric[m]), rel=BATCHED)


def test_the_centre_is_the_middle_half():
    regions = place_regions(48, 64, 0.5, "centre")
    assert (regions.tops.tolist(), regions.lefts.tolist(), regions.height, regions.width) == ([12], [16], 24, 32)
    maps = torch.arange(2 * 48 * 64).view(2, 48, 64)
    assert torch.equal(regions.cut(maps)[:, 0], maps[:, 12:36, 16:48])
    grid = place_regions(37, 53, 0.25, "grid")
    assert (len(grid.tops), len(grid.lefts)) == (4, 4)
    assert grid.tops[-1] + grid.height == 37
    assert grid.lefts[-1] + grid.width == 53
    cut = grid.cut(torch.arange(37 * 53).view(1, 37, 53))
    assert torch.equal(cut[0, 6], torch.arange(37 * 53).view(37, 53)[grid.tops[1] :, grid.lefts[2] :][:9, :13])


def test_a_crop_shows_the_model_its_region_alone():
    # Brighter than the mean of what is seen: shown the whole, the model is blind to what differs within a quarter.
    def relative(values):
        return (values - values.mean((1, 2), keepdim=True)).sign() * 0.5 + 1

    brightness = np.full((48, 64), 40)
    brightness[:, 32:] = 200
    brightness[::2] += 20
    depth = 1 / (brightness / 255 + 0.1)
    model = Brightness(relative)
    result = local_global(model, [dataset("d", (brightness, depth), (brightness[::-1], depth[::-1]))], shares=[0.5])
    row = find(result, 0.5, "grid")
    assert row["crop"]["abs_rel"] < 1e-5
    assert row["local"]["abs_rel"] > 0.02
    assert row["crop_minus_local"]["abs_rel"][2] < 0
    assert (2, 3, 48, 64) in model.seen
    assert {shape[1:] for shape in model.seen} == {(3, 48, 64), (3, 24, 32)}
    assert sum(shape[0] for shape in model.seen) == 2 + 2 + 8


def test_crops_follow_the_image_where_the_truth_has_another_size():
    # Hills: on a plane a fit would make up for a crop from the wrong place.
    y, x = np.mgrid[:96, :128]
    smooth = (145 + 90 * np.sin(x / 9) * np.cos(y / 11)).round()
    truth = 1 / (smooth.reshape(48, 2, 64, 2).mean((1, 3)) / 255 + 0.2)
    result = local_global(Brightness(lambda x: x), [dataset("d", (smooth, truth))], shares=[0.5, 0.25])
    for row in result.rows:
        assert row["crop"]["abs_rel"] < 0.01
        assert row["local"]["abs_rel"] < 0.01


def test_a_fine_grid_is_cropped_at_sixteen_places_only():
    model = Brightness(lambda x: x)
    result = local_global(model, [dataset("d", scene(0, (64, 96), 0.0))], shares=[0.125], batch_size=5)
    row = find(result, 0.125, "grid")
    assert row["regions"] == 64
    assert sum(shape[0] for shape in model.seen if shape[2:] == (8, 12)) == 16 + 1
    assert max(shape[0] for shape in model.seen) == 5
    # The same regions are compared.
    assert row["crop_minus_local"]["abs_rel"][0] == pytest.approx(
        row["crop"]["abs_rel"] - row["local_on_crops"]["abs_rel"]
    )
    without = local_global(Brightness(lambda x: x), [dataset("d", scene(0, (64, 96), 0.0))], shares=[0.5], crops=False)
    assert find(without, 0.5, "grid")["crop"] is None


def test_regions_with_hardly_a_pixel_are_counted_not_fitted():
    brightness, depth = scene(0, (40, 40), missing=0)
    depth[:20, :20] = 0
    depth[0, : LEAST_PIXELS - 11] = 2.0
    result = local_global(Brightness(lambda x: x), [dataset("d", (brightness, depth))], shares=[0.5], crops=False)
    row = find(result, 0.5, "grid")
    assert (row["regions"], row["skipped"]) == (3, 1)


def test_a_model_that_is_upside_down_in_a_region_is_told():
    brightness, _ = scene(5, (48, 64), missing=0)
    inverse = brightness / 255 + 0.2
    inverse[:24, :32] = 1.4 - inverse[:24, :32]
    result = local_global(Brightness(lambda x: x), [dataset("d", (brightness, 1 / inverse))], shares=[0.5], crops=False)
    assert find(result, 0.5, "grid")["negative"] == 0.25


def test_a_frame_that_fails_is_named_and_the_others_count():
    good = dataset("d", scene(0), scene(1))

    def broken():
        raise DistillDepthError("half a file")

    empty = scene(2)[0], np.zeros((48, 64))
    data = Dataset("d", [*good.items, Item("d", "broken.png", broken), *dataset("d", empty).items])
    steps = []
    result = local_global(
        Brightness(lambda x: x),
        [data],
        shares=[0.5],
        crops=False,
        start=lambda count: (steps.append(count), steps.append)[1],
    )
    assert not result.complete
    assert {failure["error"] for failure in result.failures} == {"half a file", "no valid pixel in the ground truth"}
    assert find(result, 0.5, "grid")["images"] == 2
    assert steps[0] == 4
    assert sum(steps[1:]) == 4


def test_a_prediction_that_is_not_finite_is_a_failure():
    result = local_global(Brightness(lambda x: x / 0), [dataset("d", scene(0))], shares=[0.5])
    assert result.failures[0]["error"] == "the prediction is not finite on every valid pixel"
    assert find(result, 0.5, "centre")["local"] is None
    assert result.summary()[1:] == []


def test_table_json_and_summary_say_the_same():
    result = local_global(Brightness(lambda x: x), [dataset("d", *(scene(seed) for seed in range(6)))], shares=[0.5])
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert list(json.loads(text)["rows"][0]) == [
        "dataset", "share", "place", "images", "regions", "skipped", "negative", "global", "local", "crop",
        "local_on_crops", "control_global", "control_local", "local_minus_global", "crop_minus_local",
        "control_local_minus_global",
    ]  # fmt: skip
    assert json.loads(text)["rows"][0]["dataset"] == "d"
    lines = [line for line in result.summary() if line.startswith("grid 1/2")]
    assert "local better on 1, worse on 0 of 1, error -100%" in lines[0]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.make_table())
    console.print(result.make_table("delta1"))
    shown = console.export_text()
    row = find(result, 0.5, "grid")
    assert f"{row['global']['abs_rel']:.3f}" in shown
    assert f"{row['global']['delta1']:.3f}" in shown
    with pytest.raises(ValueError, match="metric must be one of"):
        result.make_table("rmse")


def test_one_image_has_no_interval():
    result = local_global(Brightness(lambda x: x), [dataset("d", scene(0))], shares=[0.5], crops=False)
    assert np.isnan(find(result, 0.5, "grid")["local_minus_global"]["abs_rel"][1])
    assert result.to_dict()["rows"][0]["local_minus_global"]["abs_rel"][1] is None
    assert "better on 0, worse on 0 of 1" in result.summary()[1]


@pytest.mark.parametrize("shares", [[], [0.0], [1.0], [0.5, float("nan")]])
def test_shares_must_be_between_0_and_1(shares):
    with pytest.raises(ValueError, match="shares must be between 0 and 1"):
        local_global(Brightness(lambda x: x), [dataset("d", scene(0))], shares=shares)


def test_the_ramp_as_a_model_equals_the_control():
    result = local_global("baseline:ramp", [dataset("d", scene(0), scene(1))], shares=[0.5, 0.25], crops=False)
    assert load_baseline("ramp").info.name == result.metadata["model"]["name"]
    for row in result.rows:
        assert row["global"] == row["control_global"]
        assert row["local"] == row["control_local"]


def test_real_photographs():
    if not (SHARED / "nyu.jsonl").is_file():
        pytest.skip("no real data beside the repository")
    result = local_global("distilldepth-mini", SHARED / "nyu.jsonl", limit=2, shares=[0.5])
    assert result.complete
    for row in result.rows:
        assert 0 < row["local"]["abs_rel"] < row["global"]["abs_rel"] < 1
        assert row["crop"]["abs_rel"] < 1
