"""The worst and the best cases of a run, kept small enough to go into a report."""

from __future__ import annotations

import bisect
import dataclasses
import io
import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from PIL import Image

from distilldepth.documents import parse_json
from distilldepth.errors import DistillDepthError
from distilldepth.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "pictures"
"""Where cases lie in a run folder: one `.npz` per dataset."""
WORST = 4
BEST = 2
WIDTH = 320
"""Widest picture, pixels."""

_LARGEST = float(np.finfo(np.float16).max)

_MOST_CASES = 64
_MOST_BYTES = 256 << 20
"""Of one file, unpacked."""
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error,
    NotImplementedError, DistillDepthError,
)  # fmt: skip
"""What a damaged or foreign archive makes numpy and zipfile stumble over."""

_ARRAYS = ("image", "prediction", "truth", "valid")
_FURTHER = ("points", "uncertainty")
"""Arrays that some cases have."""


@dataclass(frozen=True)
class Case:
    """One scored sample as pictures: all arrays have the same size, at most `WIDTH` wide."""

    dataset: str
    name: str
    score: float
    """AbsRel of the whole sample, not of the small pictures."""
    is_metric: bool
    """Whether depth is in metres."""
    image: np.ndarray
    """uint8 `(h, w, 3)`."""
    prediction: np.ndarray
    """float16 `(h, w)`, aligned depth: three digits are more than colours show."""
    truth: np.ndarray
    """float16 `(h, w)`, depth; 0 where not valid."""
    valid: np.ndarray
    """bool `(h, w)`; True = was scored."""
    points: np.ndarray | None = None
    """float16 `(h, w)`, depth that a completion was given; 0 = nothing. None where it is depth that was scored."""
    uncertainty: np.ndarray | None = None
    """float16 `(h, w)`, what the model states, larger = less certain: a log-variance where it says so. None without."""

    @property
    def key(self) -> tuple[float, str]:
        """What cases are ranked by: the name decides between equal scores, so that the order of arrival never does."""
        return self.score, self.name


class Cases:
    """Keeps the samples of each dataset with the largest and the smallest AbsRel while a run goes on.

    The result does not depend on the order in which samples arrive, so a run that was stopped and continued shows the
    same cases as one that was not.

    Args:
        worst: how many of the largest errors are kept per dataset.
        best: how many of the smallest.
        width: widest picture, pixels.
    """

    def __init__(self, worst: int = WORST, best: int = BEST, width: int = WIDTH) -> None:
        if worst < 0 or best < 0 or width < 1:
            raise ValueError(f"Cases: must have worst, best >= 0 and width >= 1, got {worst}, {best} and {width}")
        self._worst, self._best, self._width = worst, best, width
        self._kept: dict[str, list[Case]] = {}
        self._changed: set[str] = set()

    def wants(self, dataset: str, name: str, score: float) -> bool:
        """Return whether a sample would be kept now: what is not wanted need not be brought from the device."""
        if not math.isfinite(score):
            return False
        kept = self._kept.get(dataset, [])
        if any(case.name == name for case in kept):
            return False
        room = len(kept) < self._worst + self._best
        rank = bisect.bisect([case.key for case in kept], (score, name))
        return room or rank < self._best or rank > len(kept) - self._worst

    def offer(
        self,
        dataset: str,
        name: str,
        score: float,
        image: np.ndarray | Tensor,
        prediction: np.ndarray | Tensor,
        truth: np.ndarray | Tensor,
        valid: np.ndarray | Tensor,
        *,
        is_metric: bool = True,
    ) -> bool:
        """Keep a scored sample if it is among the worst or the best of its dataset so far.

        Args:
            dataset, name: of the sample.
            score: its AbsRel; NaN is never kept.
            image: uint8 `(H, W, 3)`, array or tensor.
            prediction: `(h, w)` aligned depth, array or tensor on any device; metres if `is_metric`.
            truth: `(h, w)` true depth.
            valid: bool `(h, w)`, the pixels that were scored.
            is_metric: whether the unit of depth is metres.

        Returns:
            Whether it was kept. The arrays are copied.
        """
        score = float(score)
        if not self.wants(dataset, name, score):
            return False
        small = _shrink_maps(_array(prediction), _array(truth), _array(valid), self._width)
        # The image is brought to the size of the maps, so that one pixel is one place in all pictures of a case.
        height, width = small[0].shape
        picture = Image.fromarray(np.ascontiguousarray(_array(image))).resize((width, height), Image.Resampling.BOX)
        case = Case(dataset, name, score, is_metric, np.asarray(picture), *small)
        kept = self._kept.setdefault(dataset, [])
        bisect.insort(kept, case, key=lambda other: other.key)
        if len(kept) > self._worst + self._best:
            # Sorted by score: what is neither among the first nor among the last is in the middle.
            del kept[self._best]
        self._changed.add(dataset)
        return True

    def add_points(self, dataset: str, name: str, points: np.ndarray) -> None:
        """Show what a completion was given beside a sample that was just kept.

        Args:
            dataset, name: of the sample; one that is not kept is left alone.
            points: `(h, w)` depth of the truth's size; 0 = nothing.
        """
        self._replace(dataset, name, points=_shrink_points(points, self._width))

    def add_uncertainty(self, dataset: str, name: str, uncertainty: np.ndarray | Tensor) -> None:
        """Show what a model says of its own uncertainty beside a sample that was just kept.

        Args:
            dataset, name: of the sample; one that is not kept is left alone.
            uncertainty: `(h, w)` of the truth's size, larger = less certain; not shown unless finite.
        """
        values = _array(uncertainty).astype(np.float64)
        if np.isfinite(values).all():
            blocks = _blocks(values, max(1, math.ceil(values.shape[1] / self._width)), "edge")
            small = np.clip(blocks.mean(-1), -_LARGEST, _LARGEST).astype(np.float16)
            self._replace(dataset, name, uncertainty=small)

    def _replace(self, dataset: str, name: str, **maps: np.ndarray) -> None:
        kept = self._kept.get(dataset, [])
        for index, case in enumerate(kept):
            if case.name == name:
                kept[index] = dataclasses.replace(case, **maps)  # type: ignore[arg-type]  # Maps alone.
                self._changed.add(dataset)

    def datasets(self) -> list[str]:
        """Return the datasets that have a case."""
        return [dataset for dataset, kept in self._kept.items() if kept]

    def worst(self, dataset: str) -> list[Case]:
        """Return the kept samples with the largest errors, the worst first."""
        kept = self._kept.get(dataset, [])
        return kept[::-1][: self._worst]

    def best(self, dataset: str) -> list[Case]:
        """Return the kept samples with the smallest errors, the best first; none that is also among the worst."""
        kept = self._kept.get(dataset, [])
        return kept[: min(self._best, max(len(kept) - self._worst, 0))]

    def save(self, folder: str | Path) -> None:
        """Write the cases that changed since the last time into `folder/pictures`, each file whole or not at all."""
        for dataset in sorted(self._changed):
            kept = self._kept[dataset]
            facts = [{"name": case.name, "score": case.score, "is_metric": case.is_metric} for case in kept]
            arrays = {f"{name}_{index}": getattr(case, name) for index, case in enumerate(kept) for name in _ARRAYS}
            for index, case in enumerate(kept):
                further = {f"{name}_{index}": getattr(case, name) for name in _FURTHER}
                arrays |= {name: values for name, values in further.items() if values is not None}
            stream = io.BytesIO()
            # Not compressed: this is written while the run goes on, and deflating takes longer than scoring.
            np.savez(stream, facts=np.array(json.dumps({"dataset": dataset, "cases": facts})), **arrays)
            path = Path(folder) / FOLDER / f"{quote(dataset, safe='')}.npz"
            write_atomically(path, stream.getvalue())
        self._changed.clear()

    @classmethod
    def load(cls, folder: str | Path) -> Cases:
        """Read the cases of a run folder; none where it has no pictures.

        Raises:
            DistillDepthError: a file is damaged.
        """
        cases = cls()
        for path in sorted((Path(folder) / FOLDER).glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as stored:
                    _check_sizes(stored.zip)
                    facts = parse_json(str(stored["facts"]), path.name)
                    kept = [
                        _case(
                            facts["dataset"],
                            case,
                            *(stored[f"{name}_{index}"] for name in _ARRAYS),
                            further={name: stored.get(f"{name}_{index}") for name in _FURTHER},
                        )
                        for index, case in enumerate(facts["cases"][:_MOST_CASES])
                    ]
            except _DAMAGE as error:
                raise DistillDepthError(f"{path}: damaged; delete it, the pictures of its dataset are lost") from error
            cases._kept[facts["dataset"]] = sorted(kept, key=lambda case: case.key)
        return cases


def _check_sizes(archive: zipfile.ZipFile | None) -> None:
    """Raise ValueError for an archive that would unpack into more than cases ever take."""
    if archive is not None and sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
        raise ValueError("it unpacks into more than cases take")


def _case(dataset: object, facts: dict[str, Any], *arrays: np.ndarray, further: dict[str, np.ndarray | None]) -> Case:
    """A case as it was saved; ValueError if anything is of another kind or shape."""
    image, prediction, truth, valid = arrays
    maps = prediction, truth, valid
    name, score = facts["name"], facts["score"]
    shapes = {values.shape for values in maps}
    kinds = [values.dtype.kind for values in arrays]
    if not (isinstance(dataset, str) and isinstance(name, str) and isinstance(score, int | float)):
        raise ValueError("names must be texts and scores numbers")
    if kinds != ["u", "f", "f", "b"] or image.dtype != np.uint8 or {image.shape[:2]} != shapes:
        raise ValueError("arrays are of another kind or shape")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError("the image is none")
    if any(more is not None and (more.dtype.kind != "f" or {more.shape} != shapes) for more in further.values()):
        raise ValueError("points or an uncertainty are of another kind or shape")
    return Case(dataset, name, float(score), bool(facts["is_metric"]), image, prediction, truth, valid, **further)


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return np.asarray(values) if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _shrink_maps(
    prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pixel for each block of pixels: the valid one nearest to its centre, else the centre, in all three maps.

    An average would invent depths between foreground and background, and plain decimation would lose most of a LiDAR
    sweep.
    """
    side = max(1, math.ceil(truth.shape[1] / width))
    offsets = np.arange(side) - (side - 1) / 2
    from_centre = np.argsort((offsets[:, None] ** 2 + offsets[None, :] ** 2).ravel(), kind="stable")
    kept = _blocks(valid.astype(bool), side, "constant")[..., from_centre]
    # The first True, or 0 = the centre where there is none.
    chosen = from_centre[kept.argmax(-1)][..., None]
    pick = [np.take_along_axis(_blocks(values, side, "edge"), chosen, -1)[..., 0] for values in (prediction, truth)]
    small_valid = np.asarray(kept.any(-1))
    small, small_truth = (np.clip(values, 0, _LARGEST).astype(np.float16) for values in pick)
    return small, np.where(small_valid, small_truth, np.float16(0)), small_valid


def _shrink_points(points: np.ndarray, width: int) -> np.ndarray:
    """The nearest point of each block of pixels that has one."""
    blocks = _blocks(points, max(1, math.ceil(points.shape[1] / width)), "constant")
    nearest = np.where(blocks > 0, blocks, np.inf).min(-1)
    return np.where(np.isfinite(nearest), np.clip(nearest, 0, _LARGEST), 0).astype(np.float16)


def _blocks(values: np.ndarray, side: int, mode: Literal["constant", "edge"]) -> np.ndarray:
    """Squares of pixels, `(rows, columns, side * side)`, continued beyond the map by 0 or by its border."""
    height, across = values.shape
    rows, columns = math.ceil(height / side), math.ceil(across / side)
    padded = np.pad(values, ((0, rows * side - height), (0, columns * side - across)), mode=mode)
    return padded.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows, columns, side * side)
