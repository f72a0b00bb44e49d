"""The usual formulation of each operation, in this project's own code, for comparison.

Each is the best plain formulation that keeps the definition: what a careful implementation without kernels looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_list_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, *, segments: Sequence[int], contexts: str
) -> Tensor:
    """Hybrid normalisation with one mask per context and a nanmedian over every masked copy of the maps.

    Same definition as `reference.hybrid_norm_loss`; every context costs several passes over full-size maps.
    """
    pixels = _mask_list_pixels(prediction, target, valid, segments, contexts)
    return pixels.sum() / valid.sum().clamp(min=1)


def grid_sample_loss(
    prediction: Tensor,
    targets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor,
    *,
    segments: Sequence[int],
    contexts: str,
) -> Tensor:
    """The local-global loss: crops cut by `grid_sample`, then the mask list on them.

    Same definition as `reference.crop_ssi_loss`, for crops ordered by image and as many for each, which saves the copy
    of the prediction per crop.
    """
    batch, height, width = prediction.shape
    count, crop_height, crop_width = targets.shape
    boxes = boxes.to(targets.device, torch.float32)
    columns = (torch.arange(crop_width, device=targets.device) + 0.5) / crop_width
    rows = (torch.arange(crop_height, device=targets.device) + 0.5) / crop_height
    # grid_sample measures from -1 to 1 over the map's edges, boxes are in pixels of the same edges.
    x = (boxes[:, 0:1] + columns * (boxes[:, 2:3] - boxes[:, 0:1])) * 2 / width - 1
    y = (boxes[:, 1:2] + rows * (boxes[:, 3:4] - boxes[:, 1:2])) * 2 / height - 1
    shape = (count, crop_height, crop_width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    grid = grid.view(batch, count // batch * crop_height, crop_width, 2)
    crops = F.grid_sample(prediction.float()[:, None], grid, padding_mode="border", align_corners=False).view(shape)
    pixels = _mask_list_pixels(crops, targets, valid, segments, contexts)
    counts = valid.flatten(1).sum(1)
    return (pixels.sum(1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def kl_div_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Channel-wise distillation with torch's own log_softmax and kl_div."""
    log_s = F.log_softmax(student.float().flatten(2) / temperature, 2)
    log_t = F.log_softmax(teacher.float().flatten(2) / temperature, 2)
    maps = student.shape[0] * student.shape[1]
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (temperature**2 / maps)


def pixel_grid(height: int, width: int, device: torch.device | str) -> Tensor:
    """Homogeneous pixel coordinates `(H * W, 3)`, which code of this kind keeps from one call to the next."""
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1).view(-1, 3).float()


def meshgrid_points(depth: Tensor, intrinsics: Tensor, *, grid: Tensor) -> Tensor:
    """Back-projection with a grid of pixel coordinates and the inverse of the intrinsics."""
    rays = grid @ torch.linalg.inv(intrinsics.float()).transpose(1, 2)
    return (rays * depth.float().flatten(1)[:, :, None]).view(*depth.shape, 3)


def _mask_list_pixels(
    prediction: Tensor, target: Tensor, valid: Tensor, segments: Sequence[int], contexts: str
) -> Tensor:
    """The loss of every pixel, `(B, H * W)`; 0 where not valid."""
    height, width = target.shape[1:]
    nan = torch.tensor(float("nan"), dtype=target.dtype, device=target.device)
    shown = torch.where(valid, target, nan).flatten(1)
    masks: list[Tensor] = []
    for count in segments:
        if contexts == "spatial":
            rows = [height * k // count for k in range(count + 1)]
            columns = [width * k // count for k in range(count + 1)]
            for i in range(count):
                for j in range(count):
                    mask = torch.zeros_like(valid)
                    mask[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = True
                    masks.append((mask & valid).flatten(1))
            continue
        shares = torch.linspace(0, 1, count + 1, dtype=torch.float32, device=target.device)
        if contexts == "range":
            flat = target.flatten(1).float()
            low = flat.masked_fill(~valid.flatten(1), math.inf).amin(1)
            high = flat.masked_fill(~valid.flatten(1), -math.inf).amax(1)
            edges = low[:, None] + (high - low)[:, None] * shares
        else:
            # nanquantile refuses more than 16 million values at once.
            parts = shown.float().split(max(2**24 // shown.shape[1], 1))
            edges = torch.cat([torch.nanquantile(part, shares, dim=1) for part in parts], 1).T
        for k in range(count):
            low, high = edges[:, k : k + 1], edges[:, k + 1 : k + 2]
            above = shown >= low
            masks.append(above & (shown <= high if k == count - 1 else shown < high))
    stacked = torch.stack(masks)
    p, t = prediction.flatten(1).float(), target.flatten(1).float()

    def normalised(values: Tensor) -> Tensor:
        copies = torch.where(stacked, values, nan.float())
        center = torch.nanmedian(copies, dim=2, keepdim=True).values
        spread = torch.nanmean((copies - center).abs(), dim=2, keepdim=True) + 1e-6
        return torch.where(stacked, (values - center) / spread, 0)

    difference = (normalised(p) - normalised(t)).abs()
    return difference.sum(0) / stacked.sum(0).clamp(min=1)
