"""Log-mel front end as a module: NVIDIA's YAML keys around `nemo_kernels.log_mel`.

The window and the mel filters are buffers (`featurizer.window`, `featurizer.fb`), since files hold them: a
restored model computes with the stored ones.  B batch, L samples, F mel bins, T frames
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nemo_asr.modules.neural_module import NeuralModule
from nemo_kernels import log_mel, mel_filterbank
from nemo_kernels.log_mel import analysis_window, feature_length, fft_length

logger = logging.getLogger(__name__)

MAX_DURATION_S = 16.7  # what `pad_to: max` pads to
OTHER_STFT_BUFFERS = ("stft.", "_mel_spec_extractor.")  # of convolution- and torchaudio-based front ends


class FilterbankFeatures(nn.Module):
    """The buffers and options of a front end; `dither` and `pad_to` may be changed between calls.

    Args:
        window: (n_window_size,), or None for a rectangular one, which files do not store.
        filterbank: mel filters (F, N).
        options: the keywords of `log_mel` that never change.
        dither: deviation of the noise that is added in training.
        pad_to: frames are padded to a multiple of it; "max" pads to 16.7 s.
        narrow_band_p: probability with which an utterance loses the bins from narrow_band_bin on, in training.
        narrow_band_bin: the first frequency bin that is lost.
        rng: draws those utterances; torch's generator by default.
    """

    window: Tensor | None
    fb: Tensor

    def __init__(
        self,
        window: Tensor | None,
        filterbank: Tensor,
        options: Mapping[str, Any],
        *,
        dither: float,
        pad_to: int | str,
        narrow_band_p: float,
        narrow_band_bin: int,
        rng: random.Random | None,
    ) -> None:
        super().__init__()
        self.register_buffer("window", window)
        self.register_buffer("fb", filterbank[None])
        self.options = dict(options)
        self.dither = dither
        self.pad_to = pad_to
        self.narrow_band_p = narrow_band_p
        self.narrow_band_bin = narrow_band_bin
        self._rng = rng

    def forward(self, audio: Tensor, audio_len: Tensor, pad_to: int | str | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and frames (B,) of float32 audio (B, L) with audio_len (B,) samples."""
        pad_to = self.pad_to if pad_to is None else pad_to
        return log_mel(
            audio,
            audio_len,
            window=self.window,
            filterbank=self.fb,
            dither=self.dither if self.training else 0.0,
            band_limit=self._band_limit(audio) if self.training and self.narrow_band_p > 0 else None,
            pad_to=pad_to if isinstance(pad_to, int) else 0,
            min_frames=self._max_frames() if pad_to == "max" else 0,
            **self.options,
        )

    def _band_limit(self, audio: Tensor) -> Tensor:
        size = audio.shape[0]
        chance = torch.rand(size) if self._rng is None else torch.tensor([self._rng.random() for _ in range(size)])
        limit = torch.where(chance < self.narrow_band_p, self.narrow_band_bin, self.fb.shape[2])
        return limit.to(audio.device)

    def _max_frames(self) -> int:
        samples = torch.tensor(int(MAX_DURATION_S * self.options["sample_rate"]))
        geometry = {key: self.options[key] for key in ("n_fft", "hop_size", "exact_pad")}
        return int(feature_length(samples, **geometry))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads files of older releases, too: they lack the buffers, or hold those of another implementation."""
        for key in [key for key in state_dict if key.startswith(tuple(prefix + b for b in OTHER_STFT_BUFFERS))]:
            del state_dict[key]
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)


class AudioToMelSpectrogramPreprocessor(NeuralModule):
    """Log-mel features of waveforms.

    Args:
        sample_rate: samples per second.
        window_size: of the analysis window in seconds; false where n_window_size is given.
        window_stride: seconds between frames; false where n_window_stride is given.
        n_window_size: the window in samples.
        n_window_stride: samples between frames.
        window: hann, hamming, blackman, bartlett or none.
        normalize: per_feature, all_features, {fixed_mean, fixed_std}; anything else ("NA", null) switches it off.
        n_fft: length of the Fourier transform; the next power of two of the window by default.
        preemph: coefficient of the pre-emphasis, or null.
        features: F, the number of mel bins.
        lowfreq: lower end of the mel filters in Hz.
        highfreq: upper end in Hz; half the sample rate by default.
        log: take the logarithm.
        log_zero_guard_type: add or clamp.
        log_zero_guard_value: a number, "tiny" or "eps".
        dither: deviation of the white noise that is added in training.
        pad_to: frames are padded to a multiple of it; 0 does not pad, "max" pads to 16.7 s.
        frame_splicing: copies of a frame's bins that are stacked.
        exact_pad: pad for L // n_window_stride frames instead of centring them; needs an even stride.
        pad_value: what frames after an utterance hold.
        mag_power: power of the magnitudes before the mel filters.
        rng: a random.Random for the narrow-band augmentation.
        nb_augmentation_prob: share of utterances that lose what lies above nb_max_freq, in training.
        nb_max_freq: in Hz.
        mel_norm: slaney, a number p for filters of p-norm 1, or null.

    Raises:
        ValueError: an option out of its range, or a window given both in seconds and in samples.
    """

    IGNORED_KEYS = frozenset({"use_torchaudio", "stft_conv", "stft_exact_pad", "use_grads", "max_duration"})

    def __init__(
        self,
        sample_rate: int = 16000,
        window_size: float | bool | None = 0.02,
        window_stride: float | bool | None = 0.01,
        n_window_size: int | bool | None = None,
        n_window_stride: int | bool | None = None,
        window: str | None = "hann",
        normalize: str | bool | Mapping[str, Sequence[float]] | None = "per_feature",
        n_fft: int | None = None,
        preemph: float | None = 0.97,
        features: int = 64,
        lowfreq: float | None = 0.0,
        highfreq: float | None = None,
        log: bool = True,
        log_zero_guard_type: str = "add",
        log_zero_guard_value: float | str = 2**-24,
        dither: float = 1e-5,
        pad_to: int | str | None = 16,
        frame_splicing: int = 1,
        exact_pad: bool = False,
        pad_value: float = 0.0,
        mag_power: float = 2.0,
        rng: random.Random | None = None,
        nb_augmentation_prob: float = 0.0,
        nb_max_freq: float = 4000.0,
        mel_norm: str | float | None = "slaney",
    ) -> None:
        super().__init__()
        size = _samples("window_size", window_size, n_window_size, sample_rate)
        hop = _samples("window_stride", window_stride, n_window_stride, sample_rate)
        n_fft = n_fft or fft_length(size)
        _check(size, hop, n_fft, exact_pad=exact_pad, guard_type=log_zero_guard_type, guard=log_zero_guard_value)
        options = {
            "sample_rate": sample_rate,
            "window_size": size,
            "hop_size": hop,
            "n_fft": n_fft,
            "preemphasis": preemph,
            "exact_pad": exact_pad,
            "magnitude_power": mag_power,
            "log": log,
            "log_guard_type": log_zero_guard_type,
            "log_guard": log_zero_guard_value,
            "normalize": _normalization(normalize),
            "frame_splicing": frame_splicing,
            "pad_value": pad_value,
        }
        self.featurizer = FilterbankFeatures(
            None if window in (None, "none") else analysis_window(window, size),
            _filters(sample_rate, n_fft, features, lowfreq, highfreq, mel_norm),
            options,
            dither=dither,
            pad_to=_multiple(pad_to),
            narrow_band_p=nb_augmentation_prob if nb_max_freq < sample_rate / 2 else 0.0,
            narrow_band_bin=int(nb_max_freq / sample_rate * n_fft),
            rng=rng,
        )

    @torch.no_grad()
    def forward(self, input_signal: Tensor, length: Tensor, pad_to: int | str | None = None) -> tuple[Tensor, Tensor]:
        """Features of a batch, computed in float32 and given in the dtype of the module.

        Args:
            input_signal: audio (B, L) in [-1, 1].
            length: samples of each (B,).
            pad_to: instead of the constructor's, for this call.

        Returns:
            features (B, F, T) and valid frames (B,).
        """
        features, feature_len = self.featurizer(input_signal.float(), length, pad_to)
        return features.to(self.featurizer.fb.dtype), feature_len


def _samples(name: str, seconds: float | bool | None, samples: int | bool | None, sample_rate: int) -> int:
    if seconds and samples:
        raise ValueError(f"n_{name}: {samples} is given beside {name} {seconds}; give one of them")
    count = int(seconds * sample_rate) if seconds else int(samples or 0)
    if count <= 0:
        raise ValueError(f"{name}: {seconds} and n_{name} {samples} leave no samples")
    return count


def _filters(
    sample_rate: int, n_fft: int, n_mels: int, low: float | None, high: float | None, norm: str | float | None
) -> Tensor:
    low, high = low or 0.0, high or sample_rate / 2  # 0 stands for the default in NVIDIA's files
    if not 0 <= low < high:
        raise ValueError(f"lowfreq: {low} must be at least 0 and below highfreq {high}")
    bank: dict[str, Any] = {"low_hz": low, "high_hz": high, "norm": norm}
    return mel_filterbank(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, **bank)


def _check(size: int, hop: int, n_fft: int, *, exact_pad: bool, guard_type: str, guard: float | str) -> None:
    """What would otherwise fail at the first batch only."""
    if n_fft < size:
        raise ValueError(f"n_fft: {n_fft} is shorter than the window of {size} samples")
    if exact_pad and hop % 2:
        raise ValueError(f"exact_pad: needs an even stride, and {hop} samples are odd")
    if guard_type not in ("add", "clamp"):
        raise ValueError(f"log_zero_guard_type: {guard_type!r} must be 'add' or 'clamp'")
    if isinstance(guard, str) and guard not in ("tiny", "eps"):
        raise ValueError(f"log_zero_guard_value: {guard!r} must be a number, 'tiny' or 'eps'")


def _normalization(mode: str | bool | Mapping[str, Sequence[float]] | None) -> Any:
    if isinstance(mode, Mapping) or mode in ("per_feature", "all_features"):
        return mode
    if mode and str(mode).lower() not in ("na", "none", "null"):
        logger.warning("normalize: %r is neither per_feature nor all_features; features are not normalised", mode)
    return None


def _multiple(pad_to: int | str | None) -> int | str:
    if pad_to is None:
        return 0
    if isinstance(pad_to, str) and pad_to != "max":
        raise ValueError(f"pad_to: {pad_to!r} must be a number of frames or 'max'")
    return pad_to
