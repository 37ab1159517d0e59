"""Triangular mel filters on Slaney's scale (Auditory Toolbox, 1998), the ones librosa makes by default.

The scale is linear up to 1000 Hz, with 200/3 Hz a mel, and logarithmic above, 27 mels for a factor of 6.4.
F mel bins, N = n_fft // 2 + 1 frequency bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: float) -> float:
    """The mel of a frequency in Hz."""
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


def mel_to_hz(mel: Tensor) -> Tensor:
    """The frequencies in Hz of a tensor of mels."""
    above = _BREAK_HZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return torch.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)


def mel_filterbank(
    *,
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    norm: str | float | None = "slaney",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mel filters (F, N), computed in float64.

    Args:
        sample_rate: samples per second.
        n_fft: length of the Fourier transform.
        n_mels: F, the number of filters.
        low_hz: where the first filter starts.
        high_hz: where the last filter ends; half the sample rate by default.
        norm: "slaney" gives every filter the same area, a number p the same p-norm, None the same height 1.
        dtype: of the result.

    Raises:
        ValueError: a range without width, or an unknown norm.
    """
    high = sample_rate / 2 if high_hz is None else high_hz
    if not 0 <= low_hz < high:
        raise ValueError(f"low_hz: {low_hz} must be at least 0 and below high_hz {high}")
    mels = torch.linspace(hz_to_mel(low_hz), hz_to_mel(high), n_mels + 2, dtype=torch.float64)
    corners = mel_to_hz(mels)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    return _normalize(filters, corners, norm).to(dtype)


def _normalize(filters: Tensor, corners: Tensor, norm: str | float | None) -> Tensor:
    if norm is None:
        return filters
    if norm == "slaney":
        return filters * (2 / (corners[2:] - corners[:-2]))[:, None]
    if isinstance(norm, str):
        raise ValueError(f"mel_norm: {norm!r} must be 'slaney', a number or null")
    length = torch.linalg.vector_norm(filters, ord=norm, dim=1, keepdim=True)
    return filters / torch.where(length > 0, length, 1.0)
