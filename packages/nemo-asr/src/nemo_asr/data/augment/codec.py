"""Audio through a lossy codec and back: telephone A-law, Ogg Vorbis, MP3."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from nemo_asr.data.audio import Samples, resample

TELEPHONE_RATE = 8000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
LOUDEST = 0.8
"""Louder audio is scaled down first, so that the codec does not clip."""
CODECS = ("g711", "ogg", "mp3")


class TranscodePerturbation:
    """Encodes and decodes with a random codec at a random quality, in memory.

    Args:
        codecs: some of `g711` (A-law at 8 kHz between 300 and 3400 Hz), `ogg` and `mp3`; by default the first two.
            NVIDIA's third, amr-nb, is not in libsndfile.

    Raises:
        ValueError: another codec.
    """

    def __init__(self, codecs: Sequence[str] | None = None) -> None:
        self.codecs = tuple(codecs) if codecs is not None else ("g711", "ogg")
        if unknown := [codec for codec in self.codecs if codec not in CODECS]:
            raise ValueError(f"codecs: {unknown[0]} is none of {', '.join(CODECS)}")
        if not self.codecs:
            raise ValueError("codecs: an empty list")

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        peak = float(np.abs(samples).max())
        scaled = samples * np.float32(LOUDEST / peak) if peak > LOUDEST else samples
        codec = self.codecs[int(rng.integers(len(self.codecs)))]
        if codec == "g711":
            narrow = _band_pass(resample(scaled, sample_rate, TELEPHONE_RATE), TELEPHONE_RATE, TELEPHONE_BAND_HZ)
            decoded = resample(_through(narrow, TELEPHONE_RATE, "WAV", "ALAW"), TELEPHONE_RATE, sample_rate)
        elif codec == "ogg":
            decoded = _through(scaled, sample_rate, "OGG", "VORBIS", float(rng.uniform(0.1, 1.0)))
        else:
            decoded = _through(scaled, sample_rate, "MP3", "MPEG_LAYER_III", float(rng.uniform(0.1, 1.0)))
        length = min(len(decoded), len(samples))
        return np.pad(decoded[:length], (0, len(samples) - length))


def _through(samples: Samples, rate: int, kind: str, subtype: str, compression: float | None = None) -> Samples:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, compression_level=compression)
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float32")
    return np.asarray(decoded, np.float32)


def _band_pass(samples: Samples, rate: int, band_hz: tuple[float, float]) -> Samples:
    spectrum = np.fft.rfft(samples)
    frequencies = np.fft.rfftfreq(len(samples), 1.0 / rate)
    spectrum[(frequencies < band_hz[0]) | (frequencies > band_hz[1])] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)
