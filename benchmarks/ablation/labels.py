"""Labels that several runs share: what a teacher said of a batch is kept, and read again where the batch recurs.

Cells of one seed and one teacher see the same regions, and the teacher's own arithmetic is more than half of a run. A
label is known by a digest of the teacher's weights, its precision and the images, so what is read is what would have
been computed, to the bit.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distilldepth.files import atomic_path
from distilldepth.models.digest import model_digest
from distilldepth.teachers.teacher import PseudoLabel, Teacher

FREE_BYTES = 8 << 30
"""Where less is free on the disk nothing more is kept."""
_FEATURE = "feature:"
_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")


class SharedLabels:
    """Teachers' labels in a folder that several processes read and write.

    Args:
        folder: made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._teachers: WeakKeyDictionary[Teacher, bytes] = WeakKeyDictionary()

    @contextmanager
    def asked_first(self) -> Iterator[None]:
        """Have every teacher of this process look here first, inside the block."""
        ask = Teacher.label

        @functools.wraps(ask)
        def label(
            teacher: Teacher, images: Tensor, depth: Tensor | None, *, features: Collection[str] = ()
        ) -> PseudoLabel:
            if teacher.model is None:
                return ask(teacher, images, depth, features=features)
            path = self._path(teacher, images, features)
            known = self._find(path, teacher)
            if known is None:
                known = ask(teacher, images, depth, features=features)
                self._keep(path, known)
            return known

        Teacher.label = label  # type: ignore[method-assign]
        try:
            yield
        finally:
            Teacher.label = ask  # type: ignore[method-assign]

    def clear(self) -> None:
        """Remove what was kept; whatever else lies in the folder stays."""
        for path in self.folder.glob("??/*.safetensors"):
            if _NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
        for folder in (*self.folder.glob("??"), self.folder):
            with suppress(OSError):
                folder.rmdir()

    def _path(self, teacher: Teacher, images: Tensor, features: Collection[str]) -> Path:
        digest = hashlib.sha256(self._weights(teacher))
        digest.update(f"{teacher.precision} {teacher.parts} {tuple(images.shape)} {sorted(features)}".encode())
        digest.update(images.permute(0, 2, 3, 1).contiguous().numpy())
        name = digest.hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def _weights(self, teacher: Teacher) -> bytes:
        """A digest of a teacher's weights and of what makes maps of them."""
        if teacher not in self._teachers:
            assert teacher.model is not None, "the oracle runs nothing"
            self._teachers[teacher] = model_digest(teacher.model).encode()
        return self._teachers[teacher]

    def _find(self, path: Path, teacher: Teacher) -> PseudoLabel | None:
        try:
            with safe_open(path, "pt") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
                facts = file.metadata()
        except (FileNotFoundError, SafetensorError):
            return None
        for name in facts["channels_last"].split():
            values[name] = values[name].contiguous(memory_format=torch.channels_last)
        return PseudoLabel(
            values["disparity"],
            values["valid"],
            {name.removeprefix(_FEATURE): value for name, value in values.items() if name.startswith(_FEATURE)},
            teacher=teacher.name,
            inverse_depth=facts["inverse_depth"] == "yes",
            quantity=facts["quantity"],
        )

    def _keep(self, path: Path, label: PseudoLabel) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < FREE_BYTES:
            return
        values = {"disparity": label.disparity, "valid": label.valid}
        values |= {_FEATURE + name: value for name, value in label.features.items()}
        turned = [
            name
            for name, value in values.items()
            if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        ]
        facts = {
            "inverse_depth": "yes" if label.inverse_depth else "no",
            "quantity": label.quantity,
            "channels_last": " ".join(turned),
        }
        with atomic_path(path) as temporary:  # Not waiting for the disk: one that is damaged is asked for again.
            temporary.write_bytes(save({name: value.contiguous() for name, value in values.items()}, facts))
