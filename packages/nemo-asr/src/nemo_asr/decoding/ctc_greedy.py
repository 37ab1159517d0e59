"""Greedy CTC search (Graves et al. 2006, section 3.2): best class of every frame, repeats collapsed, blanks dropped.

B batch, T frames, V vocabulary with blank, the last class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GreedyPath:
    """Best paths of a batch: classes (B, T), log-probabilities or None, masks (B, T) of spoken frames and of onsets."""

    labels: Tensor
    scores: Tensor | None
    spoken: Tensor
    onsets: Tensor

    def tokens(self) -> list[list[int]]:
        """Collapsed token ids of each utterance."""
        return split_rows(self.labels, self.onsets)


def greedy_path(predictions: Tensor, predictions_len: Tensor, blank: int) -> GreedyPath:
    """Best paths of a batch, with no loop over frames or utterances.

    Args:
        predictions: log-probabilities (B, T, V), or the best class of each frame (B, T).
        predictions_len: frames of each utterance (B,).
        blank: id of blank.
    """
    scores, labels = predictions.max(dim=-1) if predictions.ndim == 3 else (None, predictions)
    frames = torch.arange(labels.shape[1], device=labels.device)
    spoken = (labels != blank) & (frames < predictions_len.to(labels.device).unsqueeze(1))
    onsets = spoken.clone()
    onsets[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    return GreedyPath(labels, scores, spoken, onsets)


def split_rows(values: Tensor, mask: Tensor) -> list[list[int]]:
    """The masked entries of each row; one transfer to the CPU for the batch."""
    counts: list[int] = mask.sum(dim=1).tolist()
    return [row.tolist() for row in torch.split(values[mask].cpu(), counts)]
