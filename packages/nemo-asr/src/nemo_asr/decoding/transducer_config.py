"""The `decoding` section of transducers, with NVIDIA's spelling.  Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nemo_asr.decoding.ctc_config import BOOSTED_PHRASES, CONFIDENCES, GREEDY_STRATEGIES

TRANSDUCER_BEAM_STRATEGIES = ("beam", "tsd", "alsd", "maes", "malsd_batch", "maes_batch")


@dataclass
class TransducerGreedyConfig:
    """The `decoding.greedy` section."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "tdt_include_token_duration tdt_include_duration_confidence confidence_method_cfg confidence_method "
        "loop_labels use_cuda_graph_decoder ngram_lm_alpha boosting_tree_alpha allow_cuda_graphs".split()
    )

    max_symbols: int | None = None
    max_symbols_per_step: int | None = 10
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    preserve_frame_confidence: bool | None = None
    ngram_lm_model: str | None = None
    boosting_tree: dict[str, Any] | None = None

    @property
    def symbols_at_a_frame(self) -> int | None:
        """`max_symbols`, or by its newer name."""
        return self.max_symbols or self.max_symbols_per_step


@dataclass
class TransducerDecodingConfig:
    """The `decoding` section of a transducer."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "beam model_type fused_batch_size compute_hypothesis_token_set compute_langs tdt_include_token_duration".split()
    )

    strategy: str = "greedy_batch"
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    word_seperator: str = " "
    segment_seperators: list[str] | None = field(default_factory=lambda: [".", "!", "?"])
    segment_gap_threshold: int | None = None
    rnnt_timestamp_type: str = "all"
    greedy: TransducerGreedyConfig = field(default_factory=TransducerGreedyConfig)
    confidence_cfg: dict[str, Any] | None = None
    temperature: float = 1.0
    durations: list[int] | None = None
    big_blank_durations: list[int] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the strategy is a greedy one."""
        return self.strategy in GREEDY_STRATEGIES

    def missing_features(self) -> Iterator[tuple[str, Any]]:
        """Key and value of what is asked for and not here: a language model, boosted phrases, confidence."""
        boosting, confidence = self.greedy.boosting_tree or {}, self.confidence_cfg or {}
        asked = {
            "greedy.ngram_lm_model": self.greedy.ngram_lm_model,
            "greedy.preserve_frame_confidence": self.greedy.preserve_frame_confidence,
            **{f"greedy.boosting_tree.{key}": boosting.get(key) for key in BOOSTED_PHRASES},
            **{f"confidence_cfg.{key}": confidence.get(key) for key in CONFIDENCES},
        }
        return ((key, value) for key, value in asked.items() if value)

    @property
    def wants_timestamps(self) -> bool:
        """Whether hypotheses carry timestamps although the caller does not ask for them."""
        if self.compute_timestamps is None:
            return bool(self.greedy.compute_timestamps)
        return self.compute_timestamps

    @property
    def wants_alignments(self) -> bool:
        """Whether hypotheses carry the score and label of every step."""
        if self.preserve_alignments is None:
            return bool(self.greedy.preserve_alignments)
        return self.preserve_alignments
