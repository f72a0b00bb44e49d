"""RGB-D sets as people have them: lists, TUM RGB-D, turned photographs, grey maps in colour files, other scales."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

from distilldepth.cli.main import cli
from distilldepth.datasets.rgbd import open_rgbd, read_depth
from distilldepth.datasets.rgbd_lists import inside, read_timed_pairs
from distilldepth.datasets.scale import scale_notes
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate.predictions import StoredPredictions

SIZE = (12, 19)


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def depth(path: Path, seed: int = 0, scale: float = 1000, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write 16-bit depth and return metres, some of which are unknown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(100 + seed).integers(scale // 2, scale * 6, size).astype(np.uint16)
    stored[2, 3:6] = 0
    Image.fromarray(stored).save(path)
    return stored / scale


def check(sample, pixels: np.ndarray, metres: np.ndarray) -> None:
    np.testing.assert_array_equal(sample["image"], pixels)
    np.testing.assert_allclose(sample["target"], metres, rtol=1e-6)
    np.testing.assert_array_equal(sample["valid"], metres > 0)


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- layouts ---


@pytest.mark.parametrize("folder", ["images", "rgb"])
def test_folders(tmp_path, folder):
    pixels = photograph(tmp_path / "set" / folder / "s" / "1.png")
    metres = depth(tmp_path / "set/depth/s/1.png")
    source = open_rgbd(tmp_path / "set")
    assert source.datasets == {"set": [0]}
    assert source.entries[0].name == "s/1.png"
    check(source[0], pixels, metres)


HEADERS = ["", "image depth\n", "# a comment\n\nrgb\tdepth\n", "image_path depth_path\n"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("suffix", [".txt", ".lst", ".TSV"])
def test_two_columns(tmp_path, header, suffix):
    pixels, metres = photograph(tmp_path / "in/a.png"), depth(tmp_path / "out/b.png")
    mark = "\t" if "\t" in header or suffix == ".TSV" else "   "
    text = header.replace(" depth", f"{mark}depth") + f"/in/a.png{mark}out/b.png\n\n# end\nin/a.png{mark}None\r\n"
    (tmp_path / f"pairs{suffix}").write_text(text)
    source = open_rgbd(tmp_path / f"pairs{suffix}")
    assert (len(source), source.skipped, source.entries[0].dataset) == (1, 1, "pairs")
    check(source[0], pixels, metres)


def test_names_that_would_change_the_truth_and_are_not_read_are_told_of(tmp_path):
    photograph(tmp_path / "in/a.png"), depth(tmp_path / "out/b.png")
    (tmp_path / "a.csv").write_text("image,depth,scale,mask,split\nin/a.png,out/b.png,512,m.png,test\n")
    with pytest.warns(UserWarning, match="its columns 'mask', 'scale' are not read"):
        open_rgbd(tmp_path / "a.csv")
    line = {"image": "in/a.png", "depth": "out/b.png", "scale": 1000, "Depth_Scale": 5, "invalid": 0, "note": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    with pytest.warns(UserWarning, match="its keys 'Depth_Scale' are not read"):
        open_rgbd(tmp_path / "a.jsonl")


def test_absolute_names_and_commas_before_blanks(tmp_path):
    pixels, metres = photograph(tmp_path / "in/a.png"), depth(tmp_path / "out/b.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/absolute.txt").write_text(f"{tmp_path / 'in/a.png'} {tmp_path / 'out/b.png'}\n")
    check(open_rgbd(tmp_path / "lists/absolute.txt")[0], pixels, metres)
    (tmp_path / "commas.txt").write_text("in/a.png, out/b.png\n")
    check(open_rgbd(tmp_path / "commas.txt")[0], pixels, metres)


def test_csv_with_named_columns_and_blanks(tmp_path):
    pixels, metres = photograph(tmp_path / "in/a b,c.png"), depth(tmp_path / "d/ü.png", scale=5000)
    text = '\ufeffid,Depth,split,RGB\n7,"d/ü.png",test,"in/a b,c.png"\n'
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    check(open_rgbd(tmp_path / "t.csv", depth_scale=5000)[0], pixels, metres)
    (tmp_path / "semicolons.csv").write_text('filename;gt\n"in/a b,c.png";d/ü.png\n', encoding="utf-8")
    check(open_rgbd(tmp_path / "semicolons.csv", depth_scale=5000)[0], pixels, metres)


def test_the_list_of_densedepth_names_its_own_folder(tmp_path):
    pixels, metres = photograph(tmp_path / "data/nyu2_test/1.png"), depth(tmp_path / "data/nyu2_test/1_depth.png")
    text = "data/nyu2_test/1.png,data/nyu2_test/1_depth.png\n"
    (tmp_path / "data/nyu2_test.csv").write_text(text)
    source = open_rgbd(tmp_path / "data/nyu2_test.csv")
    check(source[0], pixels, metres)
    assert source.entries[0].name == "data/nyu2_test/1.png"
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "data/nyu2_test.csv", tmp_path / "elsewhere")
    check(open_rgbd(tmp_path / "elsewhere/nyu2_test.csv", root=tmp_path)[0], pixels, metres)
    with pytest.raises(
        DistillDepthError, match=r"none of its images is there, looked for .*elsewhere/data.*--root"
    ) as caught:
        open_rgbd(tmp_path / "elsewhere/nyu2_test.csv")
    one_line(caught)
    (tmp_path / "data/nyu2_test/1_depth.png").unlink()
    with pytest.raises(DistillDepthError, match=r"none of its depth files is there, looked for .*1_depth\.png"):
        open_rgbd(tmp_path / "data/nyu2_test.csv")


def test_a_third_column_is_the_focal_length(tmp_path):
    photograph(tmp_path / "rgb/1.png")
    depth(tmp_path / "d/1.png")
    (tmp_path / "eigen.txt").write_text("/rgb/1.png d/1.png 518.8579\nrgb/2.png None 721.5\n")
    sample = open_rgbd(tmp_path / "eigen.txt")[0]
    assert sample["focal_px"] == 518.8579


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("name", ["associations.txt", "associate.txt"])
def test_tum_with_associations(tmp_path, name, is_swapped):
    (tmp_path / "desk").mkdir()
    pixels = photograph(tmp_path / "desk/rgb/1305031102.175304.png")
    metres = depth(tmp_path / "desk/depth/1305031102.160407.png", scale=5000)
    fields = ["1305031102.175304 rgb/1305031102.175304.png", "1305031102.160407 depth/1305031102.160407.png"]
    (tmp_path / "desk" / name).write_text("# x\n" + " ".join(reversed(fields) if is_swapped else fields) + "\n")
    for spec in (tmp_path / "desk", tmp_path / "desk" / name):
        check(open_rgbd(spec)[0], pixels, metres)
    check(open_rgbd(tmp_path / "desk", depth_scale=1000)[0], pixels, metres * 5)


def test_tum_without_associations(tmp_path):
    root = tmp_path / "room"
    times = {"rgb": [1.0, 1.1, 1.2, 1.3, 5.0], "depth": [0.985, 1.001, 1.115, 1.1951, 1.3201, 9.0]}
    made = {}
    for kind, values in times.items():
        lines = ["# timestamp filename"]
        for number, time in enumerate(values):
            name = f"{kind}/{time:.6f}.png"
            made[name] = (photograph if kind == "rgb" else depth)(
                root / name, number, **({"scale": 5000} if kind == "depth" else {})
            )
            lines.append(f"{time:.6f} {name}")
        (root / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    source = open_rgbd(root)
    # 1.0 takes the nearer of two; 1.3 has none within 0.02 s.
    wanted = [("1.000000", "1.001000"), ("1.100000", "1.115000"), ("1.200000", "1.195100")]
    assert [(entry.image.stem, entry.depth.stem) for entry in source.entries] == wanted
    for index, (image, truth) in enumerate(wanted):
        check(source[index], made[f"rgb/{image}.png"], made[f"depth/{truth}.png"])


def associate(first, second, most=0.02):
    """What TUM RGB-D's tool does, in words of one loop."""
    free = set(first), set(second)
    found = []
    for _, a, b in sorted((abs(a - b), a, b) for a, b in itertools.product(first, second) if abs(a - b) < most):
        if a in free[0] and b in free[1]:
            free[0].remove(a)
            free[1].remove(b)
            found.append((a, b))
    return sorted(found)


@pytest.mark.parametrize("seed", range(5))
def test_times_are_paired_as_the_tool_does(tmp_path, seed):
    rng = np.random.default_rng(seed)
    times = [np.unique(np.round(rng.uniform(0, 1.5, count), 4)).tolist() for count in (90, 70)]
    for kind, values in zip(("rgb", "depth"), times, strict=True):
        (tmp_path / f"{kind}.txt").write_text("".join(f"{t:.4f} {kind}/{t:.4f}.png\n" for t in rng.permutation(values)))
    pairs = read_timed_pairs(tmp_path / "rgb.txt", tmp_path / "depth.txt")
    got = [(float(Path(pair.image).stem), float(Path(pair.depth).stem)) for pair in pairs]
    assert got == associate(*times)
    assert 20 < len(got) < 70


def test_times_that_would_fill_the_memory_are_refused(tmp_path):
    for kind in ("rgb", "depth"):
        (tmp_path / f"{kind}.txt").write_text("".join(f"{n * 1e-9:.9f} {kind}/{n}.png\n" for n in range(5000)))
    with pytest.raises(DistillDepthError, match="too dense to pair"):
        read_timed_pairs(tmp_path / "rgb.txt", tmp_path / "depth.txt")
    (tmp_path / "depth.txt").write_text("77 depth/1.png\n")
    with pytest.raises(DistillDepthError, match=r"no frame is within 0.02 s"):
        open_rgbd(tmp_path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a.png ../d.png", ":1: must name a file below the folder of the list"),
        ("x/../../a.png d.png", "below the folder"),
        (r"..\a.png d.png", "below the folder"),
        (r"C:\a.png d.png", "below the folder"),
        ("a.png d.png\na.png", ":2: must be `image depth`.*got 1 columns"),
        ("a.png d.png x", "got 3 columns"),
        ("a.png d.png\n1 a.png 2 d.png", ":2: .*got 4 columns"),
        ("a.png " + "d" * 5000, "at most 4096 characters"),
        ("a.png " + "d" * 20000, "more than 16384 characters"),
        ("rgb depth\na.png", ":2: must have at least 2 columns"),
        ("a.png d\0.png", "must name a file"),
        ("# nothing", "names no image"),
        ("rgb depth", "names no image"),
        ("a.png None", "no sample with ground truth; all 1 lines"),
        ("gone.png gone.png", "none of its images is there, looked for .*gone.png"),
    ],
)
def test_bad_lists(tmp_path, lines, words):
    photograph(tmp_path / "a.png")
    depth(tmp_path / "d.png")
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(DistillDepthError, match=words) as caught:
        open_rgbd(tmp_path / "list.txt")
    assert one_line(caught).startswith(str(tmp_path / "list.txt"))


def test_names_in_lists():
    assert inside("/a/b.png") == inside(" a/b.png ") == inside("a\\b.png") == "a/b.png"
    for name in ("", "/", "..", "a/..", "\0", "c:/x"):
        with pytest.raises(ValueError, match="must name a file"):
            inside(name)


def test_lists_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "l.txt").write_text("a b\n" * 50)
    monkeypatch.setattr("distilldepth.datasets.rgbd_lists._MOST_ROWS", 49)
    with pytest.raises(DistillDepthError, match="more than 49 lines"):
        open_rgbd(tmp_path / "l.txt")
    monkeypatch.setattr("distilldepth.datasets.rgbd_lists._BYTES", 99)
    with pytest.raises(DistillDepthError, match="more than 99 bytes"):
        open_rgbd(tmp_path / "l.txt")


# --- turned photographs ---

TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How upright pixels are stored so that the orientation turns them back."""


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(pixels)
    (image.transpose(TO_STORED[orientation]) if orientation in TO_STORED else image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [1, *TO_STORED, 0, 9])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("is_half", [False, True])
def test_depth_like_the_stored_pixels_turns_with_them(tmp_path, orientation, suffix, is_half):
    rng = np.random.default_rng(orientation)
    pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    if suffix == ".webp":
        pixels = np.repeat(np.repeat(pixels[::4, ::4], 4, 0), 4, 1)[: SIZE[0], : SIZE[1]]
    stored = rng.integers(500, 9000, SIZE).astype(np.uint16)[:: 1 + is_half, :: 1 + is_half]
    stored[1, 2] = 0
    save_turned(tmp_path / "images" / f"1{suffix}", pixels, orientation)
    turned = Image.fromarray(stored)
    (tmp_path / "depth").mkdir()
    (turned.transpose(TO_STORED[orientation]) if orientation in TO_STORED else turned).save(tmp_path / "depth/1.png")
    sample = open_rgbd(tmp_path)[0]
    assert sample["image"].shape == pixels.shape
    if suffix != ".webp":
        np.testing.assert_array_equal(sample["image"], pixels)
    np.testing.assert_allclose(sample["target"], stored / 1000, rtol=1e-6)
    np.testing.assert_array_equal(sample["valid"], stored > 0)
    assert sample["target"].flags.c_contiguous


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_depth_that_is_upright_already_stays(tmp_path, orientation):
    pixels = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    save_turned(tmp_path / "images/1.png", pixels, orientation)
    metres = depth(tmp_path / "depth/1.png")
    check(open_rgbd(tmp_path)[0], pixels, metres)


@pytest.mark.parametrize("orientation", [1, *TO_STORED])
def test_the_camera_turns_with_the_photograph(tmp_path, orientation):
    # Each pixel's colour is its place when stored, so that its ray can be told on both sides.
    height, width = SIZE
    v, u = np.mgrid[:height, :width]
    stored_pixels = np.stack([v, u, 0 * u], 2).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored_pixels).save(tmp_path / "a.png", exif=exif)
    metres = depth(tmp_path / "d.png")
    line = {"image": "a.png", "depth": "d.png", "scale": 1000, "intrinsics": [[21, 0.5, 8], [0, 17, 3], [0, 0, 1]]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    sample = open_rgbd(tmp_path / "m.jsonl")[0]
    matrix = np.array([[21, 0.5, 8], [0, 17, 3], [0, 0, 1]])
    wanted = np.linalg.inv(matrix) @ np.stack([u, v, 0 * u + 1]).reshape(3, -1)
    before = (wanted * metres.reshape(-1)).reshape(3, height, width)
    rows, columns = np.mgrid[: sample["target"].shape[0], : sample["target"].shape[1]]
    rays = np.linalg.inv(sample["intrinsics"]) @ np.stack([columns, rows, 0 * rows + 1]).reshape(3, -1)
    after = (rays * sample["target"].reshape(-1)).reshape(3, *rows.shape)
    place = sample["image"][..., 0].astype(int), sample["image"][..., 1].astype(int)
    same = before[:, place[0], place[1]]
    # The same points in a camera whose x and y axes are exchanged, mirrored, or both: one signed exchange for all.
    np.testing.assert_allclose(after[2], same[2], rtol=1e-5)
    exchange = after[:2].reshape(2, -1) @ np.linalg.pinv(same[:2].reshape(2, -1))
    np.testing.assert_allclose(after[:2].reshape(2, -1), exchange @ same[:2].reshape(2, -1), atol=1e-4)
    np.testing.assert_allclose(np.abs(exchange).sum(0), 1, atol=1e-4)
    np.testing.assert_allclose(np.abs(exchange).max(0), 1, atol=1e-4)
    assert (abs(exchange[0, 0]) < 0.5) == (orientation in (5, 6, 7, 8))


def evaluate(*args: object):
    return CliRunner().invoke(cli, ["evaluate", "--device", "cpu", "--precision", "float32", *map(str, args)])


def scores(*args: object) -> dict[str, float]:
    done = evaluate(*args, "--json", "-")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["datasets"][0]["metrics"]


def scene(root: Path, count: int = 2, scale: float = 1000, turned: int = 1) -> Path:
    from distilldepth.scenes.render import render_scene

    for seed in range(count):
        made = render_scene(7 + seed, (96, 144))
        stored = np.where(np.isfinite(made.depth), np.clip(np.rint(made.depth * scale), 0, 65535), 0).astype(np.uint16)
        save_turned(root / "images" / f"{seed}.png", made.image, turned)
        (root / "depth").mkdir(exist_ok=True)
        image = Image.fromarray(stored)
        (image.transpose(TO_STORED[turned]) if turned in TO_STORED else image).save(root / "depth" / f"{seed}.png")
    return root


def test_turned_photographs_score_as_upright_ones(tmp_path):
    upright = scores("--model", "dav2-mini", "--data", scene(tmp_path / "upright"))
    for turned in (3, 6):
        got = scores("--model", "dav2-mini", "--data", scene(tmp_path / str(turned), turned=turned))
        assert got["delta1"] == pytest.approx(upright["delta1"], abs=1e-4)
        assert got["abs_rel"] == pytest.approx(upright["abs_rel"], abs=1e-4)


@pytest.mark.parametrize("orientation", [1, *TO_STORED])
def test_predicted_maps_lie_upright(tmp_path, orientation):
    pixels = np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    save_turned(tmp_path / "in/turned.png", pixels, orientation)
    Image.fromarray(pixels).save(tmp_path / "in/upright.png")
    command = ["predict", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--as", "npy", "--model", "dav2-mini"]
    done = CliRunner().invoke(cli, [*command, "--size", "56", "--device", "cpu", "--precision", "float32"])
    assert done.exit_code == 0, done.stderr
    turned, upright = (np.load(tmp_path / "out" / name) for name in ("turned.npy", "upright.npy"))
    np.testing.assert_allclose(turned, upright, rtol=1e-5, atol=1e-6)
    assert np.ptp(upright) > 0


# --- grey maps in several channels ---


def channels_of(grey: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(grey)
    if mode == "equal":
        return Image.fromarray(np.repeat(grey[..., None], 4, 2), "RGBA")
    if mode == "P":
        image.putpalette(list(np.repeat(np.arange(256), 3)))
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "equal", "P"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_equal_channels_are_one_map(tmp_path, mode, suffix):
    if (mode, suffix) == ("P", ".tif"):
        suffix = ".bmp"
    grey = np.random.default_rng(3).integers(0, 256, SIZE, dtype=np.uint8)
    path = tmp_path / f"d{suffix}"
    channels_of(grey, mode).save(path)
    np.testing.assert_array_equal(read_depth(path), grey)
    if suffix == ".png":
        stored = StoredPredictions(tmp_path, "depth")
        np.testing.assert_array_equal(stored.read(path), grey.astype(np.float32))


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("axis", [0, 2])
def test_equal_channels_of_arrays(tmp_path, count, axis):
    map_ = np.random.default_rng(4).uniform(1, 9, SIZE).astype(np.float32)
    map_[3, 4] = np.nan
    values = np.repeat(np.expand_dims(map_, axis), count, axis)
    np.save(tmp_path / "d.npy", values)
    np.testing.assert_array_equal(read_depth(tmp_path / "d.npy"), map_)
    stored = StoredPredictions(tmp_path, "depth")
    np.testing.assert_array_equal(stored.read(tmp_path / "d.npy"), map_)
    np.save(tmp_path / "d.npy", values[None])
    np.testing.assert_array_equal(stored.read(tmp_path / "d.npy"), map_)
    values[(1, 2, 5)[:: -1 if axis else 1]] += 1
    np.save(tmp_path / "d.npy", values)
    for read in (read_depth, stored.read):
        with pytest.raises(
            DistillDepthError, match=f"{count} channels that differ.*coloured picture and not depth"
        ) as caught:
            read(tmp_path / "d.npy")
        one_line(caught)


@pytest.mark.parametrize("channel", [0, 1, 2, 3])
def test_one_differing_pixel_is_a_coloured_picture(tmp_path, channel):
    values = np.repeat(np.random.default_rng(5).integers(0, 200, (*SIZE, 1), dtype=np.uint8), 4, 2)
    if channel == 3:
        values[..., 3] = 255
    values[4, 5, channel] ^= 7
    Image.fromarray(values, "RGBA").save(tmp_path / "d.png")
    for read in (read_depth, StoredPredictions(tmp_path, "depth").read):
        with pytest.raises(DistillDepthError, match=r"d\.png: .*coloured picture and not depth"):
            read(tmp_path / "d.png")


def test_several_channels_of_16_bits_are_refused_and_not_halved(tmp_path):
    values = np.repeat(np.random.default_rng(6).integers(0, 65536, (*SIZE, 1)), 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    for read in (read_depth, StoredPredictions(tmp_path, "depth").read):
        with pytest.raises(DistillDepthError, match="several channels of 16 bits"):
            read(tmp_path / "d.png")


# --- scales ---


def test_scale_notes():
    rng = np.random.default_rng(7)
    metres = rng.uniform(1, 4.02, 400)
    metres += 2.51 - np.median(metres)
    for scale in (1000, 256, 5000):
        (line,) = scale_notes(metres * scale, 1)
        assert "\n" not in line
        assert f"{scale} (" in line.partition("likely right is ")[2]
    (line,) = scale_notes(metres / 5000, 5000)
    assert line.startswith("the ground truth has a median of 0.000502 m, read as 5000 stored units per metre")
    assert "likely right is 1 (2.5" in line
    assert "is the depth scale right" in scale_notes(metres * 1000)[0]
    assert "no usual scale" in scale_notes(metres * 1e9, 1)[0]
    for fine in (metres, metres * 40, metres / 40, [], [np.nan], [0.06], [199]):
        assert scale_notes(fine, 1) == []


def test_a_wrong_scale_is_said_before_a_run_and_a_right_one_is_not(tmp_path):
    root = scene(tmp_path / "set")
    lines = [{"image": f"images/{i}.png", "depth": f"depth/{i}.png"} for i in range(2)]
    (tmp_path / "set/m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for args in ([], ["--truth-scale", "1"]):
        done = evaluate("--model", "baseline:ramp", "--data", root / "m.jsonl", *args)
        assert done.exit_code == 0, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "warning" in line]
        assert line.startswith("distilldepth: warning: m: the ground truth has a median of ")
        assert "likely right is 1000 (" in line
    for option in ("--depth-scale", "--truth-scale"):
        done = evaluate("--model", "baseline:ramp", "--data", root / "m.jsonl", option, "1000")
        assert (done.exit_code, "warning" in done.stderr) == (0, False), done.stderr
    checked = evaluate("--data", root / "m.jsonl", "--check")
    assert "now 1; 1000 makes it" in checked.stderr
    assert "warning" not in evaluate("--data", root / "m.jsonl", "--check", "--depth-scale", "1000").stderr


def test_scales_of_truth_and_of_predictions_are_two(tmp_path):
    root = scene(tmp_path / "set", scale=5000)
    for index in range(2):
        stored = read_depth(root / "depth" / f"{index}.png") / 5000 * 256
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(np.rint(stored).astype(np.uint16)).save(tmp_path / "maps" / f"{index}.png")
    common = ["--predictions", tmp_path / "maps", "--quantity", "metric-depth", "--data", root]
    got = scores(*common, "--depth-scale", "256", "--truth-scale", "5000")
    assert got["abs_rel"] < 0.01
    assert scores(*common, "--depth-scale", "256")["abs_rel"] > 0.5
    both = evaluate("--model", "baseline:ramp", "--data", root, "--depth-scale", "256", "--truth-scale", "5000")
    assert both.exit_code == 2
    assert "--depth-scale and --truth-scale" in both.stderr


def test_a_scale_is_for_files_that_do_not_say_theirs(tmp_path):
    photograph(tmp_path / "a.png")
    metres = depth(tmp_path / "d.png", scale=5000)
    lines = [{"image": "a.png", "depth": "d.png", "scale": 5000}, {"image": "a.png", "depth": "d.png"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "f.json").write_text(json.dumps({"files": [{"rgb": "a.png", "depth": "d.png"}]}))
    for scale, factor in ((None, 5000), (1000, 5)):
        source = open_rgbd(tmp_path / "m.jsonl", depth_scale=scale)
        np.testing.assert_allclose(source[0]["target"], metres, rtol=1e-6)
        np.testing.assert_allclose(source[1]["target"], metres * factor, rtol=1e-6)
        assert source[1]["scale"] == 5000 / factor
        np.testing.assert_allclose(
            open_rgbd(tmp_path / "f.json", depth_scale=scale)[0]["target"], metres * factor, rtol=1e-6
        )
    done = evaluate("--model", "baseline:ramp", "--data", "scenes:1", "--truth-scale", "5")
    assert done.exit_code == 2
    assert "leave it out" in done.stderr
    with pytest.raises(UsageError, match="must be positive"):
        open_rgbd(tmp_path / "m.jsonl", depth_scale=-1)


def test_eight_bits_with_a_scale_that_was_given(tmp_path):
    photograph(tmp_path / "images/a.png")
    grey = np.random.default_rng(8).integers(1, 256, SIZE, dtype=np.uint8)
    (tmp_path / "depth").mkdir()
    Image.fromarray(grey).convert("RGB").save(tmp_path / "depth/a.png")
    with pytest.raises(DistillDepthError, match=r"8 bits per pixel.*--depth-scale"):
        open_rgbd(tmp_path)[0]
    np.testing.assert_allclose(open_rgbd(tmp_path, depth_scale=25.5)[0]["target"], grey / 25.5, rtol=1e-6)


def test_a_list_through_the_command(tmp_path):
    root = scene(tmp_path / "set", scale=5000)
    (root / "pairs.csv").write_text("image,depth\n" + "".join(f"images/{i}.png,depth/{i}.png\n" for i in range(2)))
    (root / "associations.txt").write_text("".join(f"{i}.1 images/{i}.png {i}.11 depth/{i}.png\n" for i in range(2)))
    (root / "half.txt").write_text("images/0.png depth/0.png\nimages/gone.png depth/gone.png\n")
    by_list = scores("--model", "baseline:ramp", "--data", root / "pairs.csv", "--depth-scale", "5000")
    assert by_list == scores("--model", "baseline:ramp", "--data", root)
    done = evaluate("--model", "baseline:ramp", "--data", root / "half.txt")
    assert done.exit_code == 1
    assert "half/images/gone.png: " in done.stderr
    assert "1 of 2 failed" in done.stderr
    helped = evaluate("--help").stdout
    assert all(word in helped for word in ("associations.txt", "rgb.txt", ".csv", "--truth-scale", "--depth-scale"))
