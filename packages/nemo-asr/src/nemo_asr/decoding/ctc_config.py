"""The `decoding` section of CTC models. Nothing here needs torch, so a command can say its options at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

GREEDY_STRATEGIES = ("greedy", "greedy_batch")
BEAM_STRATEGIES = ("beam", "beam_batch", "pyctcdecode", "flashlight", "wfst")


@dataclass
class GreedyConfig:
    """The `decoding.greedy` section."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "preserve_frame_confidence confidence_method_cfg confidence_method ngram_lm_model ngram_lm_alpha boosting_tree "
        "boosting_tree_alpha allow_cuda_graphs".split()
    )

    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None


@dataclass
class CtcDecodingConfig:
    """The `decoding` section of a CTC model, with NVIDIA's spelling of its keys."""

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(("beam", "wfst", "confidence_cfg", "temperature"))

    strategy: str = "greedy_batch"
    preserve_alignments: bool | None = None
    compute_timestamps: bool | None = None
    word_seperator: str = " "
    segment_seperators: list[str] | None = field(default_factory=lambda: [".", "!", "?"])
    segment_gap_threshold: int | None = None
    ctc_timestamp_type: str = "all"
    batch_dim_index: int = 0
    greedy: GreedyConfig = field(default_factory=GreedyConfig)

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
