"""The four operations that dominate the cost of distillation: their mathematics, their arguments, a choice of backend.

How each backend computes them is in `reference` (plain torch), `kernels` (Triton) and `csrc` (C++ and CUDA).
"""

from distilldepth.ops.backproject import backproject, point_cloud
from distilldepth.ops.channel_kl import channel_kl_loss
from distilldepth.ops.crop_ssi import crop_ssi_loss, sample_crops
from distilldepth.ops.hybrid_norm import hybrid_norm_loss

__all__ = ["backproject", "channel_kl_loss", "crop_ssi_loss", "hybrid_norm_loss", "point_cloud", "sample_crops"]
