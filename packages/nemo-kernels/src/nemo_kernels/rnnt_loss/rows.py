"""The work that touches every logit, in torch's operations: scores out of logits, and the gradient by the logits.

    lse = log sum_k exp(z_k),   lp_blank = z_blank - lse,   lp_label = z_target - lse                     (per cell)
    d loss / d z_k = p_k (o_blank + (1 + f) o_label) - [k = blank] o_blank - [k = target] (1 + f) o_label

with p = softmax(z), the occupancies o of the lattice, and FastEmit's f (arXiv 2010.11148). It is computed as
exp(z_k - lse + log(o_blank + (1 + f) o_label)): one subtraction and one exponential for each element.

Everything goes in blocks that stay in a core's cache, and only over the cells inside the lengths.
B batch, T frames, U target steps, W = U + 1, V vocabulary with blank
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_kernels.transducer import lattice_sizes

CACHED_ELEMENTS = 1 << 18  # of one block: a megabyte of float32, about a core's share of its caches
FAINTEST = 1e-30  # an occupancy below it adds nothing that float32 could hold, and slow denormal numbers


class Lattices(NamedTuple):
    """What the lattices of a batch look like: targets (B, U), frames (B,), target steps (B,), the blank's index."""

    targets: Tensor
    logit_len: Tensor
    target_len: Tensor
    blank: int

    def columns(self) -> Tensor:
        """Targets as indices (B, W) that may be gathered everywhere: 0 where there is no target."""
        batch, steps = self.targets.shape
        indices = self.targets.new_zeros((batch, steps + 1))
        indices[:, :-1] = self.targets
        step = torch.arange(steps + 1, device=self.targets.device)
        return indices.masked_fill_(step >= self.target_len[:, None], 0)

    def sizes(self, frames: int) -> list[tuple[int, int]]:
        """Frames and target steps of each utterance, as numbers."""
        return lattice_sizes(self.logit_len, self.target_len, frames, self.targets.shape[1] + 1)


class Planes(NamedTuple):
    """Three numbers for each cell: log sum exp, and the log probabilities or the occupancies of both moves."""

    lse: Tensor
    blank: Tensor
    label: Tensor

    def at(self, *cells: Any) -> Planes:
        """Views of some of the cells."""
        return Planes(self.lse[cells], self.blank[cells], self.label[cells])

    @classmethod
    def zeros(cls, shape: tuple[int, ...], like: Tensor) -> Planes:
        """Planes of zeros in the type of sums."""
        lse, blank, label = (torch.zeros(shape, dtype=precision(like.dtype), device=like.device) for _ in range(3))
        return cls(lse, blank, label)


class Wanted(NamedTuple):
    """Which gradient: of losses times `factor`, their derivatives by the logits clamped before, FastEmit's weight."""

    factor: float
    clamp: float
    fastemit_lambda: float


def precision(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float64 for float64, and float32 for everything smaller."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scores(logits: Tensor, lattices: Lattices, keep_exponentials: bool = False) -> Planes:
    """lse and both log probabilities (B, T, W) of logits (B, T, W, V).

    With `keep_exponentials` the logits are overwritten by exp(z - max), and the first plane holds their sum, not lse.
    """
    planes = Planes.zeros(tuple(logits.shape[:3]), logits)
    columns = lattices.columns()
    for b, (frames, steps) in enumerate(lattices.sizes(logits.shape[1])):
        cells = (b, slice(frames), slice(steps + 1))
        score_cells(logits[cells], columns[b, : steps + 1], lattices.blank, planes.at(*cells), keep_exponentials)
    return planes


def score_cells(logits: Tensor, columns: Tensor, blank: int, planes: Planes, keep: bool = False) -> None:
    """Fills planes (T, W) from logits (T, W, V) and the targets' indices (W,); see `scores` for `keep`."""
    planes.blank.copy_(logits[..., blank])
    planes.label.copy_(logits.gather(-1, _indices(columns, logits))[..., 0])
    for t, u in _blocks(*logits.shape):
        block = logits[t, u].to(planes.lse.dtype)
        if keep:
            greatest = block.amax(-1, keepdim=True)
            torch.sum(block.sub_(greatest).exp_(), -1, out=planes.lse[t, u])
            planes.blank[t, u] -= greatest[..., 0]
            planes.label[t, u] -= greatest[..., 0]
        else:
            torch.logsumexp(block, -1, out=planes.lse[t, u])
    log_total = planes.lse.log() if keep else planes.lse
    planes.blank.sub_(log_total)
    planes.label.sub_(log_total)


def gradient(
    grad_losses: Tensor,
    logits: Tensor,
    planes: Planes,
    lattices: Lattices,
    clamp: float,
    fastemit_lambda: float,
    out: Tensor,
    kept_exponentials: bool = False,
) -> Tensor:
    """Writes the gradient by the logits (B, T, W, V) into `out`, which may be the logits; exactly zero in padding.

    Args:
        grad_losses: (B,), what each loss's gradient is multiplied by, after clamping.
        logits: (B, T, W, V), or exp(z - max) with `kept_exponentials`: see `scores`.
        planes: the first from `scores`, and the occupancies of both moves.
        lattices: as given to `scores`.
        clamp: largest magnitude of a loss's derivative by a logit; no limit unless positive.
        fastemit_lambda: FastEmit's weight.
        out: the gradient's storage.
        kept_exponentials: whether `scores` kept them.
    """
    columns, factors = lattices.columns(), grad_losses.tolist()
    for b, (frames, steps) in enumerate(lattices.sizes(logits.shape[1])):
        out[b, frames:] = 0
        out[b, :frames, steps + 1 :] = 0
        cells = (b, slice(frames), slice(steps + 1))
        wanted = Wanted(factors[b], clamp, fastemit_lambda)
        gradient_of_cells(
            logits[cells], columns[b, : steps + 1], lattices.blank, planes.at(*cells), wanted, out[cells],
            kept_exponentials,
        )  # fmt: skip
    return out


def gradient_of_cells(
    logits: Tensor, columns: Tensor, blank: int, planes: Planes, wanted: Wanted, out: Tensor, kept: bool = False
) -> None:
    """The gradient by some of one utterance's logits (T, W, V), given their planes (T, W); see `gradient`."""
    lse, clamped = planes.lse, wanted.clamp > 0
    scale = 1.0 if clamped else wanted.factor
    of_blank = planes.blank * scale
    of_label = planes.label * (scale * (1.0 + wanted.fastemit_lambda))
    offset = _offset(lse, (of_blank + of_label).abs_(), kept)
    at_once = not clamped and out.dtype == lse.dtype
    for t, u in _blocks(*logits.shape):
        block = out[t, u] if out.dtype == lse.dtype else torch.empty_like(out[t, u], dtype=lse.dtype)
        if kept:
            torch.mul(logits[t, u], offset[t, u, None], out=block)
        else:
            torch.sub(logits[t, u], offset[t, u, None], out=block).exp_()
        if scale < 0:
            block.neg_()
        if not at_once:
            _subtract_moves(block, columns[u], blank, of_blank[t, u], of_label[t, u])
        if clamped:
            block.clamp_(-wanted.clamp, wanted.clamp).mul_(wanted.factor)
        if out.dtype != lse.dtype:
            out[t, u] = block
    if at_once:
        _subtract_moves(out, columns, blank, of_blank, of_label)


def _blocks(frames: int, width: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Splits frames x width cells into blocks of about CACHED_ELEMENTS logits: whole frames, or parts of one."""
    cells = max(1, CACHED_ELEMENTS // vocabulary)
    width_step = min(width, cells)
    frame_step = max(1, cells // width)
    for t in range(0, frames, frame_step):
        for u in range(0, width, width_step):
            yield slice(t, min(t + frame_step, frames)), slice(u, min(u + width_step, width))


def _offset(lse: Tensor, weight: Tensor, kept: bool) -> Tensor:
    """What makes a cell's logits p * weight: subtracted before the exponential, or multiplied with a kept one.

    `weight` is used up.
    """
    if weight.dtype == torch.float32:
        weight.masked_fill_(weight < FAINTEST, 0.0)
    return weight.div_(lse) if kept else lse - weight.log_()


def _subtract_moves(block: Tensor, columns: Tensor, blank: int, of_blank: Tensor, of_label: Tensor) -> None:
    block[..., blank] -= of_blank
    block.scatter_add_(-1, _indices(columns, block), of_label.neg()[..., None])


def _indices(columns: Tensor, block: Tensor) -> Tensor:
    return columns[None, :, None].expand(block.shape[0], -1, 1)
