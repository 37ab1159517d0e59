"""The options of `log_mel`, each with its default and its meaning.  B batch, F mel bins, T frames, N frequency bins"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from nemo_kernels.log_mel.filterbank import mel_filterbank
from nemo_kernels.log_mel.normalization import Normalization
from nemo_kernels.log_mel.window import analysis_window

LOG_GUARD = 2.0**-24

Keywords = ParamSpec("Keywords")
Result = TypeVar("Result")


def fft_length(window_size: int) -> int:
    """The smallest power of two that holds `window_size` samples."""
    return 1 << (window_size - 1).bit_length()


@dataclass(frozen=True, kw_only=True, eq=False)
class LogMelOptions:
    """What `log_mel` takes beside the audio.

    Attributes:
        sample_rate: samples per second.
        window_size: samples of the analysis window, centred in n_fft.
        hop_size: samples between frames.
        n_fft: length of the Fourier transform; the next power of two of window_size by default.
        n_mels: F; low_hz, high_hz and mel_norm as in `mel_filterbank`. Unused if `filterbank` is given.
        window: a name (hann, hamming, blackman, bartlett, none) or the window itself (window_size,).
        filterbank: mel filters (F, N) or (1, F, N), instead of computed ones.
        preemphasis: the coefficient, or None to skip it and its mask of the padding.
        dither: standard deviation of white noise that is added, drawn from `generator`.
        exact_pad: pad (n_fft - hop_size) // 2 on each side instead of n_fft // 2; needs an even hop_size.
            T is then L // hop_size, of which NVIDIA's formula counts the last as invalid.
        band_limit: (B,) first frequency bin to silence, for narrow-band augmentation; N silences none.
        magnitude_power: of the spectrum before the filters; 2 is the power spectrum.
        log: take the natural logarithm.
        log_guard_type: "add" log_guard to the energies, or "clamp" them to it.
        log_guard: a number, or "tiny" or "eps" of the precision.
        normalize: as in `normalize_features`.
        frame_splicing: copies of the bins of a frame, stacked: (B, F * frame_splicing, T).
        pad_to: pad T to a multiple of this; 0 does not.
        min_frames: pad T to at least this.
        pad_value: what invalid frames hold.
    """

    sample_rate: int = 16000
    window_size: int = 400
    hop_size: int = 160
    n_fft: int | None = None
    n_mels: int = 80
    low_hz: float = 0.0
    high_hz: float | None = None
    mel_norm: str | float | None = "slaney"
    window: str | Tensor | None = "hann"
    filterbank: Tensor | None = None
    preemphasis: float | None = 0.97
    dither: float = 0.0
    generator: torch.Generator | None = None
    exact_pad: bool = False
    band_limit: Tensor | None = None
    magnitude_power: float = 2.0
    log: bool = True
    log_guard_type: str = "add"
    log_guard: float | str = LOG_GUARD
    normalize: Normalization = "per_feature"
    frame_splicing: int = 1
    pad_to: int = 0
    min_frames: int = 0
    pad_value: float = 0.0

    @property
    def transform_size(self) -> int:
        """Samples of the Fourier transform."""
        return self.n_fft or fft_length(self.window_size)

    def window_in_transform(self, like: Tensor) -> Tensor:
        """The window with zeros on both sides, (transform_size,), in the precision and on the device of `like`.

        Raises:
            ValueError: an unknown window, or one that is longer than the transform.
        """
        window = self.window
        if not isinstance(window, Tensor):
            window = analysis_window(window, self.window_size, dtype=like.dtype)
        missing = self.transform_size - window.shape[0]
        if missing < 0:
            raise ValueError(f"n_fft: {self.transform_size} is shorter than the window of {window.shape[0]} samples")
        return torch.nn.functional.pad(window.to(like), (missing // 2, missing - missing // 2))

    def filters(self, like: Tensor) -> Tensor:
        """The mel filters (F, N) in the precision and on the device of `like`."""
        if self.filterbank is not None:
            return self.filterbank.to(like).reshape(self.filterbank.shape[-2:])
        bank = mel_filterbank(
            sample_rate=self.sample_rate,
            n_fft=self.transform_size,
            n_mels=self.n_mels,
            low_hz=self.low_hz,
            high_hz=self.high_hz,
            norm=self.mel_norm,
            dtype=like.dtype,
        )
        return bank.to(like.device)


def takes_keywords_of(
    options: Callable[Keywords, LogMelOptions],
) -> Callable[
    [Callable[[Tensor, Tensor, LogMelOptions], Result]], Callable[Concatenate[Tensor, Tensor, Keywords], Result]
]:
    """Lets a function of audio, lengths and options be called with the options spelled as keywords."""

    def decorate(
        function: Callable[[Tensor, Tensor, LogMelOptions], Result],
    ) -> Callable[Concatenate[Tensor, Tensor, Keywords], Result]:
        def with_keywords(
            audio: Tensor, audio_len: Tensor, *args: Keywords.args, **keywords: Keywords.kwargs
        ) -> Result:
            return function(audio, audio_len, options(*args, **keywords))

        update_wrapper(with_keywords, function)
        signature = inspect.signature(function)
        leading = list(signature.parameters.values())[:2]
        keywords = inspect.signature(options).parameters.values()
        vars(with_keywords)["__signature__"] = signature.replace(parameters=[*leading, *keywords])
        return with_keywords  # type: ignore[return-value]  # audio and audio_len may be named, too

    return decorate
