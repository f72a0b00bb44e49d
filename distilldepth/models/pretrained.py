"""Folders of transformers and diffusers: strict, quiet, without code from others or the network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distilldepth import documents
from distilldepth.errors import DistillDepthError, one_line
from distilldepth.models.base import count_parameters
from distilldepth.models.bounds import config as check_config_values
from distilldepth.models.files import CHECKPOINT_SUFFIXES
from distilldepth.models.state_dict import check_tensor, report_state


def check_config(path: Path) -> None:
    """Raise a DistillDepthError unless a JSON file of a model's folder is readable and its numbers are possible."""
    try:
        check_config_values(path.stem, read_json(path))
    except ValueError as error:
        raise DistillDepthError(f"load_model: {path} describes no network: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DistillDepthError: unreadable, or something else than an object.
    """
    return documents.read_json(path, remedy="copy or download it again")


def load_pretrained(cls: Any, folder: Path, *, never_used: str | None = None, **options: Any) -> Any:
    """`cls.from_pretrained` of a local folder: strict, quiet, float32, without remote code or network.

    Args:
        cls: a class of transformers or diffusers.
        folder: where it is.
        never_used: regular expression of tensors that may be missing or left over, because the forward pass has no use
            for them.
        options: further arguments for `from_pretrained`.

    Raises:
        DistillDepthError: unreadable, or weights missing, left over or of another shape.
    """
    # diffusers and transformers call the same option differently
    is_diffusers = cls.__module__.startswith("diffusers")
    dtype = "torch_dtype" if is_diffusers else "dtype"
    options = {"local_files_only": True, "output_loading_info": True, dtype: torch.float32} | options
    if not is_diffusers:
        options["trust_remote_code"] = False
    for file in sorted({*folder.glob("*config.json"), *folder.glob("*.index.json")}):
        check_config(file)
    with quiet_transformers():
        try:
            _check_size(cls, folder)
            network, loading = cls.from_pretrained(folder, **options)
        except DistillDepthError:
            raise
        except Exception as error:
            reason = one_line(error, 200)
            raise DistillDepthError(f"load_model: {folder} cannot be loaded ({reason}); download it again") from error
    mismatched = [str(item[0] if isinstance(item, tuple) else item) for item in loading.get("mismatched_keys", ())]
    missing, unexpected = (
        sorted(key for key in loading[kind] if not (never_used and re.search(never_used, key)))
        for kind in ("missing_keys", "unexpected_keys")
    )
    report_state(folder, missing, unexpected, mismatched, _integer_weights(folder))
    for key, tensor in network.state_dict().items():
        check_tensor(folder, key, tensor)
    return network


def _check_size(cls: Any, folder: Path) -> None:
    """Raise if a configuration describes more weights than the files beside it can hold."""
    with torch.device("meta"):
        if cls.__module__.startswith("diffusers"):
            skeleton = cls.from_config(cls.load_config(folder, local_files_only=True))
        elif hasattr(cls, "from_config"):
            from transformers import AutoConfig

            skeleton = cls.from_config(
                AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            )
        else:
            skeleton = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    described = count_parameters(skeleton)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
    # No published format has less than a byte for a weight.
    if described > held:
        raise DistillDepthError(
            f"load_model: {folder / 'config.json'} describes a network of {described} weights, and the files beside it "
            f"have {held} bytes; they do not belong together, or are incomplete"
        )


def _integer_weights(folder: Path) -> list[str]:
    """Names of weights in safetensors files that are whole numbers."""
    from safetensors import safe_open

    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, it is no dictionary
                dtype = tensors.get_slice(key).get_dtype()
                if key.endswith(("weight", "bias")) and dtype.startswith(("I", "U", "BOOL")):
                    found.append(f"{key} ({dtype})")
    return found


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and warnings of transformers and diffusers; what matters is checked and raised by us."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    states = []
    for log in (transformers_logging, diffusers_logging):
        states.append((log, log.get_verbosity(), log.is_progress_bar_enabled()))
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in states:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
