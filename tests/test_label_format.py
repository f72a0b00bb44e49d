"""Labels on disk: what is written comes back to the error that is stated; what others wrote is looked at first."""

import dataclasses
import io
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distilldepth.errors import DistillDepthError
from distilldepth.images.crops import Cut
from distilldepth.teachers.shards import (
    MAPS,
    LabelledRegion,
    LabelSet,
    Shard,
    StoredTeacher,
    decode_sample,
    encode_sample,
    folder_name,
    index_text,
    labels_text,
    parse_index,
    parse_labels,
    sample_key,
    shard_name,
)

TEACHER = StoredTeacher("dav2-mini", "dav2", 7.0, "dav2-mini", 10, "d" * 64, "disparity", "MIT", "here", "float32")
SET = LabelSet(
    images=["photos"],
    fingerprint="10 images, 0123456789abcdef",
    training=10,
    heldout=2,
    views=1,
    group=4,
    seed=3,
    crops={"size": [31, 47], "patch_size": [17, 23], "patches": 3},
    settings={"size": "31x47"},
    teachers=[TEACHER],
    image_format="jpeg",
    map_format="png16",
    samples_per_shard=4,
    versions={"distilldepth": "1"},
)


def make_sample(seed: int = 0, **changes) -> LabelledRegion:
    rng = np.random.default_rng(seed)
    disparity = rng.normal(size=(31, 47)).astype(np.float32) * 50 + 7
    disparity[3:5, 2:] = np.nan
    smooth = np.add.outer(np.arange(31) * 3, np.arange(47)).astype(np.uint8)
    values = {
        "ordinal": 12,
        "name": "photos/ü b.jpg",
        "cut": Cut(1, 2, 62, 94, True),
        "image": np.stack([smooth, 255 - smooth, smooth // 2], -1),
        "boxes": np.sort(rng.random((3, 4)), 1).astype(np.float32) * 30,
        "disparity": disparity,
        "windows": rng.random((3, 17, 23)).astype(np.float32),
        "inverse_depth": True,
        "teacher": "dav2-mini",
    }
    return LabelledRegion(**{**values, **changes})


def read_again(sample: LabelledRegion, labels: LabelSet) -> LabelledRegion:
    return decode_sample(encode_sample(sample, labels), labels, "a/000000.tar/0")


@pytest.mark.parametrize(("how", "error"), [("png16", 0.5 / 65534), ("float16", 2**-12)])
@pytest.mark.parametrize("images", ["jpeg", "png", "none"])
def test_a_sample_comes_back_to_the_stated_error(how, error, images):
    sample, labels = make_sample(), dataclasses.replace(SET, map_format=how, image_format=images)
    found = read_again(sample, labels)
    for name in ("ordinal", "name", "cut", "inverse_depth", "teacher"):
        assert getattr(found, name) == getattr(sample, name)
    np.testing.assert_array_equal(found.boxes, sample.boxes)
    for maps, wanted in ((found.disparity[None], sample.disparity[None]), (found.windows, sample.windows)):
        np.testing.assert_array_equal(np.isnan(maps), np.isnan(wanted))
        for one, other in zip(maps, wanted, strict=True):
            span = np.nanmax(other) - np.nanmin(other)
            # float32 rounds once more on the way out.
            assert np.nanmax(np.abs(one - other)) <= error * span * 1.01 + np.nanmax(np.abs(other)) * 2**-23
    if images == "none":
        assert found.image is None
    elif images == "png":
        np.testing.assert_array_equal(found.image, sample.image)
    else:
        assert np.abs(found.image.astype(int) - sample.image).mean() < 3


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(0, 2**32),
    st.sampled_from(MAPS),
)  # fmt: skip
def test_any_map_keeps_its_order_and_its_unknown_pixels(height, width, offset, scale, seed, how):
    rng = np.random.default_rng(seed)
    values = (rng.random((height, width)) * scale + offset).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    crops = {"size": [height, width], "patch_size": None, "patches": 0}
    labels = dataclasses.replace(SET, crops=crops, image_format="none", map_format=how)
    sample = make_sample(disparity=values, windows=np.empty((0, height, width), np.float32), boxes=np.empty((0, 4)))
    found = read_again(sample, labels).disparity
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    # Monotone: nothing that was nearer is farther now.
    assert (np.diff(found[known][order]) >= 0).all()


def test_constant_and_unknown_maps_survive():
    for value in (0.0, -3.5, np.nan):
        found = read_again(make_sample(disparity=np.full((31, 47), value, np.float32)), SET)
        np.testing.assert_array_equal(found.disparity, np.full((31, 47), value, np.float32))


def test_infinite_values_are_unknown_after_reading():
    disparity = make_sample().disparity.copy()
    disparity[0, :3] = [np.inf, -np.inf, 5]
    found = read_again(make_sample(disparity=disparity), SET).disparity
    assert np.isnan(found[0, :2]).all()
    assert found[0, 2] == pytest.approx(5, abs=0.01)


def test_heldout_samples_are_whole_and_exact():
    labels = SET.for_heldout()
    assert labels.windows[0] == 0
    sample = make_sample(windows=np.empty((0, 31, 47), np.float32), boxes=np.empty((0, 4), np.float32))
    np.testing.assert_array_equal(read_again(sample, labels).image, sample.image)


def spoil_crc(members, member):
    facts = json.loads(members["json"])
    facts["crc32"][member] = zlib.crc32(members[member])
    members["json"] = json.dumps(facts).encode()


def png_of(shape) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ones(shape, np.uint16)).save(content, "PNG")
    return content.getvalue()


def npy_of(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


@pytest.mark.parametrize(
    ("member", "content", "says"),
    [
        ("map.png", None, "is missing"),
        ("image.jpg", None, "is missing"),
        ("windows.png", None, "is missing"),
        ("json", None, "has no .json"),
        ("map.png", png_of((30, 47)), "31 x 47"),
        ("windows.png", png_of((51, 22)), "51 x 23"),
        ("map.png", b"nothing", "damaged"),
        ("json", b"{", "JSON"),
        ("json", b"[]", "does not describe"),
    ],
)
def test_what_is_wrong_with_a_sample_is_one_line(member, content, says):
    members = encode_sample(make_sample(), SET)
    if content is None:
        del members[member]
    else:
        members[member] = content
        if member != "json":
            spoil_crc(members, member)
    with pytest.raises(DistillDepthError, match=says) as caught:
        decode_sample(members, SET, "a/000000.tar/000000007")
    assert "000000007" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"seed": 4}, {"fingerprint": "10 images, 0"}])
def test_a_sample_of_another_set_is_refused(change):
    members = encode_sample(make_sample(), SET)
    with pytest.raises(DistillDepthError, match="of another set"):
        decode_sample(members, dataclasses.replace(SET, **change), "a/000000.tar/0")


def test_a_changed_byte_is_noticed():
    members = encode_sample(make_sample(), SET)
    at = len(members["map.png"]) // 2
    members["map.png"] = members["map.png"][:at] + bytes([members["map.png"][at] ^ 1]) + members["map.png"][at + 1 :]
    with pytest.raises(DistillDepthError, match=r"map\.png: is not what was written"):
        decode_sample(members, SET, "a/000000.tar/0")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scales", [[1, 2]]), ("scales", [[1, 2], [1, 2], [1, 2], [1, float("nan")]]), ("boxes", []),
        ("boxes", [[1, 2, 3]] * 3), ("ordinal", -1), ("ordinal", "1"), ("name", 3), ("cut", [1, 2]), ("crc32", []),
        ("inverse_depth", 1), ("teacher", None),
    ],
)  # fmt: skip
def test_facts_that_make_no_sense_are_refused(key, value):
    members = encode_sample(make_sample(), SET)
    members["json"] = json.dumps({**json.loads(members["json"]), key: value}).encode()
    with pytest.raises(DistillDepthError, match="does not describe a sample"):
        decode_sample(members, SET, "a/000000.tar/0")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((31, 46), np.float16),
        np.zeros((31, 47), np.float32),
        np.asfortranarray(np.zeros((31, 47), np.float16)),
        np.array([[{"a": 1}] * 47] * 31, object),
    ],
)
def test_arrays_of_another_kind_are_refused_without_unpickling(array):
    labels = dataclasses.replace(SET, map_format="float16")
    members = encode_sample(make_sample(), labels)
    members["map.npy"] = npy_of(array)
    spoil_crc(members, "map.npy")
    with pytest.raises(DistillDepthError, match=r"map\.npy: is no map"):
        decode_sample(members, labels, "a/000000.tar/0")


def test_a_short_array_is_refused():
    labels = dataclasses.replace(SET, map_format="float16")
    members = encode_sample(make_sample(), labels)
    members["map.npy"] = members["map.npy"][:-9]
    spoil_crc(members, "map.npy")
    with pytest.raises(DistillDepthError, match=r"map\.npy: is damaged"):
        decode_sample(members, labels, "a/000000.tar/0")


def test_the_set_and_its_index_come_back():
    assert parse_labels(labels_text(SET), "labels.json") == SET
    shards = [Shard(shard_name(TEACHER, k), 4, 1000 + k, f"{k:064x}") for k in (0, 1, "heldout") if k != "heldout"]
    shards.append(Shard(shard_name(TEACHER, "heldout"), 2, 77, "f" * 64))
    assert parse_index(index_text(shards), "index.json") == shards
    assert json.loads(index_text(shards))["__kind__"] == "wids-shard-index-v1"
    assert SET.shards(TEACHER) == 3
    assert sample_key(12) == "000000012"


@pytest.mark.parametrize(
    "url",
    ["../a/000000.tar", "/a/000000.tar", "a/../000000.tar", "pipe:rm -rf x", "a/b/000000.tar", "a/x.tar",
     ".a/000000.tar", "a/000000.tar\n", "http://x/000000.tar"],
)  # fmt: skip
def test_an_index_cannot_lead_out_of_its_set(url):
    row = {"url": url, "nsamples": 1, "filesize": 1, "sha256": "0" * 64}
    with pytest.raises(DistillDepthError, match="no line of an index"):
        parse_index(json.dumps({"shardlist": [row]}), "index.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crops", {"size": [0, 4], "patches": 0}), ("crops", {"size": [10**9, 4], "patches": 0}), ("crops", []),
        ("crops", {"size": [4, 4], "patches": 10**9}), ("teachers", []), ("views", -1), ("samples_per_shard", 0),
        ("image_format", "gif"), ("seed", True), ("training", 10**30), ("group", 0), ("teachers", [{"name": "x"}]),
    ],
)  # fmt: skip
def test_a_set_that_makes_no_sense_is_refused(key, value):
    text = json.dumps({**json.loads(labels_text(SET)), key: value})
    with pytest.raises(DistillDepthError, match=r"labels\.json"):
        parse_labels(text, "labels.json")


def test_a_folder_of_a_teacher_stays_in_its_set():
    row = {**json.loads(labels_text(SET))}
    row["teachers"][0]["folder"] = "../elsewhere"
    with pytest.raises(DistillDepthError, match="teachers"):
        parse_labels(json.dumps(row), "labels.json")


@pytest.mark.parametrize("name", ["dav2-large", "org/model", "../x", "ünï", "", "python:a.py:f"])
def test_every_teacher_gets_a_folder(name):
    folder = folder_name(name)
    assert parse_labels(
        labels_text(dataclasses.replace(SET, teachers=[dataclasses.replace(TEACHER, folder=folder)])), "labels.json"
    )


def test_labels_of_a_later_version_are_refused():
    with pytest.raises(DistillDepthError, match="version 2"):
        parse_labels(labels_text(dataclasses.replace(SET, version=2)), "labels.json")
