"""The two passes over the logits: scores of blank and label (online softmax), and the gradient, in place if wished.

Both stream tiles of ROWS cells by COLUMNS of the vocabulary. A row is a cell (b, t, u), numbered (b*T + t)*W + u. Cells
outside an utterance's own lattice are not read: their scores and gradients are exactly zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nemo_kernels.rnnt_loss.triton.builds import rows_form
from nemo_kernels.rnnt_loss.triton.planes import lengths32, skewed_plane

# finite: the difference of two infinities is not a number
NEGATIVE = tl.constexpr(-1e30)


@triton.jit
def scores_kernel(
    logits, targets, logit_len, target_len, lse, lp_blank, lp_label,
    cells, T, W, V, blank, stride_b, stride_t, stride_u, stride_targets,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """lse, log p(blank) and log p(label) of ROWS cells, one pass over their logits."""
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = cell < cells
    u = cell % W
    t = (cell // W) % T
    b = (cell // (W * T)).to(tl.int64)
    target_count = tl.load(target_len + b, mask=there, other=0)
    inside = there & (t < tl.load(logit_len + b, mask=there, other=0)) & (u <= target_count)
    labelled = inside & (u < target_count)
    row = logits + cell.to(tl.int64) * V
    greatest = tl.full((ROWS,), NEGATIVE, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, V, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        wanted = inside[:, None] & (column < V)[None, :]
        z = tl.load(row[:, None] + column[None, :], mask=wanted, other=float("-inf")).to(tl.float32)
        greater = tl.maximum(greatest, tl.max(z, 1))
        total = total * tl.exp(greatest - greater) + tl.sum(tl.exp(z - greater[:, None]), 1)
        greatest = greater
    normalizer = tl.where(inside, greatest + tl.log(tl.where(inside, total, 1.0)), 0.0)
    label = tl.load(targets + b * stride_targets + u, mask=labelled, other=0)
    z_blank = tl.load(row + blank, mask=inside, other=0.0).to(tl.float32)
    # a label that is none makes its targets impossible, rather than reading elsewhere
    z_label = tl.load(row + label, mask=labelled & (label >= 0) & (label < V), other=float("-inf")).to(tl.float32)
    place = b * stride_b + t * stride_t + u * stride_u
    tl.store(lse + cell, normalizer, mask=there)
    tl.store(lp_blank + place, tl.where(inside, z_blank - normalizer, 0.0), mask=there)
    tl.store(lp_label + place, tl.where(labelled, z_label - normalizer, 0.0), mask=there)


@triton.jit
def gradient_kernel(
    logits, out, targets, logit_len, target_len, lse, occupancy_blank, occupancy_label, grad_losses,
    cells, T, W, V, blank, stride_targets, emphasis, clamp,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """p*(gb + gl') - [blank]*gb - [label]*gl' with gl' = emphasis*gl, clamped, times grad_losses; out may be logits."""
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = cell < cells
    u = cell % W
    t = (cell // W) % T
    b = (cell // (W * T)).to(tl.int64)
    target_count = tl.load(target_len + b, mask=there, other=0)
    inside = there & (t < tl.load(logit_len + b, mask=there, other=0)) & (u <= target_count)
    blank_share = tl.load(occupancy_blank + cell, mask=inside, other=0.0)
    label_share = tl.load(occupancy_label + cell, mask=inside, other=0.0) * emphasis
    normalizer = tl.load(lse + cell, mask=inside, other=0.0)
    label = tl.load(targets + b * stride_targets + u, mask=inside & (u < target_count), other=-1)
    scale = tl.load(grad_losses + b, mask=inside, other=0.0)
    place = cell[:, None].to(tl.int64) * V + column[None, :]
    exists = column[None, :] < V
    z = tl.load(logits + place, mask=inside[:, None] & exists, other=float("-inf")).to(tl.float32)
    grad = tl.exp(z - normalizer[:, None]) * (blank_share + label_share)[:, None]
    grad -= tl.where(column[None, :] == blank, blank_share[:, None], 0.0)
    grad -= tl.where(column[None, :] == label[:, None], label_share[:, None], 0.0)
    if clamp > 0:
        grad = tl.minimum(tl.maximum(grad, -clamp), clamp)
    grad = tl.where(inside[:, None], grad * scale[:, None], 0.0)
    tl.store(out + place, grad.to(out.dtype.element_ty), mask=there[:, None] & exists)


def scores(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    blank: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalizers and log-probabilities of blank and of the next label, in every cell of the lattice.

    Args:
        logits: (B, T, W, V), contiguous; W is U + 1.
        targets: (B, U) labels.
        logit_len: (B,) frames of each utterance.
        target_len: (B,) labels of each utterance.
        blank: index of the blank, not negative.

    Returns:
        lse, lp_blank, lp_label, each (B, T, W) float32; zero outside the lattice, and lp_label after the last label.
        The two score planes are strided views, anti-diagonal by anti-diagonal, as `lattice` reads them fastest.
    """
    B, T, W, V = logits.shape
    lse = torch.empty((B, T, W), dtype=torch.float32, device=logits.device)
    lp_blank, lp_label = skewed_plane(lse), skewed_plane(lse)
    targets32 = lengths32(targets)
    form = rows_form(logits.dtype, V)
    scores_kernel[(triton.cdiv(B * T * W, form.constants["ROWS"]),)](
        logits, targets32, lengths32(logit_len), lengths32(target_len), lse, lp_blank, lp_label,
        B * T * W, T, W, V, blank, *lp_blank.stride(), targets32.shape[1], **form.launch,
    )  # fmt: skip
    return lse, lp_blank, lp_label


def gradient(
    logits: torch.Tensor,
    lse: torch.Tensor,
    occupancy_blank: torch.Tensor,
    occupancy_label: torch.Tensor,
    targets: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    grad_losses: torch.Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the losses with respect to the logits, written to `out`.

    Args:
        logits: (B, T, W, V), contiguous.
        lse: (B, T, W) from `scores`.
        occupancy_blank: (B, T, W) from `lattice`.
        occupancy_label: (B, T, W) from `lattice`.
        targets: (B, U).
        logit_len: (B,).
        target_len: (B,).
        grad_losses: (B,) gradient with respect to each utterance's loss; multiplied after the clamp.
        blank: index of the blank, not negative.
        clamp: bound of a gradient element's magnitude; none if not positive.
        fastemit_lambda: weight added to the labels' share.
        out: (B, T, W, V), contiguous, of the logits' type; may be the logits themselves.
    """
    B, T, W, V = logits.shape
    targets32 = lengths32(targets)
    planes = (plane.contiguous() for plane in (lse, occupancy_blank, occupancy_label))
    form = rows_form(logits.dtype, V)
    grid = (triton.cdiv(B * T * W, form.constants["ROWS"]), triton.cdiv(V, form.constants["COLUMNS"]))
    gradient_kernel[grid](
        logits, out, targets32, lengths32(logit_len), lengths32(target_len), *planes,
        grad_losses.to(torch.float32).contiguous(), B * T * W, T, W, V, blank, targets32.shape[1],
        1.0 + fastemit_lambda, float(clamp), **form.launch,
    )  # fmt: skip
    return out
