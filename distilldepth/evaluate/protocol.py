"""What exactly is measured: alignment, space, bounds, aggregation. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from distilldepth.errors import did_you_mean

SPACES = ("disparity", "depth")
ALIGNMENTS = ("least-squares", "median", "none")


@dataclass(frozen=True)
class Protocol:
    """How a prediction is compared with the truth. A protocol whose fields were changed must not keep its name."""

    name: str
    summary: str
    """One line for listings."""
    align: str
    """One of `ALIGNMENTS`: what is fitted per image on the valid pixels."""
    space: str
    """Where it is fitted: `disparity` (against inverse depth) or `depth`."""
    min_depth: float = 0.0
    """Ground truth at or below this depth, metres, is not valid."""
    max_depth: float = float("inf")
    """Ground truth at or beyond this depth, metres, is not valid."""
    resize: str = "bilinear"
    """How a prediction is brought to the size of the ground truth."""
    aggregation: str = "per-image mean"
    """How images become one number."""

    def __post_init__(self) -> None:
        if self.align not in ALIGNMENTS:
            hint = did_you_mean(self.align, ALIGNMENTS)
            raise ValueError(f"Protocol: align must be known, got {self.align!r}{hint}")
        if self.space not in SPACES:
            raise ValueError(f"Protocol: space must be known, got {self.space!r}{did_you_mean(self.space, SPACES)}")
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"Protocol: must have 0 <= min_depth < max_depth, got {self.min_depth} and {self.max_depth}"
            )

    def describe(self) -> str:
        """Return the line that stands above a table."""
        if self.align == "none":
            how = "no alignment"
        else:
            how = f"{self.align} alignment in {self.space} per image"
        bounds = ""
        if self.min_depth > 0 or self.max_depth < float("inf"):
            bounds = f", truth between {self.min_depth:g} and {self.max_depth:g} m"
        return f"{self.name}: {how}, scored in depth{bounds}, {self.aggregation}"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON, None for no upper bound."""
        values = asdict(self)
        values["max_depth"] = self.max_depth if self.max_depth < float("inf") else None
        return values


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "affine-disparity",
            "scale and shift fitted to inverse depth by least squares, scored in depth; for disparity models",
            "least-squares",
            "disparity",
        ),
        Protocol(
            "affine-depth",
            "scale and shift fitted to depth by least squares; for affine-invariant depth models",
            "least-squares",
            "depth",
        ),
        Protocol("scale-depth", "scale fitted as the ratio of medians in depth", "median", "depth"),
        Protocol("metric", "no alignment; for models that predict metres", "none", "depth"),
    )
}
"""Built-in protocols by name."""

_DEFAULTS = {"disparity": "affine-disparity", "depth": "affine-depth", "metric_depth": "metric"}


def choose_protocol(
    quantity: str, *, name: str | None = None, align: str | None = None, space: str | None = None
) -> Protocol:
    """Return the protocol asked for, or the one that fits a model's quantity; fields that are changed change its name.

    Raises:
        ValueError: unknown name, or no alignment for a model whose numbers have no unit.

    >>> choose_protocol("disparity").name
    'affine-disparity'
    """
    if name is not None and name not in PROTOCOLS:
        raise ValueError(f"choose_protocol: name must be known, got {name!r}{did_you_mean(name, PROTOCOLS)}")
    protocol = PROTOCOLS[name or _DEFAULTS[quantity]]
    changes = {
        key: value
        for key, value in (("align", align), ("space", space))
        if value is not None and value != getattr(protocol, key)
    }
    if changes:
        label = f"custom ({', '.join(f'{key}={value}' for key, value in changes.items())} on {protocol.name})"
        protocol = replace(protocol, name=label, summary="", **changes)
    if protocol.align == "none" and quantity != "metric_depth":
        raise ValueError(
            f"choose_protocol: align must be least-squares or median for a model that predicts {quantity}, whose "
            "numbers have no unit, got 'none'"
        )
    return protocol
