"""Tensor functions for speech models, each with a PyTorch twin that reads like the textbook."""

from nemo_kernels.log_mel import log_mel, mel_filterbank

__all__ = ["log_mel", "mel_filterbank"]
__version__ = "3.0.0"
