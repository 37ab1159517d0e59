"""Log-mel features as a textbook has them: one utterance at a time, one frame at a time, in float64.

It takes no short cut: the Fourier transform is a product with its matrix, and the options are those that
change numbers (no dither). Slow; for tests and for reading.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_kernels.log_mel.filterbank import mel_filterbank


def hann(size: int) -> Tensor:
    """Symmetric Hann window: 0.5 - 0.5 cos(2 pi n / (size - 1))."""
    phase = 2 * math.pi * torch.arange(size, dtype=torch.float64) / (size - 1)
    return 0.5 - 0.5 * torch.cos(phase)


def fourier_matrix(n_fft: int) -> Tensor:
    """e^(-2 pi i k n / n_fft) for the frequencies k from 0 to n_fft // 2: (N, n_fft)."""
    k = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    n = torch.arange(n_fft, dtype=torch.float64)[None, :]
    angle = -2 * math.pi * (k * n % n_fft) / n_fft
    return torch.complex(torch.cos(angle), torch.sin(angle))


def emphasize(samples: Tensor, coefficient: float) -> Tensor:
    """y[0] = x[0]; y[n] = x[n] - coefficient x[n-1]."""
    emphasized = samples.clone()
    emphasized[1:] -= coefficient * samples[:-1]
    return emphasized


def log_mel_reference(
    audio: Tensor,
    audio_len: Tensor,
    *,
    sample_rate: int = 16000,
    window_size: int = 400,
    hop_size: int = 160,
    n_fft: int = 512,
    n_mels: int = 80,
    preemphasis: float = 0.97,
    log_guard: float = 2.0**-24,
    normalize: str | None = "per_feature",
) -> tuple[Tensor, Tensor]:
    """What `log_mel` gives for the same options: (B, F, T) in float64, and the valid frames (B,)."""
    filters = mel_filterbank(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, dtype=torch.float64)
    window = torch.zeros(n_fft, dtype=torch.float64)
    start = (n_fft - window_size) // 2
    window[start : start + window_size] = hann(window_size)
    fourier = fourier_matrix(n_fft)
    n_frames = 1 + audio.shape[1] // hop_size
    features = torch.zeros(audio.shape[0], n_mels, n_frames, dtype=torch.float64)
    feature_len = audio_len // hop_size
    for item, samples in enumerate(audio.double()):
        padded = torch.zeros(audio.shape[1] + 2 * (n_fft // 2), dtype=torch.float64)
        n_samples = int(audio_len[item])
        padded[n_fft // 2 : n_fft // 2 + n_samples] = emphasize(samples[:n_samples], preemphasis)
        for frame in range(int(feature_len[item])):
            piece = padded[frame * hop_size : frame * hop_size + n_fft] * window
            power = (fourier @ piece.to(fourier.dtype)).abs() ** 2
            features[item, :, frame] = torch.log(filters @ power + log_guard)
        own = features[item, :, : int(feature_len[item])]
        if normalize == "per_feature":
            own -= own.mean(dim=1, keepdim=True)
            own /= own.std(dim=1, keepdim=True) + 1e-5
        elif normalize == "all_features":
            own -= own.mean()
            own /= own.std() + 1e-5
    return features, feature_len
