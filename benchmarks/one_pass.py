"""Runs every CUDA kernel of the native library once on small, awkward shapes; for compute-sanitizer.

compute-sanitizer --tool memcheck python benchmarks/one_pass.py
"""

from __future__ import annotations

import os
import sys

import torch

from distilldepth import ops

os.environ["DISTILLDEPTH_BACKEND"] = "native"


def main() -> None:
    """Forward and backward of every operation, in float32 and bfloat16, with all contexts."""
    if not torch.cuda.is_available():
        sys.exit("one_pass: torch sees no GPU")
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        # Odd sides, so that no row or block is full.
        prediction = torch.rand(2, 61, 83, device="cuda").to(dtype).requires_grad_()
        target = torch.rand(2, 61, 83, device="cuda").to(dtype)
        valid = torch.rand(2, 61, 83, device="cuda") > 0.2
        boxes = torch.tensor([[0.0, 0, 83, 61], [3.5, 2.25, 50, 40], [10, 10, 30, 31]], device="cuda")
        image_index = torch.tensor([0, 1, 1], device="cuda")
        targets = torch.rand(3, 37, 29, device="cuda").to(dtype)
        for contexts in ("range", "quantile", "spatial"):
            how = {"segments": (1, 2, 4), "contexts": contexts}
            ops.hybrid_norm_loss(prediction, target, valid, **how).backward()
            ops.crop_ssi_loss(prediction, targets, boxes, image_index, **how).backward()
        ops.channel_kl_loss(prediction, target, valid).backward()
        intrinsics = torch.tensor([[80.0, 0, 41], [0, 80, 30], [0, 0, 1]], device="cuda", requires_grad=True)
        ops.backproject(prediction, intrinsics, valid).nan_to_num().sum().backward()
        image = torch.zeros(2, 3, 61, 83, device="cuda", dtype=torch.uint8)
        ops.point_cloud(prediction.detach(), intrinsics.detach(), image, valid)
        assert torch.isfinite(prediction.grad).all()
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
