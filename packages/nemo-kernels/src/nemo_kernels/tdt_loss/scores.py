"""The passes over the joint's output on a CPU: log probabilities of the tokens that matter, then the gradient.

Only blanks and the next label take part in the lattice, so of the V token log probabilities of a cell just those are
kept, beside their normaliser L = log sum exp(z). With the occupancies o of the arcs, summed over the durations,
    dloss/dz[k] = exp(z[k] - L) (sum o_blank + f o_label) - [k is a blank] o_blank(k) - [k is the label] f o_label
for f = 1 + lambda of FastEmit. Rows are taken in blocks that stay in the cache, utterance by utterance, so that
padding costs nothing but its zeros. Either the logits stay as they are, and their exponential is taken again for the
gradient, or the caller owns them: then exp(z - max) replaces them and later becomes the gradient, with one exponential
in all.

B batch, T frames, U target steps, W = U + 1 positions, V tokens with blanks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# elements of a block: 1 MB of float32, about what a core's own cache holds
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Tokens:
    """How the last dimension of the joint's output is divided: `count` tokens, those in `blanks` being blanks."""

    count: int
    blanks: tuple[int, ...]


@dataclass(frozen=True)
class CellScores:
    """What the lattice needs of each cell, float64; zero in the padding.

    Attributes:
        norm: (B, T, W), the tokens' normaliser L; where the logits were overwritten, sum exp(z - max).
        blank: (blanks, B, T, W), log probabilities.
        label: (B, T, W), log probability of the next label; undefined at the last position.
    """

    norm: Tensor
    blank: Tensor
    label: Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which scores are computed: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def score_cells(
    logits: Tensor, targets: Tensor, frame_len: list[int], target_len: list[int], tokens: Tokens, *, overwrite: bool
) -> CellScores:
    """Scores of logits (B, T, W, at least V) for targets (B, U); `overwrite` leaves exp(z - max) in the tokens."""
    cells = logits.shape[:3]
    scores = CellScores(
        logits.new_zeros(cells, dtype=torch.float64),
        logits.new_zeros((len(tokens.blanks), *cells), dtype=torch.float64),
        logits.new_zeros(cells, dtype=torch.float64),
    )
    for b, (frames, labels) in enumerate(zip(frame_len, target_len, strict=True)):
        here = (b, slice(frames), slice(labels + 1))
        score_rows(logits[here], targets[b], tokens, scores, here, overwrite=overwrite)
    return scores


def score_rows(
    logits: Tensor,
    target: Tensor,
    tokens: Tokens,
    scores: CellScores,
    here: tuple[int, slice, slice],
    *,
    overwrite: bool,
) -> None:
    """Scores of some frames of one utterance, logits (frames, positions, at least V), into `scores` at `here`."""
    z = logits[..., : tokens.count]
    blanks = [z[..., token].to(torch.float64, copy=True) for token in tokens.blanks]
    label = _pick(z, target)
    greatest, total = (z.new_empty(z.shape[:2], dtype=working_dtype(z.dtype)) for _ in range(2))
    for rows in _blocks(logits):
        block = z[rows]
        highest = block.amax(dim=-1, keepdim=True)
        greatest[rows] = highest[..., 0]
        exponentials = torch.sub(block, highest, out=block) if overwrite else block.to(total.dtype) - highest
        torch.sum(exponentials.exp_(), dim=-1, out=total[rows])
    norm = greatest.double() + total.double().log()
    scores.norm[here] = total.double() if overwrite else norm
    for plane, blank in zip(scores.blank, blanks, strict=True):
        plane[here] = blank - norm
    scores.label[here][:, :-1] = label - norm[:, :-1]


def _pick(z: Tensor, target: Tensor) -> Tensor:
    """The label's entry of each cell but the last position, float64: z (frames, W, V) -> (frames, W - 1)."""
    frames, positions, _ = z.shape
    index = target[: positions - 1, None].expand(frames, positions - 1, 1)
    return z[:, :-1].gather(-1, index)[..., 0].double()


@dataclass(frozen=True)
class TokenGradient:
    """Everything the tokens' gradient needs beside the logits, planes (B, T, W) in the working precision.

    `norm` and `overwritten` are as `score_cells` left them; the blanks' occupancies have a plane each.
    """

    tokens: Tokens
    norm: Tensor
    occupancy_blank: Tensor
    occupancy_label: Tensor
    clamp: float
    fastemit_lambda: float
    overwritten: bool

    def write(self, logits: Tensor, target: Tensor, out: Tensor, here: tuple[int, slice, slice], weight: float) -> None:
        """`weight` times the gradient of logits (frames, positions, at least V) at `here`; `out` may be `logits`."""
        unit = 1.0 if self.clamp > 0 else weight
        blank = self.occupancy_blank[:, *here] * unit
        label = self.occupancy_label[here] * (unit * (1 + self.fastemit_lambda))
        total, norm = (blank.sum(dim=0) + label)[..., None], self.norm[here][..., None]
        index = target[: label.shape[1] - 1, None]
        less = -label[:, :-1, None]
        if self.overwritten:
            total /= norm
        for rows in _blocks(logits):
            z, wanted = logits[rows][..., : self.tokens.count], out[rows][..., : self.tokens.count]
            gradient = wanted if z.dtype == norm.dtype else torch.empty_like(z, dtype=norm.dtype)
            if self.overwritten:
                torch.mul(z, total[rows], out=gradient)
            else:
                # factors stay outside: the exponential of what is below -87 takes twenty times as long as another
                torch.sub(z, norm[rows], out=gradient).exp_().mul_(total[rows])
            for plane, token in zip(blank, self.tokens.blanks, strict=True):
                gradient[..., token] -= plane[rows]
            gradient[:, :-1].scatter_add_(-1, index.expand(len(z), -1, 1), less[rows])
            if self.clamp > 0:
                gradient.clamp_(-self.clamp, self.clamp).mul_(weight)
            if gradient is not wanted:
                wanted.copy_(gradient)


def write_gradient(
    logits: Tensor,
    targets: Tensor,
    frame_len: list[int],
    target_len: list[int],
    gradient: TokenGradient,
    weights: list[float],
    out: Tensor,
) -> None:
    """Gradient of the tokens into out (B, T, W, at least V), weighted by utterance; all of the padding is zero."""
    for b, (frames, labels) in enumerate(zip(frame_len, target_len, strict=True)):
        out[b, frames:] = 0
        out[b, :frames, labels + 1 :] = 0
        here = (b, slice(frames), slice(labels + 1))
        gradient.write(logits[here], targets[b], out[here], here, weights[b])


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Frames of logits (frames, W, V) in blocks of about _BLOCK elements."""
    frames, positions, width = logits.shape
    step = max(1, _BLOCK // (positions * width))
    return (slice(start, min(start + step, frames)) for start in range(0, frames, step))
