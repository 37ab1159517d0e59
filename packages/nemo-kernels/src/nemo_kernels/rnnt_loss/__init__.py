"""The transducer (RNN-T) loss: from logits, fused with the joint network, or from the scores of a lattice."""

from nemo_kernels.rnnt_loss.fused import rnnt_loss_fused
from nemo_kernels.rnnt_loss.loss import rnnt_loss
from nemo_kernels.rnnt_loss.scores import rnnt_loss_from_scores, rnnt_occupancies

__all__ = ["rnnt_loss", "rnnt_loss_from_scores", "rnnt_loss_fused", "rnnt_occupancies"]
