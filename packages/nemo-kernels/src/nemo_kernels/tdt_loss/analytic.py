"""TDT loss and its gradient in closed form, with torch's operations: scores, lattice in float64, occupancies.

With the occupancies of the blank and label arcs of duration d at a cell, o_blank_d and o_label_d, and q the softmax of
the duration logits,
    dloss/dq_logit[d] = q[d] * sum over e of (o_blank_e + o_label_e) - (o_blank_d + o_label_d);
the tokens' part is in `scores`. FastEmit touches the tokens alone, as NVIDIA has it, and clamping too.

B batch, T frames, U target steps, W = U + 1 positions, V tokens with blank
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_kernels.tdt_loss.lattice import Arcs, forbid_impossible_arcs, skewed_scores, sum_paths
from nemo_kernels.tdt_loss.scores import CellScores, TokenGradient, Tokens, score_cells, working_dtype, write_gradient
from nemo_kernels.transducer import lattice_sizes


class Options(NamedTuple):
    """What one call has settled; `plain` asks for the RNNT loss of the tokens instead."""

    durations: Sequence[int]
    blank: int
    fastemit_lambda: float
    sigma: float
    plain: bool

    def tokens(self, width: int) -> Tokens:
        """How the last dimension, `width` wide, is divided."""
        return Tokens(width - len(self.durations), (self.blank,))


class Occupied(NamedTuple):
    """A solved lattice: losses (B,), the tokens' normaliser and occupancies (B, T, W), the durations' gradient."""

    losses: Tensor
    norm: Tensor
    blank: Tensor
    label: Tensor
    durations: Tensor


def tdt_forward(
    logits: Tensor, targets: Tensor, frame_len: Tensor, target_len: Tensor, options: Options, *, overwrite: bool = False
) -> Occupied:
    """Solves the lattices of logits (B, T, W, V + durations); `overwrite` leaves exp(z - max) in the tokens."""
    tokens = options.tokens(logits.shape[-1])
    frames, labels = sizes(frame_len, target_len, logits.shape)
    scores = score_cells(logits, targets, frames, labels, tokens, overwrite=overwrite)
    durations = score_durations(logits[..., tokens.count :], frames, labels)
    return solve(scores, durations, frame_len, target_len, options, working_dtype(logits.dtype))


def sizes(frame_len: Tensor, target_len: Tensor, shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Frames and targets of each utterance as Python numbers, inside a lattice (B, T, W, ...)."""
    found = lattice_sizes(frame_len, target_len, shape[1], shape[2])
    return [frames for frames, _ in found], [labels for _, labels in found]


def score_durations(logits: Tensor, frame_len: list[int], target_len: list[int]) -> Tensor:
    """Log probabilities (D, B, T, W), float64, of duration logits (B, T, W, D); zero in the padding."""
    scores = logits.new_zeros((logits.shape[-1], *logits.shape[:3]), dtype=torch.float64)
    for b, (frames, labels) in enumerate(zip(frame_len, target_len, strict=True)):
        own = logits[b, :frames, : labels + 1].double().movedim(-1, 0)
        scores[:, b, :frames, : labels + 1] = own - own.logsumexp(dim=0)
    return scores


def solve(
    scores: CellScores, durations: Tensor, frame_len: Tensor, target_len: Tensor, options: Options, dtype: torch.dtype
) -> Occupied:
    """Losses, occupancies and the durations' gradient from the scores of cells, of (D, B, T, W) durations."""
    arcs = Arcs((1,), (0,))
    if not options.plain:
        arcs = Arcs(tuple(value for value in options.durations if value > 0), tuple(options.durations))
    storage, view = skewed_scores(arcs, scores.norm)
    _place(view, scores, durations, arcs, options)
    forbid_impossible_arcs(view, arcs, frame_len, target_len)
    losses = -(1 + options.fastemit_lambda) * sum_paths(storage, arcs, frame_len, target_len)
    blank, label = view[: len(arcs.blanks)], view[len(arcs.blanks) :]
    gradient = _duration_gradient(blank, label, durations, options)
    return Occupied(
        losses.to(dtype),
        scores.norm.to(dtype),
        blank.sum(dim=0).to(dtype),
        label.sum(dim=0).to(dtype),
        gradient.to(dtype).contiguous(),
    )


def _place(view: Tensor, scores: CellScores, durations: Tensor, arcs: Arcs, options: Options) -> None:
    """Writes the score of each arc, (arcs, B, T, W): its token's, less sigma, and its duration's."""
    if options.plain:
        view[0], view[1] = scores.blank[0], scores.label
        return
    blank, label = scores.blank[0] - options.sigma, scores.label - options.sigma
    own = {value: durations[index] for index, value in enumerate(options.durations)}
    for plane, value in zip(view, arcs.blanks, strict=False):
        torch.add(blank, own[value], out=plane)
    torch.add(durations, label, out=view[len(arcs.blanks) :])


def _duration_gradient(blank: Tensor, label: Tensor, durations: Tensor, options: Options) -> Tensor:
    """Gradient (B, T, W, D) of the duration logits from the occupancies of the arcs."""
    if options.plain:
        return torch.zeros_like(durations).movedim(0, -1)
    shares = label.clone()
    positive = [index for index, value in enumerate(options.durations) if value > 0]
    for index, plane in zip(positive, blank, strict=True):
        shares[index] += plane
    return durations.exp().mul_(shares.sum(dim=0)).sub_(shares).movedim(0, -1)


def tdt_backward(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    occupied: Occupied,
    weights: Tensor,
    tokens: Tokens,
    *,
    clamp: float,
    fastemit_lambda: float,
    overwritten: bool,
    out: Tensor,
) -> Tensor:
    """Gradient of the weighted losses, weights (B,), for all logits into `out`, which may be the logits themselves."""
    gradient = TokenGradient(
        tokens, occupied.norm, occupied.blank[None], occupied.label, clamp, fastemit_lambda, overwritten
    )
    write_gradient(logits, targets, frame_len.tolist(), target_len.tolist(), gradient, weights.tolist(), out)
    torch.mul(occupied.durations, weights[:, None, None, None], out=out[..., tokens.count :])
    return out
