"""Training crops: geometry checked with images whose colours are their own coordinates."""

import numpy as np
import pytest
import torch
from PIL import Image

from distilldepth.images.crops import CropConfig, Regions, _edges, make_crop
from distilldepth.ops import sample_crops


def ramp(height, width):
    """Red grows from left to right, green from top to bottom, both 0..255 over the image."""
    x = (np.arange(width) + 0.5) / width * 255
    y = (np.arange(height) + 0.5) / height * 255
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = np.rint(x)[None, :], np.rint(y)[:, None]
    return image


def sample(height, width, depth=False):
    made = {"image": ramp(height, width), "name": "ramp"}
    if depth:
        # Depth counts the pixels, so that each value says where it came from.
        made["depth"] = np.arange(height * width, dtype=np.float32).reshape(height, width)
    return made


def rng(seed=0):
    return np.random.default_rng(seed)


def random_configs(count, seed):
    draw = rng(seed)
    for number in range(count):
        size = tuple(int(side) for side in draw.integers(8, 80, 2))
        config = CropConfig(
            size=size,
            patch_size=None if number % 3 == 0 else tuple(int(side) for side in draw.integers(4, 60, 2)),
            patches=int(draw.integers(0, 4)),
            min_crop=int(draw.integers(1, 200)),
            max_crop=None if number % 2 else int(draw.integers(1, 200)),
            min_crop_share=None if number % 4 else float(draw.uniform(0.1, 1)),
            patch_window=int(draw.integers(1, 150)),
            patch_share=None if number % 5 else float(draw.uniform(0.1, 1)),
            flip=bool(number % 2),
        )
        image_size = tuple(int(side) for side in np.exp(draw.uniform(0, 5.5, 2)))
        yield config, image_size


def test_shapes_and_types():
    config = CropConfig(size=(48, 64), patch_size=(40, 40), patches=3, min_crop=30, patch_window=20)
    crop = make_crop(sample(120, 150, depth=True), config, rng())
    expected = {
        "image": (torch.uint8, (3, 48, 64)),
        "patches": (torch.uint8, (3, 3, 40, 40)),
        "boxes": (torch.float32, (3, 4)),
        "depth": (torch.float32, (48, 64)),
        "patch_depth": (torch.float32, (3, 40, 40)),
        "intrinsics": (torch.float32, (3, 3)),
    }
    assert crop.name == ["ramp"]
    tensors = {key: value for key, value in vars(crop).items() if isinstance(value, torch.Tensor)}
    assert {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()} == expected
    assert all(value.is_contiguous() for value in tensors.values())


def test_without_patches_and_depth():
    crop = make_crop(sample(120, 150), CropConfig(size=(48, 64), patch_size=(32, 40), min_crop=30), rng())
    assert crop.depth is crop.patch_depth is None
    assert crop.patches.shape == (0, 3, 32, 40)
    assert crop.boxes.shape == (0, 4)
    crop = make_crop(sample(120, 150, depth=True), CropConfig(size=(48, 64), min_crop=30), rng())
    assert crop.patch_depth.shape == (0, 48, 64)


def test_any_size_any_config():
    for number, (config, size) in enumerate(random_configs(150, seed=1)):
        crop = make_crop(sample(*size, depth=True), config, rng(number))
        patch_size = config.patch_size or config.size
        assert crop.image.shape == (3, *config.size)
        assert crop.patches.shape == (config.patches, 3, *patch_size)
        x0, y0, x1, y1 = crop.boxes.T
        assert (x0 >= 0).all()
        assert (y0 >= 0).all()
        assert (x1 <= config.size[1]).all()
        assert (y1 <= config.size[0]).all()
        assert (x1 > x0).all()
        assert (y1 > y0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (8, 5000), (5000, 8), (3, 3)])
def test_tiny_and_narrow_photographs(size):
    config = CropConfig(size=(48, 64), patches=2, min_crop=644)
    crop = make_crop(sample(*size, depth=True), config, rng())
    assert crop.image.shape == (3, 48, 64)
    assert torch.isfinite(crop.patch_depth).all()


def test_equal_state_gives_equal_crops():
    config = CropConfig(size=(48, 64), patches=3, min_crop=40, patch_window=30)
    first, again, other = (make_crop(sample(150, 200, depth=True), config, rng(seed)) for seed in (5, 5, 6))
    for key in ("image", "patches", "boxes", "depth", "patch_depth"):
        assert torch.equal(getattr(first, key), getattr(again, key))
    assert not torch.equal(first.image, other.image)


def test_photograph_is_not_changed():
    made = sample(100, 120, depth=True)
    before = made["image"].copy(), made["depth"].copy()
    config = CropConfig(size=(100, 120), patches=2, min_crop=644)
    for seed in range(4):
        crop = make_crop(made, config, rng(seed))
        crop.image.zero_()
        crop.depth.zero_()
    np.testing.assert_array_equal(made["image"], before[0])
    np.testing.assert_array_equal(made["depth"], before[1])


# --- regions ---


def region_of(crop, width, height):
    """Left, top, right, bottom of the region in pixels of the photograph, read from the ramp's colours."""
    red, green = crop.image[0].float() / 255 * width, crop.image[1].float() / 255 * height
    return red[:, 0].mean(), green[0].mean(), red[:, -1].mean(), green[-1].mean()


def test_region_sides_are_uniform_between_the_bounds():
    config = CropConfig(size=(30, 40), min_crop=100, flip=False)
    sides, lefts = [], []
    for seed in range(400):
        left, top, right, bottom = region_of(make_crop(sample(240, 400), config, rng(seed)), 400, 240)
        sides.append(float(bottom - top) * 30 / 29)
        lefts.append(float(left))
        assert (right - left) / (bottom - top) == pytest.approx(39 / 29, abs=0.08)
    assert 98 < min(sides) < 106
    assert 234 < max(sides) < 243
    assert np.mean(sides) == pytest.approx(170, abs=8)
    assert min(lefts) < 8
    assert max(lefts) > 200


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"min_crop": 60, "max_crop": 80}, 60, 80),
        ({"min_crop": 644}, 200, 200),
        ({"min_crop": 1, "min_crop_share": 0.75}, 150, 200),
        ({"min_crop": 170, "min_crop_share": 0.1}, 170, 200),
        ({"min_crop": 644, "max_crop": 50}, 50, 50),
        ({"min_crop": 150, "max_crop": 644}, 150, 200),
    ],
)
def test_bounds_of_the_region(options, least, most):
    config = CropConfig(size=(40, 40), flip=False, **options)
    made = sample(200, 300, depth=True)
    for seed in range(30):
        rows = make_crop(made, config, rng(seed)).depth[:, 0] // 300
        side = float(rows[-1] - rows[0]) * 40 / 39
        assert least - side / 40 - 1 <= side <= most + side / 40 + 1


def test_portrait_photograph_landscape_region():
    crop = make_crop(sample(500, 375), CropConfig(size=(96, 128), min_crop=644, flip=False), rng())
    left, top, right, bottom = region_of(crop, 375, 500)
    assert left < 4
    assert right > 371
    assert float(bottom - top) * 96 / 95 == pytest.approx(281, abs=3)


def test_no_resampling_when_the_size_fits():
    image = rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    config = CropConfig(size=(96, 128), patch_size=(48, 64), patches=2, min_crop=644, patch_share=0.5, flip=False)
    crop = make_crop({"image": image, "name": "noise"}, config, rng())
    np.testing.assert_array_equal(crop.image.permute(1, 2, 0), image)
    for patch, (x0, y0, x1, y1) in zip(crop.patches, crop.boxes.int().tolist(), strict=True):
        np.testing.assert_array_equal(patch.permute(1, 2, 0), image[y0:y1, x0:x1])


def test_resizing_is_antialiased():
    stripes = np.zeros((400, 400, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    crop = make_crop({"image": stripes, "name": "s"}, CropConfig(size=(50, 50), min_crop=644), rng())
    assert (crop.image.float() - 127.5).abs().max() < 3


def test_same_picture_as_cropping_first():
    image = np.asarray(Image.fromarray(rng(4).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480)))
    config = CropConfig(size=(60, 80), min_crop=480, flip=False)
    crop = make_crop({"image": image, "name": "i"}, config, rng())
    expected = np.asarray(Image.fromarray(image).resize((80, 60), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(crop.image.permute(1, 2, 0).numpy() - expected).max() <= 2


# --- patches and boxes ---


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_where_the_patches_come_from(flip):
    for seed in range(40):
        config = CropConfig(size=(90, 120), patch_size=(60, 80), patches=3, min_crop=150, patch_window=110, flip=flip)
        crop = make_crop(sample(300, 400), config, rng(seed))
        image = crop.image.permute(1, 2, 0).numpy()
        for patch, box in zip(crop.patches, crop.boxes.tolist(), strict=True):
            # The box of the region, resized to the patch: the same ramp.
            expected = Image.fromarray(image).resize((80, 60), Image.Resampling.BILINEAR, box=box)
            error = np.abs(np.asarray(expected).astype(int) - patch.permute(1, 2, 0).numpy())
            assert error[2:-2, 2:-2].max() <= 3


def test_boxes_lie_inside_exactly_at_every_size():
    """The edge of a region is an edge of the result to the last bit, mirrored or not; nothing lies beyond it."""
    draw = rng(7)
    for number in range(20_000):
        region = tuple(int(side) for side in draw.integers(1, 5000, 2))
        size = tuple(int(side) for side in draw.integers(1, 3000, 2))
        height, width = (int(draw.integers(1, side + 1)) for side in region)
        # Every edge that the region has, and one window anywhere.
        tops, lefts = (0, region[0] - height), (0, region[1] - width)
        anywhere = (int(draw.integers(tops[1] + 1)), int(draw.integers(lefts[1] + 1)), height, width)
        windows = [(top, left, height, width) for top in tops for left in lefts] + [anywhere]
        boxes = _edges(np.array(windows, dtype=np.float64), region, size, mirror=bool(number % 2))
        x0, y0, x1, y1 = boxes.T
        assert (x0.min(), y0.min()) == (0, 0), (region, size, windows)
        assert (x1.max(), y1.max()) == (size[1], size[0]), (region, size, windows)
        assert ((x0 < x1) & (y0 < y1)).all(), (region, size, windows)


@pytest.mark.parametrize("side", [336, 448, 504, 560, 333, 447])
def test_crops_of_an_ordinary_photograph_are_accepted_by_the_loss(side):
    config = CropConfig(size=(side, side), patch_size=(24, 24), patches=4, min_crop=644, patch_window=560)
    region = torch.rand(1, side, side)
    for seed in range(20):
        boxes = make_crop(sample(375, 500), config, rng(seed)).boxes
        sample_crops(region, boxes, torch.zeros(4, dtype=torch.int64), (3, 3))


def test_window_is_in_pixels_of_the_photograph():
    made = sample(2000, 2000)
    config = CropConfig(size=(100, 100), patches=4, min_crop=644, patch_window=560, flip=False)
    for seed in range(15):
        crop = make_crop(made, config, rng(seed))
        left, _, right, _ = region_of(crop, 2000, 2000)
        side = float(right - left) * 100 / 99
        widths = crop.boxes[:, 2] - crop.boxes[:, 0]
        assert torch.allclose(widths, torch.full((4,), 100 * min(1, 560 / side)), rtol=0.03)


def test_window_is_measured_along_the_shorter_side():
    crop = make_crop(sample(300, 400), CropConfig(size=(60, 80), patches=1, patch_window=150, flip=False), rng())
    x0, y0, x1, y1 = crop.boxes[0].tolist()
    assert (x1 - x0, y1 - y0) == pytest.approx((40, 30))


def test_small_photograph_has_its_whole_region_as_patches():
    crop = make_crop(sample(300, 400), CropConfig(size=(60, 80), patches=2), rng())
    assert crop.boxes.tolist() == [[0, 0, 80, 60]] * 2
    assert torch.equal(crop.patches[0], crop.image)


def test_patch_share():
    config = CropConfig(size=(60, 80), patches=50, patch_share=0.5, flip=False)
    boxes = make_crop(sample(300, 400), config, rng()).boxes
    assert torch.allclose(boxes[:, 2:] - boxes[:, :2], torch.tensor([40.0, 30.0]))
    assert boxes[:, 0].min() < 2
    assert boxes[:, 0].max() > 38
    assert len({tuple(box) for box in boxes.tolist()}) > 40


def test_window_has_the_aspect_of_the_patch():
    config = CropConfig(size=(60, 80), patch_size=(50, 50), patches=3, patch_share=0.5)
    boxes = make_crop(sample(300, 400), config, rng()).boxes
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert torch.allclose(widths, heights)
    assert torch.allclose(heights, torch.tensor(30.0))


# --- depth, flip ---


def test_flip_mirrors_everything():
    config = {"size": (60, 80), "patch_size": (30, 40), "patches": 3, "min_crop": 100, "patch_share": 0.6}
    made, seen = sample(300, 400, depth=True), set()
    for seed in range(12):
        plain = make_crop(made, CropConfig(**config, flip=False), rng(seed))
        crop = make_crop(made, CropConfig(**config, flip=True), rng(seed))
        mirrored = not torch.equal(plain.image, crop.image)
        seen.add(mirrored)
        for key in ("image", "patches", "depth", "patch_depth"):
            expected = getattr(plain, key)
            assert torch.equal(getattr(crop, key), expected.flip(-1) if mirrored else expected)
        if mirrored:
            plain.boxes[:, [0, 2]] = 80 - plain.boxes[:, [2, 0]]
        assert torch.allclose(crop.boxes, plain.boxes)
    assert seen == {True, False}


def test_depth_follows_the_image():
    """Depth of a pixel tells its place in the photograph; the ramp's colour there must be the image's."""
    for number, (config, size) in enumerate(random_configs(60, seed=2)):
        if min(size) < 20:
            continue
        made = sample(*size, depth=True)
        crop = make_crop(made, config, rng(number))
        colours = torch.from_numpy(made["image"].reshape(-1, 3)[crop.depth.long().numpy()]).permute(2, 0, 1)
        step = 255 / min(size) + 3
        assert (colours.float() - crop.image.float()).abs().mean() < step
        for depth, patch in zip(crop.patch_depth, crop.patches, strict=True):
            colours = torch.from_numpy(made["image"].reshape(-1, 3)[depth.long().numpy()]).permute(2, 0, 1)
            assert (colours.float() - patch.float()).abs().mean() < step


def test_depth_is_never_averaged():
    made = sample(100, 120)
    made["depth"] = np.where(np.arange(120) % 3 == 0, np.inf, 2.0).astype(np.float32) * np.ones((100, 1), np.float32)
    made["depth"][::5] = np.nan
    crop = make_crop(made, CropConfig(size=(37, 41), patches=2, min_crop=50, patch_window=20), rng())
    for depth in (crop.depth, crop.patch_depth):
        finite = depth[torch.isfinite(depth)]
        assert finite.numel()
        assert (finite == 2).all()
        assert torch.isinf(depth).any()
        assert torch.isnan(depth).any()


def test_depth_of_another_type_becomes_float32():
    made = sample(20, 30)
    made["depth"] = np.ones((20, 30), dtype=np.float64)
    assert make_crop(made, CropConfig(size=(10, 15)), rng()).depth.dtype == torch.float32


# --- refusals ---


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 5)}, {"size": (5,)}, {"patch_size": (5, 0)}, {"patches": -1}, {"min_crop": 0}, {"max_crop": 0},
        {"min_crop_share": 0.0}, {"min_crop_share": 1.1}, {"patch_share": 0.0}, {"patch_window": 0},
    ],
)  # fmt: skip
def test_config_refuses(options):
    with pytest.raises(ValueError, match=f"CropConfig: {next(iter(options))} must be"):
        CropConfig(**options)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        ({"image": np.zeros((4, 5, 3), dtype=np.float32)}, TypeError, "image must be uint8"),
        ({"image": np.zeros((4, 5), dtype=np.uint8)}, ValueError, r"shape \(H, W, 3\)"),
        ({"image": np.zeros((0, 5, 3), dtype=np.uint8)}, ValueError, r"shape \(H, W, 3\)"),
        ({"image": ramp(4, 5), "depth": np.zeros((5, 4), dtype=np.float32)}, ValueError, "depth must have"),
    ],
)
def test_sample_refused(made, error, words):
    with pytest.raises(error, match=words):
        make_crop({"name": "x", **made}, CropConfig(size=(8, 8)), rng())


# --- batches ---


@pytest.mark.parametrize("depth", [False, True])
def test_regions_are_collated_field_by_field(depth):
    config = CropConfig(size=(48, 64), patches=2, min_crop=40, patch_window=30)
    parts = [make_crop(sample(100, 120, depth=depth), config, rng(seed)) for seed in range(3)]
    parts[1].unreadable, parts[1].errors = [2], ["gone"]
    for part in (parts[0], parts[2]):
        part.unreadable, part.errors = [0], [""]
    batch = Regions.collate(parts)
    for name in ("image", "patches", "boxes", "depth", "patch_depth"):
        values = [getattr(part, name) for part in parts]
        if depth or "depth" not in name:
            assert torch.equal(getattr(batch, name), torch.stack(values)), name
        else:
            assert getattr(batch, name) is None
    assert (batch.name, batch.unreadable, batch.errors) == (["ramp"] * 3, [0, 2, 0], ["", "gone", ""])
    assert batch.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert batch.image.device.type == "cpu"
    assert moved.name == batch.name
