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

from nemo_kernels.log_mel.normalization import normalize_features
from nemo_kernels.log_mel.options import LogMelOptions, takes_keywords_of
from nemo_kernels.log_mel.spectrum import mel_energies

# Frames and their spectra are several times the audio. On a CPU they are made for utterances of this many samples of
# frames at a time: pieces stay in its cache and are freed at once.
_SAMPLES_AT_ONCE = 1 << 19


def feature_length(audio_len: Tensor, *, n_fft: int, hop_size: int, exact_pad: bool = False) -> Tensor:
    """Valid frames (B,) of utterances of audio_len (B,) samples; none for an empty one."""
    padding = 2 * exact_padding(n_fft, hop_size) if exact_pad else 2 * (n_fft // 2)
    frames = torch.div(audio_len + padding - n_fft, hop_size, rounding_mode="floor").long()
    return torch.where(audio_len == 0, 0, frames)


def exact_padding(n_fft: int, hop_size: int) -> int:
    """Samples to pad on each side so that a row of n hops has exactly n frames."""
    return (n_fft - hop_size) // 2


@takes_keywords_of(LogMelOptions)
def log_mel(audio: Tensor, audio_len: Tensor, options: LogMelOptions) -> tuple[Tensor, Tensor]:
    """Features (B, F, T) and their valid frames (B,) of audio (B, L) with audio_len (B,) samples.

    Computed in the precision of `audio` (float64 stays float64; halves are widened to float32), outside of
    autocast. T covers the whole row: with centred frames 1 + L // hop_size, before `pad_to`. Frames after an
    utterance's own hold `pad_value`.

    Args:
        audio: waveforms, padded after their end with anything if `preemphasis` is given, else with zeros.
        audio_len: samples of each.
        options: as keywords, e.g. n_mels=64; `LogMelOptions` says what each means.

    Raises:
        ValueError: an option out of its range, named first.
    """
    n_fft = options.transform_size
    audio = audio if audio.dtype in (torch.float32, torch.float64) else audio.float()
    feature_len = feature_length(audio_len, n_fft=n_fft, hop_size=options.hop_size, exact_pad=options.exact_pad)
    with torch.autocast(audio.device.type, enabled=False):
        energies = _energies(_prepared(audio, options), audio_len, options)
    features = _take_log(energies, options.log_guard_type, options.log_guard) if options.log else energies
    features = features.repeat(1, options.frame_splicing, 1) if options.frame_splicing > 1 else features
    valid = (torch.arange(features.shape[2], device=audio.device) < feature_len[:, None])[:, None]
    features = normalize_features(features, valid, options.normalize).masked_fill(~valid, options.pad_value)
    return _pad_frames(features, options.pad_to, options.min_frames, options.pad_value), feature_len


def _energies(audio: Tensor, audio_len: Tensor, options: LogMelOptions) -> Tensor:
    window, filters = options.window_in_transform(audio), options.filters(audio)
    n_rows = _rows_at_once(audio, options)
    pieces = []
    for start in range(0, max(len(audio), 1), n_rows):
        rows = slice(start, start + n_rows)
        limit = None if options.band_limit is None else options.band_limit[rows]
        samples = audio[rows]
        if options.preemphasis is not None:
            samples = _emphasize(samples, audio_len[rows], options.preemphasis)
        if not options.exact_pad:
            samples = F.pad(samples, (options.transform_size // 2,) * 2)
        power = options.magnitude_power
        pieces.append(mel_energies(samples, window, options.hop_size, filters, power=power, band_limit=limit))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rows_at_once(audio: Tensor, options: LogMelOptions) -> int:
    """Utterances that are transformed together: all of them where a cache is not what limits."""
    n_rows = max(len(audio), 1)
    if audio.device.type != "cpu" or torch.compiler.is_compiling():
        return n_rows
    frame_samples = (1 + audio.shape[1] // options.hop_size) * options.transform_size
    return max(1, min(n_rows, _SAMPLES_AT_ONCE // frame_samples))


def _prepared(audio: Tensor, options: LogMelOptions) -> Tensor:
    """The samples with what applies to rows as they come: exact padding, and noise, on that padding too."""
    if options.exact_pad:
        if options.hop_size % 2:
            raise ValueError(f"exact_pad: needs an even hop, and {options.hop_size} is odd")
        audio = F.pad(audio, (exact_padding(options.transform_size, options.hop_size),) * 2)
    if options.dither > 0:
        noise = torch.randn(audio.shape, dtype=audio.dtype, device=audio.device, generator=options.generator)
        audio = audio + options.dither * noise
    return audio


def _emphasize(audio: Tensor, audio_len: Tensor, coefficient: float) -> Tensor:
    # The first sample has no predecessor and stays. With exact_pad NVIDIA's mask starts at the padded row's
    # first sample too, so that the last samples of an utterance fall to it; trained models expect that.
    emphasized = torch.sub(audio, F.pad(audio[:, :-1], (1, 0)), alpha=coefficient)
    samples = torch.arange(audio.shape[1], device=audio.device)
    return emphasized.masked_fill(samples >= audio_len[:, None], 0)


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
