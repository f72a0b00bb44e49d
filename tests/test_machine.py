"""What `auto` means: fast here, the same everywhere it is asked, and told when something slow was forced."""

import os
import platform
import subprocess
import sys
import warnings

import pytest
import torch

from distilldepth import machine
from distilldepth.device import autocast
from distilldepth.distill.config import DistillConfig, load_config, preset_names
from distilldepth.machine import bfloat16_gain, resolve_precision

CPU = torch.device("cpu")
FORCED_DOWN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""A CPU without bfloat16 instructions, as most desktops and laptops are."""


@pytest.fixture
def gain(monkeypatch):
    return lambda value: monkeypatch.setattr(machine, "bfloat16_gain", lambda kind: value)


def test_auto_is_what_is_fast(gain):
    for value, expected in ((3.0, "bfloat16"), (0.02, "float32"), (1.0, "float32")):
        gain(value)
        assert resolve_precision("auto", CPU) == expected
        with autocast(CPU, "auto"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == getattr(torch, expected)


def test_a_slow_precision_is_kept_and_told_with_its_factor(gain):
    gain(0.05)
    with pytest.warns(UserWarning, match=r"the teachers: bfloat16 is 20 times slower than float32"):
        assert resolve_precision("bfloat16", CPU, what="the teachers") == "bfloat16"
    gain(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bfloat16", CPU) == "bfloat16"
        assert resolve_precision("float32", CPU) == "float32"


@pytest.mark.parametrize(("precision", "message"), [("bf16", "must be one of"), ("float16", "on the CPU")])
def test_what_makes_no_sense_is_refused(precision, message):
    with pytest.raises(ValueError, match=message):
        resolve_precision(precision, CPU)


def test_the_measurement_changes_nothing_around_it():
    bfloat16_gain.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert bfloat16_gain("cpu") > 0
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.rand(4), expected)
    assert torch.is_grad_enabled()


def test_no_default_and_no_preset_fixes_a_precision():
    for config in (
        DistillConfig(),
        *(load_config(preset=name, flags={"images": ["photos"]}) for name in preset_names()),
    ):
        assert (config.precision, config.teacher_precision) == ("auto", "auto"), config.preset


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for x86 processors")
def test_without_instructions_for_bfloat16_auto_is_float32():
    code = (
        "import torch\n"
        "from distilldepth.machine import bfloat16_gain, resolve_precision\n"
        "print(torch.backends.cpu.get_cpu_capability(), resolve_precision('auto', torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **FORCED_DOWN}, capture_output=True, text=True, check=True
    )
    capability, precision = done.stdout.split()
    assert precision == "float32", capability
