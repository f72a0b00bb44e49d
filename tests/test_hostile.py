"""Inputs that somebody made to hurt, through the real command line and real files: one line each, no harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save, save_file

from distilldepth import capacity
from distilldepth.cli.main import cli
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.sources import MAX_SHARDS, expand_braces, open_source
from distilldepth.models import create_student, load_model, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families.depth_anything import build
from distilldepth.scenes.source import SceneSource

TINY = {
    "hidden": 32, "layers": 4, "heads": 2, "mlp_ratio": 2, "taps": [0, 1, 2, 3], "neck": [8, 8, 8, 8], "fusion": 8,
    "head_hidden": 8, "image_size": 56,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, a cache of its own, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISTILLDEPTH_DEBUG", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refused(code: int, words: str, *args: object) -> None:
    """Run a command line that must end with this code and one clear line."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, result.stderr
    assert words in errors[0]
    assert "fault of the program" not in result.stderr
    assert "Traceback" not in result.stderr
    assert len(errors[0]) < 1500


def distill(*args: object) -> tuple[object, ...]:
    fixed = "--teachers dav2-mini --student light-mini --offline --steps 1 --size 64 --batch-size 1 --workers 0 --out o"
    return ("distill", *fixed.split(), *args)


def tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    return save_model(build(TINY, ModelInfo("tiny", "depth-anything", "disparity", "Apache-2.0", "a test")), folder)


# --- what is no file ---


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("name", ["x", "x.jpg", "x.txt", "x.tar"])
def test_what_is_no_file_is_named_and_never_opened(kind, name):
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "device":
        Path(name).symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    refused(1, f"is a {kind}, not a regular file", *distill("--images", name))
    if name != "x.tar":
        refused(1, f"is a {kind}, not a regular file", "predict", name, "-o", "out.png")
    Path("list.txt").write_text(f"{name}\n")
    refused(1, f"list.txt:1: {name}: is a {kind}", "predict", "list.txt", "-o", "out")


def test_pipes_in_every_other_place():
    for name in ("m.pth", "m.safetensors", "set.jsonl", "c.toml"):
        os.mkfifo(name)
    Image.new("RGB", (40, 30)).save("a.png")
    refused(1, "m.pth: is a pipe", "predict", "a.png", "-o", "b.png", "--model", "m.pth")
    refused(1, "m.safetensors: is a pipe", *distill("--images", "a.png", "--student", "./m.safetensors"))
    refused(1, "set.jsonl: is not a file", "evaluate", "--data", "set.jsonl")
    refused(1, "c.toml: is not a file", *distill("--config", "c.toml"))


def test_a_set_without_a_readable_image_is_named_before_anything_is_loaded(monkeypatch):
    for folder in ("photos", "pairs/images", "pairs/depth"):
        Path(folder).mkdir(parents=True)
        for number in range(5):
            Path(folder, f"{number}.png").write_bytes(b"no image")
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda self: pytest.fail("a network was made"))
    for args in (distill("--images", "photos"), ("predict", "photos", "-o", "out")):
        refused(1, "all 5 images cannot be read; the first: photos/0.png: is not an image", *args)
    refused(1, "pairs: all 5 samples cannot be read; the first:", "evaluate", "--data", "pairs")


def test_lists_as_people_write_them():
    Path("sub dir").mkdir()
    for name in ("sub dir/ rel.png", "sub dir/plain.png", "abs.png"):
        Image.new("RGB", (40, 30)).save(name)
    lines = ["# note", "plain.png  ", "", " rel.png", str(Path("abs.png").absolute())]
    Path("sub dir/l.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert len(open_source("sub dir/l.txt")) == 3
    result = CliRunner().invoke(cli, ["predict", "sub dir/l.txt", "-o", "out", "--size", "32"])
    assert result.exit_code == 0, result.stderr
    assert len(list(Path("out").rglob("*.png"))) == 3
    refused(1, "~nobody-of-this-name", "predict", "~nobody-of-this-name/x.png", "-o", "out")
    Path("l.txt").write_text("~nobody-of-this-name/x.png\n")
    refused(1, "l.txt:1: no such file: ~nobody-of-this-name/x.png", "predict", "l.txt", "-o", "out")


def test_a_folder_that_begins_with_a_tilde_and_no_user_is_a_name_like_any_other():
    refused(
        1,
        "~nobody-of-this-name/maps: no such folder",
        "evaluate",
        "--predictions",
        "~nobody-of-this-name/maps",
        "--data",
        "scenes:1",
    )
    refused(1, "~nobody-of-this-name/a: no such file", "evaluate", "--compare", "~nobody-of-this-name/a", "b")
    scored = CliRunner().invoke(
        cli, ["evaluate", "--model", "baseline:ramp", "--data", "scenes:1", "--out", "~nobody-of-this-name/o"]
    )
    assert scored.exit_code == 0, scored.stderr
    assert Path("~nobody-of-this-name/o/result.json").is_file()


# --- archives and patterns ---


def header(size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header whose size field is what it is told, with a right checksum."""
    made = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
    made[124:136], made[156:157], made[148:156] = size, kind, b" " * 8
    made[148:156] = f"{sum(made):06o}\0 ".encode()
    return bytes(made)


def pax(records: bytes) -> bytes:
    return header(f"{len(records):011o}\0".encode(), tarfile.XHDTYPE) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    "content",
    {
        "huge": header(b"\x80" + (1 << 62).to_bytes(11, "big")),
        "negative": header(b"\xff" + (-1024 & (1 << 88) - 1).to_bytes(11, "big")),
        "pax of gigabytes": header(f"{8 << 30:011o}\0".encode(), tarfile.XHDTYPE),
        "long name of gigabytes": header(f"{7 << 30:011o}\0".encode(), tarfile.GNUTYPE_LONGNAME),
        "pax with a negative size": pax(b"15 size=-1024\n") + header(b"00000000004\0"),
        "pax with a size in letters": pax(b"13 size=abcd\n") + header(b"00000000004\0"),
        "chain of pax": pax(b"9 a=b   \n") * 3000,
        "sparse": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + header(b"00000001000\0") + b"x" * 512,
        "sparse of billions": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
        + header(b"00000001000\0") + b"9" * 30 + b"\n" + b"1\n" * 200,
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_archives_with_wrong_headers(content):
    Path("a.tar").write_bytes(content[1] + bytes(1024))
    with Path("a.tar").open("r+b") as file:
        file.truncate(9 << 30)  # Sparse: nothing is on the disk, but there is as much to read as the header says.
    refused(1, "a.tar", *distill("--images", "a.tar"))


@pytest.mark.parametrize(
    "pattern",
    ["{0..99999999999}.tar", "{0..9999}{0..9999}.tar", "{a,b}" * 90 + ".tar", "{{0..9999},{0..9999}}{0..99}.tar"],
)
def test_patterns_for_too_many_files(pattern):
    refused(2, f"more than {MAX_SHARDS} files", *distill("--images", pattern))


def test_patterns_that_count_too_far():
    with pytest.raises(UsageError, match="digits"):
        expand_braces("{" + "9" * 5000 + "..1}")
    with pytest.raises(UsageError, match="braces"):
        expand_braces("{a,b}" * 3000)
    assert len(expand_braces("{0..9}{0..9}{a,b}")) == 200


# --- words on the command line ---


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("device must be", ["--device", "tpu"]),
        ("device must be", ["--device", "cuda:" + "9" * 5000]),
        ("positive whole number", ["--images", "scenes:0"]),
        ("positive whole number", ["--images", "scenes:" + "9" * 30]),
        ("positive whole number", ["--images", "scenes:" + "9" * 5000]),
        ("unknown teacher 'dav3'; did you mean", ["--teachers", "dav3"]),
        ("unknown student 'light'", ["--student", "light-mni"]),
        ("unknown preset", ["--preset", "nope"]),
        ("at least 32", ["--size", "0"]),
        ("SIDE or HxW", ["--size", "12xx"]),
        ("at most 16384", ["--size", "9" * 5000]),
        ("must be positive", ["--teachers", "dav2=-1"]),
        ("unknown key", ["--set", "nope=1"]),
        ("seed must be below", ["--seed", "9" * 400]),
        ("--steps", ["--steps", "9" * 5000]),
        ("empty", ["--images", ""]),
        ("folder", ["--json", "."]),
    ],
)
def test_wrong_usage_of_distill(words, args):
    given = [*distill("--images", "scenes:8"), *args]
    if args[0] == "--images":
        given = [*distill(), *args]
    if args[0] == "--student":
        words = "unknown student"
    refused(2, words, *given)


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("teachers", "list teacher"),
        ("hybrid-norm", "bench --kernel hybrid-nrom"),
        ("device must be", "bench --device tpu"),
        ("BxHxW", f"bench --shape {'9' * 5000}x1x1"),
        ("range", f"bench --repeats {'9' * 30}"),
        ("all, cpu, cuda", "doctor --build x"),
        ("folder", "doctor --json ."),
        ("positive whole number", f"evaluate --data scenes:{'9' * 30}"),
        ("did you mean 'nyuv2'", "evaluate --data nyv2"),
        ("unknown model 'dav3'; did you mean", "evaluate --data scenes:1 --model dav3"),
        ("unknown model 'dav3'; did you mean", "predict a.png -o b.png --model dav3"),
        ("without weights", "predict a.png -o b.png --model topformer-base"),
        ("device must be", "predict a.png -o b.png --device tpu"),
        ("at least 32", "predict a.png -o b.png --size 3"),
        ("range", "predict a.png -o b.png --size 0"),
        ("range", f"predict a.png -o b.png --size {'9' * 400}"),
    ],
)
def test_wrong_usage(words, args):
    Image.new("RGB", (40, 30)).save("a.png")
    refused(2, words, *args.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("teachers = 'dav3'", "unknown teacher"),
        ("student = 'nope'\nteachers = 'dav2-mini'", "unknown student"),
        ("images = ['scenes:0']\nteachers = 'dav2-mini'\nstudent = 'light-mini'", "positive whole number"),
        ("device = 'tpu'", "device must be"),
        ("steps = 0", "at least 1"),
    ],
)
def test_the_same_words_in_a_file_are_a_failed_job(text, words):
    Path("c.toml").write_text(text)
    refused(1, words, "distill", "--config", "c.toml", "--out", "o", "--offline")
    refused(1, "(in c.toml)", "distill", "--config", "c.toml", "--out", "o", "--offline")


def test_sizes_beyond_the_memory_are_refused_with_a_number(monkeypatch):
    Image.new("RGB", (40, 30)).save("a.png")
    refused(2, "GiB of memory, and this machine has", "bench", "--shape", "99999x99999x99999")
    monkeypatch.setattr(capacity, "total_memory", lambda device="cpu": 2 << 30)
    words = "GiB of memory, and this machine has 2.0 GiB; use a smaller"
    refused(2, words, *distill("--images", "scenes:8", "--size", "4096"))
    refused(2, words, *distill("--images", "scenes:8", "--batch-size", "60000"))
    refused(2, words, "predict", "a.png", "-o", "b.png", "--size", "16000")
    refused(2, words, "evaluate", "--data", "scenes:1", "--size", "16000")
    refused(2, words, "bench", "--scaling", "--shape", "64x4096x4096")
    assert not Path("o").exists()
    assert not Path("b.png").exists()


# --- weights ---


def odd_states() -> dict[str, object]:
    """Checkpoints that are not what they should be, and the words of each message."""
    huge = torch.zeros(1).expand(1 << 40)
    return {
        "integer keys": ({1: torch.zeros(3)}, "its keys must be names, got 1"),
        "a list": ([torch.zeros(3)], "holds no state dictionary, got list"),
        "nothing": (None, "holds no state dictionary, got NoneType"),
        "lists inside": ({"a.weight": [1, 2]}, "holds no tensor; it holds 'a.weight'"),
        "none inside": ({"a.weight": None, "b": torch.ones(1)}, "'a.weight' must be a tensor, got NoneType"),
        "numbers inside": ({"a.weight": 3, "epoch": 9}, "holds no tensor; it holds 'a.weight', 'epoch'"),
        "nested": ({"model": {"model": {"a": {"b": torch.zeros(1)}}}}, "known model; it holds 'model' ('model')"),
        "sparse": ({"a.weight": torch.eye(3).to_sparse()}, "this one is sparse"),
        "quantised": ({"a.weight": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "this one is quant"),
        "meta": ({"a.weight": torch.zeros(3, device="meta")}, "this one is without data"),
        "complex": ({"a.weight": torch.zeros(3, dtype=torch.complex64)}, "this one is complex"),
        "empty": ({"a.weight": torch.zeros(0, 7)}, "'a.weight' is empty, shape (0, 7)"),
        "claims too much": ({"a.weight": huge}, "the file has fewer"),
        "nan": ({"b.bias": torch.tensor([0.0, torch.nan])}, "'b.bias' has numbers that are not finite"),
        "inf": ({"b.bias": torch.tensor([0.0, -torch.inf]).half()}, "'b.bias' has numbers that are not finite"),
        "no dictionary": ({}, "holds no tensor"),
        "block of a million": (
            {
                "pretrained.blocks.999999.norm1.weight": torch.zeros(1),
                "pretrained.cls_token": torch.zeros(1, 1, 8),
                "depth_head.x": torch.zeros(1),
            },
            "lacks",
        ),
        "scalars": (
            {"pretrained.cls_token": torch.tensor(1.0), "depth_head.projects.0.weight": torch.tensor(1.0)},
            "lacks",
        ),
    }


@pytest.mark.parametrize("name", odd_states())
def test_odd_checkpoints(name):
    state, words = odd_states()[name]
    torch.save(state, "m.pth")
    Image.new("RGB", (40, 30)).save("a.png")
    refused(1, words, "predict", "a.png", "-o", "b.png", "--model", "m.pth")


def test_a_checkpoint_that_unpacks_to_more_than_it_is():
    import zipfile

    torch.save({"a.weight": torch.zeros(1 << 20)}, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("m.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for item in plain.infolist():
            packed.writestr(item.filename, plain.read(item))
    with pytest.raises(DistillDepthError, match="more than it has"):
        load_model("m.pth")


@pytest.mark.parametrize("what", ["nan", "inf", "integers", "one integer"])
@pytest.mark.parametrize("family", ["depth-anything", "light", "transformers folder"])
def test_broken_weights_are_refused_with_a_name(family, what):
    if family == "light":
        folder = save_model(create_student("light-mini", seed=0), "m")
    else:
        folder = tiny(Path("m"))
        if family == "transformers folder":
            load_model(folder).network.save_pretrained("hf")
            folder = Path("hf")
    file = folder / "model.safetensors"
    state = load_file(file)
    name = next(key for key, tensor in state.items() if key.endswith("weight") and tensor.ndim == 4)
    if what == "integers":
        state = {key: (tensor * 100).to(torch.int32) for key, tensor in state.items()}
    elif what == "one integer":
        state[name] = (state[name] * 100).to(torch.int8)
    else:
        state[name].view(-1)[3] = float(what)
    save_file(state, file, metadata={"format": "pt"})
    words = "of whole numbers" if "integer" in what else "not finite"
    with pytest.raises(DistillDepthError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert "integers" in what or name in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_weights_load(dtype):
    folder = tiny(Path("m"))
    state = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    assert next(load_model(folder).parameters()).dtype == torch.float32


# --- descriptions of models ---

NOT_A_WIDTH = [1_000_000, 10**18, 10**400, 0, -3, True, 3.5, "8", None, [], [[[]]], {}, float("nan"), float("inf")]


def entries(value, path=()):
    """Paths of every number in a nested description."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from entries(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from entries(inner, (*path, place))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("name", ["light-mini", "topformer-tiny", "dav2-mini", "genpercept-mini"])
def test_no_number_of_a_description_makes_it_hang_or_fill_memory(name, monkeypatch):
    """Only skeletons are made: a description that does not fit the weights never gets memory."""
    student = create_student(name, seed=0)
    folder = save_model(student, "m")
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    assert len(state) > 10
    tried = 0
    for path in entries({key: config[key] for key in ("architecture", "preprocessing")}):
        for number, bad in enumerate(NOT_A_WIDTH):
            # Long lists of similar numbers: one bad value each is enough.
            if len(path) > 2 and number != tried % len(NOT_A_WIDTH):
                continue
            changed = json.loads(json.dumps(config))
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = bad
            (folder / "config.json").write_text(json.dumps(changed))
            with pytest.raises(DistillDepthError) as caught:
                load_model(folder)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 600
        tried += 1
    assert tried > 10


@pytest.mark.parametrize("kind", ["depth-anything", "dpt"])
@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("hidden_size", 60_000), ("num_hidden_layers", 1_000_000), ("num_hidden_layers", 500),
        ("num_hidden_layers", -1), ("intermediate_size", 10**7), ("neck_hidden_sizes", [50_000] * 4),
        ("fusion_hidden_size", 90_000), ("num_attention_heads", 0), ("hidden_size", 2.5), ("image_size", 10**9),
    ],
)  # fmt: skip
def test_descriptions_by_transformers_are_compared_with_the_weights(kind, key, bad):
    if kind == "dpt":
        from transformers import DPTConfig, DPTForDepthEstimation

        small = DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        )  # fmt: skip
        DPTForDepthEstimation(small).save_pretrained("hf")
    else:
        load_model(tiny(Path("m"))).network.save_pretrained("hf")
    config = json.loads(Path("hf/config.json").read_text())
    place = config["backbone_config"] if key not in config and "backbone_config" in config else config
    place[key] = bad
    Path("hf/config.json").write_text(json.dumps(config))
    with pytest.raises(DistillDepthError) as caught:
        load_model("hf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "[" * 200 + "]" * 200 + "}",
        '{"version": ' + "9" * 5000 + "}",
        "3",
        "",
    ],
)
def test_damaged_descriptions(text):
    folder = tiny(Path("m"))
    (folder / "config.json").write_text(text)
    with pytest.raises(DistillDepthError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert "recursion" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"a":' * 100_000, '{"image": ' + "9" * 5000 + "}", '{"depth": 1e999}']
)
def test_damaged_manifests(line):
    Path("set.jsonl").write_text(line + "\n")
    refused(1, "set.jsonl:1", "evaluate", "--data", "set.jsonl")
    Path("set.json").write_text(line)
    refused(1, "set.json", "evaluate", "--data", "set.json")


# --- nothing foreign is unpickled ---


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (open, ("EXPLODED", "w"))


def bombs() -> dict[str, bytes]:
    """A pickle with a side effect, plain, as torch saves it, as an array of objects, and in an archive of arrays."""
    found = {"plain": pickle.dumps(Bomb())}
    for name, legacy in (("torch", True), ("torch zip", False)):
        buffer = io.BytesIO()
        torch.save({"a.weight": Bomb()}, buffer, _use_new_zipfile_serialization=not legacy)
        found[name] = buffer.getvalue()
    array = np.array([[Bomb()]], dtype=object)
    for name, write in (("npy", lambda file: np.save(file, array)), ("npz", lambda file: np.savez(file, image=array))):
        buffer = io.BytesIO()
        write(buffer)
        found[name] = buffer.getvalue()
    return found


def test_the_bombs_are_real():
    for name, content in bombs().items():
        if name == "torch zip":
            torch.load(io.BytesIO(content), weights_only=False)
        elif name in ("npy", "npz"):
            loaded = np.load(io.BytesIO(content), allow_pickle=True)
            _ = loaded["image"] if name == "npz" else loaded
        elif name == "plain":
            pickle.loads(content)
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        assert Path("EXPLODED").exists(), name
        Path("EXPLODED").unlink()


@pytest.mark.parametrize("bomb", bombs())
def test_no_pickle_in_a_model_explodes(bomb):
    content = bombs()[bomb]
    Image.new("RGB", (40, 30)).save("a.png")
    good = tiny(Path("good"))
    (good / "README.md").write_text("# Tiny")
    load_model(good).network.save_pretrained("hf")
    for folder in (good, Path("hf")):
        for name in sorted(path.name for path in folder.iterdir()):
            shutil.rmtree("m", ignore_errors=True)
            shutil.copytree(folder, "m")
            Path("m", name).write_bytes(content)
            for extra in ("pytorch_model.bin", "preprocessor_config.json"):
                Path("m", extra).write_bytes(content)
            CliRunner().invoke(cli, ["predict", "a.png", "-o", "b.png", "--model", "m", "--size", "56"])
            assert not Path("EXPLODED").exists(), name
        shutil.rmtree("m")
        shutil.copytree(folder, "m")
        Path("m/model.safetensors").unlink()
        Path("m/pytorch_model.bin").write_bytes(content)
        refused(1, "m", "predict", "a.png", "-o", "b.png", "--model", "m")
        assert not Path("EXPLODED").exists()
    for suffix in (".pth", ".pt", ".bin", ".safetensors", ".json", ""):
        Path(f"f{suffix}").write_bytes(content)
        refused(1, "load_model: ", "predict", "a.png", "-o", "b.png", "--model", f"./f{suffix}")
        assert not Path("EXPLODED").exists(), suffix


@pytest.mark.parametrize("bomb", bombs())
def test_no_pickle_in_a_data_set_explodes(bomb):
    content = bombs()[bomb]
    for folder in ("pairs/images", "pairs/depth"):
        Path(folder).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 30)).save(f"pairs/images/{number}.png")
        Path(f"pairs/depth/{number}.npy").write_bytes(content)
    refused(1, "cannot be read", "evaluate", "--data", "pairs", "--model", "baseline:ramp")
    for name in ("images.jpg", "a.tar", "l.txt"):
        Path(name).write_bytes(content)
        refused(1, name, *distill("--images", name))
    Path("NYU").mkdir()
    for name in ("nyu_depth_v2_labeled.mat", "splits.mat"):
        Path("NYU", name).write_bytes(content)
    refused(1, ".mat: ", "evaluate", "--data", "nyuv2", "--root", "NYU", "--model", "baseline:ramp")
    Path("set.jsonl").write_bytes(content)
    refused(1, "set.jsonl", "evaluate", "--data", "set.jsonl")
    assert not Path("EXPLODED").exists()


@pytest.mark.parametrize("bomb", bombs())
def test_no_pickle_in_the_cache_explodes(bomb):
    source = SceneSource((32, 48), count=1, cache=Path("cache/scenes"))
    good = source[0]
    file = next(Path("cache").rglob("*.npz"))
    file.write_bytes(bombs()[bomb])
    np.testing.assert_array_equal(source[0]["image"], good["image"])
    assert not Path("EXPLODED").exists()


@pytest.mark.parametrize("bomb", bombs())
def test_no_pickle_in_a_latent_model_or_its_kept_prompts_explodes(bomb):
    from distilldepth.models import diffusion

    for folder in ("m/unet", "m/vae"):
        Path(folder).mkdir(parents=True)
        for name in ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
            Path(folder, name).write_bytes(bombs()[bomb])
    Path("m/context.safetensors").write_bytes(bombs()[bomb])
    Image.new("RGB", (40, 30)).save("a.png")
    refused(1, "m/", "predict", "a.png", "-o", "b.png", "--model", "genpercept@m")
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        Path("m/unet", name).unlink()
    refused(1, "m/", "predict", "a.png", "-o", "b.png", "--model", "genpercept@m")
    with pytest.raises(DistillDepthError):
        diffusion.read_context(Path("m/context.safetensors"))
    assert not Path("EXPLODED").exists()


def test_damaged_scenes_in_the_cache_are_rendered_again():
    source = SceneSource((32, 48), count=1, cache=Path("cache/scenes"))
    good = source[0]
    file = next(Path("cache").rglob("*.npz"))
    whole = file.read_bytes()
    arrays = {"image": good["image"], "depth": good["depth"], "intrinsics": good["intrinsics"]}
    for number in range(6):
        if number == 0:
            np.savez(file, **{**arrays, "image": good["image"].astype(np.float64)})
        elif number == 1:
            np.savez(file, **arrays, more=np.zeros(1 << 20))
        elif number == 2:
            np.savez(file, image=good["image"])
        elif number == 3:
            file.write_bytes(whole[: len(whole) // 2])
        elif number == 4:
            file.write_bytes(whole[:200] + b"\xff" * 300 + whole[500:])
        else:
            np.save(file.with_suffix(".npy"), good["depth"])
            file.with_suffix(".npy").rename(file)
        sample = source[0]
        assert sample["image"].dtype == np.uint8
        np.testing.assert_array_equal(sample["depth"], good["depth"])


def test_names_from_files_do_not_steer_the_terminal():
    Path("a\x1b[31m.txt").write_text("\x1b]0;title\x07.png\n")
    result = CliRunner().invoke(cli, ["predict", "a\x1b[31m.txt", "-o", "out"])
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr
    assert "\\x1b[31m" in result.stderr
