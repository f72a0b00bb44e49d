"""One run, in a process of its own with one thread: train what is not trained, then score.

    python -m benchmarks.ablation.worker FOLDER SCORE PROTOCOL DATA...

It ends when its standard input does, that is with the process that started it, however that ended.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any

from benchmarks.ablation.jobs import KEY, LABELS, LIST, TRAIN, TRAINED
from benchmarks.ablation.table import PHOTOS, PROTOCOLS
from distilldepth.cli.main import EXPECTED_ERRORS, error_message
from distilldepth.distill.config import DistillConfig
from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError, one_line
from distilldepth.files import write_atomically
from distilldepth.folders import LOCK, lock_file
from distilldepth.settings import set_key
from distilldepth.signals import Interrupted, raise_on_signals

METRICS = ("delta1", "abs_rel", "delta2", "delta3", "rmse", "rmse_log", "log10", "silog")
"""Kept of each dataset, as means over its frames."""
PER_FRAME = ("delta1", "abs_rel")
"""Kept of each frame, so that cells can be compared frame by frame."""
_CHECKPOINTS = 6
"""A killed run loses a sixth of its steps at most; one that is asked to end loses none."""
_SIGNIFICANT = 7
_PATIENCE_S = 120.0


def main() -> int:
    folder, score, protocol, *data = sys.argv[1:]
    raise_on_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(Path(folder), score, data, protocol)
        return 0
    except Interrupted as error:
        return error.exit_code
    except (*EXPECTED_ERRORS, MemoryError) as error:
        print(f"error: {one_line(error_message(error))}", file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        print(f"error: {one_line(f'{type(error).__name__}: {error}')}", file=sys.stderr)
    return 1


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def work(folder: Path, score: str, data: list[str], protocol: str = PROTOCOLS[0]) -> None:
    """Bring a run to the end: a student that is trained, and its scores on the data.

    Args:
        folder: of the run, with `run.json`.
        score: name of the file to write.
        data: what `evaluate` takes.
        protocol: by which it is scored.

    Raises:
        DistillDepthError, ValueError, OSError: the training or the scoring failed.
        Interrupted: asked to end; the training continues from there.
    """
    import torch

    from benchmarks.ablation.labels import SharedLabels

    torch.set_num_threads(1)
    lock = _claim(folder)
    key = read_json(folder / KEY)
    model = key.get("model") or str(folder / TRAIN)
    trained = folder / TRAINED
    if "model" not in key and not (trained.is_file() and (folder / TRAIN / "student").is_dir()):
        with SharedLabels(folder.parents[1] / LABELS).asked_first():
            _train(key, folder)
    scored = _score(model, data, protocol)
    if "model" not in key:
        scored["training"] = read_json(trained)
    write_atomically(folder / score, json.dumps(scored) + "\n")
    shutil.rmtree(folder / TRAIN / "checkpoints", ignore_errors=True)  # Four times as large as the student.
    lock.close()


def _claim(folder: Path) -> IO[str]:
    """Keep other processes out; one that lost its parent a moment ago is waited for, since it saves and ends."""
    file, deadline = (folder / LOCK).open("a"), time.monotonic() + _PATIENCE_S
    while True:
        try:
            lock_file(file, f"another process works in {folder}; wait for it, or stop it")
            return file
        except DistillDepthError:
            if time.monotonic() > deadline:
                file.close()
                raise
            time.sleep(0.1)


def training_config(key: dict[str, Any], folder: Path) -> DistillConfig:
    """Return the configuration of a run from what decides it."""
    config = DistillConfig()
    for name, value in key["settings"].items():
        set_key(config, name, value, str(folder / KEY), "ablation")
    config.images = [str(folder / LIST) if spec.startswith(PHOTOS) else spec for spec in config.images]
    if "taught_by" in key:
        config.teachers = str(folder.parent / key["taught_by"] / TRAIN / "student")
    config.seed = key["seed"]
    config.out, config.resume = str(folder / TRAIN), "auto"
    config.device, config.threads, config.workers, config.offline = "cpu", 1, 0, True
    config.heldout, config.agreement_every, config.log = 0, 0, "none"
    config.checkpoint_every, config.keep_checkpoints = max(config.steps // _CHECKPOINTS, 1), 1
    return config.validate()


def _train(key: dict[str, Any], folder: Path) -> None:
    from distilldepth.distill.trainer import distill
    from distilldepth.machine import machine

    result = distill(training_config(key, folder), command="python -m benchmarks.ablation")
    facts = {"seconds": round(result.seconds, 1), "commit": machine("cpu")["commit"]}
    write_atomically(folder / TRAINED, json.dumps(facts | {"findings": [str(each) for each in result.findings]}) + "\n")


def _score(model: str, data: list[str], protocol: str) -> dict[str, Any]:
    """Scores on every dataset, frame by frame."""
    from distilldepth.evaluate import evaluate
    from distilldepth.machine import machine

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Manifests name frames without truth too.
        result = evaluate(model, data, protocol=protocol, offline=True, device="cpu", precision="float32")
    if result.failures:
        first = result.failures[0]
        count = len(result.failures)
        raise DistillDepthError(
            f"{count} frames could not be scored; the first: {first.dataset}, {first.name}: {first.error}"
        )
    datasets: dict[str, Any] = {}
    for dataset in result.datasets:
        samples = [sample for sample in result.samples if sample.dataset == dataset.name]
        names = "\0".join(sample.name for sample in samples)
        datasets[dataset.name] = {
            "frames": len(samples),
            # Frames are paired by their place; this says whether they are the same.
            "names": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16],
            "metrics": {name: _rounded(dataset.metrics.get(name)) for name in METRICS},
            "per_frame": {name: [_rounded(sample.metrics.get(name)) for sample in samples] for name in PER_FRAME},
        }
    seconds = round(time.perf_counter() - began, 1)
    return {"datasets": datasets, "seconds": seconds, "commit": machine("cpu")["commit"]}


def _rounded(value: float | None) -> float | None:
    """To more digits than mean anything, so that the file stays small; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_SIGNIFICANT}g}")


if __name__ == "__main__":
    sys.exit(main())
