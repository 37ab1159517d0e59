"""What a `decoding` section says of confidence, with NVIDIA's spelling.  Nothing here needs torch.

`confidence_cfg` goes before the keys of `greedy`; who asks for words asks for tokens, and who asks for tokens for
frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

METHODS = ("max_prob", "entropy")
ENTROPIES = ("gibbs", "tsallis", "renyi")
NORMS = ("lin", "exp")
AGGREGATIONS = ("mean", "min", "max", "prod")
RENAMED = "DEPRECATED"
"""What NVIDIA's toolkit writes where a key had another name once."""


@dataclass
class ConfidenceMethodConfig:
    """The `method_cfg` section: how a distribution becomes a number.

    Attributes:
        name: `max_prob`, by its largest probability, or `entropy`.
        entropy_type: which entropy.
        alpha: the power of the probabilities.
        entropy_norm: how the entropy is brought into 0 to 1.
        temperature: the old name of alpha.
    """

    name: str = "entropy"
    entropy_type: str = "tsallis"
    alpha: float = 0.33
    entropy_norm: str = "exp"
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None:
            self.alpha, self.temperature = self.temperature, None
        for key, known in (("name", METHODS), ("entropy_type", ENTROPIES), ("entropy_norm", NORMS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}: {getattr(self, key)!r} is none of {', '.join(known)}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha: {self.alpha} must be above 0")


@dataclass
class ConfidenceConfig:
    """The `confidence_cfg` section.

    Attributes:
        preserve_frame_confidence, preserve_token_confidence, preserve_word_confidence: what hypotheses carry.
        exclude_blank: a token's confidence is its own; false adds the blanks after it.
        aggregation: how several numbers become one.
        tdt_include_duration: of a TDT model also the confidence in the duration.
        method_cfg: how a distribution becomes a number; `measure_cfg` is an old name.
    """

    preserve_frame_confidence: bool | None = False
    preserve_token_confidence: bool | None = False
    preserve_word_confidence: bool | None = False
    exclude_blank: bool = True
    aggregation: str = "min"
    tdt_include_duration: bool = False
    method_cfg: ConfidenceMethodConfig | None = field(default_factory=ConfidenceMethodConfig)
    measure_cfg: ConfidenceMethodConfig | None = None

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation: {self.aggregation!r} is none of {', '.join(AGGREGATIONS)}")


@dataclass
class GreedyConfidenceKeys:
    """What a `greedy` section says of confidence: frames only.

    Attributes:
        preserve_frame_confidence: hypotheses carry the confidences of frames.
        confidence_method_cfg: as `confidence_cfg.method_cfg`; `confidence_method` is its old name.
    """

    preserve_frame_confidence: bool | None = None
    confidence_method_cfg: ConfidenceMethodConfig | None = field(default_factory=ConfidenceMethodConfig)
    confidence_method: ConfidenceMethodConfig | None = None


def without_renamed(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without the keys that only say that they have another name now."""
    return {
        key: without_renamed(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value != RENAMED
    }


@dataclass(frozen=True)
class ConfidenceOptions:
    """What is asked for, and how it is computed.

    Attributes:
        frames, tokens, words: what hypotheses carry.
        exclude_blank, aggregation: as in `ConfidenceConfig`.
        durations: whether a TDT model's durations count.
        method: how a distribution becomes a number.
        method_key: where the section has it.
    """

    frames: bool = False
    tokens: bool = False
    words: bool = False
    exclude_blank: bool = True
    aggregation: str = "min"
    durations: bool = False
    method: ConfidenceMethodConfig = field(default_factory=ConfidenceMethodConfig)
    method_key: str = "confidence_cfg.method_cfg"

    def bad_alpha(self, outcomes: int) -> str | None:
        """The rule that alpha breaks for so many outcomes; None if it breaks none.

        Gibbs' entropy with a power is largest for equal probabilities only in an interval of alpha (arXiv
        2212.08703); outside, a network that knows nothing would seem more certain than one that knows something.
        """
        if (self.method.name, self.method.entropy_type) != ("entropy", "gibbs") or self.method.alpha == 1:
            return None
        log = math.log(outcomes)
        least = (log + 2 - math.sqrt(log * log + 4)) / (2 * log)
        most = (1 + math.log(outcomes - 1)) / math.log(outcomes - 1) if outcomes > 2 else math.inf
        if least <= self.method.alpha <= most:
            return None
        return f"must be from {least:.3f} to {most:.3f} for Gibbs' entropy of {outcomes} outcomes"


def confidence_options(
    section: ConfidenceConfig | None,
    search: GreedyConfidenceKeys | None,
    *,
    search_asks: bool = False,
    durations: bool = False,
) -> ConfidenceOptions:
    """What the sections together ask for.

    Args:
        section: `confidence_cfg`.
        search: the `greedy` section, if it is the one that counts.
        search_asks: whether a `beam` section asks for frames.
        durations: whether the search's section lets durations count.
    """
    given = section or ConfidenceConfig()
    words = bool(given.preserve_word_confidence)
    tokens = words or bool(given.preserve_token_confidence)
    frames = tokens or bool(given.preserve_frame_confidence)
    options = ConfidenceOptions(
        frames or search_asks,
        tokens,
        words,
        given.exclude_blank,
        given.aggregation,
        given.tdt_include_duration or durations,
        given.measure_cfg or given.method_cfg or ConfidenceMethodConfig(),
    )
    if frames or search is None or not search.preserve_frame_confidence:
        return options
    method = search.confidence_method or search.confidence_method_cfg or ConfidenceMethodConfig()
    return replace(options, frames=True, method=method, method_key="greedy.confidence_method_cfg")
