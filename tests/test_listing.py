"""Files below folders and behind patterns, and pictures of this package that are no photographs."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.evaluate.record.saved_maps import save_prediction
from distilldepth.images.decode import list_images
from distilldepth.images.listing import is_own_file, is_own_picture
from distilldepth.images.sources import open_source
from distilldepth.pages import png
from distilldepth.predict import plan_jobs, write_color_png, write_depth_png


def photograph(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 25, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def depth(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 7, (18, 25)).astype(np.float32)


def names(root: Path, found) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in found]


# --- links and patterns ---


@pytest.fixture
def linked(tmp_path) -> Path:
    """Folders with links in circles, which `glob` follows forty levels deep, and to folders elsewhere."""
    for name in ("photos/a.jpg", "photos/b/c.jpg", "photos/b/d/e.png", "photos/.hidden/x.jpg", "elsewhere/f.jpg"):
        photograph(tmp_path / name)
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/b/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/itself").symlink_to(tmp_path / "photos/itself")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/b/again").symlink_to(tmp_path / "elsewhere")
    return tmp_path


def test_a_pattern_finds_what_the_folder_has(linked):
    folder = list_images(linked / "photos")
    assert len(folder) == 4
    assert {os.path.realpath(path) for path in folder} == {
        str(linked / name) for name in ("photos/a.jpg", "photos/b/c.jpg", "photos/b/d/e.png", "elsewhere/f.jpg")
    }
    for pattern in ("photos/**", "photos/**/*", "phot?s/**", "*otos"):
        assert sorted(map(os.path.realpath, list_images(linked / pattern))) == sorted(map(os.path.realpath, folder))
    jpegs = [os.path.realpath(path) for path in folder if path.suffix == ".jpg"]
    assert sorted(map(os.path.realpath, list_images(linked / "photos/**/*.jpg"))) == sorted(jpegs)


def test_patterns_name_levels_and_written_out_folders(linked):
    assert names(linked, list_images(linked / "photos/*.jpg")) == ["photos/a.jpg"]
    assert names(linked, list_images(linked / "photos/b/*.???")) == ["photos/b/c.jpg"]
    assert names(linked, list_images(linked / "photos/[ab]/d/*.png")) == ["photos/b/d/e.png"]
    assert names(linked, list_images(linked / "p*/b/c.jpg")) == ["photos/b/c.jpg"]
    assert names(linked, list_images(linked / "photos/.h*/*.jpg")) == ["photos/.hidden/x.jpg"]
    assert names(linked, list_images(linked / "photos/.hidden/*.jpg")) == ["photos/.hidden/x.jpg"]
    assert list_images(linked / "p*/../elsewhere/f.*") == [linked / "photos/../elsewhere/f.jpg"]
    for pattern in ("photos/*.png", "photos/a.jpg/*", "gone/*.jpg", "photos/**/x.jpg"):
        with pytest.raises(DistillDepthError, match="no image matches this pattern"):
            list_images(linked / pattern)


def test_a_pattern_in_the_current_folder(linked, monkeypatch):
    monkeypatch.chdir(linked / "photos")
    assert list_images("*.jpg") == [Path("a.jpg")]
    assert list_images("b/*.jpg") == [Path("b/c.jpg")]


def test_results_below_the_photographs_are_left_out_by_folder_and_by_pattern(linked):
    photograph(linked / "photos/out/a.png")
    (linked / "photos/b/results").symlink_to(linked / "photos/out")
    for spec in (linked / "photos", str(linked / "photos/**/*"), str(linked / "photos/**")):
        jobs, _ = plan_jobs([spec], linked / "photos/out")
        assert len(jobs) == 4
        assert not any("out" in os.path.realpath(job.source).split("/") for job in jobs)
        with pytest.raises(UsageError, match="name another folder"):
            plan_jobs([spec], linked / "photos")
    with pytest.raises(DistillDepthError, match=r"no image in this folder or below it; .* outside"):
        plan_jobs([linked / "photos/out"], linked / "photos")


@pytest.mark.parametrize("pattern", ["*.tar", "**/*.tar"])
def test_shards_behind_links(linked, pattern):
    import tarfile

    with tarfile.open(linked / "photos/s.tar", "w") as archive:
        archive.add(linked / "photos/a.jpg", "a.jpg")
    assert len(open_source(str(linked / "photos" / pattern))) == 1
    (linked / "shards").mkdir()
    (linked / "shards/circle").symlink_to(linked / "shards")
    (linked / "photos/s.tar").rename(linked / "elsewhere/s.tar")
    (linked / "elsewhere/f.jpg").unlink()
    (linked / "shards/far").symlink_to(linked / "elsewhere")
    assert len(open_source(str(linked / "shards"))) == 1


# --- pictures of this package ---


def write_all(folder: Path) -> list[Path]:
    """Every PNG that the commands leave in folders."""
    folder.mkdir(parents=True, exist_ok=True)
    write_depth_png(folder / "depth.png", depth(1), "disparity", texts={"model": "名前"})
    write_depth_png(folder / "metric.PNG", depth(2), "metric_depth")
    write_color_png(folder / "color.png", depth(3), "depth")
    kitti = save_prediction(folder, "set", "kitti.png", depth(4), "metric_depth", form="kitti")
    (folder / "sample.png").write_bytes(png(np.random.default_rng(5).integers(0, 256, (9, 7, 3), dtype=np.uint8)))
    return [folder / "depth.png", folder / "metric.PNG", folder / "color.png", kitti, folder / "sample.png"]


def test_what_this_package_writes_is_known(tmp_path):
    assert all(map(is_own_file, write_all(tmp_path)))
    photograph(tmp_path / "a.png")
    assert not is_own_file(tmp_path / "a.png")
    grey = (depth() * 1000).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert not is_own_file(tmp_path / "grey.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "GIMP 2.10 with distilldepth")
    info.add_text("quantity", "5")
    Image.fromarray(grey).save(tmp_path / "other.png", pnginfo=info)
    assert not is_own_file(tmp_path / "other.png")
    # Another program kept the texts that say what the numbers are, but not who wrote them.
    info = PngImagePlugin.PngInfo()
    for key in ("scale", "offset", "quantity"):
        info.add_text(key, "1")
    Image.fromarray(grey).save(tmp_path / "kept.png", pnginfo=info)
    assert is_own_file(tmp_path / "kept.png")


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    return (len(content) if length is None else length).to_bytes(4, "big") + kind + content + b"\0" * 4


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"\0",
        chunk(b"tEXt", b"Software\0" + b"x" * 10_000_000),
        chunk(b"tEXt", b"Software", length=0xFFFFFFFF),
        chunk(b"tEXt", b"a\0b") * 1_000_000,
        chunk(b"iCCP", b"\0" * 1_000_000) + chunk(b"IDAT", b"") + chunk(b"tEXt", b"Software\0distilldepth 1"),
    ],
)
def test_little_is_read_of_a_hostile_header(rest):
    file = Counted(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0" * 13) + rest)
    assert not is_own_picture(file)
    assert file.taken < 32_768
    own = chunk(b"iCCP", b"\0" * 1_000_000) + chunk(b"tEXt", b"Software\0distilldepth 0.1")
    assert is_own_picture(io.BytesIO(b"\x89PNG\r\n\x1a\n" + own))


def test_a_pipe_called_png_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert not is_own_file(tmp_path / "pipe.png")
    assert not is_own_file(tmp_path / "gone.png")


def list_of(folder: Path) -> Path:
    path = folder.parent / "list.txt"
    path.write_text("\n".join(f"{folder.name}/{name}" for name in names(folder, sorted(folder.rglob("*.[pP]*")))))
    return path


SPECS = {
    "folder": lambda folder: folder,
    "glob": lambda folder: str(folder / "**" / "*.[pP][nN][gG]"),
    "list": list_of,
    "star": lambda folder: str(folder / "*"),
}


@pytest.mark.parametrize("kind", SPECS)
def test_earlier_results_are_no_photographs(tmp_path, kind):
    folder = tmp_path / "photos"
    own = write_all(folder)
    photograph(folder / "b.png", 1)
    photograph(folder / "a.png", 2)
    spec = SPECS[kind](folder)
    for call in (list_images, lambda spec: open_source(spec).paths):
        with pytest.warns(UserWarning, match="of 7 images 5 are pictures of depth that distilldepth made") as caught:
            assert names(folder, call(spec)) == ["a.png", "b.png"]
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
    for name in ("a.png", "b.png"):
        (folder / name).unlink()
    if kind == "list":
        spec = list_of(folder)
    with pytest.raises(DistillDepthError, match="all 5 images are pictures of depth that distilldepth made"):
        list_images(spec)
    with pytest.raises(DistillDepthError, match=r"\.png: it is a picture of depth that distilldepth made"):
        list_images(own[0])


def test_photographs_alone_are_not_talked_about(tmp_path):
    photograph(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list_images(tmp_path) == list_images(tmp_path / "a.png") == [tmp_path / "a.png"]


def test_members_of_a_shard(tmp_path):
    import tarfile

    own = write_all(tmp_path / "in")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(photograph(tmp_path / "in" / "a.png", 3), "a.png")
        for path in own:
            archive.add(path, f"maps/{path.name}")
    with pytest.warns(UserWarning, match="s.tar: of 6 images 5 are pictures of depth"):
        source = open_source(tmp_path / "s.tar")
    assert source.names == ["s.tar/a.png"]
    np.testing.assert_array_equal(source[0]["image"], np.asarray(Image.open(tmp_path / "in" / "a.png")))


def predict(*args: object):
    command = ["predict", *map(str, args), "--model", "dav2-mini", "--size", "56", "--device", "cpu"]
    return CliRunner().invoke(cli, command)


def test_predict_over_its_own_results(tmp_path):
    photograph(tmp_path / "photos/a.jpg")
    assert predict(tmp_path / "photos/a.jpg", "-o", tmp_path / "photos/a.png", "--as", "png16,color").exit_code == 0
    done = predict(tmp_path / "photos", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [
        f"distilldepth: warning: {tmp_path}/photos: of 3 images 2 are pictures of depth that distilldepth made, as the "
        f"PNG says, and left out: {tmp_path}/photos/a.png, {tmp_path}/photos/a_color.png"
    ]
    assert names(tmp_path / "out", (tmp_path / "out").rglob("*")) == ["a.png"]
    # What a shell makes of photos/*
    done = predict(*sorted((tmp_path / "photos").iterdir()), "-o", tmp_path / "out2")
    assert done.exit_code == 0, done.stderr
    assert "of 3 images 2 are pictures" in done.stderr
    assert names(tmp_path / "out2", (tmp_path / "out2").rglob("*")) == ["a.png"]
    alone = predict(tmp_path / "photos/a_color.png", "-o", tmp_path / "out3")
    assert alone.exit_code == 1
    assert alone.stderr.splitlines() == [
        f"distilldepth: error: {tmp_path}/photos/a_color.png: it is a picture of depth that distilldepth made, not a "
        "photograph; name the photograph it was made from"
    ]
    assert not (tmp_path / "out3").exists()
