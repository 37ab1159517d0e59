"""The `decoding` section of CTC models. Nothing here needs torch, so a command can say its options at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

GREEDY_STRATEGIES = ("greedy", "greedy_batch")
BEAM_STRATEGIES = ("beam", "beam_batch", "pyctcdecode", "flashlight", "wfst")
BOOSTED_PHRASES = ("model_path", "key_phrases_file", "key_phrases_list", "key_phrase_items_list")
CONFIDENCES = ("preserve_frame_confidence", "preserve_token_confidence", "preserve_word_confidence")


@dataclass
class GreedyConfig:
    """The `decoding.greedy` section."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "confidence_method_cfg confidence_method ngram_lm_alpha boosting_tree_alpha allow_cuda_graphs".split()
    )

    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    preserve_frame_confidence: bool | None = None
    ngram_lm_model: str | None = None
    boosting_tree: dict[str, Any] | None = None


@dataclass
class CtcDecodingConfig:
    """The `decoding` section of a CTC model, with NVIDIA's spelling of its keys."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(("beam", "wfst"))

    strategy: str = "greedy_batch"
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    word_seperator: str = " "
    segment_seperators: list[str] | None = field(default_factory=lambda: [".", "!", "?"])
    segment_gap_threshold: int | None = None
    ctc_timestamp_type: str = "all"
    batch_dim_index: int = 0
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    confidence_cfg: dict[str, Any] | None = None
    temperature: float = 1.0

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
        """Whether hypotheses carry log-probabilities together with the best classes."""
        if self.preserve_alignments is None:
            return bool(self.greedy.preserve_alignments)
        return self.preserve_alignments
