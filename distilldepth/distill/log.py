"""`metrics.jsonl`: what happened between two lines, summed on the device."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilldepth.distill.step import StepOutputs
from distilldepth.files import write_atomically


class RunLog:
    """Sums on the device between two lines of metrics.jsonl; only `flush` waits for the device.

    After it, `bad_batch` is the number of the last batch with anything not finite, or -1.
    """

    def __init__(self, path: Path | None, state: dict[str, Any]) -> None:
        self._path, self._state = path, state
        self.bad_batch = -1
        self._began = time.monotonic()
        self._earlier = state["seconds"]
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._teachers: dict[str, int] = defaultdict(int)
        self._skipped: Tensor | None = None
        self._bad: Tensor | None = None
        self._unreadable, self._samples, self._errors = 0, 0, []
        self._since = time.monotonic()

    def add(self, outputs: StepOutputs, norm: Tensor | None, batch: dict[str, Any], teacher: str, number: int) -> None:
        """Take in batch `number` of the run."""
        values = {f"terms.{name}": value for name, value in outputs.terms.items()}
        values |= {"loss": outputs.loss.detach(), "output_center": outputs.center, "output_spread": outputs.spread}
        if norm is not None:
            values["grad_norm"] = norm.detach()
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1
        peak = self._sums.get("output_peak")
        self._sums["output_peak"] = outputs.peak if peak is None else torch.maximum(peak, outputs.peak)
        self._counts["output_peak"] = 1
        self._skipped = outputs.skipped if self._skipped is None else self._skipped + outputs.skipped
        bad = (outputs.skipped > 0) | ~torch.isfinite(outputs.loss.detach())
        if norm is not None:
            bad = bad | ~torch.isfinite(norm)
        here = torch.where(bad, number, -1)
        self._bad = here if self._bad is None else torch.maximum(here, self._bad)
        self._teachers[teacher] += 1
        self._samples += len(batch["image"])
        self._unreadable += int(batch["unreadable"].sum())
        self._errors += [text for text in batch["errors"] if text]

    def flush(self, step: int, lr: float, shares: dict[str, float]) -> dict[str, Any]:
        """Write and return the line of the steps since the last one."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        now = time.monotonic()
        skipped = int(self._skipped)
        self.bad_batch = int(self._bad)
        self._state["seconds"] = self._earlier + now - self._began
        self._state["skipped"] += skipped
        self._state["unreadable"] += self._unreadable
        row: dict[str, Any] = {"step": step, "loss": means.pop("loss")}
        row["terms"] = {name[6:]: means.pop(name) for name in sorted(means) if name.startswith("terms.")}
        row |= means
        row |= {
            "lr": lr,
            "samples": self._samples,
            "skipped": skipped,
            "unreadable": self._unreadable,
            "images_per_second": self._samples / max(now - self._since, 1e-9),
            "time": shares,
            "teachers": dict(self._teachers),
            "seconds": self._state["seconds"],
        }
        if self._errors:
            row["errors"] = self._errors[:20]
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        self._reset()
        return row

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {**self._state, "seconds": self._earlier + time.monotonic() - self._began}


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line that was cut short: the resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("step", step + 1) <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())
