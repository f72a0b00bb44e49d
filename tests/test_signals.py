"""Asked to end, every command ends: with the exit code of the signal, and nothing half written left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from waiting import patience_s, wait_until

from distilldepth import native
from distilldepth.signals import Interrupted, StopRequest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def start(*words, **options) -> subprocess.Popen:
    def usual():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "distilldepth.cli.main", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=usual,
        **options,
    )


def end(process: subprocess.Popen, number: int) -> str:
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=patience_s())
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    assert f"ended by {signal.Signals(number).name}" in told
    return told


def left_behind(folder) -> list[str]:
    kept = (".distilldepth.json", ".predict.jsonl")
    return [path.name for path in folder.rglob(".*") if path.name not in kept]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(3)
    for index in range(400):
        pixels = generator.integers(0, 255, (60, 80 + index % 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=0)
    return folder


def test_predict_ends(tmp_path, photos):
    out = tmp_path / "out"
    process = start("predict", photos, "-o", out, "--as", "png16,color,npy", "--batch-size", "1")
    wait_until(lambda: any(out.glob("*.npy")), process)
    end(process, signal.SIGTERM)
    assert not left_behind(tmp_path)
    for path in out.glob("*.png"):
        Image.open(path).load()  # Whole.


def test_evaluate_ends_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "out"
    process = start(
        "evaluate", "--model", "distilldepth-mini", "--data", "scenes:500", "--batch-size", "1", "--out", out
    )
    wait_until(lambda: (out / "progress.jsonl").is_file() and (out / "progress.jsonl").stat().st_size > 0, process)
    told = end(process, signal.SIGHUP)
    assert "--resume auto" in told
    assert not left_behind(tmp_path)


@pytest.mark.skipif(native.find_compiler() is None, reason="needs a C++ compiler")
def test_a_build_ends_with_its_compiler(tmp_path):
    environment = {**os.environ, "DISTILLDEPTH_CACHE": str(tmp_path / "cache")}
    process = start("doctor", "--build", "cpu", env=environment)
    wait_until(lambda: any(tmp_path.rglob(".build-*")), process)
    end(process, signal.SIGTERM)
    assert not left_behind(tmp_path)


def test_what_is_ignored_stays_ignored(tmp_path, photos):
    few = tmp_path / "few"
    few.mkdir()
    for index in range(12):
        shutil.copy(photos / f"{index}.png", few)
    process = subprocess.Popen(
        [sys.executable, "-m", "distilldepth.cli.main", "predict", str(few), "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # What nohup does.
    )
    wait_until(lambda: (tmp_path / "out").is_dir(), process)
    os.kill(process.pid, signal.SIGHUP)
    _, told = process.communicate(timeout=patience_s())
    assert process.returncode == 0, told
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_a_request_is_noted_once_and_raised_the_second_time():
    earlier = signal.getsignal(signal.SIGTERM)
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is earlier
