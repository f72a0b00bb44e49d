"""The four operations in plain torch: what every other backend is tested against.

`distilldepth.ops` states what they compute, checks arguments and chooses a backend; here is how, and nothing else.
"""

from distilldepth.reference.backproject import backproject
from distilldepth.reference.channel_kl import channel_kl_loss
from distilldepth.reference.crop_ssi import crop_ssi_loss
from distilldepth.reference.hybrid_norm import hybrid_norm_loss

__all__ = ["backproject", "channel_kl_loss", "crop_ssi_loss", "hybrid_norm_loss"]
