"""`distilldepth doctor --build`: what it says and how it exits."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from distilldepth import native
from distilldepth.cli import doctor
from distilldepth.cli.main import cli
from distilldepth.native import loading, recipe


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run doctor on a source of one line, in a cache folder of its own."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one_cpu.cpp").write_text("int one() { return 1; }\n")
    monkeypatch.setattr(recipe, "source_folder", lambda: folder)
    monkeypatch.setattr(loading, "statuses", {})
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "cache"))
    for name in ("CXX", "DISTILLDEPTH_BUILD", "DISTILLDEPTH_CXXFLAGS", "DISTILLDEPTH_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(cli, ["doctor", *arguments])


@pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler on this machine")
def test_build_compiles_once_and_reports(run):
    before = json.loads(run("--json", "-").stdout)
    assert not before["native"]["cpu"]["loaded"]
    assert all("no native CPU library" in row["why"] for row in before["kernels"])
    assert {row["cpu"] for row in before["kernels"]} == {"reference"}

    result = run("--build")
    assert result.exit_code == 0, result.stderr
    assert "one_cpu.cpp: " in result.stderr
    assert "native CPU library: compiled in" in result.stderr
    assert "native CUDA library: not compiled: " in result.stderr

    result = run("--build", "cpu", "--json", "-")
    assert "native CPU library: up to date" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["native"]["cpu"]["loaded"]
    assert facts["native"]["cpu"]["path"] in run().stdout
    assert {row["cpu"] for row in facts["kernels"]} == {"native"}


@pytest.mark.parametrize("columns", ["60", "80", "100", None])
def test_it_fits_a_screen_and_advises_only_what_helps_this_machine(run, monkeypatch, columns):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    facts, printed = json.loads(run("--json", "-").stdout), run().stdout
    types = [advice["type"] for advice in facts["advice"]]
    assert all("cuda" not in text.lower() and "triton" not in text.lower() for text in types)
    assert "nvcc" not in printed
    assert "triton" not in printed.lower()
    assert all(text in printed for text in types)
    words = " ".join(printed.split())
    assert f"instructions used: {facts['cpu_capability']}" in words
    assert f"auto is {facts['precision']['cpu']['auto']}" in words
    if columns:
        assert len(printed.splitlines()) <= (24 if columns != "60" else 32)
        # A single word, a path or a command to copy stays whole.
        whole = [line for line in printed.splitlines() if len(line.split()) > 1 and "distilldepth doctor" not in line]
        assert all(len(line) <= int(columns) or "/" in line for line in whole)


@pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler on this machine")
def test_what_is_built_is_not_advised(run):
    before = json.loads(run("--json", "-").stdout)["advice"]
    assert [advice["type"] for advice in before] == ["distilldepth doctor --build cpu"]
    assert run("--build", "cpu").exit_code == 0
    assert json.loads(run("--json", "-").stdout)["advice"] == []
    assert "Nothing is missing that would help this machine." in run().stdout


def test_without_a_compiler_it_says_how_to_get_one(run, monkeypatch):
    for asked in (native, recipe):
        monkeypatch.setattr(asked, "find_compiler", lambda: None)
    (advice,) = json.loads(run("--json", "-").stdout)["advice"]
    assert advice["type"].endswith("&& distilldepth doctor --build cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    (advice,) = json.loads(run("--json", "-").stdout)["advice"]
    assert advice["type"].startswith("unset CXX && ")


def test_on_a_gpu_it_advises_what_helps_there():
    library = {"loaded": True, "obstacle": None}
    facts = {"gpus": ["cuda:0 X"], "cuda": "13", "triton": None, "cpp_compiler": "c++"}
    missing = {"loaded": False, "obstacle": None}
    (advice,) = doctor._advice({**facts, "native": {"cpu": library, "cuda": missing}})
    assert advice["type"] == "distilldepth doctor --build cuda"
    assert doctor._advice({**facts, "native": {"cpu": library, "cuda": library}}) == []


def test_no_compiler_fails_only_if_it_was_asked_for(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = run("--build")
    assert result.exit_code == 0, result.stderr
    assert "native CPU library: not compiled: the C++ compiler CXX=no-such-compiler was not found" in result.stderr
    assert "plain torch" in result.stdout
    result = run("--build", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("distilldepth: error: the native CPU library cannot be compiled")
    monkeypatch.setenv("DISTILLDEPTH_BUILD", "1")
    assert run("--build").exit_code == 1
    monkeypatch.setenv("DISTILLDEPTH_BUILD", "0")
    assert run("--build").exit_code == 0


@pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler on this machine")
def test_a_compile_error_is_one_line_and_exit_1(run):
    (recipe.source_folder() / "one_cpu.cpp").write_text("int one() { return nothing; }\n")
    result = run("--build")
    assert result.exit_code == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("distilldepth: error: "))
    assert "one_cpu.cpp:1:" in line
    assert "nothing" in line


def test_a_typo_is_answered(run):
    result = run("--build", "gpu")
    assert result.exit_code == 2
    assert "unknown value 'gpu'" in result.stderr
