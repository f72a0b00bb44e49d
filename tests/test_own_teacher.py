"""A user's own callable as teacher: the document's example through the command line, the contract, every refusal."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from distilldepth.cli.main import cli
from distilldepth.distill.config import load_config
from distilldepth.distill.launch import continuing
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import create_student, load_model, model_digest, save_model
from distilldepth.teachers.pool import load_teachers
from distilldepth.teachers.spec import check_known, parse_teachers

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "own-teacher.md").read_text(encoding="utf-8")

PLAIN = """
import torch
def depth(images):
    return images.mean(1)
depth.quantity = "disparity"
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """Modules that a test imports from its folder are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(3))


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def outside(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as it is installed: in a process whose path does not hold the working folder."""
    command = [sys.executable, "-I", "-m", "distilldepth", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_document_is_run():
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(example.splitlines()) <= 10
    write("mymodels.py", example)
    write("path/to/mymodels.py", example)
    distill, predict, evaluate = (
        shlex.split(line) for line in re.findall(r"^    distilldepth (.*)$", DOCUMENT, re.MULTILINE)
    )
    done = outside(
        *distill, "--device", "cpu", "--precision", "float32", "--workers", "0", "--heldout", "4", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["after"]["teachers"]) == {"dav2-mini", "python:mymodels:depth"}
    card = Path("runs/own/student/README.md").read_text(encoding="utf-8")
    assert "| python:mymodels:depth | 2 | metric_depth | MIT | python:mymodels:depth |" in card
    assert re.search(r"'python:mymodels:depth' is mymodels\.py, SHA-256 [0-9a-f]{16}", card)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8)).save("photo.jpg")
    done = CliRunner().invoke(cli, [*predict, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert Image.open("depth.png").size == (44, 30)
    done = CliRunner().invoke(cli, [*evaluate, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    written = json.loads(Path("eval/own/result.json").read_text(encoding="utf-8"))
    assert "python:path/to/mymodels.py:depth" in json.dumps(written)


def test_every_attribute_of_the_document_is_read(images):
    write(
        "attributes.py",
        PLAIN + "depth.quantity, depth.multiple, depth.size, depth.name, depth.licence = 'depth', 8, 64, 'Mine', 'MIT'",
    )
    model = load_model("python:attributes:depth")
    assert (model.info.quantity, model.info.name, model.info.licence) == ("depth", "Mine", "MIT")
    assert (model.preprocessing.multiple, model.preprocessing.size) == (8, 64)
    assert torch.equal(model(images).values, images.mean(1))
    seen = []
    model.function = lambda batch: seen.append(tuple(batch.shape)) or batch[:, :1]
    assert model.estimate(torch.rand(1, 3, 30, 50)).shape == (1, 30, 50)
    assert seen == [(1, 3, 64, 104)]
    for word in re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE):
        assert word in ("quantity", "multiple", "size", "name", "licence")


NETWORK = """
import torch
class Network(torch.nn.Module):
    quantity = "depth"
    def __init__(self):
        super().__init__()
        torch.manual_seed({seed})
        self.layer = torch.nn.Conv2d(3, 1, 1)
        self.noise = torch.nn.Dropout(0.5)
    def forward(self, images):
        assert images.dtype == torch.float32
        return self.noise(self.layer(images))
network = Network()
class Holder:
    quantity = "disparity"
    def __call__(self, images):
        import late_sibling
        return late_sibling.answer(images)
holder = Holder()
"""


def test_a_module_is_frozen_and_counts_in_the_digest(images):
    write("late_sibling.py", "def answer(images):\n    return images[:, 2]\n")
    digests = []
    for name, seed in (("first", 0), ("second", 1)):
        path = write(f"{name}/networks.py", NETWORK.format(seed=seed))
        model = load_model(f"python:{path}:network")
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        once = model(images).values
        assert once.shape == (2, 24, 40)
        model.train()
        assert torch.equal(model(images).values, once)
        digests.append(model_digest(model))
        with torch.no_grad():
            model.function.layer.bias += 1
        digests.append(model_digest(model))
    assert len(set(digests)) == 4
    # A sibling that is imported only when the callable runs; the search path is as it was.
    before = list(sys.path)
    write("third.py", NETWORK.format(seed=0))
    holder = load_model("python:third:holder")
    assert torch.equal(holder(images).values, images[:, 2])
    assert sys.path == before


def test_the_text_of_the_module_counts_in_the_digest():
    write("a/same.py", PLAIN)
    write("b/same.py", PLAIN)
    write("c/same.py", PLAIN + "# another weight\n")
    first, again, other = (model_digest(load_model(f"python:{folder}/same.py:depth")) for folder in "abc")
    assert first == again
    assert first != other


def test_neither_saved_nor_a_student(tmp_path):
    write("plain.py", PLAIN)
    with pytest.raises(TypeError, match="python:plain:depth is a callable in a file of its own and cannot be saved"):
        save_model(load_model("python:plain:depth"), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(UsageError, match="a callable and a teacher only"):
        create_student("python:plain:depth")
    words = ["distill", "--teachers", "dav2-mini", "--images", "scenes:8", "--out", "run"]
    for more in (["--student", "python:./plain.py:depth"], ["--student", "python:plain:depth"]):
        done = CliRunner().invoke(cli, words + more)
        assert done.exit_code == 2, done.output
        assert len(done.output.splitlines()) == 1


def test_names_weights_and_equals_signs():
    specs = parse_teachers("dav2,python:m:f=2,python:a=b/c.py:f,python:a=b/c.py:g=0.5,python:p.q:h")
    assert [(spec.model, spec.weight) for spec in specs] == [
        ("dav2", 1), ("python:m:f", 2), ("python:a=b/c.py:f", 1), ("python:a=b/c.py:g", 0.5), ("python:p.q:h", 1),
    ]  # fmt: skip
    for text, message in (
        ("python:m:f=x", "the weight of teacher 'python:m:f' must be a number, got 'x'"),
        ("python:m:f=0", "the weight of teacher 'python:m:f' must be positive"),
        ("python:m:f=1,python:m:f", "teacher 'python:m:f' is given twice"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_teachers(text)


WRONG = {
    "python:": "must be python:module:function or python:path/to/file.py:function",
    "python:plain": "must be python:module:function",
    "python:plain:1x": "must be python:module:function",
    "python:nothing:f": r"there is no module 'nothing', neither in .* nor among the installed",
    "python:json.nothing:f": r"there is no module 'json\.nothing'",
    "python:no/such.py:f": r"there is no file no/such\.py",
    "python:a/b:f": r"'a/b' is no module's name; a file is named with its \.py",
    "python:plain:dept": r"plain\.py has no 'dept'; did you mean 'depth'\?",
    "python:plain:torch": "must be a callable, got module",
    "python:broken:f": "cannot be imported: ModuleNotFoundError: No module named 'not_installed_here'",
    "python:syntax:f": "cannot be imported: SyntaxError: ",
    "python:leaves:f": "cannot be imported: SystemExit: 3",
    "python:kinds:Class": r"got a class; name an instance of it, such as class = Class\(\)",
    "python:kinds:silent": r"does not say what its maps are; set silent\.quantity to one of 'disparity', 'depth', ",
    "python:kinds:wrong": "quantity must be one of disparity, depth, metric_depth, got 'metres'",
    "python:kinds:unhashable": r"quantity must be one of .*, got \['depth'\]",
    "python:kinds:uneven": "multiple must be a whole number from 1 to 4096, got 2.5",
    "python:kinds:big": "size must be a whole number from 1 to 16384, got 100000",
    "python:kinds:called": "name must be a text, got 7",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_with_a_callable_is_one_line(spec):
    write("plain.py", PLAIN)
    write("broken.py", "import not_installed_here\n")
    write("syntax.py", "def f(:\n")
    write("leaves.py", "raise SystemExit(3)\n")
    lines = ["class Class:\n    quantity = 'depth'\n    def __call__(self, images):\n        return images[:, 0]\n"]
    for name, declared in (
        ("silent", ""), ("wrong", "quantity='metres'"), ("unhashable", "quantity=['depth']"),
        ("uneven", "quantity='depth', multiple=2.5"), ("big", "quantity='depth', size=100000"),
        ("called", "quantity='depth', name=7"),
    ):  # fmt: skip
        lines.append(f"{name} = lambda images: images[:, 0]\nvars({name}).update({declared})\n")
    write("kinds.py", "".join(lines))
    with pytest.raises((UsageError, DistillDepthError), match=WRONG[spec]) as first:
        load_model(spec)
    assert "\n" not in str(first.value)
    with pytest.raises(type(first.value)) as second:
        check_known(parse_teachers(f"dav2-mini,{spec}"))
    assert str(second.value) == str(first.value)


FAILING = {
    "raise RuntimeError('first\\nsecond')": "python:failing:depth failed: RuntimeError: first second",
    "assert False": "python:failing:depth failed: AssertionError",
    "return None": r"must return floating maps \(2, 24, 40\) for images of this size, got NoneType; make it a tensor",
    "return images.mean(1).numpy()": "got ndarray; make it a tensor with torch.as_tensor",
    "return images.mean(1) > 0.5": r"got numbers of torch\.bool; use \.float\(\)",
    "return images": r"got \(2, 3, 24, 40\)",
    "return images[:1, 0]": r"got \(1, 24, 40\)",
    "return images[:, 0, ::2]": r"got \(2, 12, 40\)",
    "return images[:, 0].mT": r"got \(2, 40, 24\)",
}


@pytest.mark.parametrize("body", FAILING)
def test_what_goes_wrong_inside_is_one_line(body, images):
    write("failing.py", f"def depth(images):\n    {body}\ndepth.quantity = 'depth'\n")
    with pytest.raises(DistillDepthError, match=FAILING[body]) as caught:
        load_model("python:failing:depth")(images)
    assert "\n" not in str(caught.value)


def test_the_trace_shows_with_debug(monkeypatch):
    monkeypatch.setenv("DISTILLDEPTH_DEBUG", "0")
    write("failing.py", "def depth(images):\n    return images[:, 7]\ndepth.quantity = 'depth'\n")
    words = ["distill", "--teachers", "python:failing:depth", "--images", "scenes:4", "--out", "run", "--size", "64"]
    words += ["--batch-size", "2", "--workers", "0", "--heldout", "0", "--device", "cpu", "--student", "light-mini"]
    done = CliRunner().invoke(cli, [*words, "--steps", "1"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("distilldepth: error: python:failing:depth failed: IndexError: ")
    assert "Traceback" not in done.stderr
    done = CliRunner().invoke(cli, [*words, "--steps", "1", "--debug", "--overwrite"])
    assert 'failing.py", line 2, in depth' in done.stderr


def test_memory_that_runs_out_is_left_to_the_caller(images):
    write("failing.py", "def depth(images):\n    raise MemoryError\ndepth.quantity = 'depth'\n")
    with pytest.raises(MemoryError):
        load_model("python:failing:depth")(images)


def test_two_callables_of_one_name_are_told_apart():
    write(
        "two.py", PLAIN.replace("depth", "one") + PLAIN.replace("depth", "other") + "one.name = other.name = 'Mine'\n"
    )
    settings = {"device": torch.device("cpu"), "offline": True, "has_depth": False, "seed": 0}
    pool = load_teachers(parse_teachers("python:two:one,python:two:other=3"), **settings)
    assert [teacher.name for teacher in pool.teachers] == ["python:two:one", "python:two:other"]


def test_a_file_does_not_run_code_but_a_typed_teacher_resumes(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('teachers = "dav2-mini,python:mymodels:depth"\nimages = ["scenes:10"]\n')
    with pytest.raises(UsageError, match=r"code runs only if it is typed: add --teachers dav2-mini,python:"):
        load_config(file=config)
    typed = load_config(file=config, flags={"teachers": "dav2-mini,python:mymodels:depth"})
    assert continuing(typed).endswith("--resume auto --teachers dav2-mini,python:mymodels:depth")
    assert "--teachers" not in continuing(load_config())


def test_the_listing_says_the_form():
    done = CliRunner().invoke(cli, ["list", "teachers", "--json", "-"])
    (row,) = [row for row in json.loads(done.output) if row["name"].startswith("python:")]
    assert row["name"] == "python:module:function"
    assert "docs/own-teacher.md" in row["source"]
    assert "python:module:function" in CliRunner().invoke(cli, ["list", "teachers"]).output
