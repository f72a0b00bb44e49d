"""The command group: speed, exit codes, one line per failure, hints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from waiting import patience_s

from distilldepth.cli import main as main_module
from distilldepth.cli import options
from distilldepth.cli.main import COMMANDS, cli
from distilldepth.errors import DistillDepthError, did_you_mean


@pytest.fixture
def run(monkeypatch):
    """Run a command line in this process; the variables that options set are restored afterwards."""
    for name in ("DISTILLDEPTH_DEBUG", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0")
    return lambda *args: CliRunner().invoke(cli, list(args))


@pytest.fixture
def failing(run, monkeypatch):
    """Run `distilldepth doctor` with a body that raises the given error."""

    def call(error: BaseException, *args: str):
        @click.command()
        def doctor() -> None:
            raise error

        monkeypatch.setitem(cli.commands, "doctor", doctor)
        doctor.params.append(main_module._debug_option())
        return run("doctor", *args)

    return call


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom distilldepth.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for args in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [80, 110])
def test_help_loses_no_option_and_fits(run, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run(name, "--help").stdout
    command = cli.get_command(click.Context(cli), name)
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else []:
            assert (
                len(re.findall(rf"^  (?:-\w, )?{re.escape(option)}(?= |$)", shown, re.MULTILINE)) == 1
                or len(option) == 2
            )
    # A list of words to choose from is one word.
    assert all(len(line) <= width or "|" in line for line in shown.splitlines())


@pytest.mark.parametrize("name", ["distill", "evaluate"])
def test_options_are_grouped_and_each_is_in_one_group(run, name):
    command = cli.get_command(click.Context(cli), name)
    grouped = [option for group in command.groups.values() for option in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) <= {parameter.name for parameter in command.params}
    shown = run(name, "--help").stdout
    titles = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert titles == [*command.groups, "Other"]
    assert "Options:" not in shown


def test_a_short_option_has_no_far_fetched_hint(run):
    result = run("-V")
    assert result.exit_code == 2
    assert "did you mean" not in result.stderr


def test_every_command_is_listed_and_says_the_same_in_its_own_help(run):
    listed = run("--help").stdout
    for name, (_, short_help) in COMMANDS.items():
        assert name in listed
        if name != "distill":
            assert short_help.rstrip(".") in " ".join(run(name, "--help").stdout.split())


def test_without_a_command_it_shows_help(run):
    result = run()
    assert result.exit_code == 0
    assert "distilldepth predict img.jpg -o depth.png" in result.stdout


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["perdict", "x"], "did you mean 'predict'?"),
        (["zzz"], "choose from distill, label, evaluate"),
        (["predict", "--modle", "x"], "did you mean '--model'?"),
        (["predict", "x.png", "-o", "y", "--as", "pgn16"], "did you mean 'png16'?"),
        (["predict", "x.png", "-o", "y", "--colormap", "infreno"], "did you mean 'inferno'?"),
        (["predict", "x.png", "-o", "y", "--colormap", "INFERNO"], "did you mean 'inferno'?"),
        (["predict", "x.png", "-o", "y", "--as", ","], "names nothing; choose from png16"),
        (["predict", "x.png", "-o", "y", "--precision", "bf16"], "'bfloat16'"),
        (["predict", "x.png", "-o", "y", "--fov", "180"], "between 0 and 180 degrees, got 180"),
        (["predict", "x.png", "-o", "y", "--fov", "nan"], "between 0 and 180 degrees, got nan"),
        (["predict", "x.png", "-o", "y", "--fov", "60", "--intrinsics", "1,1,1,1"], "contradict"),
        (["predict", "x.png", "-o", "y", "--intrinsics", "1,2"], "4 numbers fx,fy,cx,cy"),
        (["predict", "x.png", "-o", "y", "--skip-existing", "--overwrite"], "contradict"),
        (["predict", "x.png"], "--out"),
        (["list", "teacher"], "did you mean 'teachers'?"),
        (["bench", "--kernel", "hybrid-nrom"], "did you mean 'hybrid-norm'?"),
        (["bench", "--shape", "4x560"], "BxHxW"),
        (["evaluate", "--data", "scenes", "--protocol", "marigld"], "did you mean 'marigold'?"),
        (["evaluate", "--data", "scenes", "--analysis", "local"], "did you mean 'local-global'?"),
        (["distill", "--preset", "demmo"], "did you mean 'demo'?"),
        (["distill", "--preset", "x"], "choose from adu-depth, adu-depth-mini"),
        (["distill", "--set", "optimser.lr=1"], "did you mean 'optimiser.lr'?"),
        (["distill", "--set", "lr=1"], "did you mean 'optimiser.lr'?"),
        (["bench", "--repeats", "0"], "range"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint_and_exit_2(run, args, hint):
    result = run(*args)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("distilldepth: error: ")
    assert result.stdout == ""


@pytest.mark.parametrize("offline", [[], ["--offline"]], ids=["online", "offline"])
@pytest.mark.parametrize(
    ("args", "hints"),
    [
        (["predict", "i.png", "-o", "o.png", "--model", "nope"], ["bundled are distilldepth-mini", "list teachers"]),
        (["predict", "i.png", "-o", "o.png", "--model", "dav2-smal"], ["did you mean 'dav2-small'?"]),
        (["evaluate", "--data", "scenes:1", "--model", "genpercept-mni"], ["did you mean 'genpercept-mini'?"]),
        (["distill", "--teachers", "nope"], ["bundled are distilldepth-mini", "list teachers"]),
        (["distill", "--teachers", "dav2:lage", "--student", "light-mini"], ["did you mean 'dav2-large'?"]),
        (
            ["distill", "--teachers", "oracle", "--student", "lite-mini"],
            ["did you mean 'light-mini'?", "list students"],
        ),
    ],
)
def test_an_unknown_model_is_answered_with_names_and_with_what_else_is_possible(
    run, tmp_path, monkeypatch, args, hints, offline
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("i.png")
    result = run(*args, *offline)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    for hint in [*hints, "run's folder", ".safetensors or .pth file", "hub id owner/name"]:
        assert hint in line
    assert not (tmp_path / "o.png").exists()


def test_names_that_are_equally_near_are_all_told():
    assert did_you_mean("teacher-x", ["teacher-a", "teacher-b", "y"]) == "; did you mean 'teacher-b' or 'teacher-a'?"
    assert did_you_mean("Kitti", ["KITTI", "nyuv2"]) == "; did you mean 'KITTI'?"
    assert did_you_mean("x", {"b", "a"}) == "; choose from a, b"
    assert did_you_mean("x", ["b", "a"], otherwise="; sorry") == "; sorry"


@pytest.mark.parametrize(
    "error",
    [
        DistillDepthError("a.pth: is damaged\nin two lines"),
        ValueError("f: x must be y, got z"),
        TypeError("f: x must be y, got z"),
        FileNotFoundError(2, "No such file or directory", "a b.jpg"),
        PermissionError(13, "Permission denied", "/x"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_expected_failures_are_one_line_and_exit_1(failing, error):
    result = failing(error)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("distilldepth: error: ")
    assert "--debug" not in result.stderr
    assert "Errno" not in result.stderr or error.filename is None


def test_a_file_error_names_the_file_first(failing):
    result = failing(FileNotFoundError(2, "No such file or directory", "a b.jpg"))
    assert result.stderr == "distilldepth: error: a b.jpg: No such file or directory\n"


def test_a_fault_of_the_program_points_to_debug(failing):
    result = failing(KeyError("x"))
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "KeyError" in result.stderr
    assert "run again with --debug" in result.stderr


def test_debug_shows_the_trace_wherever_it_stands(run, failing, monkeypatch):
    result = failing(ValueError("f: broken"), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "distilldepth: error: f: broken"
    monkeypatch.setenv("DISTILLDEPTH_DEBUG", "0")
    assert "Traceback" not in failing(ValueError("f: broken")).stderr
    assert "Traceback" in run("--debug", "doctor").stderr
    monkeypatch.setenv("DISTILLDEPTH_DEBUG", "1")
    assert "Traceback" in run("doctor").stderr


def test_an_interrupt_is_130(failing):
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from distilldepth.cli.main import main; sys.argv = ['distilldepth', 'list', 'teachers']; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(timeout=patience_s())


def test_the_stand_in_warning_cannot_be_missed_and_foreign_warnings_are_silent(run, monkeypatch):
    class BundledModelWarning(UserWarning):
        pass

    @click.command()
    def doctor() -> None:
        warnings.warn("dav2: the bundled stand-in is used", BundledModelWarning, stacklevel=1)
        warnings.warn_explicit("noise of a library", UserWarning, "/lib/transformers/x.py", 1)
        warnings.warn_explicit("ours", UserWarning, os.path.join(os.path.dirname(options.__file__), "x.py"), 1)

    monkeypatch.setitem(cli.commands, "doctor", doctor)
    result = run("doctor")
    assert "WARNING: dav2: the bundled stand-in is used" in result.stderr
    assert "noise" not in result.stderr


def test_offline_is_set_before_the_hub_is_imported(run, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    result = run("predict", "missing.png", "-o", "x.png", "--offline")
    assert result.exit_code == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_words_of_the_options_are_those_of_the_library():
    from distilldepth.cli import bench as cli_bench
    from distilldepth.machine import PRECISIONS
    from distilldepth.models.preprocess import RESIZE_POLICIES

    assert options.PRECISIONS == PRECISIONS
    assert options.RESIZE_POLICIES == RESIZE_POLICIES
    from distilldepth.bench import KERNELS

    assert cli_bench.KERNELS == KERNELS


@pytest.mark.parametrize("kind", ["teachers", "students", "models", "datasets", "protocols", "presets", "kernels"])
def test_list_shows_a_table_and_the_same_as_json(run, kind):
    table = run("list", kind)
    assert table.exit_code == 0, table.stderr
    result = run("list", kind, "--json", "-")
    rows = json.loads(result.stdout)
    assert rows
    first = next(iter(rows[0]))
    for row in rows:
        assert str(row[first]) in table.stdout


def test_list_of_models_has_size_licence_source_and_place(run):
    rows = {row["name"]: row for row in json.loads(run("list", "students", "--json", "-").stdout)}
    row = rows["distilldepth-mini"]
    assert row["parameters"] > 1e6
    assert {"licence", "source", "on_this_machine", "quantity"} <= row.keys()
    assert not any(key.startswith("macs") for key in row)


def test_list_of_students_counts_multiplications(run):
    done = run("list", "students", "--macs")
    assert done.exit_code == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("topformer-base "))
    assert re.search(r"\b11\.547 M +20\.85 +21\.05 +448x448\b", line)
    rows = {row["name"]: row for row in json.loads(run("list", "students", "--macs", "--json", "-").stdout)}
    row = rows["topformer-base"]
    assert (row["parameters"], row["macs_size"]) == (11_547_233, [448, 448])
    assert round(row["macs"] / 1e9, 2) == 20.85
    assert round(row["macs_thop"] / 1e9, 2) == 21.05
    assert rows["distilldepth-mini"]["macs_size"] == [96, 96]
    assert 0 < rows["distilldepth-mini"]["macs"] < rows["efficientnet-lite0"]["macs"] / 6
    refused = run("list", "datasets", "--macs")
    assert refused.exit_code == 2
    assert "--macs is for teachers, students, models, got datasets" in refused.stderr


def test_doctor_tells_what_runs(run):
    result = run("doctor", "--json", "-")
    facts = json.loads(result.stdout)
    assert facts["torch"]
    assert {row["name"] for row in facts["kernels"]} == {"hybrid-norm", "crop-ssi", "channel-kl", "backproject"}
    assert result.exit_code == (1 if facts["problems"] else 0)
    shown = " ".join(run("doctor").stdout.split())
    assert all(row["name"] in shown for row in facts["kernels"])
