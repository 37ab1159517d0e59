"""Power spectra of overlapping frames: a windowed view of the samples and one real Fourier transform.

    P[k,t] = |sum_n w[n] y[t hop + n] e^(-2 pi i k n / n_fft)|^2

B batch, L samples, T frames, N = n_fft // 2 + 1 frequency bins, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_spectrum(frames: Tensor, window: Tensor, power: float) -> Tensor:
    """|X|^power (B, T, N) of frames (B, T, n_fft) under a window (n_fft,)."""
    spectrum = torch.fft.rfft(frames * window)
    squares = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
    return squares if power == 2 else squares.pow(power / 2)


def mel_energies(
    audio: Tensor, window: Tensor, hop_size: int, filters: Tensor, *, power: float, band_limit: Tensor | None
) -> Tensor:
    """Energies (B, F, T) of padded audio (B, L) under a window (n_fft,) and mel filters (F, N).

    Bins from band_limit (B,) on are silent.
    """
    spectrum = power_spectrum(audio.unfold(1, window.shape[0], hop_size), window, power)
    if band_limit is not None:
        spectrum = _limit_band(spectrum, band_limit)
    return filters @ spectrum.transpose(1, 2)


def _limit_band(spectrum: Tensor, band_limit: Tensor) -> Tensor:
    bins = torch.arange(spectrum.shape[2], device=spectrum.device)
    return spectrum.masked_fill((bins >= band_limit[:, None])[:, None], 0)
