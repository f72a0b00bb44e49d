"""The four operations in plain torch: the definition that every other backend is tested against."""

from distilldepth.reference.backproject import backproject
from distilldepth.reference.channel_kl import channel_kl_loss
from distilldepth.reference.crop_ssi import crop_ssi_loss
from distilldepth.reference.hybrid_norm import hybrid_norm_loss

__all__ = ["backproject", "channel_kl_loss", "crop_ssi_loss", "hybrid_norm_loss"]
