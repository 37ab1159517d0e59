"""Sum over all paths of a transducer's lattice whose arcs may span several frames, and each arc's share of it.

A cell (t, u) has arcs of two kinds, each with a duration d in frames:
    a blank arc, d > 0, leads to (t + d, u);      a label arc, d >= 0, leads to (t + d, u + 1).
RNNT has a blank of 1 and a label of 0; multi-blank RNNT has further blanks; TDT has both kinds with every duration.
A path runs from (0, 0) to the virtual cell (T, U), into which only blanks lead. With the log score s of each arc
    alpha(cell) = log sum of exp(alpha(source) + s) over the arcs that enter,
    beta(cell)  = log sum of exp(s + beta(destination)) over the arcs that leave,      log P = alpha(T, U)
    occupancy(arc) = exp(alpha(source) + s + beta(destination) - log P) = d log P / d s.

All cells with the same n = t + u are computed at once: a blank arc of duration d comes from diagonal n - d and a label
arc from n - d - 1, so a ring of max(d) + 1 diagonals holds all that a step needs. Scores lie skewed, (diagonal, arc,
B, W), where a diagonal is contiguous; the occupancies are written over them.

B batch, T frames, U target steps, W = U + 1 positions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# the logarithm of nothing: finite, since the difference of two infinities is no number; no score moves it
NOTHING = -1e300
# exp() of less is nothing beside 1, and takes four times as long to find that out
_NEGLIGIBLE = -700.0


@dataclass(frozen=True)
class Arcs:
    """The durations of the blank arcs and of the label arcs that leave each cell, in frames."""

    blanks: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.blanks) + len(self.labels)

    @property
    def spans(self) -> list[int]:
        """How many diagonals each arc crosses, blanks first."""
        return [*self.blanks, *(duration + 1 for duration in self.labels)]


def skewed_scores(arcs: Arcs, like: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the scores of lattices `like` (B, T, W): storage (T+W-1, arcs, B, W) of NOTHING, and a view to fill.

    The view is (arcs, B, T, W), blanks first.
    """
    batch, frames, positions = like.shape
    size = (frames + positions - 1, arcs.count, batch, positions)
    storage = torch.full(size, NOTHING, dtype=torch.float64, device=like.device)
    plane = batch * positions
    strides = (plane, positions, arcs.count * plane, arcs.count * plane + 1)
    return storage, storage.as_strided((arcs.count, batch, frames, positions), strides)


def forbid_impossible_arcs(view: Tensor, arcs: Arcs, frame_len: Tensor, target_len: Tensor) -> None:
    """Gives NOTHING to the arcs that leave an utterance: view (arcs, B, T, W), its lengths (B,)."""
    _, _, frames, positions = view.shape
    left = frame_len[:, None, None] - torch.arange(frames, device=view.device)[:, None]  # (B, T, 1)
    u = torch.arange(positions, device=view.device)
    last = target_len[:, None, None]
    for scores, duration in zip(view[: len(arcs.blanks)], arcs.blanks, strict=True):
        scores.masked_fill_(~(((left > duration) & (u <= last)) | ((left == duration) & (u == last))), NOTHING)
    for scores, duration in zip(view[len(arcs.blanks) :], arcs.labels, strict=True):
        scores.masked_fill_(~((left > duration) & (u < last)), NOTHING)


def sum_paths(storage: Tensor, arcs: Arcs, frame_len: Tensor, target_len: Tensor) -> Tensor:
    """Logarithm of the sum over all paths (B,); turns the scores in storage (T+W-1, arcs, B, W) into occupancies.

    An utterance without any path gets -inf, and occupancies of zero.
    """
    storage.clamp_(min=NOTHING)
    alpha = _forward(storage, arcs)
    utterance = torch.arange(storage.shape[2], device=storage.device)
    log_prob = alpha[frame_len + target_len, utterance, target_len]
    greatest = _backward(storage, arcs, frame_len, target_len)
    possible = log_prob > NOTHING / 2
    share = greatest.add_(alpha[:-1]).sub_(log_prob[:, None])
    unvisited = (share < _NEGLIGIBLE) | ~possible[:, None]
    storage *= share.masked_fill_(unvisited, 0).exp_().masked_fill_(unvisited, 0)[:, None]
    return log_prob.masked_fill(~possible, -torch.inf)


def _forward(storage: Tensor, arcs: Arcs) -> Tensor:
    """alpha (T+W, B, W); each diagonal sends to a ring what it adds to later ones."""
    diagonals, count, batch, positions = storage.shape
    blanks, spans = len(arcs.blanks), arcs.spans
    period = max(spans)
    ring = storage.new_full((period, count, batch, positions), NOTHING)
    sent, blank_slots, label_slots = ring.view(-1, batch, positions), ring[:, :blanks], ring[:, blanks:, :, 1:]
    senders = [[(n - span) % period * count + arc for arc, span in enumerate(spans)] for n in range(period)]
    sources = torch.tensor(senders, device=storage.device)
    alpha = storage.new_full((diagonals + 1, batch, positions), NOTHING)
    alpha[0, :, 0] = 0
    arrivals, greatest = torch.empty_like(storage[0]), torch.empty_like(alpha[0])
    steps = zip(
        storage[:, :blanks], storage[:, blanks:, :, :-1], alpha[:-1], alpha[:-1, :, :-1], alpha[1:], strict=True
    )
    for n, (blank, label, here, but_last, following) in enumerate(steps):
        torch.add(blank, here, out=blank_slots[n % period])
        torch.add(label, but_last, out=label_slots[n % period])
        torch.index_select(sent, 0, sources[(n + 1) % period], out=arrivals)
        _log_sum(arrivals, arrivals, greatest, following)
    return alpha


def _backward(storage: Tensor, arcs: Arcs, frame_len: Tensor, target_len: Tensor) -> Tensor:
    """Turns each score s into exp(s + beta - greatest), the greatest (T+W-1, B, W) over the arcs of a cell.

    A ring holds beta of the diagonals to come, (period, B, W+1) with an impossible column behind.
    """
    diagonals, _, batch, positions = storage.shape
    blanks, spans = len(arcs.blanks), arcs.spans
    period = max(spans) + 1
    ring = storage.new_full((period, batch, positions + 1), NOTHING)
    receivers = torch.tensor([[(n + span) % period for span in spans] for n in range(period)], device=storage.device)
    ends: dict[int, list[tuple[int, int]]] = {}
    for b, (frames, labels) in enumerate(zip(frame_len.tolist(), target_len.tolist(), strict=True)):
        ends.setdefault(frames + labels, []).append((b, labels))
    same, following = ring[..., :-1], ring[..., 1:]
    departures = torch.empty_like(storage[0])
    greatest = storage.new_empty((diagonals, batch, positions))
    for n in reversed(range(diagonals)):
        for b, u in ends.get(n + 1, ()):
            ring[(n + 1) % period, b, u] = 0
        rows, scores = receivers[n % period], storage[n]
        torch.index_select(same, 0, rows[:blanks], out=departures[:blanks])
        torch.index_select(following, 0, rows[blanks:], out=departures[blanks:])
        departures += scores
        _log_sum(departures, scores, greatest[n], same[n % period])
    return greatest


def _log_sum(terms: Tensor, shares: Tensor, greatest: Tensor, out: Tensor) -> None:
    """`out` becomes log sum exp(terms) over the first dimension, `shares` exp(terms - greatest), maybe over terms."""
    torch.amax(terms, dim=0, out=greatest)
    torch.exp(terms.sub_(greatest).clamp_(min=_NEGLIGIBLE), out=shares)
    torch.sum(shares, dim=0, out=out).log_().add_(greatest)
