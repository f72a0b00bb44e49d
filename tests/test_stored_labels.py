"""Training from labels on disk: the student of an online run, whatever breaks, and nothing twice or never."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import http.server
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from label_sets import label_as_run, made_up, photographs, write_shard
from PIL import Image
from safetensors.torch import load_file
from waiting import wait_until

from distilldepth.distill import trainer
from distilldepth.distill.config import load_config
from distilldepth.distill.feed import Feed
from distilldepth.distill.labels import label_batch
from distilldepth.distill.trainer import distill
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.batches import CropDataset, StepBatches, split_heldout
from distilldepth.images.crops import Cut, Regions
from distilldepth.images.sources import open_source
from distilldepth.signals import Interrupted
from distilldepth.teachers import location
from distilldepth.teachers.location import parse_location
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.shards import LabelledRegion, decode_sample, encode_sample, sample_key
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.stored import LabelFolder, open_teachers
from distilldepth.teachers.stream import LabelStream, Share, StreamOrder

RUN = {
    "student": "light-mini", "batch_size": 2, "workers": 1, "steps": 4, "log_every": 1, "checkpoint_every": 100,
    "agreement_every": 0, "precision": "float32", "teacher_precision": "float32", "device": "cpu",
}  # fmt: skip
QUIET = ["loss.feature=0", "loss.gradient=0"]


def stored_run(labels: Path | str | list, out: Path, *settings: str, **changes):
    paths = [str(labels)] if isinstance(labels, str | Path) else list(map(str, labels))
    return load_config(settings=[*QUIET, *settings], flags={**RUN, "labels": paths, "out": str(out), **changes})


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def stream_of(
    folder: Path | str, place: int = 0, *, seed: int = 0, process: int = 0, processes: int = 1, batch: int = 2
):
    opened = LabelFolder(parse_location(str(folder)))
    return open_teachers([opened], [None], seed=seed, share=(process, processes, batch))[place].stream


def keys(stream: LabelStream, batches: range) -> list[str]:
    read = [raw.name.rpartition("/")[2] for number in batches for raw in stream.batch(number)]
    stream.close()
    return read


# The same student as online.

STEPS = 20
ONLINE = {
    "teachers": "distilldepth-mini=2,genpercept-mini", "size": "48x64", "heldout": 3, "steps": STEPS,
}  # fmt: skip
TUNED = ["loss.feature=0", "loss.anchor=0", "optimiser.ema=0.9", "augment.colour=0.2", "optimiser.lr=2e-5"]
CROPS = ["crop.min_crop=32", "crop.patches=1", "crop.patch_share=0.6"]


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A run with two teachers in memory, and what they said as PNG and as JPEG."""
    folder = tmp_path_factory.mktemp("online")
    photos = photographs(folder / "photos", 23)
    # A rate of trained weights: at that of random ones any rounding grows tenfold every few steps.
    flags = {**RUN, **ONLINE, "images": [str(photos)], "out": str(folder / "run")}
    config = load_config(settings=[*TUNED, *CROPS], flags=flags)
    label_as_run(folder, config, "png", "jpeg", "none", views=2)
    return folder, config


@pytest.mark.parametrize("how", ["png", "none"])
def test_batches_are_those_of_an_online_run_to_half_a_step_of_16_bits(online, how):
    folder, config = online
    source = open_source(config.images)
    training, _ = split_heldout(source, config.heldout)
    specs = parse_teachers(config.teachers)
    pool = load_teachers(specs, device=torch.device("cpu"), offline=True, has_depth=False, seed=0)
    from distilldepth.distill.crops import crop_config
    from distilldepth.distill.kept_labels import open_labels

    dataset = CropDataset(training, crop_config(config), config.seed)
    again = load_config(settings=TUNED, flags={**RUN, "labels": [str(folder / how)]})
    stored = TeacherPool(open_labels(again, (0, 1)).teachers([]), 0)
    assert [teacher.weight for teacher in stored.teachers] == [2.0, 1.0]
    feed = Feed(stored, None, batches=1, batch_size=2)
    drawn = Counter()
    with feed.open(0, 20, 2, pin=False) as batches:
        for step, ordinals in enumerate(StepBatches(0, 20, 2)):
            expected = Regions.collate([dataset[ordinal] for ordinal in ordinals])
            found, label = label_batch(
                next(batches), stored.draw(step), again.augment, torch.device("cpu"), features=()
            )
            drawn[label.teacher] += 1
            expected, target = label_batch(expected, pool.draw(step), config.augment, torch.device("cpu"), features=())
            assert label.teacher == target.teacher
            assert found.name == expected.name
            assert found.cut == expected.cut
            assert torch.equal(found.boxes, expected.boxes)
            for ours, theirs in ((label.disparity, target.disparity), (label.patch_disparity, target.patch_disparity)):
                span = theirs.flatten(1).amax(1) - theirs.flatten(1).amin(1)
                assert ((ours - theirs).abs().flatten(1).amax(1) <= span * (0.5 / 65534) + 1e-6).all()
            assert label.valid.all()
            assert label.patch_valid.all()
    assert set(drawn) == {"distilldepth-mini", "genpercept-mini"}


def test_the_student_is_that_of_the_online_run(online):
    folder, config = online
    distill(config)
    expected, curve = weights(folder / "run"), [row["loss"] for row in metrics(folder / "run")]
    flat = torch.cat([value.flatten().double() for value in expected.values()])
    # Largest relative difference of the loss, and of all weights together.
    for how, of_loss, of_weights in (("png", 5e-4, 1e-4), ("jpeg", 5e-2, 1e-2)):
        flags = {**RUN, "steps": STEPS, "labels": [str(folder / how)], "out": str(folder / f"run-{how}")}
        result = distill(load_config(settings=TUNED, flags=flags))
        rows = metrics(folder / f"run-{how}")
        assert [row["teachers"] for row in rows] == [row["teachers"] for row in metrics(folder / "run")]
        loss = np.array([row["loss"] for row in rows])
        found = torch.cat([value.flatten().double() for value in weights(folder / f"run-{how}").values()])
        assert np.max(np.abs(loss / curve - 1)) < of_loss
        assert (found - flat).norm() / flat.norm() < of_weights
        before = json.loads((folder / "run" / "agreement.jsonl").read_text().splitlines()[0])["teachers"]
        for name, scores in result.before["teachers"].items():
            assert scores["correlation"] == pytest.approx(before[name]["correlation"], abs=1e-5)
        card = (folder / f"run-{how}" / "student" / "README.md").read_text()
        page = (folder / f"run-{how}" / "report.html").read_text()
        identity = LabelFolder(parse_location(str(folder / how))).identity[:16]
        for text in (card, page, " ".join(result.labels)):
            assert str(folder / how) in text
            assert identity in text


# Which sample is where.


def test_every_sample_comes_once_in_an_epoch_and_from_anywhere_in_the_same_order(tmp_path, monkeypatch):
    made_up(tmp_path / "labels", {"a": 23}, per_shard=6)
    monkeypatch.setattr("distilldepth.teachers.stream.BUFFER_SAMPLES", 4)
    stream = stream_of(tmp_path / "labels")
    order = stream.order
    assert order.buffer == 4
    read = keys(stream, range(46))
    names = [sample_key(number) for number in range(23)]
    epochs = [read[start : start + 23] for start in range(0, 92, 23)]
    assert epochs[0] == names
    for epoch in epochs:
        assert Counter(epoch) == Counter(names)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[1] == [sample_key(shard * 6 + place) for shard, place in (order.at(1, n) for n in range(23))]
    opened = []
    monkeypatch.setattr(
        location, "gopen", lambda url, mode, _real=location.gopen: opened.append(url) or _real(url, mode)
    )
    for start in (1, 5, 11, 12, 17, 30, 41):
        opened.clear()
        assert keys(stream_of(tmp_path / "labels"), range(start, start + 2)) == read[2 * start : 2 * start + 4]
        assert len([url for url in opened if url.endswith(".tar")]) <= 2, "a shard before the position was read"
    assert keys(stream_of(tmp_path / "labels", seed=3), range(11)) != names[:22], "another seed, another order"
    assert len(set(keys(stream_of(tmp_path / "labels", seed=3), range(11)))) == 22


@pytest.mark.parametrize(("samples", "own"), [(24, True), (5, False)])
def test_processes_share_an_epoch_without_overlap(tmp_path, samples, own):
    made_up(tmp_path / "labels", {"a": samples}, per_shard=6)
    both = [stream_of(tmp_path / "labels", process=process, processes=2) for process in (0, 1)]
    assert [stream.share.own for stream in both] == [own, own]
    batches = range(6 if own else 5)
    read = [[raw.name for number in batches for raw in stream.batch(number)] for stream in both]
    if own:
        assert Counter(read[0] + read[1]) == Counter(set(read[0] + read[1]))
        assert len(read[0] + read[1]) == samples
        shards = [{name.split("/")[-2] for name in names} for names in read]
        assert not shards[0] & shards[1], "each has shards of its own"
    else:
        one = stream_of(tmp_path / "labels", batch=4)
        together = [raw.name for number in batches for raw in one.batch(number)]
        shared = [name for n in batches for names in read for name in names[2 * n : 2 * n + 2]]
        assert shared == together


@pytest.mark.parametrize(("counts", "processes"), [((6, 6, 5), 3), ((7, 7, 7, 1), 3), ((4, 4), 2)])
def test_shares_cover_every_epoch_exactly(counts, processes):
    total = sum(counts)
    order = StreamOrder(counts, 3, 1, 0, as_stored=False)
    for epoch in (0, 4):
        seen = Counter()
        for process in range(processes):
            share = Share(process, processes, 2, own=True, samples=total)
            begin, end = share.bounds
            assert share.place(epoch * (end - begin)) == (epoch, begin)
            for shard, first, last in order.parts(epoch, begin, end):
                seen.update((shard, place) for place in range(first, last))
        assert seen == Counter((shard, place) for shard, count in enumerate(counts) for place in range(count))


def test_accumulated_batches_are_of_one_teacher_and_resume_in_place(tmp_path):
    made_up(tmp_path / "labels", {"a": 9, "b": 7})
    opened = LabelFolder(parse_location(str(tmp_path / "labels")))
    pool = TeacherPool(open_teachers([opened], [None], seed=0, share=(0, 1, 2)), 0)
    feed = Feed(pool, None, batches=3, batch_size=2)
    with feed.open(0, 12, 3, pin=False) as batches:
        everything = list(batches)
    for number, batch in enumerate(everything):
        assert batch.label.teacher == pool.draw(number // 3).name
        assert torch.equal(feed.batch(number).image, batch.image)
    assert len({batch.label.teacher for batch in everything}) == 2
    with feed.open(7, 12, 1, pin=False) as batches:
        for batch, expected in zip(batches, everything[7:], strict=True):
            assert torch.equal(batch.image, expected.image)
            assert batch.name == expected.name


# A run that is interrupted.


def test_a_run_that_is_killed_in_mid_epoch_goes_on_bit_by_bit(tmp_path, monkeypatch):
    made_up(tmp_path / "labels", {"a": 17, "b": 13}, heldout=1)
    command = [
        sys.executable, "-m", "distilldepth.cli.main", "distill", "--labels", str(tmp_path / "labels"), "--offline",
        *(word for key, value in RUN.items() for word in (f"--{key.replace('_', '-')}", str(value))),
        *(word for setting in QUIET for word in ("--set", setting)), "--checkpoint-every", "3",
    ]  # fmt: skip
    distill(stored_run(tmp_path / "labels", tmp_path / "whole", steps=20, checkpoint_every=3))
    run = tmp_path / "killed"
    start = [*command, "--steps", "20", "--out", str(run)]
    process = subprocess.Popen(start, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    wait_until(lambda: (run / "metrics.jsonl").is_file() and len(metrics(run)) >= 4)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was over before the signal came"
    set_rate = trainer.set_learning_rate

    def end_at_step_11(optimiser: object, config: object, step: int) -> None:
        set_rate(optimiser, config, step)
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "set_learning_rate", end_at_step_11)
        with pytest.raises(Interrupted):
            distill(stored_run(tmp_path / "labels", run, steps=20, checkpoint_every=30, resume="auto"))
    assert (run / "checkpoints" / "step-00000011").is_dir()
    distill(stored_run(tmp_path / "labels", run, steps=20, checkpoint_every=3, resume="auto"))
    expected, found = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(tmp_path / "whole")]


def test_a_run_goes_on_with_the_same_labels_only(tmp_path):
    made_up(tmp_path / "labels", {"a": 9})
    distill(stored_run(tmp_path / "labels", tmp_path / "run", checkpoint_every=2))
    shutil.rmtree(tmp_path / "labels")
    made_up(tmp_path / "labels", {"a": 9}, versions={"distilldepth": "another"})
    with pytest.raises(
        ValueError, match=r"labels are not those that .* was trained on \([0-9a-f]{32} then, [0-9a-f]{32} now"
    ):
        distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=6, resume="auto"))


# What is broken.


def rewrite(folder: Path, change, shard: str = "a/000001.tar") -> None:
    """Write a shard anew with its members changed; the index keeps its line but for the bytes."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / shard) as archive:
        for member in archive:
            key, _, name = member.name.partition(".")
            samples.setdefault(key, {})[name] = archive.extractfile(member).read()
    row = write_shard(folder, shard, change(list(samples.items())))
    index = json.loads((folder / "index.json").read_text())
    for line in index["shardlist"]:
        if line["url"] == shard:
            line["filesize"] = row.filesize
    (folder / "index.json").write_text(json.dumps(index))


def without_map(samples):
    del samples[1][1]["map.png"]
    return samples


def with_another_map(samples):
    samples[1][1]["map.png"] = samples[2][1]["map.png"]
    return samples


def without_a_sample(samples):
    return [sample for sample in samples if sample[0] != sample_key(5)]


def with_names_of_elsewhere(samples):
    (_, members) = samples[1]
    samples[1] = ("../../" + sample_key(5), members)
    samples.append(("/etc/" + sample_key(5), members))
    return samples


def with_a_picture_of(width: int, height: int, samples):
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    samples[1][1]["image.png"] = content.getvalue()
    import zlib

    facts = json.loads(samples[1][1]["json"])
    facts["crc32"]["image.png"] = zlib.crc32(content.getvalue())
    samples[1][1]["json"] = json.dumps(facts).encode()
    return samples


BROKEN = {
    "a member is missing": (without_map, "map.png: is missing"),
    "wrong checksum": (with_another_map, "map.png: is not what was written"),
    "a sample is missing": (without_a_sample, "it is not there"),
    "names of elsewhere": (with_names_of_elsewhere, "it is not there"),
    "one pixel": (functools.partial(with_a_picture_of, 1, 1), "image.png: is (1, 1)"),
    "100 megapixels": (functools.partial(with_a_picture_of, 10_000, 10_000), "image.png: is (10000, 10000)"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_sample_keeps_its_place_and_is_named(tmp_path, how):
    change, words = BROKEN[how]
    made_up(tmp_path / "labels", {"a": 12})
    whole = stream_of(tmp_path / "labels")
    expected = [raw for number in range(6) for raw in whole.batch(number)]
    rewrite(tmp_path / "labels", change)
    opened = LabelFolder(parse_location(str(tmp_path / "labels")))
    (teacher,) = open_teachers([opened], [None], seed=0, share=(0, 1, 2))
    found = [raw for number in range(6) for raw in teacher.stream.batch(number)]
    decoded = [teacher.decode(raw) for raw in found]
    assert [raw.name for raw in found] == [raw.name for raw in expected]
    assert [isinstance(sample, str) for sample in decoded] == [number == 5 for number in range(12)]
    assert f"labels/a/000001.tar/{sample_key(5)}" in decoded[5]
    assert words in decoded[5]
    batch = teacher.assemble(decoded[4:6])
    assert batch.label.valid.flatten(1).any(1).tolist() == [True, False]
    assert batch.label.patch_valid.flatten(1).any(1).tolist() == [True, False]
    assert batch.unreadable == [0, 1]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 5 // 8)


def compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def with_a_damaged_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(sample_key(5).encode()) + 150] ^= 0x15
    path.write_bytes(content)


def sparse(path: Path) -> None:
    """A member that says it unpacks to 4 TB."""
    content = bytearray(path.read_bytes())
    start = content.index(sample_key(5).encode())
    header = content[start : start + 512]
    header[156:157] = b"S"
    header[483:495] = b"7777777777\0 "
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    content[start : start + 512] = header
    path.write_bytes(content)


def with_a_long_tail(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.index(sample_key(6).encode())] + bytes(0) + content[512:] * 3)


@pytest.mark.parametrize("damage", [cut_short, compressed, with_a_damaged_header, sparse, with_a_long_tail])
def test_a_damaged_shard_is_read_as_far_as_it_goes(tmp_path, damage):
    made_up(tmp_path / "labels", {"a": 12})
    damage(tmp_path / "labels" / "a" / "000001.tar")
    result = distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=6))
    rows = metrics(result.folder)
    lost = sum(row["unreadable"] for row in rows)
    named = " ".join(error for row in rows for error in row.get("errors", []))
    assert 1 <= lost <= 4
    assert sum(row["skipped"] for row in rows) == 0
    assert named.count("a/000001.tar/") == lost
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert "left out" in named


def test_labels_of_which_none_can_be_read_end_in_one_line(tmp_path):
    made_up(tmp_path / "labels", {"a": 8})
    for path in (tmp_path / "labels" / "a").glob("*.tar"):
        path.write_bytes(b"nothing")
    with pytest.raises(DistillDepthError, match=r"8 samples in a row cannot be read; .*a/00000[01].tar/") as caught:
        distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=20))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["pipe:false", "pipe:", "pipe: cat "])
def test_a_pipe_without_a_place_is_refused(text):
    with pytest.raises(UsageError, match="must be pipe:COMMAND PREFIX"):
        parse_location(text)


def test_a_short_run_that_read_nothing_is_no_success(tmp_path):
    made_up(tmp_path / "labels", {"a": 12})
    for path in (tmp_path / "labels" / "a").glob("0*.tar"):
        path.write_bytes(b"")
    with pytest.raises(DistillDepthError, match="stopped at step 2: 4 of 4 stored samples could not be read") as caught:
        distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=2))
    assert "label --check" in str(caught.value)
    assert not (tmp_path / "run" / "student").exists()


def test_labels_of_another_teacher_than_recorded_are_refused(tmp_path):
    made_up(tmp_path / "labels", {"a": 8, "b": 8})
    shutil.copy(tmp_path / "labels" / "b" / "000001.tar", tmp_path / "labels" / "a" / "000001.tar")
    with pytest.raises(DistillDepthError, match=r"was labelled by b \(0+2?\), the set says by a \(0+1?\)"):
        distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=20))


def no_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def shard_gone(folder: Path) -> None:
    (folder / "a" / "000001.tar").unlink()


def not_listed(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    del index["shardlist"][1]
    (folder / "index.json").write_text(json.dumps(index))


def too_few(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"nsamples": 4', '"nsamples": 3', 1))


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        (no_index, "index.json is missing"),
        (shard_gone, "a/000001.tar is missing"),
        (not_listed, "does not list a/000001.tar"),
        (too_few, "has 3 samples, 4 are meant"),
    ],
)
def test_labels_that_are_not_whole_are_refused_with_what_completes_them(tmp_path, lack, words):
    made_up(tmp_path / "labels", {"a": 8})
    lack(tmp_path / "labels")
    with pytest.raises(DistillDepthError, match=words) as caught:
        distill(stored_run(tmp_path / "labels", tmp_path / "run"))
    assert f"distilldepth label --teachers a=1 --images photos --out {tmp_path / 'labels'}" in str(caught.value)
    assert "label --check" in str(caught.value)


# What the run asks for.


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        (["crop.min_crop=40"], {}, "min_crop: labels 32, run 40"),
        (["crop.flip=false"], {}, "flip: labels true, run false"),
        ([], {"size": "64"}, r"size: labels \[32, 40\], run \[64, 64\]"),
    ],
)
def test_labels_with_other_crops_are_refused_with_the_difference(tmp_path, settings, flags, words):
    made_up(tmp_path / "labels", {"a": 8})
    with pytest.raises(UsageError, match=words):
        distill(stored_run(tmp_path / "labels", tmp_path / "run", *settings, **flags))


def test_a_preset_that_cuts_otherwise_is_refused_and_windows_need_not_be_used(tmp_path):
    made_up(tmp_path / "labels", {"a": 8})
    config = load_config(
        preset="photos", flags={**RUN, "labels": [str(tmp_path / "labels")], "out": str(tmp_path / "r")}
    )
    with pytest.raises(UsageError, match="min_crop: labels 32, run 96"):
        distill(config)
    distill(stored_run(tmp_path / "labels", tmp_path / "run", "loss.local_global=0"))
    assert "local_global" not in metrics(tmp_path / "run")[0]["terms"]


def test_two_sets_must_be_cut_alike(tmp_path):
    first = made_up(tmp_path / "one", {"a": 8})
    made_up(tmp_path / "two", {"b": 8}, crops={**first.crops, "min_crop": 33})
    with pytest.raises(UsageError, match=r"two are cut in another way .*min_crop: labels 33, run 32"):
        distill(stored_run([tmp_path / "one", tmp_path / "two"], tmp_path / "run"))


def test_teachers_and_images_count_only_if_they_are_named(tmp_path):
    made_up(tmp_path / "labels", {"a": 8})
    labels = [str(tmp_path / "labels")]
    config = load_config(preset="scenes", settings=["size=32x40"], flags={"labels": labels})
    assert (config.teachers, config.images, config.teacher_specs) == ("", [], [])
    (tmp_path / "config.toml").write_text(f'labels = ["{labels[0]}"]\nteachers = "dav2-mini"\nimages = ["scenes:5"]\n')
    config = load_config(file=tmp_path / "config.toml")
    assert [spec.model for spec in config.teacher_specs] == ["dav2-mini"]
    assert config.images == ["scenes:5"]
    with pytest.raises(UsageError, match="besides labels need --images"):
        load_config(flags={"labels": labels, "teachers": "dav2"})


def test_a_file_runs_no_command(tmp_path):
    made_up(tmp_path / "labels", {"a": 8})
    command = f"pipe:touch {tmp_path}/run; cat {tmp_path}/labels"
    (tmp_path / "config.toml").write_text(f'labels = ["{command}"]\n')
    with pytest.raises(UsageError, match="a command runs only if it is typed: add --labels 'pipe:touch"):
        load_config(file=tmp_path / "config.toml")
    assert not (tmp_path / "run").exists()
    assert load_config(file=tmp_path / "config.toml", flags={"labels": [command]}).size == "32x40"
    assert (tmp_path / "run").exists()


def test_weights_of_sets():
    assert parse_location("a/b=2").weight == 2
    assert parse_location("https://host/x?y=z").root == "https://host/x?y=z"
    assert parse_location("pipe:ssh host cat labels/=0.5") == location.Location("pipe:ssh host cat labels", 0.5)
    for text in ("", "  ", "a=0", "a=nan", "s3://bucket/labels"):
        with pytest.raises(UsageError):
            parse_location(text)


def test_sets_without_images_want_the_same_photographs(online, tmp_path):
    folder = online[0]
    other = photographs(tmp_path / "photos", 9)
    flags = {**RUN, "labels": [str(folder / "none")], "images": [str(other)], "out": str(tmp_path / "run")}
    with pytest.raises(
        DistillDepthError, match=r"not those that were labelled \(23 images, \w+ then, 9 images, \w+ now\)"
    ):
        distill(load_config(settings=TUNED, flags=flags))


def test_stored_and_live_teachers_are_mixed(tmp_path):
    photos = photographs(tmp_path / "photos", 12)
    made_up(tmp_path / "one", {"a": 8}, heldout=2)
    made_up(tmp_path / "two", {"a": 10}, heldout=3)
    flags = {
        "teachers": "distilldepth-mini=2",
        "images": [str(photos)], "heldout": 2, "steps": 24, "log_every": 24, "checkpoint_every": 10,
    }  # fmt: skip
    sets = [tmp_path / "one", f"{tmp_path / 'two'}=3"]
    result = distill(stored_run(sets, tmp_path / "run", **flags))
    drawn = metrics(tmp_path / "run")[-1]["teachers"]
    assert set(drawn) == {"distilldepth-mini", "a@one", "a@two"}
    assert drawn["a@two"] > drawn["a@one"]
    assert set(result.after["teachers"]) == set(drawn)
    assert result.after["images"] == 2 + 2 + 3
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000024")
    expected = weights(tmp_path / "run")
    distill(stored_run(sets, tmp_path / "run", **flags, resume="auto"))
    assert all(torch.equal(value, weights(tmp_path / "run")[name]) for name, value in expected.items())


# Over a network.


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what it gives, and hangs up in the middle when it is told to."""

    given: ClassVar[Counter] = Counter()
    cut: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rpartition("/labels/")[2]
        if name in self.cut:
            self.cut.remove(name)
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) * 2 // 3])
            return
        self.given[name] += 1
        super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(location, "WAITS", [0.01, 0.02])
    monkeypatch.setattr("distilldepth.teachers.stream.WAITS", [0.01, 0.02])
    Handler.given, Handler.cut = Counter(), []
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/labels"
        running.shutdown()
        thread.join()


def test_labels_come_over_http_each_shard_once_and_again_after_a_break(tmp_path, server):
    made_up(tmp_path / "labels", {"a": 22}, per_shard=8)
    expected = keys(stream_of(tmp_path / "labels", seed=1), range(11))
    Handler.cut = ["a/000001.tar"]
    assert keys(stream_of(server, seed=1), range(11)) == expected
    assert {name: count for name, count in Handler.given.items() if name.endswith("tar")} == {
        "a/000000.tar": 1, "a/000001.tar": 1, "a/000002.tar": 1,
    }  # fmt: skip
    assert Handler.cut == []


def test_a_run_over_http_or_a_pipe_is_that_from_disk(tmp_path, server):
    made_up(tmp_path / "labels", {"a": 9, "b": 5}, heldout=1)
    found = []
    for number, where in enumerate((tmp_path / "labels", server, f"pipe:cat {tmp_path}/labels")):
        result = distill(stored_run(where, tmp_path / f"run-{number}"))
        found.append(weights(result.folder))
    for others in found[1:]:
        assert all(torch.equal(value, others[name]) for name, value in found[0].items())


def test_what_fails_on_the_way_is_one_line(tmp_path, server):
    made_up(tmp_path / "labels", {"a": 9})
    (tmp_path / "labels" / "a" / "000001.tar").rename(tmp_path / "elsewhere.tar")
    with pytest.raises(DistillDepthError, match=r"http://127\S+/a/000001.tar: cannot be read \(the server has no such"):
        distill(stored_run(server, tmp_path / "run", steps=9))
    for where, words in (
        (server + "/nowhere", r"nowhere/labels.json: cannot be read \(the server has no such file"),
        ("http://127.0.0.1:9/labels", r"cannot be read \(the connection is refused; tried 3 times\)"),
        ("pipe:exit 3 #", r"cannot be read \(the command ended with 3; tried 3 times\)"),
        (str(tmp_path / "nowhere"), "has no labels.json"),
    ):
        with pytest.raises(DistillDepthError, match=words) as caught:
            stored_run(where, tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_a_server_that_goes_in_mid_run_costs_no_more_than_the_steps_since_the_checkpoint(tmp_path, server):
    made_up(tmp_path / "labels", {"a": 40})
    shards = sorted((tmp_path / "labels" / "a").glob("*.tar"))
    for shard in shards[4:]:
        shard.rename(tmp_path / shard.name)
    gone = stored_run(server, tmp_path / "run", steps=19, checkpoint_every=1)
    with pytest.raises(
        DistillDepthError, match=r"the last checkpoint is \S+step-0000000\d; continue with: (.*)$"
    ) as told:
        distill(gone)
    for shard in shards[4:]:
        (tmp_path / shard.name).rename(shard)
    line = shlex.split(str(told.value).rpartition("continue with: ")[2])
    done = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, 20))


def test_a_teacher_that_got_no_sample_is_named(tmp_path):
    made_up(tmp_path / "labels", {"a": 9, "b": 0})
    with pytest.warns(UserWarning, match="labels: b labelled no sample of so small a set and does not teach"):
        distill(stored_run(tmp_path / "labels", tmp_path / "run", steps=1))


def test_encoded_and_decoded_samples_agree(tmp_path):
    # The helper of these tests writes what the format says.
    labels = made_up(tmp_path / "labels", {"a": 3}, map_format="float16")
    opened = LabelFolder(parse_location(str(tmp_path / "labels")))
    (teacher,) = open_teachers([opened], [None], seed=0, share=(0, 1, 3))
    for raw in teacher.stream.batch(0):
        sample = teacher.decode(raw)
        again = encode_sample(dataclasses.replace(sample), labels)
        assert again["image.png"] == raw.members["image.png"]


@pytest.mark.parametrize("size", [(40, 50), (260, 300)])
def test_maps_of_any_size_come_back_to_half_a_step_and_unknown_stays_unknown(tmp_path, size):
    labels = made_up(tmp_path / "labels", {"a": 1})
    labels = dataclasses.replace(labels, crops={**labels.crops, "size": list(size), "patches": 0})
    generator = np.random.default_rng(6)
    disparity = (generator.random(size) * 7 - 3).astype(np.float32)
    disparity[3:7, 5:9] = np.nan
    image = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    none = np.empty((0, 4), np.float32)
    sample = LabelledRegion(0, "x", Cut(0, 0, 9, 9, False), image, none, disparity, np.empty((0, 1, 1)), True, "a")
    found = decode_sample(encode_sample(sample, labels), labels, "x")
    assert np.array_equal(np.isnan(found.disparity), np.isnan(disparity))
    span = np.nanmax(disparity) - np.nanmin(disparity)
    assert np.nanmax(np.abs(found.disparity - disparity)) <= span * 0.5 / 65534 + 1e-6
    assert np.array_equal(found.image, image)
