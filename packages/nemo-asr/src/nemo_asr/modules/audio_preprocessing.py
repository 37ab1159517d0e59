"""NVIDIA's name for front end and augmentation, with their configs as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemo_asr.modules.features import AudioToMelSpectrogramPreprocessor
from nemo_asr.modules.spec_augment import SpectrogramAugmentation

__all__ = [
    "AudioToMelSpectrogramPreprocessor",
    "AudioToMelSpectrogramPreprocessorConfig",
    "SpectrogramAugmentation",
    "SpectrogramAugmentationConfig",
]


@dataclass
class AudioToMelSpectrogramPreprocessorConfig:
    """The `preprocessor` section; keys as those of `AudioToMelSpectrogramPreprocessor`."""

    _target_: str = "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"
    sample_rate: int = 16000
    window_size: float = 0.02
    window_stride: float = 0.01
    n_window_size: int | None = None
    n_window_stride: int | None = None
    window: str = "hann"
    normalize: str = "per_feature"
    n_fft: int | None = None
    preemph: float | None = 0.97
    features: int = 64
    lowfreq: int = 0
    highfreq: int | None = None
    log: bool = True
    log_zero_guard_type: str = "add"
    log_zero_guard_value: float = 2**-24
    dither: float = 1e-5
    pad_to: int = 16
    frame_splicing: int = 1
    exact_pad: bool = False
    pad_value: float = 0
    mag_power: float = 2.0
    rng: Any = None
    nb_augmentation_prob: float = 0.0
    nb_max_freq: int = 4000
    mel_norm: str = "slaney"
    use_torchaudio: bool = False
    stft_exact_pad: bool = False
    stft_conv: bool = False


@dataclass
class SpectrogramAugmentationConfig:
    """The `spec_augment` section; without masks until they are asked for."""

    _target_: str = "nemo.collections.asr.modules.SpectrogramAugmentation"
    freq_masks: int = 0
    time_masks: int = 0
    freq_width: int = 0
    time_width: Any = 0
    rect_masks: int = 0
    rect_time: int = 0
    rect_freq: int = 0
    mask_value: float = 0.0
    rng: Any = None
    use_numba_spec_augment: bool = False
    use_vectorized_spec_augment: bool = True
