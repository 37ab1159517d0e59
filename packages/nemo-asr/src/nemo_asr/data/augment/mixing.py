"""Perturbations that mix other recordings in: noise at a signal-to-noise ratio, and room impulse responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_asr.data.audio import Samples, load_audio
from nemo_asr.data.augment.waveform import rms_db
from nemo_asr.data.manifest import ManifestRules, read_manifest
from nemo_asr.data.paths import PathSpec

PAUSE_S = 0.25
"""Silence between the repetitions of a noise that is shorter than the speech."""


class Recordings:
    """The recordings of a manifest, drawn at random and read when they are drawn.

    Raises:
        ValueError: no manifest, or one without recordings; or tar files, which are not read here.
    """

    def __init__(self, manifest_path: PathSpec | None, audio_tar_filepaths: PathSpec | None = None) -> None:
        if audio_tar_filepaths:
            raise ValueError("tar files of noise are not supported; give a manifest of single files")
        if not manifest_path:
            raise ValueError("manifest_path must name a manifest")
        self.entries = read_manifest(manifest_path, ManifestRules(need_text=False))
        if not self.entries:
            raise ValueError(f"manifest_path {manifest_path} holds no recording")

    def draw(self, sample_rate: int, rng: np.random.Generator) -> Samples:
        """A recording, mono, at the given rate."""
        entry = self.entries[int(rng.integers(len(self.entries)))]
        return load_audio(
            entry.audio_filepath,
            sample_rate,
            offset_s=entry.offset_s,
            duration_s=entry.duration_s,
            channel_selector="average",
        )


class NoisePerturbation:
    """Adds one recording of noise: a random piece of a longer one, a shorter one at a random place.

    Args:
        manifest_path: manifest of the noise.
        min_snr_db, max_snr_db: range of the ratio of the speech's mean power to the noise's, in decibels.
        max_gain_db: the noise is made louder by at most so much.
        orig_sr: accepted for NVIDIA's configs; noise is read at the speech's rate.
    """

    def __init__(
        self,
        manifest_path: PathSpec | None = None,
        min_snr_db: float = 10.0,
        max_snr_db: float = 50.0,
        max_gain_db: float = 300.0,
        audio_tar_filepaths: PathSpec | None = None,
        orig_sr: int | None = None,
    ) -> None:
        self.recordings = Recordings(manifest_path, audio_tar_filepaths)
        self.snr_db = (float(min_snr_db), float(max_snr_db))
        self.max_gain_db = max_gain_db

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        noise = self.recordings.draw(sample_rate, rng)
        return samples + _placed(self.scaled(noise, rms_db(samples), rng), len(samples), rng)

    def scaled(self, noise: Samples, speech_db: float, rng: np.random.Generator) -> Samples:
        """Noise at a random ratio to speech of the given loudness."""
        gain_db = min(speech_db - rms_db(noise) - rng.uniform(*self.snr_db), self.max_gain_db)
        return noise * np.float32(10.0 ** (gain_db / 20.0))


class NormalizedNoisePerturbation:
    """Brings speech and noise to one loudness and mixes them at a ratio; short noise is repeated.

    Args:
        manifest_path: manifest of the noise.
        min_snr_db, max_snr_db: range of the ratio; `snr_samples`, a list of ratios, goes before.
        norm_to_db: RMS of the speech in the mixture, in decibels; None keeps the speech's own.
    """

    def __init__(
        self,
        manifest_path: PathSpec | None = None,
        min_snr_db: float = 10.0,
        max_snr_db: float = 50.0,
        snr_samples: Sequence[float] | None = None,
        norm_to_db: float | None = -25.0,
        audio_tar_filepaths: PathSpec | None = None,
    ) -> None:
        self.recordings = Recordings(manifest_path, audio_tar_filepaths)
        self.snr_db, self.snr_samples, self.norm_to_db = (min_snr_db, max_snr_db), snr_samples, norm_to_db

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        noise = self.recordings.draw(sample_rate, rng)
        pause = np.zeros(int(PAUSE_S * sample_rate), np.float32)
        while len(noise) < len(samples):
            noise = np.concatenate([noise, pause, noise])
        snr_db = rng.choice(self.snr_samples) if self.snr_samples else rng.uniform(*self.snr_db)
        level_db = rms_db(samples) if self.norm_to_db is None else self.norm_to_db
        return _at_level(samples, level_db) + _at_level(noise[: len(samples)], level_db - float(snr_db))


class ImpulsePerturbation:
    """Convolves with a room's impulse response, and brings the result to a peak of 1.

    Args:
        manifest_path: manifest of the responses.
        normalize_impulse: brings a response to mean 0 and peak 1 first.
        shift_impulse: takes out the delay of the response's peak.
    """

    def __init__(
        self,
        manifest_path: PathSpec | None = None,
        normalize_impulse: bool = False,
        shift_impulse: bool = False,
        audio_tar_filepaths: PathSpec | None = None,
    ) -> None:
        self.recordings = Recordings(manifest_path, audio_tar_filepaths)
        self.normalize, self.shift = normalize_impulse, shift_impulse

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        response = self.recordings.draw(sample_rate, rng)
        if self.normalize:
            response = response - response.mean()
            response = response / max(float(np.abs(response).max()), 1e-12)
        delay = int(np.abs(response).argmax()) if self.shift else 0
        echoed = _convolve(samples, response)[delay : delay + len(samples)]
        peak = float(np.abs(echoed).max())
        return echoed / np.float32(peak) if peak > 0 else samples


class RirAndNoisePerturbation:
    """A room, then short foreground noises, then background noise.

    Where several noise manifests are given, one for each original rate, the one of the audio's rate is taken, else
    the one of the highest.

    Args:
        rir_manifest_path, rir_prob: impulse responses, and how often one is applied.
        noise_manifest_paths, noise_prob, min_snr_db, max_snr_db, orig_sample_rate: foreground noise.
        max_additions, max_duration: at most so many pieces of foreground noise, of at most so many seconds.
        apply_noise_rir: sends the foreground noise through a room as well.
        bg_…: the same for background noise.
    """

    def __init__(
        self,
        rir_manifest_path: PathSpec | None = None,
        rir_prob: float = 0.5,
        noise_manifest_paths: Sequence[PathSpec] | None = None,
        noise_prob: float = 1.0,
        min_snr_db: float | Sequence[float] = 0.0,
        max_snr_db: float | Sequence[float] = 50.0,
        rir_tar_filepaths: PathSpec | None = None,
        noise_tar_filepaths: PathSpec | None = None,
        apply_noise_rir: bool = False,
        orig_sample_rate: Sequence[int] | None = None,
        max_additions: int = 5,
        max_duration: float = 2.0,
        bg_noise_manifest_paths: Sequence[PathSpec] | None = None,
        bg_noise_prob: float = 1.0,
        bg_min_snr_db: float | Sequence[float] = 10.0,
        bg_max_snr_db: float | Sequence[float] = 50.0,
        bg_noise_tar_filepaths: PathSpec | None = None,
        bg_orig_sample_rate: Sequence[int] | None = None,
    ) -> None:
        self.room = ImpulsePerturbation(rir_manifest_path, shift_impulse=True, audio_tar_filepaths=rir_tar_filepaths)
        self.foreground = _noises(noise_manifest_paths, min_snr_db, max_snr_db, noise_tar_filepaths, orig_sample_rate)
        self.background = _noises(
            bg_noise_manifest_paths, bg_min_snr_db, bg_max_snr_db, bg_noise_tar_filepaths, bg_orig_sample_rate
        )
        self.rir_p, self.noise_p, self.background_p = rir_prob, noise_prob, bg_noise_prob
        self.apply_noise_rir, self.max_additions, self.max_duration_s = apply_noise_rir, max_additions, max_duration

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        if rng.random() < self.rir_p:
            samples = self.room(samples, sample_rate, rng)
        speech_db = rms_db(samples)
        if self.foreground and rng.random() < self.noise_p:
            samples = self._with_foreground(samples, speech_db, sample_rate, rng)
        if self.background and rng.random() < self.background_p:
            noise = _for_rate(self.background, sample_rate)
            drawn = noise.scaled(noise.recordings.draw(sample_rate, rng), speech_db, rng)
            samples = samples + _placed(drawn, len(samples), rng)
        return samples

    def _with_foreground(
        self, samples: Samples, speech_db: float, sample_rate: int, rng: np.random.Generator
    ) -> Samples:
        noise = _for_rate(self.foreground, sample_rate)
        recording = noise.recordings.draw(sample_rate, rng)
        if self.apply_noise_rir:
            recording = self.room(recording, sample_rate, rng)
        recording = noise.scaled(recording, speech_db, rng)
        for _ in range(int(rng.integers(1, self.max_additions + 1))):
            start = int(rng.integers(len(recording)))
            length = 1 + int(rng.uniform(0.0, self.max_duration_s) * sample_rate)
            samples = samples + _placed(recording[start : start + length], len(samples), rng)
        return samples


def _noises(
    manifests: Sequence[PathSpec] | None,
    min_snr_db: float | Sequence[float],
    max_snr_db: float | Sequence[float],
    tars: PathSpec | None,
    rates: Sequence[int] | None,
) -> dict[int, NoisePerturbation]:
    if not manifests:
        return {}
    listed = [manifests] if isinstance(manifests, (str, Path)) else list(manifests)
    noises = {}
    for place, manifest in enumerate(listed):
        lowest, highest = (value[place] if isinstance(value, Sequence) else value for value in (min_snr_db, max_snr_db))
        noises[int(rates[place]) if rates else 16000] = NoisePerturbation(
            manifest, lowest, highest, audio_tar_filepaths=tars
        )
    return noises


def _for_rate(noises: dict[int, NoisePerturbation], sample_rate: int) -> NoisePerturbation:
    return noises.get(sample_rate) or noises[max(noises)]


def _placed(noise: Samples, length: int, rng: np.random.Generator) -> Samples:
    """Noise cut or padded to a length, at a random place."""
    start = int(rng.integers(abs(len(noise) - length) + 1))
    if len(noise) >= length:
        return noise[start : start + length]
    return np.pad(noise, (start, length - len(noise) - start))


def _at_level(samples: Samples, level_db: float) -> Samples:
    own_db = rms_db(samples)
    return samples * np.float32(10.0 ** ((level_db - own_db) / 20.0)) if own_db > -150 else samples


def _convolve(samples: Samples, response: Samples) -> Samples:
    """Full linear convolution by FFT."""
    length = len(samples) + len(response) - 1
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)
