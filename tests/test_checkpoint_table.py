"""docs/checkpoints.md: each refusal is made, and its sentence is what the program says."""

from __future__ import annotations

import fractions
import gzip
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import changed
from test_depth_anything import official_state, tiny_network
from test_leres import SMALL, official_file
from test_leres import official_state as official_leres
from test_newcrfs import SMALL as SMALL_NEWCRFS
from test_newcrfs import official_state as official_newcrfs

from distilldepth.models import load_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "checkpoints.md"


def rows() -> dict[str, str]:
    """What is refused: the sentence."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("## What is refused")[2]
    found = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)[1:]
    assert len(dict(found)) == len(found)
    return dict(found)


def state() -> dict:
    return official_state(tiny_network())


def saved(content: object, name: str = "a.pth") -> str:
    torch.save(content, name)
    return name


def latest() -> str:
    return saved({"model": state(), "previous_best": {"d1": 0.9, "abs_rel": 0.1}}, "latest.pth")


def written(content: bytes, name: str = "a.pth") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return name


def folder(**files: str) -> str:
    for name, content in files.items():
        written(content.encode(), f"f/{name.replace('__', '.')}")
    return "./f"


def cut(name: str) -> str:
    return written(Path(name).read_bytes()[:-300], f"cut-{name}")


def lora() -> dict:
    return state() | {"pretrained.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 3)}


def script() -> str:
    torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)).save("a.pt")
    return "a.pt"


def exported() -> str:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 3), (torch.ones(1, 2),)), "a.pt2")
    return Path("a.pt2").rename("a.pt")


def safetensors(content: dict, name: str = "a.safetensors") -> str:
    save_file(content, name)
    return name


def run() -> str:
    Path("f/checkpoints").mkdir(parents=True)
    return folder(config__toml="")


def grouped() -> dict:
    return official_leres(SMALL) | {"encoder_modules.encoder.layer1.0.conv2.weight": torch.ones(8, 2, 3, 3)}


def without(name: str) -> dict:
    return {key: value for key, value in state().items() if key != name}


MAKERS = {
    "metric file without a max_depth": latest,
    "relative name for a metric file": lambda: f"dav2-small@{latest()}",
    "two different copies of equal rank": lambda: saved({"model": state(), "best_model": changed(state())}),
    "another network": lambda: saved({"model": {"conv1.weight": torch.ones(2)}, "epoch": 3}),
    "LeReS with a ResNeXt, `res101.pth`": lambda: saved(official_file(grouped())),
    "NeWCRFs without a max_depth": lambda: saved(official_newcrfs(SMALL_NEWCRFS)),
    "no weights inside": lambda: saved({"epoch": 3}),
    "tensor missing": lambda: saved(without("depth_head.scratch.output_conv1.bias")),
    "weights that are NaN": lambda: saved(changed(state(), float("nan"))),
    "whole network, `torch.save(model)`": lambda: saved({"model": torch.nn.Conv2d(1, 2, 3)}),
    "other objects": lambda: saved({"model": state(), "ratio": fractions.Fraction(1, 3)}),
    "TorchScript archive": script,
    "exported program": exported,
    "ONNX": lambda: written(b"\x08\x08\x12\x07pytorch\x1a\x052.6.0:\x00", "a.pth"),
    "engine of another runtime": lambda: written(b"ftrt\x00\x01", "a.engine"),
    "Keras": lambda: written(b"\x89HDF\r\n\x1a\n\x00", "a.bin"),
    "PEFT adapter, folder": lambda: folder(adapter_config__json="{}", adapter_model__safetensors="x"),
    "PEFT adapter, file": lambda: safetensors(lora(), "adapter_model.safetensors"),
    "PEFT adapter, inside a state dictionary": lambda: saved({"state_dict": lora()}),
    "Git LFS pointer": lambda: written(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 99\n"),
    "web page": lambda: written(b"\n<!DOCTYPE html><html><title>403</title></html>", "a.safetensors"),
    "text": lambda: written(b"Entry not found"),
    "packed archive": lambda: written(gzip.compress(b"weights"), "a.pt"),
    "empty file": lambda: written(b""),
    "file of torch.save, cut off": lambda: cut(saved(state())),
    "safetensors, cut off": lambda: cut(safetensors(state())),
    "plain pickle": lambda: written(pickle.dumps({"a": [1.5]})),
    "folder with several files and no config.json": lambda: folder(a__pth="x", b__safetensors="x", notes__txt="x"),
    "folder without weights": lambda: folder(notes__txt="x"),
    "folder of a run that has not ended": run,
    "URL": lambda: "https://example.org/a.pth",
    "page of a model on the hub": lambda: "https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf",
}


def test_the_table_has_a_row_for_each_kind_and_the_other_way_round():
    assert list(rows()) == list(MAKERS)


@pytest.mark.parametrize("what", MAKERS)
def test_the_program_says_the_sentence_of_the_table(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    spec = MAKERS[what]()
    with pytest.raises(Exception, match=r"^load_model: |^https:") as caught:
        load_model(spec, offline=True)
    message = str(caught.value)
    assert rows()[what] in message
    assert "\n" not in message
    assert len(message) < 500
    assert str(spec).rpartition("@")[2].removeprefix("./") in message


def test_kinds_with_sentences_of_their_own_have_different_ones():
    alike = {"PEFT adapter, folder", "PEFT adapter, file", "PEFT adapter, inside a state dictionary"}
    sentences = [sentence for what, sentence in rows().items() if what not in alike]
    assert len(set(sentences)) == len(sentences)


def test_the_readme_leads_to_the_table():
    assert "/docs/checkpoints.md)" in (DOCUMENT.parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_official_and_the_told_ways_of_the_document_are_those_of_the_program(tmp_path, monkeypatch):
    """Every spelling in the section on metric files is one that loads."""
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8")
    latest()
    for spelling in ("dav2-metric:METRES@FILE", "dav2-relative@FILE"):
        assert f"`{spelling}`" in text
        load_model(spelling.replace("METRES", "12").replace("FILE", "latest.pth"))
    assert load_model("latest.pth", max_depth=20).info.quantity == "metric_depth"
