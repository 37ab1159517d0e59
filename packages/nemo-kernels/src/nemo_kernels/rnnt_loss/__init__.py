"""The transducer (RNN-T) loss: from logits, fused with the joint, or from the scores of a lattice."""

from nemo_kernels.rnnt_loss.loss import rnnt_loss

__all__ = ["rnnt_loss"]
