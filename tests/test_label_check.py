"""`label --check`: every fault of a set of labels is named, and a set without any is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_label import contents, photographs, read_set, run, words

from distilldepth.errors import DistillDepthError
from distilldepth.files import file_digest
from distilldepth.label.check import check_labels
from distilldepth.teachers.shards import labels_text

SHARD = "dav2-mini/000001.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    photos = photographs(folder / "photos", 14)
    line = ("--teachers", "dav2-mini=2,genpercept-mini=1", "--views", "2", "--heldout", "2", "--shard-size", "60kB")
    assert run(*words(photos, folder / "labels", *line)) == 0
    return folder / "labels"


@pytest.fixture
def labels(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "labels"))


def edit(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], *, recorded: bool) -> None:
    """Change the members of a shard; `recorded` makes size and checksum those of the changed file."""
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if recorded:
        record(path)


def record(path: Path) -> None:
    row = json.loads(path.with_suffix(".json").read_text())
    row |= {"filesize": path.stat().st_size, "sha256": file_digest(path)}
    path.with_suffix(".json").write_text(json.dumps(row))
    index = path.parents[1] / "index.json"
    found = json.loads(index.read_text())
    for line in found["shardlist"]:
        if line["url"] == row["url"]:
            line |= {"filesize": row["filesize"], "sha256": row["sha256"]}
    index.write_text(json.dumps(found))


def faults(folder: Path, capsys) -> str:
    """What the command says is wrong; it ends with 1 and a count, without a trace."""
    capsys.readouterr()
    assert run("label", "--check", str(folder), "--page", str(folder.parent / "page.html")) == 1
    said = capsys.readouterr().err
    assert re.search(r"^distilldepth: error: .*: \d+ faults? \(listed above\)$", said.splitlines()[-1])
    assert "Traceback" not in said
    return said


def test_a_whole_set_is_shown(whole, tmp_path, capsys):
    before = contents(whole)
    assert run("label", "--check", str(whole), "--page", str(tmp_path / "page.html")) == 0
    said = capsys.readouterr().out
    assert re.search(r"dav2-mini: \d+ samples, 0 constant, 0\.00 % unknown, values", said)
    assert "all is as it was written" in said
    assert contents(whole) == before
    page = (tmp_path / "page.html").read_text()
    report = check_labels(whole)
    assert report.samples == 24 + 2 * 2
    assert len(report.pictured) >= 8
    assert page.count("<img ") == sum(2 + len(sample.windows) for _, sample in report.pictured)
    for key, sample in report.pictured:
        assert key in page
        assert sample.name in page
    assert "https:" not in page


def test_the_page_lies_in_the_set_unless_it_is_told_where(labels):
    assert run("label", "--check", str(labels)) == 0
    assert (labels / "samples.html").is_file()
    assert check_labels(labels).faults == []


def test_a_share_of_the_shards_is_checked(labels):
    content = bytearray((labels / SHARD).read_bytes())
    content[700] ^= 1
    (labels / SHARD).write_bytes(content)
    reports = [check_labels(labels, which=(index, 2)) for index in range(2)]
    assert [bool(report.faults) for report in reports] == [False, True]
    assert sum(report.samples for report in reports) == 28


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped.json", "a/../../escaped.json"])
def test_a_name_that_leads_elsewhere(labels, capsys, tmp_path, name):
    edit(labels / SHARD, lambda members: [*members, (name, b"{}")], recorded=True)
    said = faults(labels, capsys)
    assert f"{SHARD}: names a member '{name}', outside the place" in said
    assert not list(tmp_path.rglob("escaped*"))


def test_a_truncated_shard(labels, capsys):
    content = (labels / SHARD).read_bytes()
    (labels / SHARD).write_bytes(content[: len(content) * 2 // 3])
    said = faults(labels, capsys)
    assert f"{SHARD}: has {len(content) * 2 // 3} bytes, its .json says {len(content)}" in said
    record(labels / SHARD)
    assert f"{SHARD}: " in faults(labels, capsys)


@pytest.mark.parametrize("missing", ["map.png", "windows.png", "image.jpg", "json"])
def test_a_missing_member(labels, capsys, missing):
    def drop(members):
        return [(name, content) for name, content in members if name != f"000000004.{missing}"]

    edit(labels / SHARD, drop, recorded=True)
    said = faults(labels, capsys)
    assert f"{SHARD}/000000004" in said
    assert missing in said


def test_a_changed_byte(labels, capsys):
    content = bytearray((labels / SHARD).read_bytes())
    content[len(content) // 2] ^= 4
    (labels / SHARD).write_bytes(content)
    assert f"{SHARD}: is not what was written (checksum); copy it again" in faults(labels, capsys)
    record(labels / SHARD)
    assert f"{SHARD}" in faults(labels, capsys)


def test_members_out_of_order_twice_and_of_nobody(labels, capsys):
    edit(labels / SHARD, lambda members: [members[1], members[0], *members[2:]], recorded=True)
    assert "its members are not in the order json image.jpg map.png windows.png" in faults(labels, capsys)
    edit(labels / SHARD, lambda members: [*members, members[0], ("000000003.text", b"")], recorded=True)
    said = faults(labels, capsys)
    assert "has a member '000000003.image.jpg' away from its sample" in said
    assert "has a member '000000003.text', which no sample of it has" in said


def test_shards_that_were_exchanged(labels, capsys):
    first, second = (labels / "dav2-mini" / f"{number:06d}.tar" for number in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    record(first)
    record(second)
    assert "000000.tar: has a member '000000003.json', which no sample of it has" in faults(labels, capsys)


def test_labels_of_other_weights_and_of_another_teacher(labels, capsys):
    found = read_set(labels)
    other = dataclasses.replace(found.teachers[0], digest="0" * 64)
    (labels / "labels.json").write_text(labels_text(dataclasses.replace(found, teachers=[other, found.teachers[1]])))
    assert "is labelled by a dav2-mini of other weights than labels.json says" in faults(labels, capsys)
    other = dataclasses.replace(found.teachers[0], name="dav3")
    (labels / "labels.json").write_text(labels_text(dataclasses.replace(found, teachers=[other, found.teachers[1]])))
    assert "is labelled by 'dav2-mini', this is the shard of dav3" in faults(labels, capsys)


def test_crops_of_another_order(labels, capsys):
    found = read_set(labels)
    (labels / "labels.json").write_text(labels_text(dataclasses.replace(found, seed=found.seed + 8)))
    said = faults(labels, capsys)
    assert re.search(r"is crop \d+, crop \d+ is expected there|but seed, weights and images give it", said)


def test_missing_and_foreign_files_and_a_wrong_index(labels, capsys):
    (labels / "genpercept-mini" / "000000.tar").unlink()
    (labels / "dav2-mini" / "000009.tar").write_bytes(b"")
    index = json.loads((labels / "index.json").read_text())
    index["shardlist"][0]["url"] = "dav2-mini/000007.tar"
    (labels / "index.json").write_text(json.dumps(index))
    said = faults(labels, capsys)
    assert re.search(r"1 of \d+ shards are missing, or their \.json is: genpercept-mini/000000\.tar", said)
    assert "dav2-mini/000009.tar: belongs to no shard of this set" in said
    assert "index.json names dav2-mini/000007.tar" in said
    assert "index.json does not name dav2-mini/000000.tar" in said


def test_a_teacher_that_says_nothing(tmp_path, monkeypatch, capsys):
    from distilldepth.teachers.teacher import Teacher

    usual = Teacher.label

    def flat(self, images, depth, *, features=False):
        label = usual(self, images, depth, features=features)
        label.disparity[1:] = 0.25
        return label

    monkeypatch.setattr(Teacher, "label", flat)
    photos = photographs(tmp_path / "photos", 6)
    assert run(*words(photos, tmp_path / "labels", "--teachers", "dav2-mini", "--heldout", "0")) == 0
    assert "dav2-mini: 4 of 6 maps are constant or unknown" in faults(tmp_path / "labels", capsys)


def test_counts_that_nothing_bears_out_are_refused_at_once(labels):
    found = json.loads((labels / "labels.json").read_text())
    found["teachers"][0]["samples"] = found["training"] = 10**8
    for each in (1, 10**9):
        (labels / "labels.json").write_text(json.dumps({**found, "samples_per_shard": each}))
        with pytest.raises(DistillDepthError, match=r"speaks of 1000.* samples"):
            check_labels(labels)


@pytest.mark.parametrize("what", ["nothing", "empty", "hostile", "deep"])
def test_a_folder_without_labels_is_one_line(tmp_path, capsys, what):
    folder = tmp_path / "labels"
    if what != "nothing":
        folder.mkdir()
    if what == "hostile":
        (folder / "labels.json").write_text('{"format": "distilldepth labels", "version": 1, "training": -4}')
    if what == "deep":
        (folder / "labels.json").write_text("[" * 100_000)
    assert run("label", "--check", str(folder)) == 1
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert str(folder) in said
