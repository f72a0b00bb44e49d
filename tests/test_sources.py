"""Image sources: what `--images` accepts, random access, worker processes, and bad files on the way."""

import gzip
import io
import os
import pickle
import random
import sys
import tarfile
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from distilldepth.errors import DistillDepthError
from distilldepth.files import cache_folder
from distilldepth.images.sources import (
    ConcatSource,
    FolderSource,
    TarSource,
    expand_braces,
    load_or_replace,
    open_source,
)


def picture(number, height=6, width=9):
    return np.full((height, width, 3), number, dtype=np.uint8)


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, format="PNG")
    return buffer.getvalue()


def folder(root, count, first=0):
    root.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (root / f"{number}.png").write_bytes(png(number))
    return root


def shard(path, members, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def numbers(source):
    return [int(source[index]["image"][0, 0, 0]) for index in range(len(source))]


def test_folder(tmp_path):
    source = open_source(str(folder(tmp_path / "my photos", 12)))
    assert isinstance(source, FolderSource)
    assert len(source) == 12
    assert not source.has_depth
    assert "my photos (12 images)" in source.description
    assert numbers(source) == list(range(12))
    assert source[3] == {"image": pytest.approx(picture(3)), "name": str(tmp_path / "my photos/3.png")}
    assert source[-1]["name"].endswith("11.png")
    for index in (12, -13):
        with pytest.raises(IndexError):
            source[index]
    assert len([sample["name"] for sample in source]) == 12


def test_every_kind_of_spec(tmp_path):
    folder(tmp_path, 3)
    (tmp_path / "list.txt").write_text("2.png\n0.png\n")
    assert numbers(open_source(tmp_path)) == [0, 1, 2]
    assert numbers(open_source(str(tmp_path / "[12].png"))) == [1, 2]
    assert numbers(open_source(tmp_path / "list.txt")) == [2, 0]
    assert numbers(open_source(tmp_path / "1.png")) == [1]
    assert numbers(open_source([tmp_path / "list.txt", tmp_path / "1.png"])) == [2, 0, 1]


def test_max_side(tmp_path):
    Image.fromarray(picture(5, 40, 90)).save(tmp_path / "a.png")
    shard(tmp_path / "a.tar", [("a.png", (tmp_path / "a.png").read_bytes())])
    for name in ("a.png", "a.tar"):
        assert open_source(tmp_path / name, max_side=45)[0]["image"].shape == (20, 45, 3)
        with pytest.raises(ValueError, match="max_side must be at least 1"):
            open_source(tmp_path / name, max_side=0)


def test_nothing_to_open(tmp_path):
    with pytest.raises(DistillDepthError, match=r"no image in this folder.*searched for .*\.jpg"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_source(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone\.tar: no such file"):
        open_source(tmp_path / "gone.tar")
    for spec in ([], "", ["", "x"]):
        with pytest.raises(ValueError, match="spec must name"):
            open_source(spec)


# --- tar shards ---


def test_tar(tmp_path):
    members = [
        ("./a/10.png", png(10)),
        ("a/10.json", b"{}"),
        ("a/10.cls", b"3"),
        ("./2.PNG", png(2)),
        ("._2.png", b"litter"),
        ("__MACOSX/2.png", b"litter"),
        ("é ü/[7].png", png(7)),
        ("x" * 150 + "/8.png", png(8)),
    ]
    source = open_source(shard(tmp_path / "set.tar", members))
    assert isinstance(source, TarSource)
    assert numbers(source) == [10, 2, 7, 8]
    assert [source[index]["name"] for index in range(3)] == [
        f"{tmp_path}/set.tar/{name}" for name in ("a/10.png", "2.PNG", "é ü/[7].png")
    ]
    assert "set.tar (4 images)" in source.description


def test_tar_links_and_folders_are_no_images(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.png").write_bytes(png(1))
    (tmp_path / "in/link.png").symlink_to("1.png")
    os.link(tmp_path / "in/1.png", tmp_path / "in/z.png")
    (tmp_path / "in/folder.png").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "in", arcname=".")
    assert numbers(open_source(tmp_path / "a.tar")) == [1]


def test_several_shards(tmp_path):
    for number in range(12):
        shard(tmp_path / f"s-{number:02}.tar", [(f"{number}.png", png(number)), (f"{number}b.png", png(100 + number))])
    both = [value for number in range(12) for value in (number, 100 + number)]
    assert numbers(open_source(str(tmp_path / "s-{00..11}.tar"))) == both
    assert numbers(open_source(str(tmp_path / "s-*.tar"))) == both
    assert numbers(open_source(tmp_path)) == both
    assert numbers(open_source(str(tmp_path / "s-{03,01}.tar"))) == [3, 103, 1, 101]
    assert "12 tar shards" in open_source(tmp_path).description
    with pytest.raises(FileNotFoundError, match=r"s-12\.tar"):
        open_source(str(tmp_path / "s-{10..12}.tar"))
    with pytest.raises(DistillDepthError, match="no tar shard matches"):
        open_source(str(tmp_path / "t-*.tar"))


def test_shard_with_brackets_in_its_name(tmp_path):
    shard(tmp_path / "a[1]{b}.tar", [("1.png", png(1))])
    assert numbers(open_source(tmp_path / "a[1]{b}.tar")) == [1]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar", "a.tar.zst", "gone.tar.xz"])
def test_compressed_tar_is_refused_with_a_fix(tmp_path, name):
    if not name.startswith("gone"):
        shard(tmp_path / "plain", [("1.png", png(1))])
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(DistillDepthError, match=r"compressed.*unpack it, or store it as a plain \.tar") as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_damaged_tar(tmp_path):
    members = [(f"{number}.png", png(number) + bytes(3000)) for number in range(6)]
    data = shard(tmp_path / "whole.tar", members).read_bytes()
    used = 6 * len(data[:512] + bytes(3584))
    rng, path, messages = random.Random(0), tmp_path / "cut.tar", []
    for length in [1, 511, 512, 600, *(rng.randrange(513, used - 600) for _ in range(15))]:
        path.write_bytes(data[:length])
        if length % 512 == 0 and length > 512:
            continue
        try:
            source = open_source(path)
        except DistillDepthError as error:
            messages.append(str(error))
        else:
            # A cut between two members leaves a shorter but sound archive.
            assert numbers(source) == list(range(len(source)))
    assert len(messages) > 15
    assert all(message.startswith(str(path)) for message in messages)
    second = data.index(b"1.png")
    path.write_bytes(data[:second] + b"\xff" * 300 + data[second + 300 :])
    with pytest.raises(DistillDepthError, match="damaged or truncated"):
        open_source(path)
    for content, words in (
        (b"", "is empty"),
        (b"no tar" * 1000, "is not a plain tar file"),
        (bytes(10240), "no image among"),
    ):
        path.write_bytes(content)
        with pytest.raises(DistillDepthError, match=words):
            open_source(path)


def test_bad_image_in_a_shard(tmp_path):
    source = open_source(shard(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", png(2)[:-30]), ("3.png", b"")]))
    assert len(source) == 3
    with pytest.raises(DistillDepthError, match=r"a\.tar/2\.png: is damaged or truncated"):
        source[1]
    with pytest.raises(DistillDepthError, match=r"a\.tar/3\.png: is empty"):
        source[2]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError, match="when the shard was scanned"):
        source[0]


def test_pickle_threads_and_worker_processes(tmp_path):
    shard(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(60)])
    source = open_source([tmp_path / "a.tar", folder(tmp_path / "f", 20, first=60)])
    assert numbers(pickle.loads(pickle.dumps(source))) == list(range(80))
    with ThreadPoolExecutor(8) as pool:
        order = random.Random(1).choices(range(80), k=400)
        assert [int(sample["image"][0, 0, 0]) for sample in pool.map(source.__getitem__, order)] == order
    loader = DataLoader(source, batch_size=8, num_workers=2)
    assert [int(value) for batch in loader for value in batch["image"][:, 0, 0, 0]] == list(range(80))


# --- several sources, scenes ---


class Numbers:
    """Images that are their own index; some are unreadable, or gone."""

    names = None

    def __init__(self, count, bad=(), gone=(), depth=False):
        self.count, self.bad, self.gone, self.has_depth = count, bad, gone, depth
        self.description = f"{count} numbers"
        self.has_right = self.has_cameras = False

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise DistillDepthError(f"{index}: is empty")
        if index in self.gone:
            raise FileNotFoundError(f"{index}: no such file")
        sample = {"image": picture(index), "name": str(index)}
        return sample | {"depth": np.ones((6, 9), dtype=np.float32)} if self.has_depth else sample


def test_concatenation():
    rng = random.Random(2)
    for _ in range(20):
        counts = [rng.randint(1, 5) for _ in range(rng.randint(1, 6))]
        joined = ConcatSource([Numbers(count) for count in counts])
        assert len(joined) == sum(counts)
        assert numbers(joined) == [index for count in counts for index in range(count)]
        assert joined[-1]["name"] == str(counts[-1] - 1)
        with pytest.raises(IndexError):
            joined[len(joined)]
    assert ConcatSource([Numbers(2), Numbers(3)]).description == "2 numbers + 3 numbers"
    with pytest.raises(ValueError, match="must not be empty"):
        ConcatSource([])


def test_concatenation_has_depth_only_if_all_have():
    both = ConcatSource([Numbers(2, depth=True), Numbers(2, depth=True)])
    assert both.has_depth
    assert "depth" in both[3]
    mixed = ConcatSource([Numbers(2, depth=True), Numbers(2)])
    assert not mixed.has_depth
    assert [set(mixed[index]) for index in (0, 2)] == [{"image", "name"}] * 2


def test_scenes_are_opened_with_what_they_need(monkeypatch, tmp_path):
    opened = []

    def scene_source(size, count=None, seed=0, cache=None, rig=None):
        assert rig is None
        opened.append((size, count, seed, cache))
        return Numbers(count or 1000, depth=True)

    module = types.ModuleType("distilldepth.scenes")
    module.SceneSource = scene_source
    monkeypatch.setitem(sys.modules, "distilldepth.scenes.source", module)
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path))
    assert open_source("scenes").has_depth
    open_source("scenes:50", size=(96, 128), seed=3)
    assert opened == [((192, 256), None, 0, None), ((96, 128), 50, 3, tmp_path / "scenes")]
    for wrong in ("scenes:", "scenes:0", "scenes:-3", "scenes:many", "scenes:1.5"):
        with pytest.raises(ValueError, match="positive whole number"):
            open_source(wrong)


def test_folder_called_scenes(tmp_path, monkeypatch):
    folder(tmp_path / "scenes", 2)
    monkeypatch.chdir(tmp_path)
    assert numbers(open_source("./scenes")) == [0, 1]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DISTILLDEPTH_CACHE")
    assert cache_folder() == Path.home() / ".cache/distilldepth"


# --- bad files while training ---


def test_bad_image_is_replaced_by_the_next():
    source = Numbers(6, bad={2, 5}, gone={3})
    sample, errors = load_or_replace(source, 1)
    assert (sample["name"], errors) == ("1", [])
    sample, errors = load_or_replace(source, 2)
    assert sample["name"] == "4"
    assert [str(error) for error in errors] == ["2: is empty", "3: no such file"]
    assert load_or_replace(source, 5)[0]["name"] == "0"


def test_too_many_bad_images():
    assert load_or_replace(Numbers(100, bad=range(4, 50)), 4)[0]["name"] == "50"
    with pytest.raises(DistillDepthError, match=r"^0: is empty$"):
        load_or_replace(Numbers(1, bad=[0]), 0)
    with pytest.raises(DistillDepthError, match="3 images in a row cannot be read; the first: 4: is empty"):
        load_or_replace(Numbers(100, bad=range(4, 50)), 4, max_tries=3)
    assert load_or_replace(Numbers(100, bad=range(4, 6)), 4, max_tries=3)[0]["name"] == "6"
    with pytest.raises(DistillDepthError, match="2 images in a row"):
        load_or_replace(Numbers(2, bad={0, 1}), 1)


def test_other_errors_are_not_hidden():
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError("a fault of the program")

    with pytest.raises(KeyError):
        load_or_replace(Broken(3), 0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}", ["0", "1", "2"]),
        ("x{098..101}y", ["x098y", "x099y", "x100y", "x101y"]),
        ("{a,b}-{1..2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("{a}{1,2}", ["{a}1", "{a}2"]),
        ("{", ["{"]),
        ("{10..8}", ["10", "09", "08"]),
    ],
)
def test_expand_braces(pattern, names):
    assert expand_braces(pattern) == names
