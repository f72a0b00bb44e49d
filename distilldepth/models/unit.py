"""Whether a Depth Anything file predicts disparity or metres: both have the same tensors, so it is told or inferred.

A relative network ends in a ReLU, a metric one in sigmoid * max_depth; taken for the other, near and far are exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilldepth.errors import DistillDepthError, UsageError, shown
from distilldepth.models.files import Record

LARGEST = 1e6
"""Metres."""
TOLD = re.compile(r"(?:dav2|depth-anything-v2)-(?:(metric)(?::(.*))?|relative)")
"""What stands before `@FILE` to say it: `dav2-metric`, `dav2-metric:METRES` or `dav2-relative`."""

_BY_NAME = {"hypersim": 20, "indoor": 20, "vkitti": 80, "outdoor": 80}
"""Metres of the official metric files, by a word in their names."""
_RELATIVE_NAME = re.compile(r"depth_anything_(v2_)?(?!.*metric)|distill[-_]any[-_]depth", re.IGNORECASE)
_SCORES = {"d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"}
"""What the official metric training keeps in `previous_best`; the relative training was never published."""


@dataclass(frozen=True)
class Unit:
    """What a network's numbers are."""

    max_depth: float | None
    """Metres at which a metric network saturates; None for disparity."""
    note: str = ""
    """What was inferred or assumed; empty where it is known."""


def parse_max_depth(value: Any) -> float:
    """Return metres as a number, an int where it is whole.

    Raises:
        TypeError: not a number.
        UsageError: not positive and finite, or beyond `LARGEST`.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"load_model: max_depth must be a number of metres, got {shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"load_model: max_depth must be a number of metres, got {shown(value)}")
    if not 0.001 <= value <= LARGEST:
        raise UsageError(f"load_model: max_depth must be from 0.001 to {LARGEST:g} metres, got {shown(value)}")
    return int(value) if value == int(value) else float(value)


def settle_unit(
    path: Path,
    content: Any,
    metadata: dict[str, str],
    *,
    name: str = "",
    quantity: str | None = None,
    max_depth: float | None = None,
) -> Unit:
    """Decide what the numbers of an official file are: by what is told, else by what the file shows.

    The file shows metres by the scores that the official metric training keeps in `previous_best`, by a `max_depth`
    among its settings, and by the word `metric` in its name.

    Args:
        path: of the file.
        content, metadata: what `read_weights` gave.
        name: the registered model that it was said to be (`dav2-small`); its quantity is told, and must not be
            contradicted by the file.
        quantity: `disparity` or `metric_depth` if that was told, else None.
        max_depth: metres, if that was told.

    Raises:
        DistillDepthError: metric, and nothing says the metres; or the file contradicts the name.
    """
    told = map(_metres, (*_entries(content, "max_depth"), metadata.get("max_depth")))
    found = sorted({metres for metres in told if metres is not None})
    scores = next((item for item in _entries(content, "previous_best") if _SCORES & set(_as_dict(item))), None)
    words = set(re.split(r"[^a-z0-9]+", path.stem.lower()))
    reasons = []
    if scores is not None:
        reasons.append(f"the scores {', '.join(sorted(_SCORES & set(_as_dict(scores)))[:3])} in its previous_best")
    if found:
        reasons.append(f"max_depth {', '.join(f'{value:g}' for value in found)} in its settings")
    if "metric" in words:
        reasons.append("the word metric in its name")
    if quantity == "disparity":
        if name and reasons:
            raise DistillDepthError(
                f"load_model: {path} looks metric ({'; '.join(reasons)}), and '{name}' predicts disparity; name it "
                f"dav2-metric:METRES@{path}, or dav2-relative@{path} if it is relative all the same"
            )
        return Unit(None)
    if max_depth is not None:
        return Unit(max_depth)
    by_name = {metres for word, metres in _BY_NAME.items() if word in words}
    if quantity is None and not reasons:
        if _RELATIVE_NAME.search("/".join(path.parts[-3:])):
            return Unit(None)
        return Unit(
            None,
            f"{path} does not say whether it predicts disparity or metres, and is taken for disparity (larger = "
            f"nearer); if it is metric, name it dav2-metric:METRES@{path}, if it is not, dav2-relative@{path}",
        )
    if len(found) != 1 and not ("metric" in words and len(by_name) == 1):
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise DistillDepthError(
            f"load_model: {path} is metric{why}, and {'several' if found else 'no'} max_depth can be read off it; name "
            f"it dav2-metric:METRES@{path} (--model-max-depth METRES, in Python max_depth=METRES), with the value of "
            "its training: officially 20 for Hypersim, 80 for Virtual KITTI"
        )
    metres = found[0] if found else by_name.pop()
    if quantity is not None or not (found or scores):
        return Unit(metres)
    return Unit(
        metres,
        f"{path} is taken for metric, up to {metres:g} m, because of {' and '.join(reasons)}; if that is wrong, name "
        f"it dav2-relative@{path} or dav2-metric:METRES@{path}",
    )


def _as_dict(item: Any) -> dict:
    return vars(item) if isinstance(item, Record) else item if isinstance(item, dict) else {}


def _entries(content: Any, wanted: str) -> Iterator[Any]:
    """Every value with this key, in any nesting of dictionaries and namespaces."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        for key, value in _as_dict(item).items():
            if key == wanted:
                yield value
            if isinstance(value, (dict, Record)):
                waiting.append(value)


def _metres(value: Any) -> float | None:
    """A possible max_depth, or None."""
    try:
        return parse_max_depth(value)
    except (TypeError, ValueError):
        return None
