"""Training losses of speech recognisers."""

from nemo_asr.losses.ctc import CTCLoss

__all__ = ["CTCLoss"]
