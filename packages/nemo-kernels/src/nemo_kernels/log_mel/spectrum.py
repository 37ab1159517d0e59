"""Power spectra of overlapping frames: a windowed view of the samples and one real Fourier transform.

    P[k,t] = |sum_n w[n] y[t hop + n] e^(-2 pi i k n / n_fft)|^2

B batch, L samples, T frames, N = n_fft // 2 + 1 frequency bins, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Frames and their spectra are several times the audio. Pieces of this many samples of frames stay in a CPU's cache
# and are freed at once: a batch of 16 ten-second clips needs a tenth of the memory, in the same time.
_SAMPLES_AT_ONCE = 1 << 19


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
    frames = audio.unfold(1, window.shape[0], hop_size)
    n_rows = _rows_at_once(frames)
    pieces = []
    for start in range(0, max(len(frames), 1), n_rows):
        rows = slice(start, start + n_rows)
        spectrum = power_spectrum(frames[rows], window, power)
        if band_limit is not None:
            spectrum = _limit_band(spectrum, band_limit[rows])
        pieces.append(filters @ spectrum.transpose(1, 2))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rows_at_once(frames: Tensor) -> int:
    """Utterances whose frames are transformed together: all of them where a cache is not what limits."""
    n_rows = max(frames.shape[0], 1)
    if frames.device.type != "cpu" or torch.compiler.is_compiling():
        return n_rows
    return max(1, min(n_rows, _SAMPLES_AT_ONCE // (frames.shape[1] * frames.shape[2])))


def _limit_band(spectrum: Tensor, band_limit: Tensor) -> Tensor:
    bins = torch.arange(spectrum.shape[2], device=spectrum.device)
    return spectrum.masked_fill((bins >= band_limit[:, None])[:, None], 0)
