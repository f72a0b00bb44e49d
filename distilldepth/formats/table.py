"""The formats in which maps are written, a row each. Imports neither numpy nor torch.

A new format is its file, with a function that takes a path, a `Picture` and `WriteOptions`, and a row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from distilldepth.formats.options import Picture, WriteOptions
from distilldepth.words import LOG_VARIANCE


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    """The word of `--as` and `--save-predictions`."""
    ending: str
    """What follows the name of the photograph in a folder of outputs."""
    module: str
    """File of this folder, imported when it is needed."""
    function: str
    """Writes a `Picture` to a path by `WriteOptions`; returns how many pixels it could not hold, and clipped."""
    options: tuple[str, ...] = ()
    """Those of `WriteOptions` that it looks at."""
    says_origin: bool = False
    """Whether its files tell in texts of their own what they were made from."""
    of: str = ""
    """Which of the further maps of a model it holds, see `DepthModel.extra_maps`; empty for the map itself."""

    @property
    def suffix(self) -> str:
        """Suffix of its files."""
        return PurePath(f"name{self.ending}").suffix

    def write(self, path: Path, picture: Picture, options: WriteOptions | None = None) -> int:
        """Write a map, whole or not at all, and return how many pixels were clipped.

        Raises:
            ValueError: the format cannot hold such a map.
            OSError: the file cannot be written.
        """
        module = importlib.import_module(f"{__package__}.{self.module}")
        write: Callable[[Path, Picture, WriteOptions], int] = getattr(module, self.function)
        return write(path, picture, options or WriteOptions())


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("png16", ".png", "png", "write_png16", options=("png_scale",), says_origin=True),
        Format("color", "_color.png", "png", "write_color", options=("colormap", "percentiles"), says_origin=True),
        Format("npy", ".npy", "npy", "write_array"),
        Format("ply", ".ply", "point_cloud", "write_ply", options=("point_cloud",)),
        Format("kitti", ".png", "kitti", "write_kitti"),
        Format(
            "png16-uncertainty",
            "_uncertainty.png",
            "uncertainty",
            "write_uncertainty_png",
            says_origin=True,
            of=LOG_VARIANCE,
        ),
        Format(
            "color-uncertainty",
            "_uncertainty_color.png",
            "uncertainty",
            "write_uncertainty_color",
            options=("percentiles",),
            says_origin=True,
            of=LOG_VARIANCE,
        ),
        Format("npy-uncertainty", "_uncertainty.npy", "uncertainty", "write_uncertainty_array", of=LOG_VARIANCE),
    )
}
"""Every format by name; of several with one suffix the first has the plain name of a file."""

STORED = ("npy", "png16", "kitti")
"""What an evaluation keeps maps in, the default first: they can be read back and scored."""

PREDICTED = tuple(name for name, row in FORMATS.items() if name != "kitti" and not row.of)
"""What photographs are predicted in; a benchmark's own format has none."""

UNCERTAINTY = {name: f"{name}-uncertainty" for name in PREDICTED if f"{name}-uncertainty" in FORMATS}
"""What holds the uncertainty of a map, by the format of the map."""


def format_of_suffix(suffix: str) -> str | None:
    """Return the format that a file's suffix means; None if it is none's.

    >>> format_of_suffix(".png")
    'png16'
    """
    return next((name for name in PREDICTED if FORMATS[name].suffix == suffix), None)


def listed_suffixes() -> str:
    """Return the suffixes as a sentence has them.

    >>> listed_suffixes()
    '.png, .npy or .ply'
    """
    *others, last = dict.fromkeys(FORMATS[name].suffix for name in PREDICTED)
    return f"{', '.join(others)} or {last}"
