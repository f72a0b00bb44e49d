"""Weight files that somebody else wrote: read without running anything in them, or refused by what they are."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilldepth.errors import DistillDepthError, shown
from distilldepth.images.decode import check_regular

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

_AGAIN = "download or copy it again"
_BEGINNINGS = (
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer, not the weights; run `git lfs pull` in the repository that it is from, or download the "
        "file itself",
    ),
    (
        rb"\s*<",
        "is a web page, as a failed download leaves it; download the file itself, and log in first if its page asks "
        "for it",
    ),
    (rb"\x89HDF|.{4}TFL3", "holds a Keras or TensorFlow Lite network; only PyTorch weights are read"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
        "is a packed archive; unpack it and name what is inside",
    ),
    (
        rb"\x08[\x01-\x1f]\x12.[ -~]",
        "is an ONNX graph; give the .pth or .safetensors that it was exported from",
    ),
)
"""Beginnings of files that are no checkpoints, and the sentence for each."""

_FOREIGN_SUFFIXES = (".onnx", ".engine", ".plan", ".trt", ".tflite", ".mlmodel", ".mlpackage", ".gguf", ".h5", ".keras")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch before 1.6 begin."""


def read_weights(path: Path) -> tuple[Any, dict[str, str]]:
    """Read what a `.safetensors` file, or a pickle that torch wrote, holds; no object in it is run.

    Pickles are read with `weights_only=True`. Besides tensors and plain values only settings that training scripts
    keep beside them are let in, as inert records: numpy scalars and arrays (`NumpyArray`), namespaces (`Record`), paths
    (text). None of numpy's or pathlib's own functions is called for them.

    Args:
        path: the file.

    Returns:
        The content, a dictionary for nearly all files, and the metadata of a safetensors file, else empty.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it is something else, damaged, or holds other objects; one sentence for each kind.
    """
    size = check_regular(path).st_size
    with path.open("rb") as file:
        head = file.read(1024)
    where = f"load_model: {path} ({size} bytes)"
    if what := _foreign(path, head, size):
        raise DistillDepthError(f"{where} {what}")
    try:
        if path.suffix == ".safetensors" or _is_safetensors(head, size):
            return _read_safetensors(path)
        _check_archive(path)
        with _only_inert():
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except DistillDepthError:
        raise
    except pickle.UnpicklingError as error:
        # What torch says here is how to switch the protection off.
        raise DistillDepthError(f"{where} {_objects(path, head, str(error))}") from error
    except Exception as error:
        # What torch and safetensors say of a damaged file speaks to programmers.
        why = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, cut off or something else"
        raise DistillDepthError(f"{where} is not a readable checkpoint ({why}); {_AGAIN}") from error


def _foreign(path: Path, head: bytes, size: int) -> str | None:
    """What a file is that is no checkpoint, and what to do; None if it may be one."""
    if not size:
        return f"is empty; {_AGAIN}"
    for beginning, sentence in _BEGINNINGS:
        if re.match(beginning, head, re.DOTALL):
            return sentence
    if path.suffix.lower() in _FOREIGN_SUFFIXES:
        return (
            f"is a network exported for another program ({path.suffix.lower()}); give the .pth or .safetensors that it "
            "was exported from"
        )
    if re.fullmatch(rb"[\t\n\r -~]+", head):
        return f"is a text, not weights (it begins {shown(head[:40].decode())}); {_AGAIN}"
    if head.startswith(b"PK"):
        return _foreign_zip(path)
    if path.suffix == ".safetensors" and not _is_safetensors(head, size):
        return f"is not a readable checkpoint (no safetensors file, or cut off); {_AGAIN}"
    return None


def _foreign_zip(path: Path) -> str | None:
    """The same for a zip file, which is what torch writes."""
    if not zipfile.is_zipfile(path):
        return f"is cut off: it begins as a file of torch.save and its end is missing; {_AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names) or any("/code/__torch__" in name for name in names):
        return (
            "is a TorchScript archive (torch.jit.save), which holds a program; save the weights of the network that it "
            "was made from, torch.save(model.state_dict(), ...)"
        )
    if any(re.search(r"(^|/)(models/[^/]+\.json|serialized_exported_program\.json)$", name) for name in names):
        return (
            "is an exported program (torch.export), not a checkpoint; save the weights of the network that it was made "
            "from, torch.save(model.state_dict(), ...)"
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "is a packed archive; unpack it and name what is inside"
    return None


def _check_archive(path: Path) -> None:
    """Raise unless the parts of a zip file, which is what torch saves, are no larger than the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > path.stat().st_size:
        raise DistillDepthError(
            f"load_model: {path} unpacks to {unpacked} bytes, more than it has; torch saves nothing compressed, so it "
            "is no checkpoint"
        )


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file is safetensors by content: GenPercept publishes such files under the name `.bin`."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return load_file(path), metadata


def _objects(path: Path, head: bytes, why: str) -> str:
    """What a pickle is that torch refused."""
    try:
        with _only_inert():
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # Damaged, or of a kind that torch does not look into.
        names = sorted(set(re.findall(r"(?:GLOBAL|global:?) `?([\w.]+\.\w+)", why)) - {"GLOBAL"})
    if any(name.startswith(("torch.nn.modules.", "torch.nn.parallel.")) for name in names):
        return (
            "holds a whole network as an object (torch.save(model, ...)), which could only be opened by running what "
            "is in it; save its weights alone, torch.save(model.state_dict(), ...)"
        )
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return (
            f"holds other objects beside tensors ({', '.join(shown(name)[1:-1] for name in names[:3])}{more}), which "
            "could run a program and are not opened; save the weights alone, torch.save(model.state_dict(), ...), or "
            "as .safetensors"
        )
    if "operand" in why or not head.startswith((b"PK", _LEGACY)):
        return (
            "is not a readable checkpoint (no file of torch.save, or one with a pickle protocol of its own); save the "
            "weights again with torch.save, or as .safetensors"
        )
    return f"is not a readable checkpoint (damaged or cut off); {_AGAIN}"


class Record:
    """What stands for a namespace: the settings that it held, as `vars(record)`."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


class _PathText(Record):
    """What stands for a path."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class _NumpyType:
    """What stands for a numpy dtype: one letter and a size, and the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype | None:
        """The type, if it is one of plain numbers or texts."""
        if not all(isinstance(part, str) for part in (self.order, self.code)):
            return None
        text = self.order + self.code
        return np.dtype(text) if re.fullmatch(r"[<>=|][biufcSU]\d{1,4}", text) else None


class NumpyArray:
    """What stands for a numpy array: `array` holds its numbers, None if they are no plain ones."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        plain = dtype.plain()
        if plain is None or not isinstance(data, bytes):
            return
        if any(side < 0 for side in shape) or math.prod(shape) * plain.itemsize != len(data):
            raise pickle.UnpicklingError("an array with another number of bytes than its shape says")
        self.array = np.ndarray(shape, plain, data, order="F" if fortran else "C").copy()


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    """A number or text from its bytes; None for one of another kind."""
    plain = dtype.plain() if isinstance(dtype, _NumpyType) else None
    if plain is None or not isinstance(data, bytes) or len(data) != plain.itemsize:
        return None
    return np.frombuffer(data, plain)[0].item()


def _no_bytes() -> bytes:
    """How torch's pickles write bytes of which there are none, as in an empty array."""
    return b""


# numpy 2 renamed its core; files of either are read under either.
_CORES = ("numpy.core", "numpy._core")
_NUMPY_TYPES = ("ndarray", "bool", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
_INERT = [
    *((_numpy_scalar, f"{core}.multiarray.scalar") for core in _CORES),
    *((NumpyArray, f"{core}.multiarray._reconstruct") for core in _CORES),
    (_NumpyType, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),
    *((f"numpy.{name}", f"numpy.{name}") for name in _NUMPY_TYPES),
    *((Record, name) for name in ("argparse.Namespace", "types.SimpleNamespace")),
    *(
        (_PathText, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
]
"""What else a pickle may name, and what is made in its place."""


def _only_inert() -> AbstractContextManager[None]:
    # torch takes whatever is to stand for a name, a text too; its types know of functions only.
    return torch.serialization.safe_globals(_INERT)  # type: ignore[arg-type]
