"""Reading image files: the right picture from every mode, one clear line for everything that is no picture."""

import io
import os
import pickle
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from distilldepth.errors import DistillDepthError
from distilldepth.images import decode as images
from distilldepth.images.decode import as_rgb, decode_image, list_images, natural_key, read_image


def photo(height=24, width=37, seed=0):
    """Smooth colours without symmetry, so that a flip or a swapped channel cannot go unnoticed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).mean()


def grey(picture):
    return np.asarray(Image.fromarray(picture).convert("L"))


def three(plane):
    return np.repeat(plane[..., None], 3, axis=2)


def png(width, height, bit_depth, colour_type, rows):
    """A PNG file byte by byte, for the kinds that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def one_line(error):
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# --- the right picture ---


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".tga", ".webp", ".jpg", ".jp2", ".gif", ".avif"])
def test_formats(tmp_path, suffix):
    picture, path = photo(), tmp_path / f"a{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}, ".avif": {"quality": 95}}
    try:
        Image.fromarray(picture).save(path, **options.get(suffix, {}))
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow cannot write {suffix}")
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.shape == picture.shape
    assert read.flags.c_contiguous
    assert read.flags.writeable
    if suffix in (".jpg", ".avif"):
        assert difference(read, picture) < 5
    elif suffix == ".gif":
        assert difference(read, picture) < 12
    else:
        np.testing.assert_array_equal(read, picture)


def test_one_bit(tmp_path):
    bits = photo()[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), three(bits.astype(np.uint8) * 255))


def test_grey(tmp_path):
    plane = photo()[..., 0]
    Image.fromarray(plane).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), three(plane))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    picture = photo()
    image = Image.fromarray(picture).convert(mode)
    alpha = np.full(picture.shape[:2], 255, dtype=np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 51
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    opaque = np.asarray(image.convert("RGB")).astype(float)
    assert (read[:, :10] == 255).all()
    np.testing.assert_allclose(read[:, 10:20], opaque[:, 10:20] * 0.2 + 255 * 0.8, atol=1)
    np.testing.assert_array_equal(read[:, 20:], opaque[:, 20:])


def test_palette(tmp_path):
    image = Image.fromarray(photo()).quantize(40)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))
    image.save(tmp_path / "b.png", transparency=0)
    read, clear = read_image(tmp_path / "b.png"), np.asarray(image) == 0
    assert clear.any()
    assert (read[clear] == 255).all()
    np.testing.assert_array_equal(read[~clear], np.asarray(image.convert("RGB"))[~clear])


def test_rgb_with_one_transparent_colour(tmp_path):
    picture = photo().copy()
    picture[:5] = (10, 20, 30)
    Image.fromarray(picture).save(tmp_path / "a.png", transparency=(10, 20, 30))
    read = read_image(tmp_path / "a.png")
    assert (read[:5] == 255).all()
    np.testing.assert_array_equal(read[6:], picture[6:])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    wide = np.linspace(0, 65535, 24 * 37).reshape(24, 37).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), three(np.rint(wide / 257).astype(np.uint8)))


def test_16_bit_grey_big_endian(tmp_path):
    wide = np.linspace(0, 65535, 24 * 37).reshape(24, 37).astype(np.uint16)
    image = Image.frombytes("I;16B", (37, 24), wide.astype(">u2").tobytes())
    np.testing.assert_array_equal(as_rgb(image), three(np.rint(wide / 257).astype(np.uint8)))


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (2, 4), (4, 6)])
def test_16_bits_per_channel_png(tmp_path, channels, colour_type):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    if channels != 3:
        wide[..., -1] = 65535
    rows = [row.astype(">u2").tobytes() for row in wide]
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, colour_type, rows))
    expected = wide[..., :3] if channels >= 3 else np.repeat(wide[..., :1], 3, axis=2)
    assert np.abs(read_image(tmp_path / "a.png") - expected / 257).max() <= 1


@pytest.mark.parametrize(
    ("high", "expected"), [(40_000, lambda v: v / 257), (2_000_000, lambda v: (v - v.min()) / np.ptp(v) * 255)]
)
def test_32_bit_grey(tmp_path, high, expected):
    values = np.linspace(0, high, 24 * 37).reshape(24, 37).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[..., 1], expected(values), atol=0.5001)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, lambda v: v * 255),
        (0, 200, lambda v: v),
        (0, 50_000, lambda v: v / 257),
        (-3, 5, lambda v: (v - v.min()) / np.ptp(v) * 255),
    ],
)
def test_float_tiff(tmp_path, low, high, expected):
    values = np.linspace(low, high, 24 * 37).reshape(24, 37).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[..., 2], expected(values), atol=0.501)


def test_float_tiff_with_holes(tmp_path):
    values = np.full((4, 5), 0.5, dtype=np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")[..., 0]
    assert read[0, 0] == read[0, 1] == 0
    assert read[1, 1] == 128


def test_cmyk_jpeg_is_not_a_negative(tmp_path):
    picture = photo(48, 64)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert difference(read_image(tmp_path / "a.jpg"), picture) < 6
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.tif")
    assert difference(read_image(tmp_path / "a.tif"), picture) < 2


@pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 1.5), ("HSV", 4)])
def test_other_colour_spaces(mode, tolerance):
    picture = photo()
    assert difference(as_rgb(Image.fromarray(picture).convert(mode)), picture) < tolerance


def test_lab_tiff(tmp_path):
    picture = photo()
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(picture), *profiles, outputMode="LAB")
    lab.save(tmp_path / "a.tif")
    assert difference(read_image(tmp_path / "a.tif"), picture) < 4


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    picture = photo(48, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    expected = UPRIGHT[orientation](picture)
    read = read_image(path)
    assert read.shape == expected.shape
    assert difference(read, expected) < 6


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    picture = photo(48, 64)
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage", quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(read_image(tmp_path / "a.jpg"), picture) < 6


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {}))
    assert (read_image(path) == (255, 0, 0)).all()


def test_content_decides_not_the_suffix(tmp_path):
    picture = photo()
    Image.fromarray(picture).save(tmp_path / "a.png")
    for name in ("b.jpg", "c.tif", "d", "e.txt"):
        os.link(tmp_path / "a.png", tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), picture)


@pytest.mark.parametrize("size", [(1, 1), (8, 5000), (5000, 8)])
def test_extreme_sizes(tmp_path, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", min_side=8).shape[:2] == size
    assert max(read_image(tmp_path / "a.jpg", max_side=100).shape) <= 100


def test_draft_keeps_the_shorter_side(tmp_path):
    picture = photo(601, 803)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95, exif=exif)
    sides = {}
    for min_side in (50, 75, 76, 150, 151, 300, 301, 601, 9999):
        read = read_image(tmp_path / "a.jpg", min_side=min_side)
        assert read.shape[0] > read.shape[1]
        assert min(read.shape[:2]) >= min(min_side, 601)
        sides[min_side] = read.shape[1]
    assert sides == {50: 76, 75: 76, 76: 151, 150: 151, 151: 301, 300: 301, 301: 601, 601: 601, 9999: 601}
    small = read_image(tmp_path / "a.jpg", min_side=75)
    expected = np.asarray(Image.fromarray(np.rot90(picture, -1)).resize((small.shape[1], small.shape[0])))
    assert difference(small, expected) < 6


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_max_side(tmp_path, suffix, orientation):
    picture, path = photo(300, 900), tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    sides = {
        100: (34, 100),
        112: (34, 100),
        113: (38, 113),
        150: (50, 150),
        299: (75, 225),
        450: (150, 450),
        900: (300, 900),
    }
    for max_side, size in sides.items():
        read = read_image(path, max_side=max_side)
        assert read.shape[:2] == (size if orientation == 1 else size[::-1])
        expected = np.asarray(Image.fromarray(UPRIGHT[orientation](picture)).resize(read.shape[1::-1]))
        assert difference(read, expected) < 5
    assert read_image(path, max_side=5000).size == picture.size


def test_sides_hold_for_any_size(tmp_path):
    rng = random.Random(7)
    for _ in range(60):
        width, height = rng.randint(1, 300), rng.randint(1, 300)
        Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
        max_side, min_side = rng.randint(1, 320), rng.randint(1, 320)
        fitted = read_image(tmp_path / "a.jpg", max_side=max_side).shape[:2]
        assert max(fitted) <= max_side
        assert 2 * max(fitted) > min(max_side, max(width, height))
        assert min(read_image(tmp_path / "a.jpg", min_side=min_side).shape[:2]) >= min(min_side, width, height)


# --- arrays and PIL images ---


def test_as_rgb_arrays():
    picture = photo()
    assert as_rgb(picture) is picture
    assert as_rgb(picture[:, ::-1]).flags.c_contiguous
    np.testing.assert_array_equal(as_rgb(picture[..., 0]), three(picture[..., 0]))
    np.testing.assert_array_equal(as_rgb(picture[..., :1]), three(picture[..., 0]))
    opaque = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=2)
    np.testing.assert_array_equal(as_rgb(opaque), picture)
    opaque[..., 3] = 0
    assert (as_rgb(opaque) == 255).all()


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((4, 5, 3), dtype=np.float32), TypeError, "uint8"),
        (np.zeros((4, 5), dtype=bool), TypeError, "uint8"),
        (np.zeros((3, 4, 5), dtype=np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((1, 4, 5, 3), dtype=np.uint8), ValueError, r"\(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), dtype=np.uint8), ValueError, "at least one pixel"),
        (np.zeros((), dtype=np.uint8), ValueError, r"\(H, W, 3\)"),
        (None, TypeError, "NoneType"),
        ([[1, 2]], TypeError, "list"),
    ],
)
def test_as_rgb_refuses(image, error, words):
    with pytest.raises(error, match=words) as caught:
        as_rgb(image)
    assert one_line(caught).startswith("as_rgb: image must")


def test_as_rgb_does_not_change_the_users_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(48, 64)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert as_rgb(image).shape == (64, 48, 3)
        assert image.size == (64, 48)
        assert image.getexif()[0x0112] == 6


def test_as_rgb_truncated_pil_image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with Image.open(path) as image, pytest.raises(DistillDepthError, match=r"a\.png: is damaged or truncated"):
        as_rgb(image)


# --- what is no picture ---


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file") as caught:
        read_image(tmp_path / "gone.png")
    one_line(caught)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "link.png")


def test_not_a_picture(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello\nworld")
    (tmp_path / "noise.png").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "drawing.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "empty.png": "is empty",
        "text.jpg": "is not an image",
        "noise.png": "is not an image",
        "phone.heic": "convert it",
        "drawing.eps": "is not an image",
        "pipe.png": "not a regular file",
        ".": "is a folder",
    }
    for name, words in expected.items():
        with pytest.raises(DistillDepthError, match=words) as caught:
            read_image(tmp_path / name)
        assert one_line(caught).startswith(str(tmp_path / name))


def test_unreadable(tmp_path, monkeypatch):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        # An administrator may read everything: let the system call refuse instead.
        def refuse(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DistillDepthError, match="no permission"):
        read_image(tmp_path / "a.png")


def test_names_the_system_refuses(tmp_path):
    for name in ("nul\0byte.png", "x" * 5000, "a.png/b.png"):
        (tmp_path / "a.png").write_bytes(b"x")
        with pytest.raises((DistillDepthError, FileNotFoundError)) as caught:
            read_image(tmp_path / name)
        one_line(caught)


def test_error_is_one_printable_line(tmp_path):
    path = os.fsencode(tmp_path) + b"/line\nbreak \xff.png"
    with pytest.raises(FileNotFoundError) as caught:
        read_image(os.fsdecode(path))
    one_line(caught).encode("utf-8")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".tif", ".webp", ".ppm"])
def test_truncated_anywhere(tmp_path, suffix):
    """A file cut at any place is an error, or (cut within its tail) the whole picture: never a partly grey one."""
    noise = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(noise).save(whole)
    data, expected = whole.read_bytes(), read_image(whole)
    rng = random.Random(4)
    path, messages = tmp_path / f"cut{suffix}", []
    for length in [*(rng.randrange(1, len(data)) for _ in range(25)), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        try:
            read = read_image(path)
        except DistillDepthError as error:
            messages.append(str(error))
            continue
        assert length > 0.95 * len(data)
        np.testing.assert_array_equal(read, expected)
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".tif", ".webp", ".jp2", ".tga"])
def test_flipped_bytes_never_escape_as_another_error(tmp_path, suffix):
    buffer = io.BytesIO()
    try:
        Image.fromarray(photo(20, 30)).save(buffer, format=Image.registered_extensions()[suffix])
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {suffix}")
    data, rng, messages = buffer.getvalue(), random.Random(5), []
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(damaged), 300))] = rng.randrange(256)
        try:
            read = decode_image(bytes(damaged), "damaged")
        except DistillDepthError as error:
            messages.append(str(error))
        else:
            assert read.dtype == np.uint8
            assert read.ndim == 3
            assert read.shape[2] == 3
    assert messages
    assert not any("\n" in message for message in messages)


# --- size limit ---


def test_decompression_bomb(tmp_path):
    row = bytes(-(-30_000 // 8))
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, 1, 0, [row] * 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DistillDepthError, match=r"178956970 pixels.*DISTILLDEPTH_MAX_PIXELS") as caught:
            read_image(tmp_path / "bomb.png")
    one_line(caught)


def test_no_warning_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("DISTILLDEPTH_MAX_PIXELS", "1500")
    Image.fromarray(photo(30, 40)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (30, 40, 3)
    Image.fromarray(photo(30, 60)).save(tmp_path / "b.png")
    with pytest.raises(DistillDepthError, match="more than 1500 pixels"):
        read_image(tmp_path / "b.png")


def test_limit_can_be_raised_beyond_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(photo(30, 40)).save(tmp_path / "a.png")
    with pytest.raises(DistillDepthError, match="DISTILLDEPTH_MAX_PIXELS"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("DISTILLDEPTH_MAX_PIXELS", "1200")
    assert read_image(tmp_path / "a.png").shape == (30, 40, 3)
    for wrong in ("0", "-5", "many", "1e9"):
        monkeypatch.setenv("DISTILLDEPTH_MAX_PIXELS", wrong)
        with pytest.raises(DistillDepthError, match="positive whole number"):
            read_image(tmp_path / "a.png")


# --- lists of images ---


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, format="PNG")


def names(root, found):
    return [path.relative_to(root).as_posix() for path in found]


def test_list_folder(tmp_path):
    tree(
        tmp_path, "b/img10.jpg", "b/img2.JPG", "b/img1.png", "a b/naïve ☃.png", "z[1].png", ".hidden.png", ".git/x.png",
        "__MACOSX/y.png", "b/._img1.png",
    )  # fmt: skip
    (tmp_path / "notes.txt").write_text("no image")
    assert names(tmp_path, list_images(tmp_path)) == [
        "a b/naïve ☃.png", "b/img1.png", "b/img2.JPG", "b/img10.jpg", "z[1].png",
    ]  # fmt: skip
    assert list_images(str(tmp_path) + "/") == list_images(tmp_path)


def test_list_folder_follows_links_once(tmp_path):
    tree(tmp_path, "photos/a.png", "elsewhere/b.png")
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path, list_images(tmp_path / "photos")) == ["photos/a.png", "photos/linked/b.png"]


def test_list_empty_folder(tmp_path):
    (tmp_path / "readme.md").touch()
    with pytest.raises(DistillDepthError, match=r"no image in this folder.*\.jpg .*\.png") as caught:
        list_images(tmp_path)
    assert one_line(caught).startswith(str(tmp_path))


def test_list_glob(tmp_path):
    tree(tmp_path, "a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png")
    (tmp_path / "a/list.txt").touch()
    assert names(tmp_path, list_images(tmp_path / "*/*.png")) == ["a/1.png", "b/3.png"]
    assert names(tmp_path, list_images(tmp_path / "**/*.png")) == ["a/1.png", "b/3.png", "b/c/4.png"]
    assert names(tmp_path, list_images(tmp_path / "*")) == ["a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png"]
    assert names(tmp_path, list_images(tmp_path / "a/[12].*")) == ["a/1.png", "a/2.jpg"]
    with pytest.raises(DistillDepthError, match="no image matches"):
        list_images(tmp_path / "q*")


def test_existing_names_are_literal(tmp_path):
    tree(tmp_path, "a[1].png", "a1.png", "d[x]*/b.png", "dx/c.png")
    assert names(tmp_path, list_images(tmp_path / "a[1].png")) == ["a[1].png"]
    assert names(tmp_path, list_images(tmp_path / "d[x]*")) == ["d[x]*/b.png"]


def test_list_file(tmp_path, monkeypatch):
    tree(tmp_path, "sets/x.png", "sets/with space.png", "cwd/y.png", "#1.png")
    listing = tmp_path / "sets/list.txt"
    listing.write_bytes(
        b"\xef\xbb\xbf# my photographs\r\n\r\nwith space.png  \r\nx.png\r\ny.png\r\n"
        + str(tmp_path).encode()
        + b"/#1.png"
    )
    monkeypatch.chdir(tmp_path / "cwd")
    assert [path.name for path in list_images(listing)] == ["with space.png", "x.png", "y.png", "#1.png"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"x.png\ngone.png\n", FileNotFoundError, "list.txt:2: no such file: gone.png"),
        (b"# nothing\n\n", DistillDepthError, "names no image"),
        (b"\xff\xfe\x00", DistillDepthError, "UTF-8"),
        (b"x.png\n.\n", DistillDepthError, "list.txt:2: is a folder"),
    ],
)
def test_bad_list_file(tmp_path, content, error, words):
    tree(tmp_path, "x.png")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        list_images(tmp_path / "list.txt")
    one_line(caught)


def test_list_single_and_missing(tmp_path):
    tree(tmp_path, "x")
    assert list_images(tmp_path / "x") == [tmp_path / "x"]
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        list_images(tmp_path / "gone")


def test_natural_order_is_total():
    rng = random.Random(6)
    pool = ["".join(rng.choice("a1/0B2é.") for _ in range(rng.randint(1, 6))) for _ in range(300)]
    first = sorted(pool, key=natural_key)
    rng.shuffle(pool)
    assert sorted(pool, key=natural_key) == first
    assert sorted(["b2", "b10", "b1", "B3"], key=natural_key) == ["B3", "b1", "b2", "b10"]


def test_errors_cross_process_borders():
    error = DistillDepthError("a.png: is empty")
    assert str(pickle.loads(pickle.dumps(error))) == "a.png: is empty"
    assert images.MAX_PIXELS == 2 * (1024 * 1024 * 1024 // 4 // 3)
