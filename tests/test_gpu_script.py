"""`benchmarks/gpu.sh`: what it does on a machine with a GPU, on one without, from a copy and with nothing installed."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distilldepth import native

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.sh"
RESULT = REPOSITORY / "benchmarks" / "results" / "kernels"
LEFT_OUT = ("distilldepth", "transformers", "diffusers", "accelerate", "huggingface_hub", "safetensors", "tqdm", "pip",
            "setuptools", "pkg_resources", "matplotlib", "_distutils_hack", "__editable__", "__pycache__")  # fmt: skip
"""What a machine need not have; the project itself first of all."""
NOT_CLONED = (".git", ".venv", "*.egg-info", "__pycache__", "build", "dist", "runs", "demo", "weights", ".*_cache")


def limits() -> dict[str, int]:
    """The steps of the script and their limits, in order."""
    text = re.search(r"^steps=\(([^)]*)\)", SCRIPT.read_text(), re.MULTILINE)[1]
    return {name: int(seconds) for name, seconds in (entry.split(":") for entry in text.split())}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A clone, and a Python that has what the script asks for and nothing of the project: (script, environment)."""
    folder = tmp_path_factory.mktemp("machine")
    clone, packages = folder / "a clone", folder / "packages"
    shutil.copytree(REPOSITORY, clone, ignore=shutil.ignore_patterns(*NOT_CLONED))
    packages.mkdir()
    for place in dict.fromkeys(sys.path):
        if not place.endswith(("site-packages", "dist-packages")):
            continue
        for entry in Path(place).iterdir():
            link = packages / entry.name
            if not entry.name.startswith(LEFT_OUT) and entry.suffix != ".pth" and not link.exists():
                link.symlink_to(entry)
    # The interpreter of this environment would bring the environment's packages.
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "MOST_"))}
    environment |= {"PYTHON": str(python), "PYTHONPATH": str(packages), "PYTHONNOUSERSITE": "1"}
    return clone / "benchmarks" / "gpu.sh", environment


def start(machine, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    script, environment = machine
    command = [str(script), *arguments]
    return subprocess.run(command, env=environment | changes, capture_output=True, text=True, check=False)


def results(folder: Path) -> dict[str, str]:
    """What the summary says of each step."""
    lines = (folder / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].split() == ["step", "seconds", "result"]
    return {name: result for name, _, result in (line.split(maxsplit=2) for line in lines[2:])}


@pytest.mark.slow
@pytest.mark.skipif(native.obstacle("cpu") is not None, reason="no C++ compiler")
def test_every_step_runs_from_a_clone_without_a_gpu(machine, tmp_path):
    done = start(machine, "--device", "cpu", str(tmp_path / "out"))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    seen = results(out)
    assert list(seen) == list(limits())
    assert all(result.startswith("passed") for result in seen.values()), seen
    for name in ("test-native", "test-triton", "test-library"):
        assert re.search(r"\d+ passed", (out / f"{name}.log").read_text())
    for name in ("memcheck", "racecheck"):
        assert re.search(r"[1-9]\d* cases passed", (out / f"{name}.log").read_text())
    # The package is the clone's: nothing is installed, and the links are gone afterwards.
    package = Path((out / "build.log").read_text().splitlines()[0]).parent
    assert not package.exists()
    assert not package.is_relative_to(REPOSITORY)
    markdown = runpy.run_path(str(REPOSITORY / "benchmarks" / "table.py"))["markdown"]
    measured = sorted(out.glob("*.json"))
    assert len(measured) == 7
    for path in measured:
        result = json.loads(path.read_text())
        assert result["metadata"]["finished"]
        assert not any(entry["failed"] for entry in result["metadata"]["not_run"])
        assert seen[path.stem] == f"passed, {len(result['results'])} rows"
        assert markdown(result) in (out / "tables.md").read_text()
    assert any(row["backend"] == "compile" for row in json.loads((out / "compile.json").read_text())["results"])


def test_what_is_missing_is_named_at_once_and_nothing_runs(machine, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("hypothesis", "rich"):
        (broken / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")\n")
    _, environment = machine
    paths = f"{broken}:{environment['PYTHONPATH']}"
    nowhere = {"CUDA_HOME": "", "CUDA_PATH": "", "CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""}
    done = start(machine, str(tmp_path / "out"), PYTHONPATH=paths, **nowhere)
    assert done.returncode == 2
    missing = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    for word in ("hypothesis", "rich", "a GPU that torch sees", "compiler of the cpu library", "of the cuda library"):
        assert any(word in line for line in missing), (word, done.stderr)
    assert len(missing) == 5, done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out" / "summary.txt").exists()


def test_a_step_that_does_not_fit_is_skipped_and_a_shorter_one_still_runs(machine, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(next(iter(sorted(RESULT.glob("*.json")))), out / "scaling.json")
    # A second less than the build may take; what has passed by then is not enough for anybody to miss the tables.
    seconds = limits()["build"] - 1
    done = start(machine, "--device", "cpu", "--steps", "build,tab*", str(out), MOST_SECONDS=str(seconds))
    seen = results(out)
    assert re.fullmatch(rf"NOT RUN: it may take {seconds + 1} s, and \d+ s are left", seen.pop("build"))
    assert seen == {"tables": "passed"}, done.stdout
    assert done.returncode == 1
    assert (out / "tables.md").read_text().startswith(("1", "2", "3", "4", "f"))


def test_the_limits_fit_into_what_a_lent_machine_gives():
    assert sum(limits().values()) <= 560
    text = SCRIPT.read_text()
    # `step NAME` and `bench NAME`, with the loops over tools and types taken out.
    run = set(re.findall(r"^\s*(?:step|bench) ([\w-]+)", text, re.MULTILINE))
    run |= {f"{dtype}-{size}" for dtype in ("float32", "bfloat16") for size in ("few", "many")}
    assert run == set(limits())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "--device must be cuda or cpu"),
        (["--steps", "biuld"], "no step is called biuld"),
        (["--stpes", "build"], "unknown option --stpes"),
        (["a", "b"], "one folder"),
    ],
)
def test_wrong_use_is_said(arguments, said, tmp_path):
    done = subprocess.run([str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "usage:" in done.stderr
    assert not list(tmp_path.iterdir())


def test_files_that_it_names_exist():
    for name in re.findall(r"\b(?:tests|benchmarks)/\w+\.(?:py|sh)\b", SCRIPT.read_text()):
        assert (REPOSITORY / name).is_file(), name
