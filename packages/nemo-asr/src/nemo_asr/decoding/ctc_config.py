"""The `decoding` section of CTC models. Nothing here needs torch, so a command can say its options at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nemo_asr.decoding.confidence_config import (
    ConfidenceConfig,
    ConfidenceOptions,
    GreedyConfidenceKeys,
    confidence_options,
)
from nemo_asr.decoding.fusion_config import BoostingTreeConfig, FusionKeys

GREEDY_STRATEGIES = ("greedy", "greedy_batch")
CTC_BEAM_STRATEGIES = ("beam", "beam_batch")
FOREIGN_STRATEGIES = ("pyctcdecode", "flashlight", "wfst")
"""NVIDIA's that need programs of their own."""


@dataclass
class GreedyConfig(GreedyConfidenceKeys):
    """The `decoding.greedy` section."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(("allow_cuda_graphs",))

    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    ngram_lm_model: str | None = None
    ngram_lm_alpha: float | None = 0.0
    boosting_tree: BoostingTreeConfig | None = None
    boosting_tree_alpha: float | None = 0.0


@dataclass
class CtcBeamConfig:
    """The `decoding.beam` section.

    Attributes:
        beam_size: prefixes that are kept.
        return_best_hypothesis: false gives all of them.
        beam_beta: added to the score for each token.
        beam_threshold: prefixes whose score is so much below the best one's are dropped.
        ngram_lm_model, ngram_lm_alpha: an ARPA file and its weight; `kenlm_path` and `beam_alpha` are the old names.
        boosting_tree, boosting_tree_alpha: phrases and their weight.
    """

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "search_type allow_cuda_graphs flashlight_cfg pyctcdecode_cfg".split()
    )

    beam_size: int = 4
    return_best_hypothesis: bool = True
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    preserve_frame_confidence: bool | None = None
    beam_beta: float = 1.0
    beam_threshold: float = 20.0
    ngram_lm_model: str | None = None
    ngram_lm_alpha: float | None = 1.0
    kenlm_path: str | None = None
    beam_alpha: float | None = None
    boosting_tree: BoostingTreeConfig | None = None
    boosting_tree_alpha: float | None = 0.0

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size: {self.beam_size} must be at least 1")
        if self.beam_threshold <= 0:
            raise ValueError(f"beam_threshold: {self.beam_threshold} must be above 0")
        self.ngram_lm_model = self.ngram_lm_model or self.kenlm_path
        self.ngram_lm_alpha = self.ngram_lm_alpha if self.beam_alpha is None else self.beam_alpha


@dataclass
class CtcDecodingConfig:
    """The `decoding` section of a CTC model, with NVIDIA's spelling of its keys."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(("wfst",))

    strategy: str = "greedy_batch"
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    word_seperator: str = " "
    segment_seperators: list[str] | None = field(default_factory=lambda: [".", "!", "?"])
    segment_gap_threshold: int | None = None
    ctc_timestamp_type: str = "all"
    batch_dim_index: int = 0
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    beam: CtcBeamConfig = field(default_factory=CtcBeamConfig)
    confidence_cfg: ConfidenceConfig | None = field(default_factory=ConfidenceConfig)
    temperature: float = 1.0

    @property
    def confidence(self) -> ConfidenceOptions:
        """Which confidences hypotheses carry."""
        if self.is_greedy:
            return confidence_options(self.confidence_cfg, self.greedy)
        return confidence_options(self.confidence_cfg, None, search_asks=bool(self.beam.preserve_frame_confidence))

    @property
    def is_greedy(self) -> bool:
        """Whether the strategy is a greedy one."""
        return self.strategy in GREEDY_STRATEGIES

    @property
    def fusion_keys(self) -> FusionKeys:
        """The section whose language model and phrases count."""
        return self.greedy if self.is_greedy else self.beam

    @property
    def wants_timestamps(self) -> bool:
        """Whether hypotheses carry timestamps although the caller does not ask for them."""
        if self.compute_timestamps is None:
            return bool((self.greedy if self.is_greedy else self.beam).compute_timestamps)
        return self.compute_timestamps

    @property
    def wants_alignments(self) -> bool:
        """Whether hypotheses carry log-probabilities together with the best classes."""
        if self.preserve_alignments is None:
            return bool((self.greedy if self.is_greedy else self.beam).preserve_alignments)
        return self.preserve_alignments
