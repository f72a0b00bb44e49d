"""What exactly is measured: ground truth, crops, bounds, alignment, clips, aggregation; as data. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib.resources
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from distilldepth.documents import parse_toml
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.words import FLIPS

BY_QUANTITY = "by quantity"
CHOICES: dict[str, tuple[str, ...]] = {
    "field": ("", "raw", "filled"),
    "bounds": ("strict", "inclusive"),
    "image_crop": ("", "kb", "kb-in-frame"),
    "score_crop": ("", "eigen-nyu", "eigen", "garg"),
    "align": ("least-squares", "median", "l1", "ransac", "none"),
    "space": ("disparity", "depth", BY_QUANTITY),
    "fit_on": ("valid", "positive-prediction"),
    "align_max_res_style": ("both", "width-only"),
    "resize": ("bilinear", "bilinear-corners", "nearest"),
    "flip_average": ("", *FLIPS),
    "aggregation": ("per-image mean", "pixel-pooled"),
}
"""The words that a rule can be."""
FLOORS = ("relative", "farthest")
PARAMETERS = {"least-squares": 2, "median": 1, "l1": 2, "ransac": 2, "none": 0}
"""Numbers that each way of alignment fits to an image: fewer pixels are met exactly and say nothing."""


@dataclass(frozen=True)
class Rules:
    """How predictions on one kind of dataset are compared with the truth."""

    align: str = "least-squares"
    """What is fitted per image on the valid pixels; see `distilldepth.alignment.align`."""
    space: str = BY_QUANTITY
    """Where it is fitted: `disparity` (against inverse depth) or `depth`; by quantity = disparity for models that
    predict disparity, depth for all others."""
    field: str = ""
    """Ground truth of a benchmark that has several: `raw` or `filled`; empty = the one there is."""
    min_depth: float = 0.0
    """Ground truth below this depth, metres, does not count."""
    max_depth: float = float("inf")
    """Ground truth beyond this depth, metres, does not count."""
    bounds: str = "strict"
    """Whether ground truth exactly at `min_depth` or `max_depth` counts: `inclusive` = yes."""
    far_cut: float = 0.0
    """Ground truth farther than this many times the image's 1 % quantile does not count; 0 = off."""
    image_crop: str = ""
    """Crop of image and truth before the model sees the image: `kb`, the lower middle 352 x 1216; `kb-in-frame`: of the
    image alone, and the map goes back into its place in the frame, with 0 around it."""
    flip_average: str = ""
    """What part the prediction for the mirror image has: `mean`, or `blended` at the borders, see
    `distilldepth.words.FLIPS`; empty = none. Of maps that are on disk whoever made them decided it."""
    score_crop: str = ""
    """Crop of what counts, on the frame after `image_crop`: `eigen-nyu`, `eigen` or `garg`."""
    min_pixels: int = 10
    """An image with fewer valid pixels cannot be scored; neither can one with fewer than what is fitted."""
    fit_on: str = "valid"
    """Pixels of the fit: all valid ones, or those of them where the prediction is positive."""
    align_max_res: int = 0
    """The fit is made on maps thinned to at most this many pixels per side; 0 = on all pixels."""
    align_max_res_style: str = "both"
    """`width-only`: the width alone is thinned, by the factor that the longer side asks for."""
    disparity_floor: float | str | None = None
    """Lower clip of the aligned map, in the space of the fit. In disparity: a number, 1/m; `farthest`: the inverse of
    the largest valid depth; `relative`: 0.001 times the largest valid inverse depth (in depth: 0.001 times the largest
    valid depth, the only floor that depth has); None = 1e-6."""
    clip_low: float | None = None
    """Lower clip of the aligned depth, metres."""
    clip_high: float | None = None
    """Upper clip of the aligned depth, metres."""
    resize: str = "bilinear"
    """How a prediction is brought to the size of the ground truth."""
    fill_holes: bool = False
    """Whether holes (0 or not finite) of a predicted depth are filled as the KITTI devkit does before scoring."""
    aggregation: str = "per-image mean"
    """How images become one number."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), [choice for choice in choices if choice])
                raise ValueError(f"Rules: {name} must be known, got {value!r}{hint}")
        floor = self.disparity_floor
        if isinstance(floor, str):
            if floor not in FLOORS:
                raise ValueError(
                    f"Rules: disparity_floor must be a number or known, got {floor!r}{did_you_mean(floor, FLOORS)}"
                )
        elif floor is not None and not floor > 0:
            raise ValueError(f"Rules: disparity_floor must be positive, got {floor}")
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(f"Rules: must have 0 <= min_depth < max_depth, got {self.min_depth} and {self.max_depth}")
        if self.clip_low is not None and self.clip_high is not None and not self.clip_low < self.clip_high:
            raise ValueError(f"Rules: must have clip_low < clip_high, got {self.clip_low} and {self.clip_high}")
        for name in ("far_cut", "align_max_res", "min_pixels"):
            if getattr(self, name) < 0:
                raise ValueError(f"Rules: {name} must not be negative, got {getattr(self, name)}")

    def space_for(self, quantity: str) -> str:
        """Return where the prediction of a model with this quantity is fitted.

        >>> Rules().space_for("disparity"), Rules().space_for("metric_depth")
        ('disparity', 'depth')
        """
        if self.space != BY_QUANTITY:
            return self.space
        return "disparity" if quantity == "disparity" else "depth"

    def describe(self) -> str:
        """Return the rules in one line of words."""
        parts = [f"{self.field} ground truth"] if self.field else []
        less = "<" if self.bounds == "strict" else "<="
        low = f"{self.min_depth:g} {less} " if self.min_depth > 0 else "0 < "
        high = f" {less} {self.max_depth:g}" if self.max_depth < float("inf") else ""
        parts.append(f"truth {low}depth{high} m")
        if self.far_cut:
            parts.append(f"at most {self.far_cut:g} x its 1 % quantile")
        if self.image_crop:
            whole = ", truth whole" if self.image_crop == "kb-in-frame" else ""
            parts.append(f"images cropped to 352 x 1216 (kb){whole}")
        if self.flip_average:
            borders = ", blended at the borders" if self.flip_average == "blended" else ""
            parts.append(f"mean of the predictions for the image and its mirror image{borders}")
        parts.append(f"{self.score_crop} crop" if self.score_crop else "no crop")
        parts.append("no alignment" if self.align == "none" else f"{self.align} in {self.space}")
        if self.fit_on != "valid":
            parts.append("fitted where the prediction is positive")
        if self.align_max_res:
            width = ", width only" if self.align_max_res_style == "width-only" else ""
            parts.append(f"fitted on maps thinned to {self.align_max_res}{width}")
        if self.disparity_floor is not None:
            words = {"relative": "0.001 of the largest truth", "farthest": "that of the farthest truth"}
            floor = words.get(str(self.disparity_floor), f"{self.disparity_floor} 1/m")
            parts.append(f"aligned map at least {floor}")
        if self.clip_low is not None or self.clip_high is not None:
            low = "0" if self.clip_low is None else f"{self.clip_low:g}"
            high = "inf" if self.clip_high is None else f"{self.clip_high:g}"
            parts.append(f"depth clipped to {low}..{high} m")
        if self.fill_holes:
            parts.append("holes of the prediction filled")
        if self.min_pixels > 1:
            parts.append(f"at least {self.min_pixels} valid pixels")
        return ", ".join([*parts, f"{self.resize} resize", self.aggregation])

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON, None for no upper bound; later rules are in it where they apply."""
        values = {**asdict(self), "max_depth": self.max_depth if self.max_depth < float("inf") else None}
        return {key: value for key, value in values.items() if key not in _LATER or value != _LATER[key]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rules:
        """Return the rules that `to_dict` was called on.

        Raises:
            ValueError: unknown rule or value.
        """
        return replace(cls(), **_checked(values, "Rules"))


def crop_box(crop: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the rows and columns of a crop, `(top, bottom, left, right)`, the ends not included.

    `kb`: 352 x 1216 at the bottom, in the middle (top = height - 352, left = int((width - 1216) / 2)); `eigen-nyu`:
    rows 45 to 471 and columns 41 to 601 of 480 x 640; `eigen`, `garg`: shares of the sides, rounded down; empty:
    everything.

    Raises:
        ValueError: unknown crop, or a frame that it is not made for.

    Source: the evaluation codes of BTS, NeWCRFs and Marigold; Eigen et al. (2014), Garg et al. (2016).

    >>> crop_box("garg", 352, 1216)
    (143, 349, 43, 1172)
    """
    if not crop:
        return 0, height, 0, width
    if crop == "kb":
        if height < 352 or width < 1216:
            raise ValueError(f"crop kb: the frame must be at least 352 x 1216, got {height} x {width}")
        left = (width - 1216) // 2
        return height - 352, height, left, left + 1216
    if crop == "eigen-nyu":
        if (height, width) != (480, 640):
            raise ValueError(f"crop eigen-nyu: the frame must be 480 x 640, got {height} x {width}")
        return 45, 471, 41, 601
    if crop not in _CROP_SHARES:
        raise ValueError(f"crop must be known, got {crop!r}{did_you_mean(crop, ['kb', 'eigen-nyu', *_CROP_SHARES])}")
    above, below, before, behind = _CROP_SHARES[crop]
    return int(above * height), int(below * height), int(before * width), int(behind * width)


_CROP_SHARES = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
_LATER = {"flip_average": ""}
"""Rules that earlier results do not have, and what they are there: an evaluation goes on where it stopped."""
RULES = tuple(rule.name for rule in dataclasses.fields(Rules))


@dataclass(frozen=True)
class Protocol:
    """Rules with a name. A protocol whose rules were changed must not keep its name."""

    name: str
    summary: str
    """One line for listings."""
    default: Rules = field(default_factory=Rules)
    """Rules for data of any kind."""
    source: str = ""
    """Whose numbers it reproduces, and what they do not say."""
    by_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Rules that differ from `default`, per kind of dataset."""
    by_quantity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Rules that differ for models of one quantity; `dataset` in them holds those that differ per kind of dataset."""

    def rules(self, dataset_kind: str = "") -> Rules:
        """Return the rules for one kind of dataset; an unknown kind gets the default ones."""
        return replace(self.default, **self.by_dataset.get(dataset_kind, {}))

    @property
    def align(self) -> str:
        """What is fitted per image."""
        return self.default.align

    @property
    def space(self) -> str:
        """Where it is fitted."""
        return self.default.space

    @property
    def aggregation(self) -> str:
        """How images become one number."""
        return self.default.aggregation

    def for_quantity(self, quantity: str) -> Protocol:
        """Return the protocol as it is for models with this quantity, with a space that is no longer open."""
        special = dict(self.by_quantity.get(quantity, {}))
        special_datasets = special.pop("dataset", {})
        default = replace(self.default, **special)
        default = replace(default, space=default.space_for(quantity))
        kinds = {*self.by_dataset, *special_datasets}
        by_dataset = {
            kind: {**self.by_dataset.get(kind, {}), **special, **special_datasets.get(kind, {})} for kind in kinds
        }
        for changes in by_dataset.values():
            if changes.get("space") == BY_QUANTITY:
                changes["space"] = default.space_for(quantity)
        return replace(self, default=default, by_dataset=by_dataset, by_quantity={})

    def describe(self) -> str:
        """Return the line that stands above a table."""
        if self.align == "none":
            how = "no alignment"
        else:
            how = f"{self.align} alignment in {self.space} per image"
        bounds = ""
        if self.default.min_depth > 0 or self.default.max_depth < float("inf"):
            bounds = f", truth between {self.default.min_depth:g} and {self.default.max_depth:g} m"
        if self.by_dataset:
            bounds += ", more by dataset"
        return f"{self.name}: {how}, scored in depth{bounds}, {self.aggregation}"

    def effective(self, kinds: Iterable[str]) -> str:
        """Return a line with the rules of each of these kinds of dataset; the empty kind is own data."""
        return "\n".join(f"{kind or 'own data'}: {self.rules(kind).describe()}" for kind in dict.fromkeys(kinds))

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON: name, summary, source, the default rules, and what differs from them."""
        return {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            **self.default.to_dict(),
            "by_dataset": {kind: _plain(changes) for kind, changes in sorted(self.by_dataset.items())},
            "by_quantity": _plain(self.by_quantity),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Return the protocol that `to_dict` was called on.

        Raises:
            KeyError: it lacks something.
            ValueError: unknown rule or value.
        """
        rest = dict(values)
        words = {key: rest.pop(key) for key in ("name", "summary", "source")}
        words["name"] = ALIASES.get(words["name"], (words["name"],))[0]
        by_dataset, by_quantity = rest.pop("by_dataset"), rest.pop("by_quantity")
        return _assemble(words, rest, by_dataset, by_quantity)


def choose_protocol(quantity: str, *, name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Return the protocol asked for, or the one that fits a model's quantity; rules that are changed change its name.

    Args:
        quantity: `disparity`, `depth` or `metric_depth`; decides rules that a protocol leaves to it.
        name: one of `PROTOCOLS`, or of `ALIASES`, which are said to be former names in a warning.
        overrides: values by name of rule, for all kinds of datasets.

    Raises:
        ValueError: unknown name, rule or value, or no alignment for a model whose numbers have no unit.

    >>> choose_protocol("disparity").name
    'affine-disparity'
    >>> choose_protocol("disparity", name="marigold", overrides={"min_depth": 0.5}).name
    'custom (min_depth=0.5 on marigold)'
    """
    if name is not None and name not in PROTOCOLS:
        raise UsageError(f"choose_protocol: name must be known, got {name!r}{did_you_mean(name, PROTOCOLS)}")
    if name in ALIASES:
        warnings.warn(f"protocol {name}: {ALIASES[name][1]}", UserWarning, stacklevel=1)
    protocol = PROTOCOLS[name or _DEFAULTS[quantity]].for_quantity(quantity)
    overrides = _checked(overrides or {}, "choose_protocol")
    kinds = ["", *protocol.by_dataset]
    changes = {
        key: value
        for key, value in overrides.items()
        if any(getattr(protocol.rules(kind), key) != value for kind in kinds)
    }
    if changes:
        words = ", ".join(f"{key}={'none' if value in ('', None) else value}" for key, value in changes.items())
        by_dataset = {kind: {**rules, **changes} for kind, rules in protocol.by_dataset.items()}
        protocol = replace(
            protocol,
            name=f"custom ({words} on {protocol.name})",
            summary="",
            source="",
            default=replace(protocol.default, **changes),
            by_dataset=by_dataset,
        )
        protocol = protocol.for_quantity(quantity)
    for kind in ["", *protocol.by_dataset]:
        if protocol.rules(kind).align == "none" and quantity != "metric_depth":
            raise ValueError(
                f"choose_protocol: align must not be 'none' for a model that predicts {quantity}, whose numbers have "
                f"no unit; the protocol is {protocol.name}, add --align least-squares or median"
            )
    return protocol


_DEFAULTS = {"disparity": "affine-disparity", "depth": "affine-depth", "metric_depth": "metric"}


ALIASES = {
    "bts-garg": ("newcrfs", "is called newcrfs now; the evaluation of BTS itself is bts, ZoeDepth's is zoedepth")
}
"""Former names of protocols: what they are called now, and what to say about it."""


class _Protocols(Mapping[str, Protocol]):
    """The built-in protocols, read from their files when they are first asked for; former names lead to them too."""

    @cached_property
    def _names(self) -> list[str]:
        folder = importlib.resources.files(__package__) / "protocols"
        return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))

    @cached_property
    def _read(self) -> dict[str, Protocol]:
        return {}

    def __getitem__(self, name: str) -> Protocol:
        name = ALIASES.get(name, (name,))[0]
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            path = importlib.resources.files(__package__) / "protocols" / f"{name}.toml"
            self._read[name] = parse_protocol(name, path.read_text(encoding="utf-8"))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in ALIASES


PROTOCOLS: Mapping[str, Protocol] = _Protocols()
"""Built-in protocols by name."""


def parse_protocol(name: str, text: str) -> Protocol:
    """Return the protocol that a TOML file describes.

    Keys: `summary`, `source`; tables `rules`, `dataset.KIND`, `quantity.QUANTITY`, `quantity.QUANTITY.dataset.KIND`, of
    fields of `Rules`. TOML has no null: `"none"` stands for it in the clips and the floor.

    Raises:
        ValueError: no TOML, an unknown table, rule or value; the message names the protocol.
    """
    try:
        values = parse_toml(text, name)
        known = ("summary", "source", "rules", "dataset", "quantity")
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key!r}{did_you_mean(key, known)}")
        words = {"name": name, "summary": values["summary"], "source": values["source"]}
        return _assemble(words, values.get("rules", {}), values.get("dataset", {}), values.get("quantity", {}))
    except KeyError as error:
        raise ValueError(f"protocol {name}: lacks {error}") from error
    except (ValueError, TypeError, AttributeError, DistillDepthError) as error:
        raise ValueError(f"protocol {name}: {error}") from error


def _assemble(
    words: dict[str, str],
    rules: Mapping[str, Any],
    by_dataset: Mapping[str, Mapping[str, Any]],
    by_quantity: Mapping[str, Mapping[str, Any]],
) -> Protocol:
    """Check every combination, so that a wrong value fails when the file is read and not in the middle of a run."""
    quantities = {}
    for quantity, changes in by_quantity.items():
        if quantity not in _DEFAULTS:
            raise ValueError(f"unknown quantity {quantity!r}{did_you_mean(quantity, _DEFAULTS)}")
        inner = {kind: _checked(part, quantity) for kind, part in changes.get("dataset", {}).items()}
        rest = _checked({key: value for key, value in changes.items() if key != "dataset"}, quantity)
        quantities[quantity] = {**rest, **({"dataset": inner} if inner else {})}
    protocol = Protocol(
        **words,
        default=Rules.from_dict(rules),
        by_dataset={kind: _checked(changes, kind) for kind, changes in by_dataset.items()},
        by_quantity=quantities,
    )
    for variant in (protocol, *map(protocol.for_quantity, quantities)):
        for kind in variant.by_dataset:
            variant.rules(kind)
    return protocol


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rules as `Rules` holds them: the words that TOML, JSON and the command line have for nothing are replaced."""
    checked = {}
    for key, value in values.items():
        if key not in RULES:
            raise ValueError(f"{where}: a rule must be known, got {key!r}{did_you_mean(key, RULES)}")
        if key == "max_depth":
            value = float("inf") if value in (None, "none") else float(value)
        elif value == "none" and key != "align":
            value = "" if key in CHOICES else None
        checked[key] = value
    return checked


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary for JSON, None for no upper bound."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else None if value == float("inf") else value
        for key, value in values.items()
    }
