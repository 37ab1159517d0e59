"""Token-and-duration transducer loss: `tdt_loss` of a joint's output, `tdt_loss_fused` with the joint inside."""

from nemo_kernels.tdt_loss.fused import tdt_loss_fused
from nemo_kernels.tdt_loss.loss import tdt_loss

__all__ = ["tdt_loss", "tdt_loss_fused"]
