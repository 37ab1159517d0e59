"""Tensor functions for speech models, each with a PyTorch twin that reads like the textbook."""

# Importing a folder makes it an attribute of this package, in front of the function of the same name; these lines put
# the function there for good, since a folder is imported once. Triton is imported by the first call that needs it.
from nemo_kernels.attention import RelativePosition, attention
from nemo_kernels.log_mel import log_mel, mel_filterbank
from nemo_kernels.multiblank_rnnt_loss import multiblank_rnnt_loss
from nemo_kernels.rnnt_loss import rnnt_loss, rnnt_loss_from_scores, rnnt_loss_fused, rnnt_occupancies
from nemo_kernels.tdt_loss import tdt_loss, tdt_loss_fused

__all__ = [
    "RelativePosition",
    "attention",
    "log_mel",
    "mel_filterbank",
    "multiblank_rnnt_loss",
    "rnnt_loss",
    "rnnt_loss_from_scores",
    "rnnt_loss_fused",
    "rnnt_occupancies",
    "tdt_loss",
    "tdt_loss_fused",
]
__version__ = "3.0.0"
