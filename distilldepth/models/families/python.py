"""A user's own callable as a depth model: `python:module:function` or `python:path/to/file.py:function`.

A function, an instance with `__call__` or a `torch.nn.Module` that turns images, float32 `(B, 3, H, W)` in [0, 1], into
maps `(B, H, W)`, and says in its attribute `quantity` what they mean. Naming it runs the file that it stands in.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from distilldepth.errors import DistillDepthError, UsageError, did_you_mean, one_line, shown
from distilldepth.files import expand_user
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.bounds import Check
from distilldepth.models.candidate import Request
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.registry import PYTHON_FORM, PYTHON_PREFIX
from distilldepth.words import QUANTITIES

FAMILY = "python"
ARCHITECTURE: Mapping[str, Check] = {}

SIZE = 512
"""Target side, in pixels, of callables that name none."""


@dataclass(frozen=True)
class Named:
    """A callable that was found, and what it says of itself."""

    function: Callable[[Tensor], Tensor]
    info: ModelInfo
    preprocessing: Preprocessing
    home: Path
    """Folder from which its module's own imports are found."""
    identity: dict[str, Any]
    """What decides its numbers besides tensors: the text of its module, its name there, and what it says of itself."""


class CallableDepth(DepthModel):
    """A user's callable behind the interface of every model.

    A `torch.nn.Module` becomes a part of it: it goes where the model goes, in evaluation mode, without gradients. Any
    other callable is left as it is, and has to follow `images.device` itself.
    """

    def __init__(self, named: Named) -> None:
        super().__init__(named.info, named.preprocessing)
        self.function = named.function
        self._home = named.home
        self._identity = named.identity
        if isinstance(named.function, nn.Module):
            named.function.eval().requires_grad_(False)

    @property
    def architecture(self) -> dict[str, Any]:
        raise TypeError(f"{self.info.source} is a callable in a file of its own and cannot be saved; keep that file")

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def train(self, mode: bool = True) -> CallableDepth:
        """Set the mode of the wrapper; the callable stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.function, nn.Module):
            self.function.eval()
        return self

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        images = images.float()
        try:
            # Modules are free to import others when they run, as they are under `python -m`.
            with _importable(self._home):
                values = self.function(images)
        except (torch.OutOfMemoryError, MemoryError):
            raise  # Callers answer with smaller batches.
        except Exception as error:
            if "DefaultCPUAllocator" in str(error):
                raise
            raise DistillDepthError(f"{self.info.source} failed: {_what(error)}") from error
        return DepthOutput(self._checked(values, images))

    def _checked(self, values: object, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        must = f"{self.info.source} must return floating maps ({count}, {height}, {width}) for images of this size, got"
        if not isinstance(values, Tensor):
            raise DistillDepthError(f"{must} {type(values).__name__}; make it a tensor with torch.as_tensor")
        if not values.is_floating_point():
            raise DistillDepthError(f"{must} numbers of {values.dtype}; use .float()")
        if tuple(values.shape) == (count, 1, height, width):
            values = values[:, 0]
        if tuple(values.shape) != (count, height, width):
            raise DistillDepthError(f"{must} {tuple(values.shape)}")
        return values.to(images.device)


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> DepthModel:
    """Raise TypeError: a callable is made by its own file."""
    raise TypeError("a python callable cannot be built from a description")


def load_spec(spec: str, request: Request) -> CallableDepth:
    """Load what `python:...` names.

    Raises:
        UsageError: not of that form, no such module, file or attribute, or one that does not declare what it must.
        DistillDepthError: the module cannot be imported.
    """
    request.refuse_max_depth(f"'{spec}'")
    return CallableDepth(find_callable(spec))


def find_callable(spec: str) -> Named:
    """Import the module that `spec` names and return its callable; see `load_spec` for the errors."""
    match = re.fullmatch(r"([^\s:].*?):([^\W\d]\w*)", spec.removeprefix(PYTHON_PREFIX))
    if match is None:
        raise UsageError(f"load_model: {shown(spec)} must be {PYTHON_FORM} or {PYTHON_PREFIX}path/to/file.py:function")
    place, name = match.groups()
    home = expand_user(place).resolve().parent if place.endswith(".py") else Path.cwd()
    with _importable(home):
        module = _import_file(spec, expand_user(place)) if place.endswith(".py") else _import_module(spec, place)
    function = vars(module).get(name)
    if function is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(name, own, otherwise="")
        raise UsageError(f"load_model: '{spec}': {_place(module, place)} has no '{name}'{hint}")
    if isinstance(function, type) or not callable(function):
        what = f"a class; name an instance of it, such as {name.lower()} = {name}()" if callable(function) else ""
        raise UsageError(
            f"load_model: '{spec}' must be a callable, got {what or type(function).__name__}; see docs/own-teacher.md"
        )
    return _read_attributes(spec, function, module, home)


def _import_module(spec: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"load_model: '{spec}': {shown(name)} is no module's name; a file is named with its .py, "
            f"{PYTHON_PREFIX}path/to/file.py:function"
        )
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(spec, error) from error
        raise UsageError(
            f"load_model: '{spec}': there is no module '{error.name}', neither in {Path.cwd()} nor among the installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise _broken(spec, error) from error


def _import_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"load_model: '{spec}': there is no file {path}")
    # A name of its own, so that a file called like an installed package does not take its place.
    name = f"_distilldepth_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"load_model: '{spec}': {path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(spec, error) from error
    return module


def _broken(spec: str, error: BaseException) -> DistillDepthError:
    return DistillDepthError(f"load_model: '{spec}' cannot be imported: {_what(error)}")


def _what(error: BaseException) -> str:
    """Kind and text of an error, on one line."""
    kind, text = type(error).__name__, one_line(error, 300)
    return kind if text == kind else f"{kind}: {text}"


def _place(module: ModuleType, place: str) -> str:
    return getattr(module, "__file__", None) or f"the module {place}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, first of all, as `python -m` does; only for as long as this lasts."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _read_attributes(spec: str, function: Any, module: ModuleType, home: Path) -> Named:
    """What a callable declares, checked."""
    quantity = getattr(function, "quantity", None)
    if quantity is None:
        name = spec.rpartition(":")[2]
        raise UsageError(
            f"load_model: '{spec}' does not say what its maps are; set {name}.quantity to one of "
            f"{', '.join(map(repr, QUANTITIES))}"
        )
    if quantity not in QUANTITIES:
        raise UsageError(
            f"load_model: '{spec}': quantity must be one of {', '.join(QUANTITIES)}, got {shown(quantity)}"
        )
    texts = {key: getattr(function, key, None) or "" for key in ("name", "licence")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UsageError(f"load_model: '{spec}': {key} must be a text, got {shown(value)}")
    multiple = getattr(function, "multiple", 1)
    try:
        preprocessing = Preprocessing(
            getattr(function, "size", SIZE),
            multiple,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bilinear-antialias",
            map_interpolation="bilinear",
        )
    except ValueError as error:
        raise UsageError(f"load_model: '{spec}': {str(error).removeprefix('Preprocessing: ')}") from error
    digest, file = _text_digest(module)
    note = f"'{spec}' is {file}, SHA-256 {digest[:16]}"
    info = ModelInfo(texts["name"] or spec, FAMILY, quantity, texts["licence"] or "not stated", spec, (note,))
    return Named(function, info, preprocessing, home, {"module": digest, "callable": spec.rpartition(":")[2], **texts})


def _text_digest(module: ModuleType) -> tuple[str, str]:
    """SHA-256 of the file that a module stands in, and its name; of nothing for one that Python has built in."""
    path = Path(getattr(module, "__file__", None) or "built in")
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest(), path.name
