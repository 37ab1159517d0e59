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

import torch
from torch import Tensor

from nemo_kernels.transducer import lattice_sizes

CACHED_ELEMENTS = 1 << 17  # of one block: half a megabyte of float32, about a core's second-level cache
FAINTEST = 1e-30  # an occupancy below it adds nothing that float32 could hold, and slow denormal numbers


def precision(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float64 for float64, and float32 for everything smaller."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def target_columns(targets: Tensor, target_len: Tensor, vocabulary: int) -> Tensor:
    """Targets (B, U) as indices (B, W) that may be gathered everywhere: 0 where there is no target."""
    indices = targets.new_zeros((targets.shape[0], targets.shape[1] + 1))
    indices[:, :-1] = targets
    step = torch.arange(indices.shape[1], device=targets.device)
    return indices.masked_fill_(step >= target_len[:, None], 0)


def blocks(frames: int, width: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Splits frames x width cells into blocks of about CACHED_ELEMENTS logits: whole frames, or parts of one."""
    cells = max(1, CACHED_ELEMENTS // vocabulary)
    width_step = min(width, cells)
    frame_step = max(1, cells // width)
    for t in range(0, frames, frame_step):
        for u in range(0, width, width_step):
            yield slice(t, min(t + frame_step, frames)), slice(u, min(u + width_step, width))


def empty_planes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Planes (B, T, W) of zeros for lse, lp_blank and lp_label, in the type of sums."""
    planes = logits.new_zeros((3, *logits.shape[:3]), dtype=precision(logits.dtype))
    return planes[0], planes[1], planes[2]


def scores(
    logits: Tensor, targets: Tensor, logit_len: Tensor, target_len: Tensor, blank: int, keep_exponentials: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Planes lse, lp_blank and lp_label (B, T, W) of logits (B, T, W, V).

    With `keep_exponentials` the logits are overwritten by exp(z - max), and the first plane holds their sum, not lse.
    """
    planes = empty_planes(logits)
    columns = target_columns(targets, target_len, logits.shape[-1])
    for b, (frames, steps) in enumerate(lattice_sizes(logit_len, target_len, *logits.shape[1:3])):
        cells = (b, slice(frames), slice(steps + 1))
        score_cells(logits[cells], columns[b, : steps + 1], blank, *(p[cells] for p in planes), keep_exponentials)
    return planes


def score_cells(
    logits: Tensor, columns: Tensor, blank: int, lse: Tensor, lp_blank: Tensor, lp_label: Tensor, keep: bool = False
) -> None:
    """Fills planes (T, W) from logits (T, W, V) and the targets' indices (W,); see `scores` for `keep`."""
    frames, width, vocabulary = logits.shape
    for t, u in blocks(frames, width, vocabulary):
        block = logits[t, u].to(lse.dtype)
        blank_logit = block[..., blank].clone()
        target_logit = _at(block, columns[u])
        if keep:
            greatest = block.amax(-1, keepdim=True)
            total = block.sub_(greatest).exp_().sum(-1)
            log_total = total.log().add_(greatest[..., 0])
            lse[t, u] = total
        else:
            log_total = torch.logsumexp(block, -1)
            lse[t, u] = log_total
        torch.sub(blank_logit, log_total, out=lp_blank[t, u])
        torch.sub(target_logit, log_total, out=lp_label[t, u])


def gradient(
    logits: Tensor,
    lse: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    grad_losses: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    out: Tensor,
    kept_exponentials: bool = False,
) -> Tensor:
    """Writes the gradient by the logits (B, T, W, V) into `out`, which may be the logits; exactly zero in padding.

    Args:
        grad_losses: (B,), what each loss's gradient is multiplied by, after clamping.
        clamp: largest magnitude of a loss's derivative by a logit; no limit unless positive.
        kept_exponentials: the logits hold exp(z - max), and `lse` their sums: see `scores`.
    """
    columns = target_columns(targets, target_len, logits.shape[-1])
    factors = grad_losses.tolist()
    for b, (frames, steps) in enumerate(lattice_sizes(logit_len, target_len, *logits.shape[1:3])):
        out[b, frames:] = 0
        out[b, :frames, steps + 1 :] = 0
        cells = (b, slice(frames), slice(steps + 1))
        planes = (plane[cells] for plane in (lse, occupancy_blank, occupancy_label))
        gradient_of_cells(
            logits[cells], columns[b, : steps + 1], blank, *planes, factors[b], clamp, fastemit_lambda, out[cells],
            kept_exponentials,
        )  # fmt: skip
    return out


def gradient_of_cells(
    logits: Tensor,
    columns: Tensor,
    blank: int,
    lse: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    factor: float,
    clamp: float,
    fastemit_lambda: float,
    out: Tensor,
    kept: bool = False,
) -> None:
    """The gradient of one utterance's loss times `factor`: logits (T, W, V), planes (T, W), see `gradient`."""
    clamped = clamp > 0
    scale = 1.0 if clamped else factor
    of_blank = occupancy_blank * scale
    of_label = occupancy_label * (scale * (1.0 + fastemit_lambda))
    weight = (of_blank + of_label).abs_()
    weight.masked_fill_(weight < FAINTEST, 0.0) if weight.dtype == torch.float32 else None
    offset = weight.div_(lse) if kept else lse - weight.log_()
    for t, u in blocks(*logits.shape):
        target = out[t, u]
        block = target if out.dtype == lse.dtype else torch.empty_like(target, dtype=lse.dtype)
        if kept:
            torch.mul(logits[t, u], offset[t, u, None], out=block)
        else:
            torch.sub(logits[t, u], offset[t, u, None], out=block).exp_()
        if scale < 0:
            block.neg_()
        block[..., blank] -= of_blank[t, u]
        block.scatter_add_(-1, _indices(columns[u], block), -of_label[t, u, None])
        if clamped:
            block.clamp_(-clamp, clamp).mul_(factor)
        if block is not target:
            target.copy_(block)


def _indices(columns: Tensor, block: Tensor) -> Tensor:
    return columns[None, :, None].expand(block.shape[0], -1, 1)


def _at(block: Tensor, columns: Tensor) -> Tensor:
    """block (T, W, V) at the column of each target step: (T, W)."""
    return block.gather(-1, _indices(columns, block))[..., 0]
