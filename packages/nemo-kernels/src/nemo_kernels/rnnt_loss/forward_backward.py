"""The forward-backward algorithm over the transducer lattice, diagonal by diagonal, in float64.

    alpha(t, u) = log( exp(alpha(t-1, u) + blank(t-1, u)) + exp(alpha(t, u-1) + label(t, u-1)) ),     alpha(0, 0) = 0
    beta(t, u)  = log( exp(beta(t+1, u) + blank(t, u))    + exp(beta(t, u+1) + label(t, u)) ),        beta(T, U) = 0
    log P       = alpha(T, U),   the cell behind the last frame, which only the last blank reaches
    occupancy of a move = exp(alpha(before) + score + beta(behind) - log P),  its probability given the targets

(Graves 2012, arXiv 1211.3711.) The occupancies are also minus the loss's derivatives by the scores. float64, for
alpha + beta - log P cancels: in float32 a loss of 2,000 leaves three digits. Whole cells only, so it costs little.
B batch, T frames, U target steps, W = U + 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_kernels.lattice import IMPOSSIBLE, on_diagonals
from nemo_kernels.transducer import lattice_sizes


def forward_backward(
    lp_blank: Tensor, lp_label: Tensor, logit_len: Tensor, target_len: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and occupancies from the log probabilities of both moves out of each cell.

    Args:
        lp_blank: (B, T, W), moving on to the next frame.
        lp_label: (B, T, W), emitting the next target; the last column is never read.
        logit_len: (B,) frames, target_len: (B,) target steps; scores beyond them are never used, not even a NaN.

    Returns:
        Losses (B,), infinite where no alignment is possible, and the occupancies of the blanks and of the labels,
        both (B, T, W), zero outside of the lattice. All in the type of the scores.
    """
    frames, width = lp_blank.shape[1:]
    ends = [(t + u, b, u) for b, (t, u) in enumerate(lattice_sizes(logit_len, target_len, frames, width))]
    blank, label = _skewed_scores(lp_blank, lp_label, logit_len, target_len)
    alpha, beta = _forward(blank, label), _backward(blank, label, ends)
    diagonals, rows, columns = torch.tensor(ends, device=lp_blank.device).unbind(1)
    log_p = alpha[diagonals, rows, columns + 1]
    shift = log_p.masked_fill(log_p == IMPOSSIBLE, 0.0)[:, None]
    blank += alpha[:-1, :, 1:]
    blank += beta[1:, :, :-1]
    occupancy_blank = blank.sub_(shift).exp_()
    label[..., 1:] += alpha[:-1, :, 1:]
    label[..., 1:] += beta[1:, :, 1:]
    occupancy_label = label.sub_(shift).exp_()[..., 1:]
    return (
        (-log_p).to(lp_blank.dtype),
        on_diagonals(occupancy_blank, frames).to(lp_blank.dtype, memory_format=torch.contiguous_format),
        on_diagonals(occupancy_label, frames).to(lp_blank.dtype, memory_format=torch.contiguous_format),
    )


def _skewed_scores(lp_blank: Tensor, lp_label: Tensor, logit_len: Tensor, target_len: Tensor) -> tuple[Tensor, Tensor]:
    """Blank scores (D, B, W) and label scores (D, B, 1 + W) with an impossible column in front, D = T + W - 1.

    Every move out of the lattice is impossible, but for the last blank.
    """
    batch, frames, width = lp_blank.shape
    frame = torch.arange(frames, device=lp_blank.device)[None, :, None]
    step = torch.arange(width, device=lp_blank.device)
    last_frame, last_step = logit_len[:, None, None] - 1, target_len[:, None, None]
    blank = lp_blank.new_full((frames + width - 1, batch, width), IMPOSSIBLE, dtype=torch.float64)
    ok = torch.where(step == last_step, frame <= last_frame, (frame < last_frame) & (step < last_step))
    on_diagonals(blank, frames).copy_(lp_blank.masked_fill(~ok, IMPOSSIBLE))
    label = lp_blank.new_full((frames + width - 1, batch, 1 + width), IMPOSSIBLE, dtype=torch.float64)
    ok = (frame <= last_frame) & (step < last_step)
    on_diagonals(label[..., 1:], frames).copy_(lp_label.masked_fill(~ok, IMPOSSIBLE))
    return blank, label


def _forward(blank: Tensor, label: Tensor) -> Tensor:
    """alpha (D + 1, B, 1 + W): [d, b, 1 + u] is the cell (d - u, u); the column in front is impossible."""
    diagonals, batch, width = blank.shape
    alpha = blank.new_full((diagonals + 1, batch, 1 + width), IMPOSSIBLE)
    alpha[0, :, 1] = 0.0
    staying, moving = torch.empty_like(blank[0]), torch.empty_like(blank[0])
    cells, left = alpha[..., 1:].unbind(), alpha[..., :-1].unbind()
    for d, (blank_d, label_d) in enumerate(zip(blank.unbind(), label[..., :-1].unbind(), strict=True)):
        torch.add(cells[d], blank_d, out=staying)
        torch.add(left[d], label_d, out=moving)
        torch.logaddexp(staying, moving, out=cells[d + 1])
    return alpha


def _backward(blank: Tensor, label: Tensor, ends: list[tuple[int, int, int]]) -> Tensor:
    """beta (D + 1, B, W + 1): [d, b, u] is the cell (d - u, u); the column behind is impossible."""
    diagonals, batch, width = blank.shape
    beta = blank.new_full((diagonals + 1, batch, width + 1), IMPOSSIBLE)
    ending: dict[int, list[tuple[int, int]]] = {}
    for d, b, u in ends:
        ending.setdefault(d, []).append((b, u))
    staying, moving = torch.empty_like(blank[0]), torch.empty_like(blank[0])
    cells, right = beta[..., :-1].unbind(), beta[..., 1:].unbind()
    blanks, labels = blank.unbind(), label[..., 1:].unbind()
    for d in reversed(range(diagonals)):
        for b, u in ending.get(d + 1, ()):
            beta[d + 1, b, u] = 0.0
        torch.add(cells[d + 1], blanks[d], out=staying)
        torch.add(right[d + 1], labels[d], out=moving)
        torch.logaddexp(staying, moving, out=cells[d])
    return beta
