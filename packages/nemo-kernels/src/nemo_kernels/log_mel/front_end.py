"""Log-mel features of a batch of waveforms, with the numbers of NVIDIA's front end.

    y[n] = x[n] - 0.97 x[n-1]                     pre-emphasis, zero after the utterance
    X[k,t] = sum_n w[n] y[t hop + n - n_fft/2] e^(-2 pi i k n / n_fft)
    m[f,t] = log(sum_k fb[f,k] |X[k,t]|^2 + 2^-24)
    out[f,t] = (m[f,t] - mean_f) / (std_f + 1e-5)   over the valid frames, pad_value after them

B batch, L samples, F mel bins, T frames, N = n_fft // 2 + 1 frequency bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_kernels.log_mel.filterbank import mel_filterbank
from nemo_kernels.log_mel.normalization import Normalization, normalize_features
from nemo_kernels.log_mel.window import analysis_window

LOG_GUARD = 2.0**-24


def fft_length(window_size: int) -> int:
    """The smallest power of two that holds `window_size` samples."""
    return 1 << (window_size - 1).bit_length()


def feature_length(audio_len: Tensor, *, n_fft: int, hop_size: int, exact_pad: bool = False) -> Tensor:
    """Valid frames (B,) of utterances of audio_len (B,) samples; none for an empty one."""
    padding = 2 * exact_padding(n_fft, hop_size) if exact_pad else 2 * (n_fft // 2)
    frames = torch.div(audio_len + padding - n_fft, hop_size, rounding_mode="floor").long()
    return torch.where(audio_len == 0, 0, frames)


def exact_padding(n_fft: int, hop_size: int) -> int:
    """Samples to pad on each side so that a row of n hops has exactly n frames."""
    return (n_fft - hop_size) // 2


def log_mel(
    audio: Tensor,
    audio_len: Tensor,
    *,
    sample_rate: int = 16000,
    window_size: int = 400,
    hop_size: int = 160,
    n_fft: int | None = None,
    n_mels: int = 80,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    mel_norm: str | float | None = "slaney",
    window: str | Tensor | None = "hann",
    filterbank: Tensor | None = None,
    preemphasis: float | None = 0.97,
    dither: float = 0.0,
    generator: torch.Generator | None = None,
    exact_pad: bool = False,
    band_limit: Tensor | None = None,
    magnitude_power: float = 2.0,
    log: bool = True,
    log_guard_type: str = "add",
    log_guard: float | str = LOG_GUARD,
    normalize: Normalization = "per_feature",
    frame_splicing: int = 1,
    pad_to: int = 0,
    min_frames: int = 0,
    pad_value: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Features (B, F, T) and their valid frames (B,) of audio (B, L) with audio_len (B,) samples.

    Computed in the precision of `audio` (float64 stays float64; halves are widened to float32), outside of
    autocast. T covers the whole row: with centred frames 1 + L // hop_size, before `pad_to`. Frames after an
    utterance's own hold `pad_value`.

    Args:
        audio: waveforms, padded after their end with anything if `preemphasis` is given, else with zeros.
        audio_len: samples of each.
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

    Raises:
        ValueError: an option out of its range, named first.
    """
    n_fft = n_fft or fft_length(window_size)
    audio = audio if audio.dtype in (torch.float32, torch.float64) else audio.float()
    feature_len = feature_length(audio_len, n_fft=n_fft, hop_size=hop_size, exact_pad=exact_pad)
    if not isinstance(window, Tensor):
        window = analysis_window(window, window_size, dtype=audio.dtype)
    if filterbank is None:
        filterbank = mel_filterbank(
            sample_rate=sample_rate,
            n_fft=n_fft,
            n_mels=n_mels,
            low_hz=low_hz,
            high_hz=high_hz,
            norm=mel_norm,
            dtype=audio.dtype,
        )
    with torch.autocast(audio.device.type, enabled=False):
        if exact_pad:
            audio = _pad_exactly(audio, n_fft, hop_size)
        if dither > 0:
            audio = audio + dither * _noise_like(audio, generator)
        if preemphasis is not None:
            audio = _emphasize(audio, audio_len, preemphasis)
        centre = not exact_pad
        spectrum = _spectrum(audio, window.to(audio), n_fft, hop_size, centre=centre, power=magnitude_power)
        features = filterbank.to(audio) @ _limit_band(spectrum, band_limit)
    if log:
        features = _take_log(features, log_guard_type, log_guard)
    features = features.repeat(1, frame_splicing, 1) if frame_splicing > 1 else features
    valid = (torch.arange(features.shape[2], device=audio.device) < feature_len[:, None])[:, None]
    features = normalize_features(features, valid, normalize).masked_fill(~valid, pad_value)
    return _pad_frames(features, pad_to, min_frames, pad_value), feature_len


def _pad_exactly(audio: Tensor, n_fft: int, hop_size: int) -> Tensor:
    if hop_size % 2:
        raise ValueError(f"exact_pad: needs an even hop, and {hop_size} is odd")
    side = exact_padding(n_fft, hop_size)
    return F.pad(audio, (side, side))


def _noise_like(audio: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(audio.shape, dtype=audio.dtype, device=audio.device, generator=generator)


def _emphasize(audio: Tensor, audio_len: Tensor, coefficient: float) -> Tensor:
    # The first sample has no predecessor and stays. With exact_pad NVIDIA's mask starts at the padded row's
    # first sample too, so that the last samples of an utterance fall to it; trained models expect that.
    emphasized = torch.cat((audio[:, :1], audio[:, 1:] - coefficient * audio[:, :-1]), dim=1)
    samples = torch.arange(audio.shape[1], device=audio.device)
    return emphasized.masked_fill(samples >= audio_len[:, None], 0)


def _spectrum(audio: Tensor, window: Tensor, n_fft: int, hop_size: int, *, centre: bool, power: float) -> Tensor:
    """|X|^power (B, N, T)."""
    if window.shape[0] > n_fft:
        raise ValueError(f"n_fft: {n_fft} is shorter than the window of {window.shape[0]} samples")
    complex_spectrum = torch.stft(
        audio,
        n_fft,
        hop_length=hop_size,
        win_length=window.shape[0],
        window=window,
        center=centre,
        pad_mode="constant",
        return_complex=True,
    )
    squares = torch.view_as_real(complex_spectrum).square().sum(dim=-1)
    return squares if power == 2 else squares.pow(power / 2)


def _limit_band(spectrum: Tensor, band_limit: Tensor | None) -> Tensor:
    if band_limit is None:
        return spectrum
    bins = torch.arange(spectrum.shape[1], device=spectrum.device)
    return spectrum.masked_fill((bins >= band_limit[:, None])[:, :, None], 0)


def _take_log(energies: Tensor, guard_type: str, guard: float | str) -> Tensor:
    if isinstance(guard, str):
        if guard not in ("tiny", "eps"):
            raise ValueError(f"log_guard: {guard!r} must be a number, 'tiny' or 'eps'")
        guard = float(getattr(torch.finfo(energies.dtype), guard))
    if guard_type == "add":
        return torch.log(energies + guard)
    if guard_type == "clamp":
        return torch.log(energies.clamp(min=guard))
    raise ValueError(f"log_guard_type: {guard_type!r} must be 'add' or 'clamp'")


def _pad_frames(features: Tensor, pad_to: int, min_frames: int, value: float) -> Tensor:
    frames = max(features.shape[2], min_frames)
    if pad_to > 0:
        frames += -frames % pad_to
    missing = frames - features.shape[2]
    return F.pad(features, (0, missing), value=value) if missing else features
