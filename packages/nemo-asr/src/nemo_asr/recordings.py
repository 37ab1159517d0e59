"""What `transcribe` is given, in whatever form, as a list of recordings: checked at once, loaded in their turn.

Audio in memory (arrays, tensors, bytes, file objects) is read and checked in full. Of files the header is read, so
that a missing, empty or stereo file is an error before anything is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from nemo_asr.data.audio import AudioSource, ChannelSelector, Samples, audio_duration, load_audio
from nemo_asr.data.manifest import ManifestEntry, ManifestRules, read_manifest

AudioInput: TypeAlias = "AudioSource | ManifestEntry | Sequence[AudioSource | ManifestEntry]"
MANIFEST_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class AudioRules:
    """How audio is read: wanted rate, rate of arrays, channel, and the length that short arrays are padded to."""

    sample_rate: int
    array_rate: int
    channel_selector: ChannelSelector
    min_array_s: float


@dataclass(frozen=True)
class Recording:
    """One item: `load()` gives its float32 samples (L,) at the wanted rate."""

    name: str
    duration_s: float
    load: Callable[[], Samples]


def gather_recordings(audio: AudioInput, rules: AudioRules) -> list[Recording]:
    """Recordings of one source or several, in order.

    Args:
        audio: a path, a manifest's path (.json, .jsonl), bytes, a binary file object, an array or a tensor; or a
            list of them, manifest entries among them.
        rules: how it is read.

    Raises:
        AudioError, ManifestError, FileNotFoundError, TypeError: about the first item that cannot be used.
    """
    return [_recording(item, number, rules) for number, item in enumerate(_items(audio))]


def _items(audio: Any) -> Iterable[Any]:
    items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
    if len(items) == 1 and isinstance(items[0], (str, os.PathLike)):
        path = os.fspath(items[0])
        if path.endswith(MANIFEST_SUFFIXES):
            return read_manifest(path, ManifestRules(need_text=False))
    return items


def _recording(item: Any, number: int, rules: AudioRules) -> Recording:
    if isinstance(item, ManifestEntry):
        name = item.where
        audio_duration(item.audio_filepath, rules.channel_selector, f"{name}: {item.audio_filepath}")
        return _file_recording(item.audio_filepath, name, item.duration_s, item.offset_s, item.duration_s, rules)
    if isinstance(item, (str, os.PathLike)):
        name = os.fspath(item)
        return _file_recording(item, name, audio_duration(item, rules.channel_selector), 0.0, None, rules)
    if isinstance(item, (bytes, bytearray, np.ndarray, Tensor)) or hasattr(item, "read"):
        return _memory_recording(item, f"audio[{number}]", rules)
    raise TypeError(
        f"audio[{number}]: {type(item).__name__} is no audio; give a path, bytes, a binary file, an array or a tensor"
    )


def _file_recording(
    path: Any, name: str, length_s: float, offset_s: float, duration_s: float | None, rules: AudioRules
) -> Recording:
    load = partial(
        load_audio,
        path,
        rules.sample_rate,
        offset_s=offset_s,
        duration_s=duration_s,
        channel_selector=rules.channel_selector,
        name=name,
    )
    return Recording(name, length_s, load)


def _memory_recording(item: Any, name: str, rules: AudioRules) -> Recording:
    samples = load_audio(
        item,
        rules.sample_rate,
        channel_selector=rules.channel_selector,
        source_rate=rules.array_rate,
        name=name,
    )
    if isinstance(item, (np.ndarray, Tensor)):
        samples = _pad_both_ends(samples, int(rules.min_array_s * rules.sample_rate))
    return Recording(name, len(samples) / rules.sample_rate, lambda: samples)


def _pad_both_ends(samples: Samples, length: int) -> Samples:
    missing = max(0, length - len(samples))
    return np.pad(samples, (missing // 2, missing - missing // 2)) if missing else samples
