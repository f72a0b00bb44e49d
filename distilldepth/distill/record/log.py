"""`metrics.jsonl`: what happened between two lines, summed on the device."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from distilldepth.capacity import peak_memory
from distilldepth.distill.record.state import MetricsRow, RunState
from distilldepth.distill.step import StepOutputs
from distilldepth.distill.trackers import Trackers
from distilldepth.documents import parse_json
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically
from distilldepth.images.crops import Regions


class RunLog:
    """Sums on the device between two lines of metrics.jsonl; only `flush` waits for the device.

    After it, `bad_batch` is the number of the last batch with anything not finite, or -1.
    """

    def __init__(self, path: Path | None, state: RunState, accelerator: Accelerator, trackers: Trackers) -> None:
        self._path, self._state, self._accelerator, self._trackers = path, state, accelerator, trackers
        self.bad_batch = -1
        if path is not None:
            keep_lines_until(path, state.step)
        self._began = time.monotonic()
        self._earlier = state.seconds
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._teachers: dict[str, int] = defaultdict(int)
        self._skipped: Tensor | None = None
        self._bad: Tensor | None = None
        self._unreadable, self._samples = 0, 0
        self._errors: list[str] = []
        self._since = time.monotonic()

    def add(self, outputs: StepOutputs, norm: Tensor | None, batch: Regions, teacher: str, number: int) -> None:
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
        self._samples += len(batch.image)
        self._unreadable += sum(batch.unreadable)
        self._errors += [text for text in batch.errors if text]

    def flush(self, step: int, rates: dict[str, float], shares: dict[str, float]) -> MetricsRow:
        """Write and return the line of the steps since the last one, of all processes together.

        Args:
            step: steps that are done.
            rates: learning rate of each part of the student, the decoder's last.
            shares: share of each phase in the time.
        """
        processes = self._accelerator.num_processes
        names = sorted(self._sums)
        sums = self._gather(torch.stack([self._sums[name].float() for name in names]))
        means = {
            name: sum(row[place] for row in sums) / (self._counts[name] * processes) for place, name in enumerate(names)
        }
        means["output_peak"] = max(row[names.index("output_peak")] for row in sums)
        skipped_here, bad = self._skipped, self._bad
        assert skipped_here is not None, "a line is of one batch at least"
        assert bad is not None
        memory = peak_memory(self._accelerator.device)
        here = [skipped_here, bad, *(torch.tensor(n) for n in (self._samples, self._unreadable, memory))]
        whole = self._gather(torch.stack([value.to(bad.device, torch.int64) for value in here]))
        skipped, _, samples, unreadable, _ = (int(sum(column)) for column in zip(*whole, strict=True))
        now = time.monotonic()
        self.bad_batch = int(max(row[1] for row in whole))
        self._state = dataclasses.replace(
            self._state,
            seconds=self._earlier + now - self._began,
            skipped=self._state.skipped + skipped,
            unreadable=self._state.unreadable + unreadable,
        )
        terms = {name.removeprefix("terms."): means[name] for name in names if name.startswith("terms.")}
        row: MetricsRow = {"step": step, "loss": means["loss"], "terms": terms}
        if "grad_norm" in means:
            row["grad_norm"] = means["grad_norm"]
        row |= {
            "output_center": means["output_center"],
            "output_peak": means["output_peak"],
            "output_spread": means["output_spread"],
            "lr": list(rates.values())[-1],
            "rates": rates,
            "memory": int(max(row[4] for row in whole)),
            "samples": samples,
            "skipped": skipped,
            "unreadable": unreadable,
            "images_per_second": samples / max(now - self._since, 1e-9),
            "time": shares,
            "teachers": dict(self._teachers),
            "seconds": self._state.seconds,
        }
        if self._errors:
            row["errors"] = self._errors[:20]
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        self._trackers.tell(row, step)
        self._reset()
        return row

    @property
    def has_samples(self) -> bool:
        """Whether anything was added since the last line."""
        return self._samples > 0

    def _gather(self, values: Tensor) -> list[list[float]]:
        """The values of every process, on the host."""
        if self._accelerator.num_processes == 1:
            return [values.tolist()]
        return self._accelerator.gather(values[None]).tolist()

    def state(self) -> RunState:
        """Return what a checkpoint keeps."""
        return dataclasses.replace(self._state, seconds=self._earlier + time.monotonic() - self._began)


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line that was cut short: the resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line, path.name)
        except DistillDepthError:
            continue
        reached = row.get("step") if isinstance(row, dict) else None
        if isinstance(reached, int) and reached <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
