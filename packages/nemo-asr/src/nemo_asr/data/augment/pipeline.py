"""The list of perturbations of an `augmentor` section, and the names they have there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nemo_asr.data.audio import Samples
from nemo_asr.data.augment.codec import TranscodePerturbation
from nemo_asr.data.augment.mixing import (
    ImpulsePerturbation,
    NoisePerturbation,
    NormalizedNoisePerturbation,
    RirAndNoisePerturbation,
)
from nemo_asr.data.augment.waveform import (
    GainPerturbation,
    RandomSegmentPerturbation,
    ShiftPerturbation,
    SilencePerturbation,
    SpeedPerturbation,
    TimeStretchPerturbation,
    WhiteNoisePerturbation,
)
from nemo_config import ConfigError, check_keys

_OWN_TYPES: Mapping[str, Callable[..., Perturbation]] = {
    "speed": SpeedPerturbation,
    "time_stretch": TimeStretchPerturbation,
    "gain": GainPerturbation,
    "shift": ShiftPerturbation,
    "silence": SilencePerturbation,
    "white_noise": WhiteNoisePerturbation,
    "random_segment": RandomSegmentPerturbation,
    "noise": NoisePerturbation,
    "noise_norm": NormalizedNoisePerturbation,
    "impulse": ImpulsePerturbation,
    "rir_noise_aug": RirAndNoisePerturbation,
    "transcode_aug": TranscodePerturbation,
}
_REGISTERED: dict[str, Callable[..., Perturbation]] = {}

IGNORED_KEYS = frozenset({"rng", "shuffle_n", "rir_shuffle_n"})
"""Options of NVIDIA's perturbations that mean nothing here: a draw has its own seed, and nothing is buffered."""


class Perturbation(Protocol):
    """A change of an utterance's audio. It must not write into the samples that it is given."""

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        """The changed samples (L',) of samples (L,), drawing all chance from `rng`."""


@dataclass(frozen=True)
class Augmentor:
    """Perturbations, each with the probability that it is applied."""

    perturbations: tuple[tuple[float, Perturbation], ...]

    def __call__(self, samples: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
        """Applies the perturbations in order; the result is finite float32, and never empty."""
        for probability, perturbation in self.perturbations:
            if rng.random() < probability:
                changed = np.asarray(perturbation(samples, sample_rate, rng), np.float32)
                samples = changed if len(changed) else samples
        return samples


def perturbation_types() -> dict[str, Callable[..., Perturbation]]:
    """All perturbations by the name that they have in a config."""
    return {**_OWN_TYPES, **_REGISTERED}


def register_perturbation(name: str, perturbation: Callable[..., Perturbation]) -> None:
    """Makes a class of your own usable in `augmentor`, under a name that is still free.

    Raises:
        ValueError: the name is taken.
    """
    if name in perturbation_types():
        raise ValueError(f"perturbation {name!r}: the name is taken")
    _REGISTERED[name] = perturbation


def build_augmentor(
    section: Mapping[str, Any] | None, path: str = "augmentor", *, strict: bool = True
) -> Augmentor | None:
    """Makes the augmentor of a config section; None where there is nothing to do.

    Raises:
        ConfigError: an unknown perturbation or option, or a `prob` that is missing or no probability.
    """
    if not section:
        return None
    built = [_build_one(str(name), dict(options or {}), f"{path}.{name}", strict) for name, options in section.items()]
    return Augmentor(tuple(built))


def _build_one(name: str, options: dict[str, Any], path: str, strict: bool) -> tuple[float, Perturbation]:
    types = perturbation_types()
    if name not in types:
        raise ConfigError(path, name, f"is no perturbation; there are {', '.join(sorted(types))}")
    probability = options.pop("prob", None)
    if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise ConfigError(f"{path}.prob", probability, "must be a probability from 0 to 1")
    valid = inspect.signature(types[name]).parameters
    given = check_keys(options, valid, path, ignored=IGNORED_KEYS - set(valid), strict=strict)
    for key, value in given.items():
        if value == "???":
            raise ConfigError(f"{path}.{key}", value, "must be given")
    try:
        return float(probability), types[name](**given)
    except ValueError as error:
        raise ConfigError(path, name, str(error)) from error
    except TypeError as error:
        raise ConfigError(path, name, f"cannot be made of its options: {error}") from error
