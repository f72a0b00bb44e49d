"""Marigold: depth drawn from noise by a latent diffusion network, in one step or several, once or as an ensemble.

Source: Ke et al., Marigold (2312.02145, 2505.09358); Garcia et al., Fine-Tuning Image-Conditional Diffusion Models is
Easier than You Think (2409.11355), for one step at the end of the schedule and without noise.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from distilldepth.errors import DistillDepthError, did_you_mean, shown
from distilldepth.models import bounds
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.candidate import Candidate
from distilldepth.models.diffusion import SD_UNET, SD_VAE, TEXT_TOKENS, load_part, load_surroundings, public_config
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.pretrained import check_config, quiet_transformers, read_json
from distilldepth.models.registry import MOST_MEMBERS, MOST_STEPS
from distilldepth.models.state_dict import MISFITS, briefly

FAMILY = "marigold"

_UNET = SD_UNET | {"in_channels": 8}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
_SCHEDULERS: dict[str, Any] = {"DDIMScheduler": DDIMScheduler, "LCMScheduler": LCMScheduler}
VARIANTS: dict[str, dict[str, Any]] = {
    "noise": {"vae": SD_VAE, "unet": _UNET, "scheduler": _SCHEDULER, "noise": "gaussian"},
    "zeros": {"vae": SD_VAE, "unet": _UNET, "scheduler": _SCHEDULER, "noise": "zeros"},
}
"""Architectures by name: configurations of the parts, and what depth is drawn from (see `Sampling`)."""

ARCHITECTURE = {
    "vae": bounds.config,
    "unet": bounds.config,
    "scheduler": bounds.config,
    "steps": bounds.whole(1, MOST_STEPS),
    "ensemble": bounds.whole(1, MOST_MEMBERS),
    "seed": bounds.whole(0, (1 << 63) - MOST_MEMBERS - 1),
    "noise": bounds.word("gaussian", "zeros"),
    "scale_invariant": bounds.flag,
    "shift_invariant": bounds.flag,
}
"""What the entries of an architecture may be in a file."""


@dataclass(frozen=True)
class Sampling:
    """How depth is drawn."""

    steps: int = 1
    """Steps of the scheduler, each a pass of the U-Net."""
    ensemble: int = 1
    """Members that are drawn, aligned and brought to their median."""
    seed: int = 0
    """Member k begins with the noise of the seed + k, the same for every image of a size."""
    noise: str = "gaussian"
    """`gaussian`, or `zeros` for networks that were trained to begin with nothing."""
    scale_invariant: bool = True
    """Whether members are known up to a scale each, as the model says."""
    shift_invariant: bool = True
    """The same of a shift."""


class Marigold(DepthModel):
    """A U-Net that removes noise from a latent depth map beside the image's latent.

    `z = k mode(encode(2 rgb - 1))`; from noise x, for every time t of the scheduler, `x = step(unet([z, x], t), t, x)`;
    values `(y + 1) / 2` with y the mean over channels of `decode(x / k)`, clamped to [-1, 1]. The noise is a function
    of the seed, the member and the size alone, so that a map does not depend on what is in the batch beside it, nor on
    the device.

    An ensemble costs as many passes as it has members, one after the other; see `align_members`.

    Args:
        info: what the network is called and what its numbers mean.
        preprocessing: its mean and deviation must be 0.5, which is the range [-1, 1] of the VAE.
        vae, unet: the two networks; the U-Net takes two latents.
        scheduler: of diffusers, DDIM or LCM.
        context: `(1, tokens, C)` encoded empty prompt.
        sampling: how depth is drawn.
    """

    context: Tensor

    def __init__(
        self,
        info: ModelInfo,
        preprocessing: Preprocessing,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: Any,
        context: Tensor,
        sampling: Sampling,
    ) -> None:
        super().__init__(info, preprocessing)
        self.vae = vae.requires_grad_(False)
        self.unet = unet
        self.scheduler = scheduler
        self.register_buffer("context", context)
        self.sampling = sampling

    @property
    def architecture(self) -> dict[str, Any]:
        return {
            "vae": public_config(self.vae.config),
            "unet": public_config(self.unet.config),
            "scheduler": {"_class_name": type(self.scheduler).__name__, **public_config(self.scheduler.config)},
            **dataclasses.asdict(self.sampling),
        }

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        self.check_sides(images.shape[-2], images.shape[-1], self.preprocessing.multiple)
        scale = self.vae.config["scaling_factor"]
        image = self.vae.encode(self.normalise(images)).latent_dist.mode().float() * scale
        members = []
        for member in range(self.sampling.ensemble):
            decoded = self.vae.decode(self._denoise(image, member) / scale).sample.float().mean(1, keepdim=True)
            members.append((decoded.clamp(-1, 1) + 1) / 2)
        if len(members) == 1:
            return DepthOutput(members[0][:, 0])
        sampling = self.sampling
        return DepthOutput(
            align_members(torch.cat(members, 1), scales=sampling.scale_invariant, shifts=sampling.shift_invariant)
        )

    def _denoise(self, image: Tensor, member: int) -> Tensor:
        """The latent map of one member, for image latents `(B, C, h, w)`."""
        # Every image has a generator of its own in the same state: the scheduler may draw from it in later steps.
        generators = [torch.Generator().manual_seed(self.sampling.seed + member) for _ in image]
        if self.sampling.noise == "zeros":
            latent = torch.zeros_like(image)
        else:
            latent = randn_tensor(tuple(image.shape), generator=generators, device=image.device, dtype=image.dtype)
        context = self.context.expand(len(image), -1, -1)
        self.scheduler.set_timesteps(self.sampling.steps, device="cpu")
        for time in self.scheduler.timesteps.tolist():
            said = self.unet(torch.cat([image, latent], 1), time, encoder_hidden_states=context).sample.float()
            latent = self.scheduler.step(said, time, latent, generator=generators).prev_sample
        return latent


def align_members(maps: Tensor, *, scales: bool = True, shifts: bool = True) -> Tensor:
    """Return the pixelwise median of an ensemble, after a scale and a shift for each member that make them most alike.

    Minimises `sum over i < j of mean (s_i d_i + t_i - s_j d_j - t_j)^2` at a given spread of all members together,
    which is the paper's pairwise term with what its regulariser is for, that no member vanishes, as a constraint. Then
    all shifts bring the means to 0, and the `s_i` times the deviation of `d_i` are the first principal component of the
    members' correlations. (The paper stops BFGS after two steps. What diffusers makes of that, differences of float32
    below its resolution, moves a map by 0.01 to 0.2 when members move by 1e-7.)

    Args:
        maps: floating `(B, E, H, W)`.
        scales, shifts: whether members are known up to a scale and a shift each; without scales nothing is aligned.

    Returns:
        `(B, H, W)` in [0, 1]: from the least to the greatest value, with scales alone from 0, without them as it is. A
        member that contradicts the others counts as constant. 0 where all are constant.
    """
    if not scales:
        return _median(maps)
    flat = maps.flatten(2)
    if shifts:
        flat = flat - flat.mean(2, keepdim=True)
    tiny = torch.finfo(maps.dtype).tiny
    flat = flat / flat.square().mean(2, keepdim=True).sqrt().clamp(min=tiny)
    # Powers of the correlations by squaring, 2^10: no eigenvalues are waited for on a GPU.
    power = flat @ flat.mT / flat.shape[2]
    for _ in range(10):
        power = power @ power
        power = power / power.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
    weights = power.sum(2, keepdim=True)
    weights = (weights / weights.amax(1, keepdim=True).clamp(min=tiny)).clamp(min=0)
    median = _median((flat * weights).unflatten(2, maps.shape[2:]))
    low = median.amin((1, 2), keepdim=True) if shifts else torch.zeros_like(median[:, :1, :1])
    high = median.amax((1, 2), keepdim=True)
    return (median - low) / (high - low).clamp(min=tiny)


def _median(maps: Tensor) -> Tensor:
    """Over members `(B, E, H, W)`; the mean of the two in the middle where their count is even."""
    ordered, count = maps.sort(1).values, maps.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2


def build(architecture: dict[str, Any], info: ModelInfo, preprocessing: Preprocessing | None = None) -> Marigold:
    """Make a randomly initialised network; the context is random too.

    Args:
        architecture: the configurations of `vae`, `unet` and `scheduler`, and what `Sampling` takes; or
            `{"variant": name}` with any of these to override.
        info: what the network is called and what its numbers mean.
        preprocessing: None for the family's own.
    """
    options = copy.deepcopy(architecture)
    if "variant" in options:
        options = copy.deepcopy(VARIANTS[options.pop("variant")]) | options
    vae = AutoencoderKL.from_config(options.pop("vae"))
    unet = UNet2DConditionModel.from_config(options.pop("unet"))
    scheduler = _make_scheduler(options.pop("scheduler"))
    context = torch.randn(1, TEXT_TOKENS, unet.config["cross_attention_dim"])
    return Marigold(info, preprocessing or _preprocessing(), vae, unet, scheduler, context, Sampling(**options))


def _preprocessing(size: int = 768) -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    return Preprocessing(
        size, 8, "upper-bound", half, half, interpolation="bilinear-antialias", map_interpolation="bilinear"
    )


def _make_scheduler(config: dict[str, Any]) -> Any:
    options = dict(config)
    name = options.pop("_class_name", "DDIMScheduler")
    if name not in _SCHEDULERS:
        raise ValueError(f"its scheduler is {shown(name)}{did_you_mean(str(name), _SCHEDULERS)}")
    with quiet_transformers():
        return _SCHEDULERS[name].from_config(options)


def claims(candidate: Candidate) -> bool:
    """What is named as one of this family, and folders whose model_index.json names its pipeline."""
    if candidate.entry is not None:
        return candidate.entry.family == FAMILY
    index = candidate.path / "model_index.json"
    return index.is_file() and str(read_json(index).get("_class_name", "")).startswith("Marigold")


def load(candidate: Candidate) -> Marigold:
    """Load a folder of diffusers: `model_index.json`, `unet`, `vae`, `scheduler`, and the text encoder or its answer.

    VAE and text context come from the base, where the folder has none.

    Raises:
        DistillDepthError: a part is missing, corrupt, or of another network.
    """
    path, entry = candidate.path, candidate.entry
    candidate.refuse_max_depth()
    if not (path / "unet").is_dir():
        raise DistillDepthError(f"load_model: {path} has no unet/, which a folder of Marigold must have")
    index = _read_index(path)
    quantity = index.get("prediction_type") or "depth"
    if quantity not in ("depth", "disparity"):
        raise DistillDepthError(
            f"load_model: {path} predicts {shown(quantity)}, by its model_index.json; only depth and disparity are "
            "supported"
        )
    steps, ensemble = candidate.request.sampling or (1, 1)
    sampling = Sampling(
        steps,
        ensemble,
        noise="zeros" if entry is not None and entry.variant == "zeros" else "gaussian",
        scale_invariant=index.get("scale_invariant") is not False,
        shift_invariant=index.get("shift_invariant") is not False,
    )
    _check_ensemble(candidate, sampling)
    unet = load_part(UNet2DConditionModel, path / "unet", _UNET)
    if unet.config["in_channels"] != 2 * unet.config["out_channels"]:
        raise DistillDepthError(
            f"load_model: {path / 'unet'} takes {unet.config['in_channels']} channels and is no network of Marigold, "
            f"which takes {2 * unet.config['out_channels']}: the latents of image and depth"
        )
    vae, context = load_surroundings(path, unet, path / "unet", candidate.request)
    scheduler, notes = _load_scheduler(path, sampling)
    size = index.get("default_processing_resolution") or 768
    try:
        preprocessing = _preprocessing(size)
    except ValueError as error:
        raise DistillDepthError(f"load_model: {path / 'model_index.json'}: {error}") from error
    name = candidate.name if candidate.request.sampling is None else f"{candidate.name}:{steps}x{ensemble}"
    info = ModelInfo(name, FAMILY, quantity, entry.licence if entry else "see the source", str(path), notes)
    return Marigold(info, preprocessing, vae, unet, scheduler, context, sampling)


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        return {}
    check_config(file)
    return read_json(file)


def _check_ensemble(candidate: Candidate, sampling: Sampling) -> None:
    """Raise unless an ensemble makes sense."""
    if sampling.ensemble > 1 and sampling.noise == "zeros":
        raise DistillDepthError(
            f"load_model: '{candidate.name}' begins with no noise, so that all {sampling.ensemble} members would be "
            f"the same; ask for one, as {candidate.name}:{sampling.steps}x1"
        )


def _load_scheduler(folder: Path, sampling: Sampling) -> tuple[Any, tuple[str, ...]]:
    """The scheduler, and what a user must be told of it."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise DistillDepthError(f"load_model: {folder} has no scheduler/scheduler_config.json")
    check_config(file)
    config = read_json(file)
    notes: tuple[str, ...] = ()
    leading = config.get("timestep_spacing", "leading") == "leading" and config.get("_class_name") != "LCMScheduler"
    if sampling.steps == 1 and leading:
        # Its one step would be the last of the schedule, where there is nearly no noise, and the latent is all noise.
        config = config | {"timestep_spacing": "trailing"}
        notes = (
            f"the schedule of {folder} begins its only step where noise ends; it is begun where noise is greatest "
            "(timestep_spacing trailing)",
        )
    try:
        scheduler = _make_scheduler(config)
        scheduler.set_timesteps(sampling.steps, device="cpu")
    except MISFITS as error:
        raise DistillDepthError(
            f"load_model: {file} makes no schedule of {sampling.steps} steps: {briefly(error)}"
        ) from error
    return scheduler, notes
