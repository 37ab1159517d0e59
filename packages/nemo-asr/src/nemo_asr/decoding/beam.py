"""What the beam searches have in common: fingerprints of token sequences, merging of equal hypotheses, the way back.

B batch, K hypotheses of an utterance, X candidates for its next ones, S steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY = 0
"""Fingerprint of no tokens."""
_MULTIPLIER = 6364136223846793005  # Knuth's; products wrap around at 2^64
_TIME_MULTIPLIER = -7046029254386353131  # the golden ratio's, as a signed number


def extend_fingerprint(fingerprint: Tensor, token: Tensor) -> Tensor:
    """Fingerprints of sequences with one more token."""
    return fingerprint * _MULTIPLIER + token + 1


def place_fingerprint(fingerprint: Tensor, frame: Tensor) -> Tensor:
    """Fingerprints of sequences at a frame."""
    return (fingerprint + 1) * _TIME_MULTIPLIER + frame


def merge_equal(keys: Tensor, scores: Tensor) -> Tensor:
    """Adds up the probabilities of candidates with equal keys.

    Args:
        keys: (B, X).
        scores: log-probabilities (B, X).

    Returns:
        (B, X): the sum stands at the best of the equal ones, and -inf at the others.
    """
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    order = by_score.gather(1, keys.gather(1, by_score).argsort(dim=1, stable=True))
    key, score = keys.gather(1, order), scores.gather(1, order)
    first = torch.ones_like(key, dtype=torch.bool)
    first[:, 1:] = key[:, 1:] != key[:, :-1]
    group = first.cumsum(dim=1) - 1
    best = torch.zeros_like(score).scatter_reduce(1, group, score, "amax", include_self=False)
    best = best.clamp_min(torch.finfo(score.dtype).min)  # a group of -inf alone
    shares = (score - best.gather(1, group)).exp()
    total = best + torch.zeros_like(score).scatter_add(1, group, shares).log()
    merged = torch.where(first, total.gather(1, group), -torch.inf)
    return torch.empty_like(merged).scatter(1, order, merged)


class Step(NamedTuple):
    """What one step of a search chose, each (B, K): the hypothesis that was continued, the token or -1, its frame,
    and the frames that it leads on."""

    parent: Tensor
    token: Tensor
    frame: Tensor
    duration: Tensor


class BeamPath(NamedTuple):
    """A hypothesis read back: tokens, their frames, and the frames that each leads on; and its way, token or -1, frame
    and lead of each step of the search (S,)."""

    tokens: list[int]
    frames: list[int]
    durations: list[int]
    way: tuple[Tensor, Tensor, Tensor]


def read_back(steps: list[Step], ends: Tensor) -> list[list[BeamPath]]:
    """The hypotheses of a search.

    Args:
        steps: of the search, in order.
        ends: which hypotheses to read, and in which order (B, K).

    Returns:
        for each utterance its hypotheses in the order of `ends`.
    """
    B, K = ends.shape
    if not steps:
        nothing = torch.empty(0, dtype=torch.long)
        return [[_path(nothing, nothing, nothing) for _ in range(K)] for _ in range(B)]
    table = Step(*(torch.stack(column).cpu() for column in zip(*steps, strict=True)))
    place = ends.cpu()
    rows = torch.empty((len(steps), B, K), dtype=torch.long)
    for number in range(len(steps) - 1, -1, -1):
        rows[number] = place
        place = table.parent[number].gather(1, place)
    token, frame, duration = (
        column.gather(2, rows).permute(1, 2, 0) for column in (table.token, table.frame, table.duration)
    )
    return [[_path(token[b, k], frame[b, k], duration[b, k]) for k in range(K)] for b in range(B)]


def _path(token: Tensor, frame: Tensor, duration: Tensor) -> BeamPath:
    made = token >= 0
    return BeamPath(token[made].tolist(), frame[made].tolist(), duration[made].tolist(), (token, frame, duration))
