"""Log-mel features: `log_mel` for batches; `reference.log_mel_reference`, the textbook version in float64."""

from nemo_kernels.log_mel.filterbank import mel_filterbank
from nemo_kernels.log_mel.front_end import feature_length, log_mel
from nemo_kernels.log_mel.options import LogMelOptions, fft_length
from nemo_kernels.log_mel.window import analysis_window

__all__ = ["LogMelOptions", "analysis_window", "feature_length", "fft_length", "log_mel", "mel_filterbank"]
