"""Perturbations that need nothing but the utterance itself.  L samples"""

from __future__ import annotations

import numpy as np

from nemo_asr.data.audio import Samples


class SpeedPerturbation:
    """Resamples to `rate` times as many samples: another speed, and another pitch.

    Args:
        min_speed_rate, max_speed_rate: range of the rate.
        num_rates: so many rates, evenly spaced; 0 or less draws from the whole range.
        sr, resample_type: accepted for NVIDIA's configs; the audio's own rate, and soxr, are used.
    """

    def __init__(
        self,
        sr: int | None = None,
        resample_type: str | None = None,
        min_speed_rate: float = 0.9,
        max_speed_rate: float = 1.1,
        num_rates: int = 5,
    ) -> None:
        self.rates = _Rates(min_speed_rate, max_speed_rate, num_rates, "speed")

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        import soxr

        rate = self.rates.draw(rng)
        if rate == 1.0:
            return samples
        changed: Samples = soxr.resample(samples, sample_rate, max(1, int(sample_rate * rate)), quality="HQ")
        return changed


class TimeStretchPerturbation:
    """Another speed at the same pitch, by a phase vocoder; a rate above 1 is faster.

    Args:
        min_speed_rate, max_speed_rate: range of the rate.
        num_rates: so many rates, evenly spaced; 0 or less draws from the whole range.
        n_fft: samples of a frame; the hop is a quarter of it.
    """

    def __init__(
        self, min_speed_rate: float = 0.9, max_speed_rate: float = 1.1, num_rates: int = 5, n_fft: int = 512
    ) -> None:
        self.rates = _Rates(min_speed_rate, max_speed_rate, num_rates, "speed")
        self.n_fft = n_fft

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        rate = self.rates.draw(rng)
        return samples if rate == 1.0 or len(samples) <= self.n_fft else time_stretch(samples, rate, self.n_fft)


class GainPerturbation:
    """Louder or softer by so many decibels, evenly distributed."""

    def __init__(self, min_gain_dbfs: float = -10.0, max_gain_dbfs: float = 10.0) -> None:
        self.range = _ordered(min_gain_dbfs, max_gain_dbfs, "gain_dbfs")

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        return samples * np.float32(10.0 ** (rng.uniform(*self.range) / 20.0))


class ShiftPerturbation:
    """Moves the audio in time, forwards for a positive shift, and fills with zeros; the length stays."""

    def __init__(self, min_shift_ms: float = -5.0, max_shift_ms: float = 5.0) -> None:
        self.range = _ordered(min_shift_ms, max_shift_ms, "shift_ms")

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        shift = int(rng.uniform(*self.range) * sample_rate / 1000.0)
        if abs(shift) >= len(samples) or shift == 0:
            return samples
        shifted = np.zeros_like(samples)
        if shift > 0:
            shifted[:-shift] = samples[shift:]
        else:
            shifted[-shift:] = samples[:shift]
        return shifted


class SilencePerturbation:
    """Puts a random length of a constant `value` in front and behind."""

    def __init__(
        self,
        min_start_silence_secs: float = 0.0,
        max_start_silence_secs: float = 0.0,
        min_end_silence_secs: float = 0.0,
        max_end_silence_secs: float = 0.0,
        value: float = 0.0,
    ) -> None:
        self.start_s = _ordered(min_start_silence_secs, max_start_silence_secs, "start_silence_secs")
        self.end_s = _ordered(min_end_silence_secs, max_end_silence_secs, "end_silence_secs")
        if min(*self.start_s, *self.end_s) < 0:
            raise ValueError("silence lasts at least 0 seconds")
        self.value = value

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        before, after = (int(rng.uniform(*span) * sample_rate) for span in (self.start_s, self.end_s))
        return np.pad(samples, (before, after), constant_values=self.value)


class WhiteNoisePerturbation:
    """Adds Gaussian noise of a whole number of decibels below full scale: min_level up to, without, max_level."""

    def __init__(self, min_level: int = -90, max_level: int = -46) -> None:
        if min_level >= max_level:
            raise ValueError(f"min_level {min_level} must lie below max_level {max_level}")
        self.range = (int(min_level), int(max_level))

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        level = 10.0 ** (rng.integers(*self.range) / 20.0)
        return samples + rng.standard_normal(len(samples), np.float32) * np.float32(level)


class RandomSegmentPerturbation:
    """A random piece of `duration_sec` seconds. The transcript stays: this is for training without transcripts.

    Args:
        duration_sec: length of the piece.
        pad_to_duration: shorter audio is padded with zeros; otherwise it stays as it is.
        min_rms_db: draws again, up to `max_trials` times, while the piece is softer.
    """

    def __init__(
        self,
        duration_sec: float = 32.0,
        pad_to_duration: bool = False,
        min_rms_db: float | None = None,
        max_trials: int = 10,
        verbose: bool = False,
    ) -> None:
        if duration_sec <= 0:
            raise ValueError(f"duration_sec {duration_sec} must be positive")
        self.duration_s, self.pad = duration_sec, pad_to_duration
        self.min_rms_db = -np.inf if min_rms_db is None else min_rms_db
        self.max_trials = max_trials

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        wanted = int(self.duration_s * sample_rate)
        if wanted >= len(samples):
            return np.pad(samples, (0, wanted - len(samples))) if self.pad else samples
        for _ in range(1 + self.max_trials):
            start = int(rng.integers(len(samples) - wanted + 1))
            piece = samples[start : start + wanted]
            if rms_db(piece) >= self.min_rms_db:
                break
        return piece


def rms_db(samples: Samples) -> float:
    """Loudness: 10 log10 of the mean square; silence is about -200 dB."""
    return float(10.0 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


def time_stretch(samples: Samples, rate: float, n_fft: int = 512) -> Samples:
    """Plays samples (L,) `rate` times as fast at the same pitch, by a phase vocoder: round(L / rate) samples.

    Between two frames of the short-time spectrum the magnitude is interpolated, and the phase goes on by what it
    went on between them.
    """
    import torch

    hop = n_fft // 4
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(torch.tensor(samples), n_fft, hop, window=window, return_complex=True)
    places = torch.arange(0, spectrum.shape[1], rate)
    left, share = places.long(), places.frac()
    spectrum = torch.nn.functional.pad(spectrum, (0, 2))
    magnitude = spectrum.abs()
    steps = (spectrum[:, left + 1].angle() - spectrum[:, left].angle()).double()
    expected = (2 * torch.pi * hop / n_fft) * torch.arange(spectrum.shape[0]).double()[:, None]
    steps = expected + torch.remainder(steps - expected + torch.pi, 2 * torch.pi) - torch.pi
    phase = torch.remainder(spectrum[:, :1].angle() + torch.cumsum(steps, 1) - steps, 2 * torch.pi)
    stretched = torch.polar(magnitude[:, left] * (1 - share) + magnitude[:, left + 1] * share, phase.float())
    return torch.istft(stretched, n_fft, hop, window=window, length=round(len(samples) / rate)).numpy()


class _Rates:
    """Rates between two limits: a few, or all of them."""

    def __init__(self, lowest: float, highest: float, number: int, name: str) -> None:
        self.range = _ordered(lowest, highest, f"{name}_rate")
        if self.range[0] <= 0:
            raise ValueError(f"min_{name}_rate {lowest} must be positive")
        self.choices = np.linspace(lowest, highest, number) if number > 0 else None

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(*self.range) if self.choices is None else rng.choice(self.choices))


def _ordered(lowest: float, highest: float, name: str) -> tuple[float, float]:
    if lowest > highest:
        raise ValueError(f"min_{name} {lowest} lies above max_{name} {highest}")
    return float(lowest), float(highest)
