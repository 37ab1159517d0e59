"""Word and character error rate: (substitutions + deletions + insertions) / reference length, pooled over utterances.

The counts come from a shortest Levenshtein alignment. A pool of empty references has the rate infinity, as NVIDIA's
functions give it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditCounts:
    """What it takes to turn a reference into a hypothesis; counts add up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Error rate; infinity where there is no reference at all."""
        return self._per_reference(self.errors)

    def _per_reference(self, count: int) -> float:
        return count / self.reference_length if self.reference_length else float("inf")

    @property
    def rates(self) -> tuple[float, float, float]:
        """Insertion, deletion and substitution rates."""
        return (
            self._per_reference(self.insertions),
            self._per_reference(self.deletions),
            self._per_reference(self.substitutions),
        )

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


def count_edits(hypothesis: str, reference: str, use_cer: bool = False) -> EditCounts:
    """Edits between two texts, over words or (`use_cer`) characters, spaces included."""
    from rapidfuzz.distance import Levenshtein

    spoken = list(reference) if use_cer else reference.split()
    heard = list(hypothesis) if use_cer else hypothesis.split()
    tags = [edit.tag for edit in Levenshtein.editops(spoken, heard)]
    return EditCounts(tags.count("replace"), tags.count("delete"), tags.count("insert"), len(spoken))


def _count_all(hypotheses: Sequence[str], references: Sequence[str], use_cer: bool) -> list[EditCounts]:
    if len(hypotheses) != len(references):
        raise ValueError(f"hypotheses: {len(hypotheses)} texts, but references: {len(references)}")
    return [count_edits(hyp, ref, use_cer) for hyp, ref in zip(hypotheses, references, strict=True)]


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str], use_cer: bool = False) -> float:
    """Error rate over all utterances together; infinity where the references hold no word at all."""
    return sum(_count_all(hypotheses, references, use_cer), EditCounts()).rate


def word_error_rate_detail(
    hypotheses: Sequence[str], references: Sequence[str], use_cer: bool = False
) -> tuple[float, int, float, float, float]:
    """Error rate, reference length, and the insertion, deletion and substitution rates, in this order."""
    counts = sum(_count_all(hypotheses, references, use_cer), EditCounts())
    return (counts.rate, counts.reference_length, *counts.rates)


def word_error_rate_per_utt(
    hypotheses: Sequence[str], references: Sequence[str], use_cer: bool = False
) -> tuple[list[float], float]:
    """Error rate of each utterance, and of all together; an empty reference read as empty has the rate 0."""
    counts = _count_all(hypotheses, references, use_cer)
    per_utterance = [count.rate if count.errors or count.reference_length else 0.0 for count in counts]
    return per_utterance, sum(counts, EditCounts()).rate


class TextDecoder(Protocol):
    """What the metric needs of a decoder."""

    tokenizer: Tokenizer

    def texts(self, predictions: Tensor, predictions_len: Tensor) -> list[str]:
        """Texts of log-probabilities (B, T, V) or best classes (B, T)."""


class WER:
    """Error rate gathered over batches, and over processes where torch.distributed runs.

    Args:
        decoding: turns the network's predictions into texts.
        use_cer: counts characters instead of words.
        log_prediction: logs the first utterance of each batch beside its reference.
    """

    def __init__(self, decoding: TextDecoder, use_cer: bool = False, log_prediction: bool = True) -> None:
        self.decoding = decoding
        self.use_cer = use_cer
        self.log_prediction = log_prediction
        self.counts = EditCounts()
        self._device = torch.device("cpu")

    def update(
        self, predictions: Tensor, predictions_lengths: Tensor, targets: Tensor, targets_lengths: Tensor
    ) -> None:
        """Adds a batch.

        Args:
            predictions: log-probabilities (B, T, V) or best classes (B, T).
            predictions_lengths: frames of each (B,).
            targets: token ids (B, U), padded with anything.
            targets_lengths: tokens of each (B,).
        """
        self._device = predictions.device
        hypotheses = self.decoding.texts(predictions, predictions_lengths)
        ids, lengths = targets.tolist(), targets_lengths.tolist()
        references = [self.decoding.tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        if self.log_prediction and references:
            logger.info("reference: %s", references[0])
            logger.info("predicted: %s", hypotheses[0])
        self.counts = sum(_count_all(hypotheses, references, self.use_cer), self.counts)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rate, errors and reference length since `reset`, over all processes; float32 scalars."""
        totals = torch.tensor([self.counts.errors, self.counts.reference_length], device=self._device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        errors, length = totals.float().unbind()
        return errors / length, errors, length

    def of_batch(
        self, predictions: Tensor, predictions_lengths: Tensor, targets: Tensor, targets_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`compute` of one batch alone, with the arguments of `update`; nothing is gathered before or after it."""
        self.reset()
        self.update(predictions, predictions_lengths, targets, targets_lengths)
        counts = self.compute()
        self.reset()
        return counts

    def reset(self) -> None:
        """Forgets all batches."""
        self.counts = EditCounts()
