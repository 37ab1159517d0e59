"""Multi-blank transducer loss: `multiblank_rnnt_loss`."""

from nemo_kernels.multiblank_rnnt_loss.loss import multiblank_rnnt_loss

__all__ = ["multiblank_rnnt_loss"]
