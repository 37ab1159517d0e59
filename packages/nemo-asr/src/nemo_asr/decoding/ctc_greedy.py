"""Greedy CTC search (Graves et al. 2006, section 3.2): best class of every frame, repeats collapsed, blanks dropped.

B batch, T frames, V vocabulary with blank, the last class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Fusion


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

    def frames(self) -> tuple[list[list[int]], list[list[int]]]:
        """Of each utterance the frames of its tokens' onsets, and all that are not blank."""
        frames = torch.arange(self.labels.shape[1], device=self.labels.device).expand(self.labels.shape)
        return split_rows(frames, self.onsets), split_rows(frames, self.spoken)


def greedy_path(predictions: Tensor, predictions_len: Tensor, blank: int, fusion: Fusion | None = None) -> GreedyPath:
    """Best paths of a batch; without models to fuse there is no loop over frames or utterances.

    Args:
        predictions: log-probabilities (B, T, V), or the best class of each frame (B, T).
        predictions_len: frames of each utterance (B,).
        blank: id of blank.
        fusion: models on the same device whose scores decide between the tokens of log-probabilities.
    """
    scores, labels = predictions.max(dim=-1) if predictions.ndim == 3 else (None, predictions)
    if fusion is not None and scores is not None:
        scores, labels = _fused(predictions, scores, labels, blank, fusion)
    frames = torch.arange(labels.shape[1], device=labels.device)
    spoken = (labels != blank) & (frames < predictions_len.to(labels.device).unsqueeze(1))
    onsets = spoken.clone()
    onsets[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    return GreedyPath(labels, scores, spoken, onsets)


@torch.no_grad()
def _fused(log_probs: Tensor, scores: Tensor, labels: Tensor, blank: int, fusion: Fusion) -> tuple[Tensor, Tensor]:
    """Scores and labels (B, T), where a new token is the best by the fused scores.

    Blanks, and repeats of the token before, stay what the network says, as in NVIDIA's toolkit.
    """
    scores, labels = scores.clone(), labels.clone()
    states = fusion.start(len(labels))
    bonus = fusion.scores(states)
    last = torch.full_like(labels[:, 0], blank) if labels.shape[1] else labels
    for t in range(labels.shape[1]):
        rows = torch.nonzero((labels[:, t] != blank) & (labels[:, t] != last)).squeeze(1)
        if len(rows):
            fused = torch.cat([log_probs[rows, t, :blank] + bonus[rows], log_probs.new_zeros(len(rows), 1)], dim=1)
            fused.scatter_(1, last[rows, None], -torch.inf)
            scores[rows, t], labels[rows, t] = fused[:, :blank].max(dim=1)
            states[rows] = fusion.advance(states[rows], labels[rows, t])
            bonus[rows] = fusion.scores(states[rows])
        last = labels[:, t]
    return scores, labels


def split_rows(values: Tensor, mask: Tensor) -> list[list[int]]:
    """The masked entries of each row; one transfer to the CPU for the batch."""
    counts: list[int] = mask.sum(dim=1).tolist()
    return [row.tolist() for row in torch.split(values[mask].cpu(), counts)]
