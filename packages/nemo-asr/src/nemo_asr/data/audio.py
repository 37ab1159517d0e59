"""Audio from anywhere, as mono float32 samples at the rate that was asked for.

The rules, none of them silent:
- files and bytes are whatever libsndfile reads (wav, flac, ogg, opus, mp3); other rates are resampled by soxr (HQ).
- several channels need a `channel_selector`: a number from 0, or `average`.
- arrays and tensors need their `source_rate`. Two-dimensional ones have their channels along the shorter axis.
  int8, int16 and int32 are scaled by their full range, uint8 is unsigned PCM, floats are taken as they are and lie
  within ±1; other types, and floats far beyond ±1, are refused.
- empty audio and samples that are not finite are refused.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Samples: TypeAlias = NDArray[np.float32]
ChannelSelector: TypeAlias = int | Literal["average"] | None
AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | NDArray[Any] | Tensor"

LOUDEST_FLOAT = 16.0
"""A float array beyond this peak is integer audio that somebody forgot to scale (24 dB over full scale)."""


class AudioError(ValueError):
    """Audio that cannot be used; the message begins with the file's name."""


def load_audio(
    source: AudioSource,
    sample_rate: int,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    channel_selector: ChannelSelector = None,
    source_rate: int | None = None,
    name: str | None = None,
) -> Samples:
    """Loads mono audio.

    Args:
        source: path, bytes of a file, binary file object, array or tensor.
        sample_rate: wanted rate in Hz.
        offset_s: where to begin, in seconds.
        duration_s: how much to take, in seconds; None is all. A file that ends earlier gives what it has.
        channel_selector: which channel to take of several: a number from 0, or 'average'.
        source_rate: rate of an array in Hz; files know theirs.
        name: what messages call the source; a path's own name by default.

    Returns:
        float32 samples (L,).

    Raises:
        AudioError: by the rules above.
        FileNotFoundError: there is no such file.
    """
    label = name or _label(source)
    if isinstance(source, (str, os.PathLike, bytes, bytearray)) or hasattr(source, "read"):
        samples, rate = _read_file(source, label, offset_s, duration_s)
    else:
        samples, rate = _read_array(source, label, source_rate)
        samples = _cut(samples, rate, offset_s, duration_s)
    if len(samples) == 0:
        after = f" after {offset_s} s" if offset_s else ""
        raise AudioError(f"{label}: holds no audio{after}")
    mono = _one_channel(samples, channel_selector, label)
    if not np.isfinite(mono).all():
        raise AudioError(f"{label}: holds samples that are not finite (NaN or infinity)")
    return resample(mono, rate, sample_rate)


def audio_duration(
    path: str | os.PathLike[str], channel_selector: ChannelSelector = "average", name: str | None = None
) -> float:
    """Length of an audio file in seconds, from its header.

    Args:
        path: the file.
        channel_selector: None refuses several channels.
        name: what messages call the file; its path by default.

    Raises:
        AudioError: the file is no audio, holds none, or has several channels where they are refused.
        FileNotFoundError: there is no such file.
    """
    import soundfile

    label = name or os.fspath(path)
    expanded = Path(path).expanduser()
    if not expanded.is_file():
        raise FileNotFoundError(f"{label}: there is no such audio file")
    try:
        info = soundfile.info(str(expanded))
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"{label}: is no audio that libsndfile reads: {error}") from None
    if info.frames == 0:
        raise AudioError(f"{label}: holds no audio")
    if info.channels > 1 and channel_selector is None:
        raise _several_channels(label, info.channels)
    return float(info.frames) / float(info.samplerate)


def resample(samples: Samples, source_rate: int, sample_rate: int) -> Samples:
    """Resamples mono audio with soxr's high quality; equal rates give the samples themselves."""
    if source_rate == sample_rate:
        return samples
    import soxr

    resampled: Samples = soxr.resample(samples, source_rate, sample_rate, quality="HQ")
    return resampled


def trim_silence(samples: Samples, top_db: float = 60.0, frame_length: int = 2048, hop_length: int = 512) -> Samples:
    """Cuts silence off both ends: frames whose RMS lies `top_db` or more below the loudest frame's.

    The frames, their limits and the threshold are those of `librosa.effects.trim`.
    """
    if len(samples) == 0:
        return samples
    centers = np.arange(1 + len(samples) // hop_length) * hop_length
    begins = np.clip(centers - frame_length // 2, 0, len(samples))
    ends = np.clip(centers - frame_length // 2 + frame_length, 0, len(samples))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    power = np.maximum((energy[ends] - energy[begins]) / frame_length, 1e-10)
    loud = np.flatnonzero(10.0 * np.log10(power / power.max()) > -top_db)
    return samples[loud[0] * hop_length : min(len(samples), (loud[-1] + 1) * hop_length)]


def _label(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", None) or f"<{type(source).__name__}>")


def _read_file(source: Any, label: str, offset_s: float, duration_s: float | None) -> tuple[Samples, int]:
    import soundfile

    if isinstance(source, (str, os.PathLike)):
        source = Path(source).expanduser()
        if not source.is_file():
            raise FileNotFoundError(f"{label}: there is no such audio file")
    elif isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    try:
        with soundfile.SoundFile(source) as file:
            rate = int(file.samplerate)
            start = round(offset_s * rate)
            if start > 0:
                file.seek(min(start, file.frames))
            frames = -1 if duration_s is None else max(round(duration_s * rate), 0)
            return file.read(frames, dtype="float32"), rate
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{label}: is no audio that libsndfile reads: {error}") from None


def _read_array(source: Any, label: str, source_rate: int | None) -> tuple[Samples, int]:
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if not isinstance(source, np.ndarray):
        raise AudioError(f"{label}: is neither a path, bytes, a file, an array nor a tensor")
    if source_rate is None:
        raise AudioError(f"{label}: an array does not know its sample rate: pass it along")
    if source.ndim not in (1, 2):
        raise AudioError(f"{label}: has the shape {source.shape}; audio has one axis, or one more for channels")
    if source.size == 0:
        source = source.reshape(-1)
    elif source.ndim == 2 and source.shape[0] < source.shape[1]:
        source = source.T
    return _to_float32(source, label), int(source_rate)


def _to_float32(array: NDArray[Any], label: str) -> Samples:
    if array.dtype in (np.int8, np.int16, np.int32):
        return np.ascontiguousarray(array, np.float32) / np.float32(2.0 ** (array.dtype.itemsize * 8 - 1))
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / np.float32(128.0)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise AudioError(f"{label}: {array.dtype} is no type of audio; use float32 within ±1, or int16")
    peak = float(np.abs(array).max(initial=0.0))
    if LOUDEST_FLOAT < peak < np.inf:  # what is not finite is refused later
        raise AudioError(f"{label}: float samples reach {peak:.6g}; they lie within ±1 (16-bit audio: divide by 32768)")
    return np.ascontiguousarray(array, np.float32)


def _cut(samples: Samples, rate: int, offset_s: float, duration_s: float | None) -> Samples:
    start = round(offset_s * rate)
    return samples[start:] if duration_s is None else samples[start : start + round(duration_s * rate)]


def _several_channels(label: str, channels: int) -> AudioError:
    return AudioError(
        f"{label}: has {channels} channels; channel_selector: give a channel from 0 to {channels - 1}, or 'average'"
    )


def _one_channel(samples: Samples, selector: ChannelSelector, label: str) -> Samples:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if selector is None and channels > 1:
        raise _several_channels(label, channels)
    if isinstance(selector, int) and not isinstance(selector, bool):
        if not 0 <= selector < channels:
            raise AudioError(f"{label}: channel_selector: {selector} is not among its {channels} channel(s)")
    elif selector not in (None, "average"):
        raise AudioError(f"{label}: channel_selector: {selector!r} is neither a channel number nor 'average'")
    if samples.ndim == 1:
        return samples
    picked = samples.mean(axis=1) if selector == "average" else samples[:, selector or 0]
    return np.ascontiguousarray(picked, np.float32)
