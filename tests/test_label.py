"""`distilldepth label`: the crops of a run, labelled as a run labels them, whatever ends the command meanwhile."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from label_sets import photographs
from PIL import Image
from waiting import patience_s, wait_until

from distilldepth.cli.main import cli
from distilldepth.distill.config import load_config
from distilldepth.distill.crops import crop_config
from distilldepth.distill.labels import label_batch
from distilldepth.errors import DistillDepthError
from distilldepth.images.batches import CropDataset, split_heldout
from distilldepth.images.crops import Regions
from distilldepth.images.sources import open_source
from distilldepth.label.check import check_labels
from distilldepth.label.encode import Labeller
from distilldepth.label.folder import KIND, claim_labels
from distilldepth.label.plan import Shares
from distilldepth.label.tar import read_samples
from distilldepth.models import create_student, save_model
from distilldepth.teachers.pool import draw, load_teachers
from distilldepth.teachers.shards import (
    LabelledRegion,
    LabelSet,
    decode_sample,
    parse_index,
    parse_labels,
    sample_key,
)  # fmt: skip
from distilldepth.teachers.spec import parse_teachers

TEACHERS = "dav2-mini=2,genpercept-mini=1"
SETTINGS = (
    "--size", "32x48", "--batch-size", "3", "--seed", "5", "--set", "crop.patches=2", "--set", "crop.min_crop=20",
    "--set", "crop.patch_share=0.6", "--precision", "float32", "--workers", "0", "--threads", "1", "--offline",
)  # fmt: skip


def words(photos: Path, out: Path, *more: str) -> list[str]:
    return ["label", "--images", str(photos), "--out", str(out), *SETTINGS, *more]


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "distilldepth.cli.main", *words(photos, out, *more)]


def start(line: list[str], **options) -> subprocess.Popen:
    def usual() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(line, text=True, preexec_fn=usual, **options)


def run(*line: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(line))
    return ended.value.code or 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_set(folder: Path) -> LabelSet:
    return parse_labels((folder / "labels.json").read_text(), "labels.json")


def samples_of(folder: Path, url: str, labels: LabelSet, first: int) -> list[LabelledRegion]:
    path = folder / url
    with path.open("rb") as file:
        found = [members for _, members in read_samples(file, path.stat().st_size, first, labels)]
    return [decode_sample(members, labels, f"{url}/{number}") for number, members in enumerate(found)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("label") / "photos", 15)


@pytest.fixture(scope="module")
def labels(tmp_path_factory, photos):
    """Labels in several shards, written without an interruption."""
    folder = tmp_path_factory.mktemp("labels") / "whole"
    line = ("--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB")
    assert run(*words(photos, folder, *line)) == 0
    return folder


def test_the_crops_and_their_teachers_are_those_of_a_run(labels, photos):
    found = read_set(labels)
    settings = [word for before, word in itertools.pairwise(SETTINGS) if before == "--set"]
    flags = {"images": [str(photos)], "size": "32x48", "batch_size": 3, "seed": 5, "teachers": TEACHERS, "heldout": 2}
    config = load_config(settings=settings, flags=flags)
    training, heldout = split_heldout(open_source(config.images, max_side=config.crop.max_side), 2)
    dataset = CropDataset(training, crop_config(config), 5)
    pool = load_teachers(
        parse_teachers(TEACHERS), device=torch.device("cpu"), offline=True, has_depth=False, seed=5
    ).teachers
    assert (found.training, found.heldout, found.views, found.group) == (13, 2, 3, 3)
    assert [teacher.name for teacher in found.teachers] == [teacher.name for teacher in pool]
    assert found.settings["crop.patches"] == 2
    stored = {teacher.name: read_training(labels, found, place) for place, teacher in enumerate(found.teachers)}
    assert min(map(len, stored.values())) >= 3
    assert sum(map(len, stored.values())) == 39
    for step in range(13):
        teacher = pool[draw([2, 1], 5, step)]
        ordinals = list(range(step * 3, step * 3 + 3))
        batch = Regions.collate([dataset[ordinal] for ordinal in ordinals])
        pictures = batch.image.clone()
        _, label = label_batch(batch, teacher, config.augment, torch.device("cpu"), features=())
        for place, ordinal in enumerate(ordinals):
            sample = stored[teacher.name].pop(0)
            assert (sample.ordinal, sample.name, sample.cut) == (ordinal, batch.name[place], batch.cut[place])
            np.testing.assert_array_equal(sample.boxes, batch.boxes[place].numpy())
            close_to(sample.disparity, label.disparity[place].numpy())
            for window, expected in zip(sample.windows, label.patch_disparity.view(3, 2, 32, 48)[place], strict=True):
                close_to(window, expected.numpy())
            difference = sample.image.astype(int) - pictures[place].permute(1, 2, 0).numpy()
            assert np.abs(difference).mean() < 4
    form = found.for_heldout()
    whole = CropDataset(heldout, crop_config(config).whole(), 5, shuffle=False)
    for teacher, stored_teacher in zip(pool, found.teachers, strict=True):
        regions = Regions.collate([whole[0], whole[1]])
        expected = teacher.label(regions.image / 255, None).disparity.numpy()
        for place, sample in enumerate(samples_of(labels, f"{stored_teacher.folder}/heldout.tar", form, 0)):
            close_to(sample.disparity, expected[place])
            np.testing.assert_array_equal(sample.image, regions.image[place].permute(1, 2, 0).numpy())


def read_training(folder: Path, labels: LabelSet, place: int) -> list[LabelledRegion]:
    teacher = labels.teachers[place]
    return [
        sample
        for shard in range(labels.shards(teacher))
        for sample in samples_of(folder, f"{teacher.folder}/{shard:06d}.tar", labels, shard * labels.samples_per_shard)
    ]


def close_to(stored: np.ndarray, expected: np.ndarray) -> None:
    assert stored.shape == expected.shape
    step = (expected.max() - expected.min()) / 65534
    assert step > 0
    assert np.abs(stored - expected).max() <= 0.51 * step + 2e-6


def test_the_index_names_every_shard_as_it_is(labels):
    shards = parse_index((labels / "index.json").read_text(), "index.json")
    found = read_set(labels)
    names = {shard.url for shard in shards}
    assert names == {name for name in contents(labels) if name.endswith(".tar")}
    assert len(names) > 6
    assert sum(shard.nsamples for shard in shards if "heldout" not in shard.url) == found.views * found.training
    for shard in shards:
        content = (labels / shard.url).read_bytes()
        assert (shard.filesize, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        with tarfile.open(labels / shard.url) as archive:
            members = archive.getmembers()
        assert len({member.name.partition(".")[0] for member in members}) == shard.nsamples
        assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in members)


def test_webdataset_reads_the_shards_in_order(labels):
    import webdataset

    found = read_set(labels)
    teacher = found.teachers[0]
    urls = [str(labels / f"{teacher.folder}/{shard:06d}.tar") for shard in range(found.shards(teacher))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample_key(number) for number in range(teacher.samples)]
    assert set(read[0]) >= {"json", "image.jpg", "map.png", "windows.png"}


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGKILL, "later"), (signal.SIGTERM, "first"), (signal.SIGINT, "later")]
)
def test_it_goes_on_at_the_next_sample(labels, photos, tmp_path, number, moment):
    out = tmp_path / "killed"
    line = command(photos, out, "--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB")

    def begun() -> bool:
        if moment == "later":
            return len(list(out.glob("*/*.json"))) > 1
        return any(out.glob("*/.distilldepth-*.partial"))

    process = start(line, stderr=subprocess.PIPE)
    wait_until(begun, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=patience_s())
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert "to go on at the next sample: distilldepth label" in said
    assert not (out / "index.json").exists()
    finished = {path: path.stat() for path in out.glob("*/*.tar") if path.with_suffix(".json").exists()}
    assert run(*line[3:]) == 0
    assert contents(out) == contents(labels)
    for path, before in finished.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros behind", "another"])
def test_a_damaged_rest_is_cut_behind_the_last_whole_sample(labels, photos, tmp_path, damage):
    out = Path(shutil.copytree(labels, tmp_path / "out"))
    target = out / "dav2-mini" / "000001.tar"
    content = bytearray(target.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 + 100 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "zeros behind":
        content[len(content) // 2 :] = bytes(4096)
    else:
        content[:] = (out / "dav2-mini" / "000000.tar").read_bytes()
    target.unlink()
    target.with_suffix(".json").unlink()
    (out / "index.json").unlink()
    target.with_name(".distilldepth-000001.tar.partial").write_bytes(content)
    assert run(*words(photos, out, "--teachers", TEACHERS, "--views", "3", "--heldout", "2")) == 0
    assert contents(out) == contents(labels)


def test_a_kill_between_the_shard_and_its_line_costs_nothing(labels, photos, tmp_path, capsys):
    out = Path(shutil.copytree(labels, tmp_path / "out"))
    (out / "index.json").unlink()
    (out / "dav2-mini" / "000001.json").unlink()
    line = words(photos, out, "--teachers", TEACHERS, "--views", "3", "--heldout", "2")
    before = (out / "dav2-mini" / "000001.tar").stat()
    assert run(*line) == 0
    assert (out / "dav2-mini" / "000001.tar").stat().st_mtime_ns == before.st_mtime_ns
    assert contents(out) == contents(labels)
    (out / "dav2-mini" / "000001.json").unlink()
    shutil.copy(out / "dav2-mini" / "000000.tar", out / "dav2-mini" / "000001.tar")
    capsys.readouterr()
    assert run(*line) == 1
    assert "000001.tar has no 000001.json and does not hold the samples" in capsys.readouterr().err


def test_several_processes_share_the_shards(labels, photos, tmp_path, capsys):
    line = ("--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB", "--shards")
    assert run(*words(photos, tmp_path / "out", *line, "1/2")) == 0
    assert "shards of other processes are not there yet" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.json").exists()
    assert run(*words(photos, tmp_path / "out", *line, "0/2")) == 0
    assert contents(tmp_path / "out") == contents(labels)


def test_folders_of_several_machines_are_copied_together(labels, photos, tmp_path):
    line = ("--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB", "--shards")
    for index in range(2):
        assert run(*words(photos, tmp_path / str(index), *line, f"{index}/2")) == 0
    shutil.copytree(tmp_path / "1", tmp_path / "0", dirs_exist_ok=True)
    assert run("label", "--check", str(tmp_path / "0"), "--page", str(tmp_path / "page.html")) == 0
    assert contents(tmp_path / "0") == contents(labels)


def test_a_folder_that_another_process_is_making_is_no_foreign_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".distilldepth-0123456789ab.json").write_text("{")  # A mark that is being written.
    with claim_labels(out, (1, 2), overwrite=False):
        assert KIND.is_marked(out)

    filled = tmp_path / "filled"
    filled.mkdir()
    asked = []

    def is_marked(kind, folder):
        asked.append(folder)
        if len(asked) == 1:  # The other one marks and writes between the two looks.
            return False
        (folder / ".distilldepth.json").exists() or kind.mark(folder)
        return True

    (filled / "labels.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(type(KIND), "is_marked", is_marked)
        with claim_labels(filled, (1, 2), overwrite=False):
            pass
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with (
        pytest.raises(DistillDepthError, match="does not carry the mark"),
        claim_labels(foreign, (0, 2), overwrite=False),
    ):
        pass


def test_two_processes_at_once(labels, photos, tmp_path):
    line = ("--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB", "--shards")
    both = [start(command(photos, tmp_path / "out", *line, f"{index}/2")) for index in range(2)]
    assert [process.wait(timeout=patience_s()) for process in both] == [0, 0]
    assert contents(tmp_path / "out") == contents(labels)


def test_a_part_has_one_writer(photos, tmp_path, capsys):
    code = (
        "import sys, pathlib; from distilldepth.folders import claim_folder\n"
        "with claim_folder(pathlib.Path('out'), 'label', '0-of-1'): print('mine', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "mine\n"
    assert run(*words(photos, tmp_path / "out", "--teachers", "dav2-mini")) == 1
    assert "another run is writing" in capsys.readouterr().err
    holder.communicate("")
    assert holder.returncode == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--seed", "6"), "seed: 5 then, 6 now"),
        (("--size", "48x32"), "crops.size: [32, 48] then, [48, 32] now"),
        (("--set", "crop.patches=1"), "crops.patches: 2 then, 1 now"),
        (("--batch-size", "4"), "group: 3 then, 4 now"),
        (("--views", "2"), "views: 3 then, 2 now"),
        (("--map-format", "float16"), "map_format: png16 then, float16 now"),
        (("--no-images",), "image_format: jpeg then, none now"),
        (("--teachers", "dav2-mini"), "teachers: dav2-mini=2,genpercept-mini=1 then, dav2-mini=1 now"),
        (("--teachers", "dav2-mini=2,genpercept-mini=2"), "weight of teacher genpercept-mini: 1.0 then, 2.0 now"),
        (("--precision", "bfloat16"), "precision of teacher dav2-mini: float32 then, bfloat16 now"),
    ],
)
def test_other_labels_are_refused_with_the_difference(labels, photos, capsys, change, said):
    before = contents(labels)
    line = words(photos, labels, "--teachers", TEACHERS, "--views", "3", "--heldout", "2", *change)
    assert run(*line) == 1
    error = capsys.readouterr().err.strip()
    assert said in error
    # Where bfloat16 is slow, asking for it is warned of first.
    assert len([line for line in error.splitlines() if "warning: " not in line]) == 1
    assert contents(labels) == before


def test_other_images_are_refused(labels, photos, tmp_path, capsys):
    fewer = Path(shutil.copytree(photos, tmp_path / "photos"))
    (fewer / "photo 3.png").unlink()
    line = words(fewer, labels, "--teachers", TEACHERS, "--views", "3", "--heldout", "2")
    assert run(*line) == 1
    assert "fingerprint: 15 images" in capsys.readouterr().err


def test_other_weights_of_a_teacher_are_refused(photos, tmp_path, capsys):
    save_model(create_student("light-mini", seed=1), tmp_path / "teacher")
    line = words(photos, tmp_path / "out", "--teachers", str(tmp_path / "teacher"), "--shard-size", "60kB")
    assert run(*line) == 0
    shards = sorted((tmp_path / "out").glob("*/0*.tar"))
    shards[-1].unlink()
    shards[-1].with_suffix(".json").unlink()
    save_model(create_student("light-mini", seed=2), tmp_path / "teacher")
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert run(*line) == 1
    assert "is not the one that these labels are of" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_a_foreign_folder_stays_as_it_is(photos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert run(*words(photos, tmp_path / "out", "--teachers", "dav2-mini", *more)) == 1
        assert "does not carry the mark" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {"letter.txt": b"mine"}


def test_overwrite_begins_again(labels, photos, tmp_path):
    out = Path(shutil.copytree(labels, tmp_path / "out"))
    assert run(*words(photos, out, "--teachers", "dav2-mini", "--heldout", "1", "--overwrite")) == 0
    assert {name.partition("/")[0] for name in contents(out)} == {
        ".distilldepth.json", "labels.json", "index.json", "dav2-mini",
    }  # fmt: skip
    assert read_set(out).seed == 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--shards", "4/4"), "counted from 0 (0/4 to 3/4)"),
        (("--shards", "1"), "must be i/n"),
        (("--shard-size", "12 apples"), "number of bytes"),
        (("--overwrite", "--shards", "0/2"), "deletes what the other processes"),
        (("--ray", "local", "--shards", "0/2"), "shares the work out itself"),
        (("--page", "a.html"), "--page goes with --check"),
        (("--teachers", "dav2-mimi"), "label: unknown teacher 'dav2-mimi'; did you mean 'dav2-mini'?"),
    ],
)
def test_wrong_usage_is_one_line(photos, tmp_path, capsys, line, said):
    assert run(*words(photos, tmp_path / "out", *line)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_labels_among_the_photographs_are_refused(photos, capsys):
    assert run(*words(photos, photos / "labels", "--teachers", "dav2-mini")) == 2
    assert "lies in the images" in capsys.readouterr().err


def test_unreadable_images_are_replaced_counted_and_named(tmp_path, capsys):
    photos = photographs(tmp_path / "photos", 9)
    (photos / "photo 4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("RGB", (1, 1), (200, 10, 30)).save(photos / "photo 5.png")
    Image.new("L", (10_000, 10_000), 90).save(photos / "photo 6.png", compress_level=1)
    out = tmp_path / "out"
    assert run(*words(photos, out, "--teachers", "dav2-mini", "--heldout", "0", "--map-format", "float16")) == 0
    assert "samples with photographs or maps that are not as they should be" in capsys.readouterr().err
    row = json.loads((out / "dav2-mini" / "000000.json").read_text())
    assert row["problem_count"] == 1
    assert "photo 4.png" in row["problems"][0]["unreadable"]
    samples = read_training(out, read_set(out), 0)
    assert len(samples) == 9
    names = [Path(sample.name).name for sample in samples]
    assert names.count("photo 5.png") + names.count("photo 6.png") >= 2
    assert "photo 4.png" not in names
    assert check_labels(out).faults == []


def test_a_full_disk_is_one_line_and_costs_nothing(labels, photos, tmp_path):
    out = tmp_path / "out"
    line = command(photos, out, "--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = subprocess.run(line, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, error = done.stderr.strip().splitlines()
    assert error.startswith("distilldepth: error: label: ")
    assert "make room, then type the same command to go on" in error
    assert "Traceback" not in done.stderr
    assert list(out.glob("*/*.tar")) == []
    assert run(*line[3:]) == 0
    assert contents(out) == contents(labels)


class _Greedy:
    """A teacher for more than two pictures of which the memory is too small."""

    views = 1

    def __init__(self, teacher):
        self.teacher, self.sizes = teacher, []

    def label(self, images, depth, *, features=False):
        self.sizes.append(len(images))
        if len(images) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.teacher.label(images, depth, features=features)


def test_where_memory_runs_out_fewer_go_at_once(photos):
    config = load_config(
        settings=["crop.patches=2", "crop.min_crop=20"], flags={"size": "32x48", "images": [str(photos)]}
    )
    dataset = CropDataset(split_heldout(open_source(config.images), 0)[0], crop_config(config), 1)
    regions = Regions.collate([dataset[ordinal] for ordinal in range(5)])
    teacher = load_teachers(
        parse_teachers("dav2-mini"), device=torch.device("cpu"), offline=True, has_depth=False, seed=0
    ).teachers[0]
    expected = Labeller(teacher, torch.device("cpu")).label(regions)
    greedy = _Greedy(teacher)
    labeller = Labeller(greedy, torch.device("cpu"))
    for _ in range(2):
        found = labeller.label(regions)
        torch.testing.assert_close(found.disparity, expected.disparity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.patch_disparity, expected.patch_disparity, rtol=1e-4, atol=1e-5)
    assert greedy.sizes == [15, 9, 6, 3, 6, 6, 6, 3]


def test_a_map_that_is_not_finite_makes_its_sample_unknown(photos, tmp_path, monkeypatch, capsys):
    from distilldepth.teachers.teacher import Teacher

    usual = Teacher.label

    def poisoned(self, images, depth, *, features=False):
        label = usual(self, images, depth, features=features)
        if len(images) == 9:
            label.disparity[4, 3, 5] = float("nan")  # In a window of the first region.
        return label

    monkeypatch.setattr(Teacher, "label", poisoned)
    assert run(*words(photos, tmp_path / "out", "--teachers", "dav2-mini", "--heldout", "0")) == 0
    assert "not finite: the map of dav2-mini" in capsys.readouterr().err
    samples = read_training(tmp_path / "out", read_set(tmp_path / "out"), 0)
    unknown = [not np.isfinite(sample.disparity).any() for sample in samples]
    assert unknown == [number % 3 == 0 for number in range(15)]
    assert all(np.isnan(sample.windows).all() == lost for sample, lost in zip(samples, unknown, strict=True))


@pytest.mark.parametrize(("group", "total"), [(1, 40), (3, 39), (4, 41), (7, 6)])
def test_shares_hold_every_crop_once(group, total):
    shares = Shares([3, 1, 2], 8, group, total)
    held = [shares.ordinals(teacher).between(0, shares.samples(teacher)) for teacher in range(3)]
    assert sorted(ordinal for ordinals in held for ordinal in ordinals) == list(range(total))
    for teacher, ordinals in enumerate(held):
        assert ordinals == sorted(ordinals)
        assert all(draw([3, 1, 2], 8, ordinal // group) == teacher for ordinal in ordinals)


def test_a_finished_shard_that_was_cut_is_named(labels, photos, tmp_path, capsys):
    shutil.copytree(labels, tmp_path / "cut")
    shard = next((tmp_path / "cut").glob("*/000001.tar"))
    os.truncate(shard, shard.stat().st_size // 2)
    line = ("--teachers", TEACHERS, "--views", "3", "--heldout", "2", "--shard-size", "60kB")
    assert run(*words(photos, tmp_path / "cut", *line)) == 1
    assert f"{shard} has {shard.stat().st_size} bytes and was written with" in capsys.readouterr().err
    shard.unlink()
    assert run(*words(photos, tmp_path / "cut", *line)) == 0
    assert contents(tmp_path / "cut") == contents(labels)


def test_a_whole_set_is_held_against_the_weights_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos, module = photographs(tmp_path / "photos", 4), tmp_path / "judge_of_depth.py"
    module.write_text("def depth(images):\n    return 1 + images.mean(1)\ndepth.quantity = 'disparity'\n")
    line = words(photos, tmp_path / "labels", "--teachers", f"python:{module}:depth", "--heldout", "0")
    assert run(*line) == 0
    assert run(*line) == 0
    module.write_text(module.read_text().replace("1 +", "2 +"))
    assert run(*line) == 1
    assert "is not the one that these labels are of" in capsys.readouterr().err


def test_a_teacher_that_knows_nothing_of_any_image_is_a_failure(tmp_path, capsys):
    photos, module = photographs(tmp_path / "photos", 4), tmp_path / "judge_of_nothing.py"
    module.write_text("def depth(images):\n    return images.mean(1) * float('nan')\ndepth.quantity = 'disparity'\n")
    line = words(photos, tmp_path / "labels", "--teachers", f"python:{module}:depth", "--heldout", "0")
    assert run(*line) == 1
    assert "none of the 4 samples" in capsys.readouterr().err
