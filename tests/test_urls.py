"""URLs are refused as URLs, wherever a path is taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from distilldepth import load_model
from distilldepth.cli.main import cli
from distilldepth.datasets.open import open_data
from distilldepth.datasets.rgbd import open_rgbd
from distilldepth.errors import DistillDepthError, UsageError, refuse_url
from distilldepth.images.decode import list_images, read_image
from distilldepth.images.sources import open_source
from distilldepth.predict import predict_files

URL = "https://example.org/photos/a.png"
WORDS = "URLs are not supported; download it first, and name the file"


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("a.png")
    Path("images").mkdir()
    Image.new("RGB", (40, 30)).save("images/a.png")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", URL, "-o", "b.png"],
        ["predict", "a.png", URL, "-o", "b"],
        ["predict", "a.png", "-o", URL],
        ["predict", "a.png", "-o", "s3://bucket/depth"],
        ["predict", "a.png", "-o", "b.png", "--json", URL],
        ["predict", "a.png", "-o", "b.png", "--model", "https://example.org/m.pth"],
        ["predict", "a.png", "-o", "b.png", "--model", "dav2@https://example.org/m.pth"],
        ["predict", "a.png", "-o", "b.png", "--model", "https://example.org/m.pth", "--model-max-depth", "80"],
        ["evaluate", "--data", "https://example.org/set.jsonl"],
        ["evaluate", "--data", "images", "--root", URL],
        ["evaluate", "--data", "nyuv2", "--root", URL],
        ["evaluate", "--data", "scenes:1", "--model", URL],
        ["evaluate", "--data", "scenes:1", "--out", URL],
        ["evaluate", "--data", "scenes:1", "--predictions", URL, "--quantity", "depth"],
        ["evaluate", "--compare", URL, "b"],
        ["distill", "--images", URL, "--steps", "1"],
        ["distill", "--images", "scenes", "--teachers", "dav2@" + URL, "--steps", "1"],
        ["distill", "--images", "scenes", "--teachers", URL, "--steps", "1"],
        ["distill", "--images", "scenes", "--student", URL, "--steps", "1"],
        ["distill", "--images", "scenes", "--out", URL, "--steps", "1"],
        ["distill", "--config", "https://example.org/config.toml"],
    ],
)
def test_the_command_line_refuses_a_url(arguments):
    result = CliRunner().invoke(cli, [*arguments, "--offline"])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert WORDS in errors[0]
    assert not any(path.name.startswith(("https:", "s3:")) for path in Path().iterdir())


@pytest.mark.parametrize(
    "call",
    [
        load_model,
        read_image,
        list_images,
        open_source,
        open_rgbd,
        open_data,
        lambda url: load_model("dav2-mini").predict(url),
        lambda url: predict_files([url], "b.png"),
        lambda url: load_model(f"dav2-metric:80@{url}"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_python_refuses_a_url(call, kind):
    with pytest.raises(UsageError, match=f"{URL}: {WORDS}"):
        call(kind(URL))


def test_urls_in_lists_and_manifests_are_named_with_their_line():
    Path("list.txt").write_text(f"a.png\n{URL}\n")
    with pytest.raises(DistillDepthError, match=rf"list\.txt:2: {URL}: {WORDS}"):
        list_images("list.txt")
    np.save("d.npy", np.ones((30, 40), np.float32))
    lines = [{"image": "a.png", "depth": "d.npy"}, {"image": URL, "depth": "d.npy"}]
    Path("set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DistillDepthError, match=rf"set\.jsonl:2: {URL}: {WORDS}"):
        open_rgbd("set.jsonl")
    Path("set.json").write_text(json.dumps({"files": [{"rgb": "a.png", "depth": URL}]}))
    with pytest.raises(DistillDepthError, match=rf"files\[0\]: {URL}: {WORDS}"):
        open_rgbd("set.json")


@pytest.mark.parametrize("host", ["huggingface.co", "hf.co", "www.huggingface.co"])
def test_the_page_of_a_model_on_the_hub_names_its_id(host):
    with pytest.raises(UsageError, match=r"URLs are not supported; name the hub id depth-anything/Some-hf$"):
        load_model(f"https://{host}/depth-anything/Some-hf")


@pytest.mark.parametrize(
    "text", ["HTTP://a/b", "ftp://a", "s3://b/c", "file:///a", "hf://a/b", "data:image/png;base64,x"]
)
def test_what_is_a_url(text):
    with pytest.raises(UsageError, match=WORDS):
        refuse_url(text)


@pytest.mark.parametrize(
    "text", ["a.jpg", "/a//b", "C://x", "scenes:5", "dav2:small", "dav2@a/b", "http", "~/x", "a:/b", ""]
)
def test_what_is_none(text):
    refuse_url(text)


def test_a_long_url_is_cut():
    with pytest.raises(UsageError) as caught:
        refuse_url("https://a/" + "b" * 5000)
    assert len(str(caught.value)) < 300
