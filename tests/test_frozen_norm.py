"""`optimiser.freeze_batch_norm`: the encoder's statistics stay, through everything that a run does with a student."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distill import SMALL as SHORT
from test_distill import photographs
from test_efficientnet_lite import INFO, SMALL, seeded, shaken
from torch import nn

from distilldepth.distill.config import load_config
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.recipe import settle_optimiser
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.trainer import distill
from distilldepth.errors import UsageError
from distilldepth.images.crops import Regions
from distilldepth.models import create_student, load_model, save_model
from distilldepth.models.encoder import ENCODER_ALONE, keep_encoder
from distilldepth.models.families.efficientnet_lite import build

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def small(seed: int = 3):
    torch.manual_seed(seed)
    return shaken(build(SMALL, INFO))


def statistics(state, *, encoder: bool):
    return {
        name: value.clone()
        for name, value in state.items()
        if name.endswith(STATISTICS) and name.startswith("encoder.") == encoder
    }


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("again", [False, True])
def test_statistics_of_the_encoder_stay_and_everything_learns(again):
    model = small()
    model.freeze_encoder_statistics()
    if again:
        model.enable_gradient_checkpointing()
    images = torch.rand(2, 3, 64, 96, generator=seeded(1))
    with torch.no_grad():
        expected = model.eval()(images, features=True).features["encoder"]
    before = {encoder: statistics(model.state_dict(), encoder=encoder) for encoder in (True, False)}
    output = model.train()(images, features=True)
    output.values.square().sum().backward()
    assert torch.equal(output.features["encoder"], expected)
    after = {encoder: statistics(model.state_dict(), encoder=encoder) for encoder in (True, False)}
    assert same(before[True], after[True])
    assert not any(torch.equal(after[False][name], value) for name, value in before[False].items())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_change_of_mode_thaws_it():
    model = small()
    model.freeze_encoder_statistics()
    whole = nn.Sequential(model)
    for change in (model.train, whole.train, lambda: model.eval().train(), lambda: whole.eval() and model.train(True)):
        change()
        copied = copy.deepcopy(model).train()
        for one in (model, copied):
            norms = {name: layer for name, layer in one.named_modules() if isinstance(layer, nn.BatchNorm2d)}
            assert {layer.training for name, layer in norms.items() if name.startswith("encoder.")} == {False}
            assert {layer.training for name, layer in norms.items() if not name.startswith("encoder.")} == {True}
        assert model.encoder.stages[0].training
    assert not small().train()._frozen


def test_layers_of_several_processes_stay_frozen():
    model = small()
    model.freeze_encoder_statistics()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    assert {layer.training for layer in model.encoder.modules() if isinstance(layer, nn.SyncBatchNorm)} == {False}
    assert model.fuse[0].first[1].training


def test_parts_of_a_batch_and_compiling_give_the_gradient_of_the_whole():
    images = torch.rand(4, 3, 64, 96, generator=seeded(2))
    regions = Regions(images, torch.empty(4, 0, 3, 64, 96), torch.empty(4, 0, 4), [""] * 4)
    pull = torch.randn(4, 64, 96, generator=seeded(3))
    model = small()
    model.freeze_encoder_statistics()
    for layer in [model.head, *model.fuse]:  # The decoder's statistics are those of a part.
        layer.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = DistillationStep(model, distill_any_depth_objective(), Stopwatch(torch.device("cpu")))
    found = {}
    for way in ("whole", "parts", "compiled"):
        model.zero_grad()
        step.at_once = 1 if way == "parts" else None
        step._compiled = torch.compile(model.forward, backend="aot_eager") if way == "compiled" else None
        (step.run_student(regions, features=False).values * pull).sum().backward()
        found[way] = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert same(before, dict(model.state_dict()))
    for way in ("parts", "compiled"):
        for name, gradient in found["whole"].items():
            torch.testing.assert_close(found[way][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_what_is_settled_where_it_is_left_open():
    settings = load_config().optimiser
    assert settings.freeze_batch_norm == "auto"
    trained = load_model("distilldepth-mini")
    encoder = keep_encoder(trained, seed=0)
    assert encoder.info.source.endswith(ENCODER_ALONE)
    for student, expected in (
        (create_student("efficientnet-lite0", seed=0), "off"),
        (trained, "off"),
        (encoder, "on"),
        (keep_encoder(load_model("dav2-mini"), seed=0), "off"),
    ):
        assert settle_optimiser(settings, student).freeze_batch_norm == expected
    for word in ("on", "off"):
        told = load_config(settings=[f"optimiser.freeze_batch_norm={word}"]).optimiser
        assert settle_optimiser(told, encoder).freeze_batch_norm == word


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs") / "photos")


def configured(photos, out, *settings, **flags):
    values = [value for flag, value in itertools.pairwise(SHORT) if flag == "--set"]
    fixed = {
        "teachers": "distilldepth-mini", "size": "64x96", "batch_size": 4, "workers": 0, "heldout": 2,
        "images": [str(photos)], "steps": 4, "checkpoint_every": 2, "precision": "float32", "offline": True,
        "out": str(out), "log": "none", "agreement_every": 1,
    }  # fmt: skip
    return load_config(settings=[*values, *settings], flags={**fixed, **flags})


def test_a_run_keeps_them_through_averaging_parts_and_resuming(photos, tmp_path):
    student = save_model(small(), tmp_path / "student")
    settings = ("optimiser.freeze_batch_norm=on", "optimiser.ema=0.5", "optimiser.lr=1e-2")
    # Constant, since the rate of a step depends on how many there will be.
    settings += ("optimiser.schedule=constant", "optimiser.warmup=0")
    flags = {"student": str(student), "micro_batch": 2, "gradient_checkpointing": True}
    distill(configured(photos, tmp_path / "whole", *settings, **flags))
    resumed = configured(photos, tmp_path / "parts", *settings, **flags)
    distill(configured(photos, tmp_path / "parts", *settings, **{**flags, "steps": 2}))
    resumed.resume = "auto"
    distill(resumed)
    source = load_file(student / "model.safetensors")
    trained = load_file(tmp_path / "whole" / "student" / "model.safetensors")
    assert same(trained, load_file(tmp_path / "parts" / "student" / "model.safetensors"))
    assert same(statistics(trained, encoder=True), statistics(source, encoder=True))
    changed = statistics(trained, encoder=False)
    assert not any(torch.equal(changed[name], source[name]) for name in changed if "running" in name)
    names = ("encoder.stem.norm.weight", "encoder.stem.norm.bias", "encoder.stem.convolution.weight")
    assert not any(torch.equal(trained[name], source[name]) for name in names)


def test_a_student_without_such_layers_is_refused(photos, tmp_path):
    config = configured(photos, tmp_path / "run", "optimiser.freeze_batch_norm=on", student="dav2-mini")
    with pytest.raises(
        UsageError, match="dav2-mini: this network has no batch normalisation in its encoder; leave out"
    ):
        distill(config)
    assert not Path(config.out, "checkpoints").exists()
