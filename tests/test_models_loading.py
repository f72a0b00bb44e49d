"""`load_model`, `save_model`, the registry and the hub: what is found where, and what is said when it is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from waiting import patience_s

from distilldepth.errors import DistillDepthError
from distilldepth.models import (
    BundledModelWarning,
    count_parameters,
    create_student,
    describe,
    hub,
    load_model,
    registry,
    save_model,
    student_names,
    teacher_names,
)
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.depth_anything import build
from distilldepth.models.preprocess import resize

TINY = {
    "hidden": 32,
    "layers": 4,
    "heads": 2,
    "mlp_ratio": 2,
    "taps": [0, 1, 2, 3],
    "neck": [8, 8, 8, 8],
    "fusion": 8,
    "head_hidden": 8,
    "image_size": 56,
}


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return build(TINY, ModelInfo("tiny", "depth-anything", "disparity", "Apache-2.0", "a test")).eval()


@pytest.fixture(autouse=True)
def lonely(monkeypatch, tmp_path):
    """No checkpoints folder, no cache, no memory of an unreachable hub, and a network that must not be touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILLDEPTH_CHECKPOINTS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(hub, "_unreachable_since", None)

    def refuse(*arguments, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def unreachable(monkeypatch):
    def fail(repo_id):
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "_probe", fail)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_round_trip(tmp_path, tiny, dtype):
    images = torch.rand(1, 3, 56, 70)
    folder = save_model(tiny, tmp_path / "saved", card="# Tiny", extra={"command": "distill"}, dtype=dtype)
    model = load_model(folder)
    assert model.info.name == "tiny"
    assert model.info.source == "a test"
    assert model.preprocessing == tiny.preprocessing
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tolerance = 0 if dtype is None else 5e-3
    torch.testing.assert_close(model(images).values, tiny(images).values, rtol=tolerance, atol=tolerance)
    assert load_file(folder / "model.safetensors")["network.head.conv1.weight"].dtype == (dtype or torch.float32)
    config = json.loads((folder / "config.json").read_text())
    assert config["command"] == "distill"
    assert (folder / "README.md").read_text() == "# Tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert load_model(folder / "model.safetensors").info.name == "tiny"


def test_folders_of_before_the_way_back_was_written_down_give_what_they_gave(tmp_path):
    """Every family predicted with the corner pixels kept in place then; a new student of another family does not."""
    images = torch.rand(1, 3, 45, 59, generator=torch.Generator().manual_seed(7))
    student = create_student("light-mini", seed=4).eval()
    assert student.preprocessing.map_interpolation == "bilinear"
    folder = save_model(student, tmp_path / "saved")
    assert load_model(folder).preprocessing == student.preprocessing
    config = json.loads((folder / "config.json").read_text())
    del config["preprocessing"]["map_interpolation"]
    (folder / "config.json").write_text(json.dumps(config))
    old = load_model(folder)
    with torch.no_grad():
        inner = old(resize(images, (256, 320), "bilinear-antialias")).values
        expected = torch.nn.functional.interpolate(inner[:, None], (45, 59), mode="bilinear", align_corners=True)
        torch.testing.assert_close(old.estimate(images), expected[:, 0])
        assert not torch.allclose(student.estimate(images), expected[:, 0])


def test_run_folder(tmp_path, tiny):
    save_model(tiny, tmp_path / "run" / "student")
    assert load_model(tmp_path / "run").info.name == "tiny"
    assert create_student("run").info.name == "tiny"


def test_channels_last_and_bfloat16_can_be_saved(tmp_path, tiny):
    images = torch.rand(1, 3, 56, 56)
    expected = tiny(images).values
    save_model(tiny.to(memory_format=torch.channels_last), tmp_path / "saved")
    torch.testing.assert_close(load_model(tmp_path / "saved")(images).values, expected)
    save_model(tiny.to(torch.bfloat16), tmp_path / "half")
    assert next(load_model(tmp_path / "half").parameters()).dtype == torch.float32


def test_save_refuses(tmp_path, tiny):
    with pytest.raises(ValueError, match="extra must not have the keys family"):
        save_model(tiny, tmp_path / "a", extra={"family": "x"})
    with torch.no_grad():
        tiny.network.head.conv1.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"finite in torch\.float16, got otherwise in 'network\.head\.conv1\.weight'"):
        save_model(tiny, tmp_path / "a", dtype=torch.float16)
    assert not (tmp_path / "a").exists()


def test_interrupted_save_keeps_the_old_one(tmp_path, tiny, monkeypatch):
    folder = save_model(tiny, tmp_path / "saved")
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with torch.no_grad():
        tiny.network.head.conv3.bias.add_(1)
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_predict_on_an_array(tiny):
    prediction = tiny.predict(np.zeros((30, 41, 3), np.uint8))
    assert prediction.values.shape == (30, 41)
    assert prediction.values.dtype == np.float32
    assert prediction.quantity == "disparity"
    assert tiny.predict(Image.new("RGB", (20, 30))).values.shape == (30, 20)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("dav2", "dav2-small"),
        ("dav2:large", "dav2-large"),
        ("dav2:metric-indoor-base", "dav2-metric-indoor-base"),
        ("genpercept", "genpercept-disparity"),
        ("genpercept:depth", "genpercept-depth"),
        ("dad:base", "distill-any-depth-base"),
        ("midas:swinv2-tiny", "dpt-swinv2-tiny"),
        ("topformer:tiny", "topformer-tiny"),
    ],
)
def test_lookup(spec, name):
    assert registry.lookup(spec).name == name


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("dav3", ValueError, "unknown model 'dav3'; did you mean 'dav2'"),
        ("dav2:smal", ValueError, "did you mean 'dav2-small'"),
        ("genpercpt", ValueError, "did you mean 'genpercept'"),
        ("dpd@file.pth", ValueError, "unknown model 'dpd'"),
        ("", ValueError, "got an empty string"),
        (3, TypeError, "must be a name or a path, got int"),
        ("dav2@nowhere.pth", FileNotFoundError, r"no such file or folder: nowhere\.pth"),
        ("nowhere.safetensors", FileNotFoundError, "nowhere"),
        ("a/b/c", FileNotFoundError, "a/b/c"),
        ("./nowhere", FileNotFoundError, "nowhere"),
        (Path("nowhere"), FileNotFoundError, "nowhere"),
        ("topformer-base", ValueError, "architecture without weights"),
        ("xingyang1/Distill-Any-Depth", ValueError, "holds several models; name one of distill-any-depth-small"),
    ],
)
def test_wrong_spec(spec, error, message):
    with pytest.raises(error, match=message):
        load_model(spec, offline=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dav2-mni", "did you mean 'dav2-mini'"), ("glpn-nyu", "teacher only"), ("oops", "choose from")],
)
def test_wrong_student(name, message):
    with pytest.raises(ValueError, match=message):
        create_student(name)


def _corrupt(path: Path, tiny) -> None:
    if path.name.startswith("truncated"):
        save_model(tiny, path.parent / "whole")
        path.write_bytes((path.parent / "whole" / "model.safetensors").read_bytes()[:5000])
    elif path.name.startswith("empty"):
        path.write_bytes(b"")
    elif path.name.startswith("pickle"):
        torch.save({"range": slice(3)}, path)
    elif path.name.startswith("list"):
        torch.save([1, 2], path)
    elif path.name.startswith("foreign"):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bn1.weight": torch.zeros(64)}, path)
    else:
        path.write_bytes(b"<html>404</html>" * 100)


def test_predict_checks_its_options_and_keeps_the_mode(tiny):
    image = np.zeros((30, 41, 3), np.uint8)
    tiny.train()
    for options, error, message in (
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": -1}, ValueError, "batch_size must be at least 1"),
        ({"size": 3}, ValueError, "size must be at least 14"),
        ({"size": 56.5}, TypeError, "size must be a whole number"),
        ({"policy": "lower"}, ValueError, "policy must be one of"),
    ):
        with pytest.raises(error, match=message):
            tiny.predict(image, **options)
        assert tiny.training


def test_predict_on_a_strip_uses_a_policy_that_fits_memory(tiny):
    with pytest.warns(UserWarning, match="8 x 5000 is too long"):
        prediction = tiny.predict(np.zeros((8, 5000, 3), np.uint8))
    assert prediction.values.shape == (8, 5000)
    assert prediction.resize_policy == "upper-bound"


def test_a_device_that_is_not_there_is_a_clear_error(tmp_path, tiny):
    folder = save_model(tiny, tmp_path / "saved")
    assert load_model(folder, device="auto").info.name == "tiny"
    for device, error in (("gpu", ValueError), ("cuda:99", ValueError), (None, TypeError)):
        with pytest.raises(error, match="resolve_device: device must be"):
            load_model(folder, device=device)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated.safetensors", "not a readable checkpoint"),
        ("html.pth", "is a web page, as a failed download leaves it"),
        ("html.safetensors", "is a web page, as a failed download leaves it"),
        ("empty.pth", r"\(0 bytes\) is empty"),
        ("pickle.pth", r"other objects beside tensors \(builtins\.slice\), which could run a program and are not"),
        ("list.pt", "holds no state dictionary, got list"),
        ("foreign.pth", r"not a checkpoint of a known model; it holds 'conv1\.weight', 'layer1"),
    ],
)
def test_bad_file_is_one_line(tmp_path, tiny, name, message):
    _corrupt(tmp_path / name, tiny)
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"1 missing: network\.head\.conv1\.bias"),
        ("extra", "1 unexpected: stranger"),
        ("no-weights", r"no model\.safetensors"),
        ("json", "is not a JSON file"),
        ("version", "format version 99; update distilldepth"),
        ("family", "unknown family 'depth-anythin'; did you mean 'depth-anything'"),
        ("architecture", "describes no 'depth-anything' network"),
        ("quantity", "not a complete model description"),
        ("family-type", "family must be a text, got None"),
        ("licence-type", "licence must be a text, got 5"),
        ("version-type", "format version 'two'"),
        ("preprocessing", "std must be positive"),
        ("preprocessing-empty", "preprocessing lacks size, multiple"),
        ("preprocessing-type", "not a complete model description"),
        ("foreign-type", "names no model_type"),
        ("unfinished", r"a run without a student.*distill --config .*config\.toml --resume auto"),
        ("type", "'resnet' network, not a depth model"),
        ("empty", "holds no model"),
    ],
)
def test_bad_folder_is_one_line(tmp_path, tiny, damage, message):
    folder = save_model(tiny, tmp_path / "saved")
    weights, config_file = folder / "model.safetensors", folder / "config.json"
    state, config = load_file(weights), json.loads(config_file.read_text())
    if damage == "missing":
        del state["network.head.conv1.bias"]
    elif damage == "extra":
        state["stranger"] = torch.zeros(1)
    elif damage == "version":
        config["version"] = 99
    elif damage == "family":
        config["family"] = "depth-anythin"
    elif damage == "architecture":
        del config["architecture"]["hidden"]
    elif damage == "quantity":
        config["quantity"] = "heat"
    elif damage == "family-type":
        config["family"] = None
    elif damage == "licence-type":
        config["licence"] = 5
    elif damage == "version-type":
        config["version"] = "two"
    elif damage == "preprocessing":
        config["preprocessing"]["std"] = [1, 0, 1]
    elif damage == "preprocessing-empty":
        config["preprocessing"] = {}
    elif damage == "preprocessing-type":
        config["preprocessing"] = None
    elif damage == "foreign-type":
        config = {"model_type": 5}
    elif damage == "type":
        config = {"model_type": "resnet"}
    save_file(state, weights)
    config_file.write_text("{" if damage == "json" else json.dumps(config))
    if damage == "no-weights":
        weights.unlink()
    if damage == "unfinished":
        (folder / "checkpoints").mkdir()
        (folder / "config.toml").touch()
    if damage in ("empty", "unfinished"):
        weights.unlink()
        config_file.unlink()
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def install_stand_ins(monkeypatch, folder: Path, tiny) -> None:
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", folder)
    save_model(tiny, folder / "dav2-mini", dtype=torch.float16)
    save_model(tiny, folder / "genpercept-mini", dtype=torch.float16)


@pytest.mark.parametrize("how", ["argument", "environment", "unreachable"])
@pytest.mark.parametrize("name", ["dav2", "genpercept"])
def test_stand_in_warns_and_notes(tmp_path, monkeypatch, tiny, name, how, request):
    install_stand_ins(monkeypatch, tmp_path / "weights", tiny)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if how == "unreachable":
        request.getfixturevalue("unreachable")
    with pytest.warns(BundledModelWarning, match=f"bundled model '{name}-mini', NOT the public checkpoint"):
        model = load_model(name, offline=how == "argument")
    assert model.info.name == f"{name}-mini"
    assert model.info.source == "bundled"
    assert "NOT the public checkpoint" in model.info.notes[0]


def test_no_stand_in_for_a_full_name_or_a_broken_file(tmp_path, monkeypatch, tiny):
    install_stand_ins(monkeypatch, tmp_path / "weights", tiny)
    with pytest.raises(DistillDepthError, match="offline mode is on"):
        load_model("dav2-small", offline=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "depth_anything_v2_vits.pth").write_bytes(b"broken")
    with pytest.raises(DistillDepthError, match="is a text, not weights"):
        load_model("dav2", offline=True)


def test_bundled_by_name_is_silent(tmp_path, monkeypatch, tiny, recwarn):
    install_stand_ins(monkeypatch, tmp_path / "weights", tiny)
    model = load_model("dav2-mini")
    assert model.info.notes == ()
    assert model.info.source == "bundled"
    assert not [warning for warning in recwarn if issubclass(warning.category, BundledModelWarning)]
    with pytest.raises(DistillDepthError, match="bundled weights of 'distilldepth-mini' are not installed"):
        load_model("distilldepth-mini")


@pytest.mark.parametrize("place", ["checkpoints", "environment", "cache", "official-cache"])
def test_local_checkpoint_touches_no_network(tmp_path, monkeypatch, tiny, place):
    """The `lonely` fixture fails the test at the first socket; offline mode is not even on."""
    cache = tmp_path / "hub-cache"
    if place == "environment":
        monkeypatch.setenv("DISTILLDEPTH_CHECKPOINTS", str(tmp_path / "elsewhere"))
    folder = {
        "checkpoints": tmp_path / "checkpoints" / "Depth-Anything-V2-Small-hf",
        "environment": tmp_path / "elsewhere" / "depth-anything" / "Depth-Anything-V2-Small-hf",
        "cache": cache / "models--depth-anything--Depth-Anything-V2-Small-hf" / "snapshots" / "abc",
        "official-cache": cache / "models--depth-anything--Depth-Anything-V2-Small" / "snapshots" / "abc",
    }[place]
    if place == "official-cache":
        from test_depth_anything import official_state, tiny_network

        folder.mkdir(parents=True)
        torch.save(official_state(tiny_network()), folder / "depth_anything_v2_vits.pth")
        with pytest.raises(DistillDepthError, match="name the right size"):
            load_model("dav2-small")
        return
    tiny.network.save_pretrained(folder)
    model = load_model("dav2")
    assert model.info.name == "dav2-small"
    assert model.info.licence == "Apache-2.0"
    assert model.info.notes == ()
    row = next(row for row in describe("teacher") if row["name"] == "dav2-small")
    assert row["at_hand"]
    assert load_model("depth-anything/Depth-Anything-V2-Small-hf").info.source == model.info.source


def test_unreachable_hub_is_one_line_and_asked_once(monkeypatch, unreachable):
    with pytest.raises(DistillDepthError) as caught:
        load_model("dav2-base")
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "depth-anything/Depth-Anything-V2-Base-hf",
        "Name or service not known",
        "checkpoints/depth_anything_v2_vitb.pth",
        "'dav2-mini'",
    ):
        assert part in text
    monkeypatch.setattr(hub, "_probe", lambda repo_id: pytest.fail("asked again"))
    with pytest.raises(DistillDepthError, match="could not be reached a moment ago"):
        load_model("dpt-large")
    with pytest.raises(DistillDepthError, match="no such folder here"):
        load_model("someone/something")


def test_silent_network_does_not_hang(monkeypatch):
    answer, answered = threading.Event(), threading.Event()

    def probe(repo_id):
        answer.wait()
        answered.set()

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(hub, "_probe", probe)
    with pytest.raises(DistillDepthError, match="no answer within"):
        load_model("dav2-base")
    assert not answered.is_set()
    answer.set()
    assert answered.wait(patience_s())


def test_download_takes_one_format(tmp_path, monkeypatch):
    """Of weights that are there twice, only safetensors; of a diffusers repository, only the folders wanted."""
    import huggingface_hub

    listed = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "unet/config.json"]
    listed += ["unet/w.safetensors", "unet/w.fp16.safetensors", "unet/w.bin", "vae/w.bin", "onnx/model.onnx"]
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo_id: listed)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, allow_patterns, **o: asked.append(allow_patterns) or tmp_path
    )
    hub._download("a/b", "", ())
    hub._download("a/b", "", ("unet", "vae"))
    assert asked == [["model.safetensors", "config.json"], ["unet/w.safetensors", "unet/config.json", "vae/w.bin"]]


def test_describe():
    rows = {row["name"]: row for row in describe()}
    assert {"name", "role", "family", "parameters", "licence", "source", "quantity", "at_hand"} <= set(
        rows["dav2-small"]
    )
    assert not rows["dav2-small"]["at_hand"]
    assert rows["topformer-base"]["at_hand"]
    assert rows["dav2-metric-outdoor-small"]["quantity"] == "metric_depth"
    assert all(row["role"] in ("teacher", "both") for row in describe("teacher"))
    assert {"dav2", "genpercept", "dav2-mini"} <= set(teacher_names())
    assert {"topformer", "dav2-mini", "distilldepth-mini"} <= set(student_names())
    assert "topformer" not in teacher_names()


@pytest.mark.parametrize("name", [entry.name for entry in registry.ENTRIES.values() if entry.role == "student"])
def test_registry_counts_parameters(name):
    assert count_parameters(create_student(name)) == registry.ENTRIES[name].parameters


def test_registry_imports_no_torch():
    code = (
        "import sys; import distilldepth.models.inventory as i; i.describe(); "
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_imports_no_model_library():
    code = (
        "import sys; from distilldepth.models import load_model, create_student; create_student('light-mini'); "
        "assert not {'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["genpercept-mini", "dav2-mini", "distilldepth-mini"])
def test_a_folder_of_ours_is_read_under_any_name_that_it_is_given(tmp_path, name):
    saved = save_model(load_model(name), tmp_path / "mine")
    for spec in (str(saved), f"{name}@{saved}", f"{name}@{saved / 'model.safetensors'}"):
        assert load_model(spec).info.family == load_model(name).info.family, spec
