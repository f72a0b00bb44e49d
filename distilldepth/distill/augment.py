"""Changes to the picture that the student sees, drawn per image and applied to the whole batch on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distilldepth.distill.config import AugmentSection

_LUMA = (0.299, 0.587, 0.114)


def augment(images: Tensor, config: AugmentSection) -> Tensor:
    """Return images `(B, 3, H, W)` in [0, 1] with random colour, blur and noise; geometry is untouched."""
    batch = images.shape[0]

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(batch, *(shape or (1, 1, 1)), device=images.device).uniform_(low, high)

    if config.colour:
        strength = config.colour
        gain = 1 + draw(-strength, strength) + draw(-strength / 3, strength / 3, 3, 1, 1)
        images = images * gain
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + draw(-strength, strength))
        grey = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = grey + (images - grey) * (1 + draw(-strength, strength))
        images = images.clamp(1e-4, 1) ** (1 + draw(-strength, strength))
    if config.blur:
        soft = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        images = torch.where(draw(0, 1) < config.blur, soft, images)
    if config.noise:
        # In memory order: drawing straight into a channels-last tensor takes six times as long on a CPU.
        noise = torch.randn(images.shape, device=images.device)
        images = images + noise * draw(0, config.noise)
    return images.clamp(0, 1)
