"""No command replaces what it reads, and a map without relief is told of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.inference.batches import without_relief
from distilldepth.models import load_model, save_model


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(8)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(result, code: int = 2) -> str:
    assert result.exit_code == code, (result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def test_the_file_that_an_input_link_leads_to_is_not_replaced(tmp_path, photos):
    before = contents(photos)
    (tmp_path / "one.png").symlink_to(photos / "a.png")
    (tmp_path / "two.png").symlink_to(tmp_path / "one.png")
    for target in (photos / "a.png", tmp_path / "one.png", tmp_path / "two.png"):
        assert "would replace an input" in refused(run("predict", tmp_path / "two.png", "-o", target))
    assert contents(photos) == before
    assert (tmp_path / "one.png").is_symlink()


def test_folders_of_links_lose_nothing(tmp_path, photos):
    before = contents(photos)
    links = tmp_path / "links"
    links.mkdir()
    for name in ("a.png", "b.png"):
        (links / name).symlink_to(photos / name)
    assert "would replace an input" in refused(run("predict", links, "-o", photos, "--overwrite"))
    (tmp_path / "again").symlink_to(photos)
    assert refused(run("predict", photos, "-o", tmp_path / "again", "--overwrite"))
    assert contents(photos) == before


def test_a_link_is_replaced_and_not_written_through(tmp_path, photos):
    before = contents(photos)
    (tmp_path / "depth.png").symlink_to(photos / "b.png")
    os.link(photos / "a.png", tmp_path / "hard.png")
    for name in ("depth.png", "hard.png"):
        assert "was not made by predict" in refused(run("predict", photos / "a.png", "-o", tmp_path / name), 1)
        assert run("predict", photos / "a.png", "-o", tmp_path / name, "--overwrite").exit_code == 0
        assert contents(photos) == before
    assert not (tmp_path / "depth.png").is_symlink()


def test_json_replaces_neither_inputs_nor_outputs(tmp_path, photos):
    before = contents(photos)
    out = tmp_path / "depth.png"
    (tmp_path / "list.txt").write_text(f"{photos / 'a.png'}\n")
    (tmp_path / "note.json").write_text("not JSON")
    model = save_model(load_model("distilldepth-mini"), tmp_path / "model")
    kept = contents(model)
    for target in (
        photos / "a.png", photos / "b.png", out, tmp_path / "list.txt", tmp_path / "note.json",
        model / "config.json", model / "model.safetensors", photos / "new.png",
    ):  # fmt: skip
        assert "--json" in refused(run("predict", photos / "a.png", "-o", out, "--model", model, "--json", target))
    assert contents(photos) == before
    assert contents(model) == kept
    (tmp_path / "manifest.jsonl").write_text('{"image": "a.png", "depth": "b.png"}\n')
    words = ("evaluate", "--model", "baseline:ramp", "--data", tmp_path / "manifest.jsonl", "--json")
    assert "--json" in refused(run(*words, tmp_path / "manifest.jsonl"))
    config = tmp_path / "config.toml"
    config.write_text("steps = 1\n")
    assert "--json" in refused(run("distill", "--config", config, "--json", config))
    for words in (("bench", "--kernel", "backproject"), ("list", "teachers")):
        assert "--json" in refused(run(*words, "--json", photos / "a.png"))
    assert contents(photos) == before
    for _ in range(2):  # Its own file is replaced.
        assert run("list", "kernels", "--json", tmp_path / "kernels.json").exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--percentiles", "99,1"), ("--percentiles", "-1,50"), ("--depth-range", "5,2"), ("--depth-range", "0,2"),
        ("-o", "x.jpg"), ("-o", ""), ("--as", "ply", "-o", "x.npy"), ("--fov", "200"), ("--batch-size", "0"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense_are_wrong_usage(tmp_path, photos, options):
    out = () if "-o" in options else ("-o", tmp_path / "out")
    assert refused(run("predict", photos / "a.png", *out, *options))
    assert not (tmp_path / "out").exists()


def test_a_name_too_long_costs_its_own_image_only(tmp_path, photos):
    longest = "n" * 251
    shutil.copy(photos / "a.png", photos / f"{longest}.png")
    result = run("predict", photos, "-o", tmp_path / "out", "--as", "png16,color")
    assert result.exit_code == 1
    assert "1 of 3 failed" in result.stderr
    assert "too long" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"a.png", "a_color.png", "b.png", "b_color.png"}
    again = run("predict", photos, "-o", tmp_path / "out", "--as", "png16,color", "--skip-existing")
    assert "skipped 2" in again.stderr
    assert run("predict", photos, "-o", tmp_path / "depth").exit_code == 0


def test_a_map_without_relief_is_told_of(tmp_path, photos):
    model = load_model("distilldepth-mini")
    with torch.no_grad():
        model.head[-1].weight.zero_()
    folder = save_model(model, tmp_path / "flat")
    result = run("predict", photos, "-o", tmp_path / "out", "--model", folder)
    assert result.exit_code == 0
    assert "2 of 2 maps are constant" in result.stderr
    result = run("evaluate", "--model", folder, "--data", "scenes:2")
    assert "2 of 2 predicted maps are constant" in result.stdout + result.stderr
    assert "constant" not in run("predict", photos, "-o", tmp_path / "good").stderr


def test_relief_is_relative_and_looks_at_finite_pixels():
    ramp = torch.linspace(0, 1, 30).view(1, 5, 6)
    maps = torch.cat([ramp, 1000 + 0.01 * ramp, ramp * 1e-9, torch.full_like(ramp, 3), torch.zeros_like(ramp)])
    assert without_relief(maps).tolist() == [False, True, False, True, True]
    maps[0, 0, 0], maps[3, 1, 1] = float("nan"), float("inf")
    assert without_relief(maps).tolist() == [False, True, False, True, True]
    assert without_relief(torch.full((1, 2, 3), float("nan"))).tolist() == [True]
