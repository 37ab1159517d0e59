"""The two passes over the joint's output: scores of tokens and durations (online softmax), and the gradient of both.

A row is a lattice cell (b, t, u), numbered (b*T + t)*W + u: V token logits, then D duration logits. Both kernels stream
tiles of ROWS cells by COLUMNS logits. Cells outside an utterance's own lattice are not read: scores and gradients there
are exactly zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nemo_kernels.rnnt_loss.triton.planes import lengths32, skewed_plane
from nemo_kernels.tdt_loss.triton.builds import rows_form

# finite: the difference of two infinities is not a number
NEGATIVE = tl.constexpr(-1e30)


@triton.jit
def scores_kernel(
    logits, targets, logit_len, target_len, norm, lp_blank, lp_label, lp_duration,
    cells: tl.int64, T, W, V, D, blank, stride_b, stride_t, stride_u, plane: tl.int64, stride_targets, sigma,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DURATIONS: tl.constexpr,
):  # fmt: skip
    """Normaliser of the tokens, log p(blank) and log p(label) less sigma, log p of each duration, of ROWS cells."""
    cell = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = cell < cells
    u = cell % W
    t = (cell // W) % T
    b = cell // (W * T)
    target_count = tl.load(target_len + b, mask=there, other=0)
    inside = there & (t < tl.load(logit_len + b, mask=there, other=0)) & (u <= target_count)
    labelled = inside & (u < target_count)
    row = logits + cell * (V + D)
    greatest = tl.full((ROWS,), NEGATIVE, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, V, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        wanted = inside[:, None] & (column < V)[None, :]
        z = tl.load(row[:, None] + column[None, :], mask=wanted, other=float("-inf")).to(tl.float32)
        greater = tl.maximum(greatest, tl.max(z, 1))
        total = total * tl.exp(greatest - greater) + tl.sum(tl.exp(z - greater[:, None]), 1)
        greatest = greater
    normaliser = tl.where(inside, greatest + tl.log(tl.where(inside, total, 1.0)), 0.0)
    label = tl.load(targets + b * stride_targets + u, mask=labelled, other=0)
    z_blank = tl.load(row + blank, mask=inside, other=0.0).to(tl.float32)
    z_label = tl.load(row + label, mask=labelled, other=0.0).to(tl.float32)
    place = b * stride_b + t * stride_t + u * stride_u
    tl.store(norm + cell, normaliser, mask=there)
    tl.store(lp_blank + place, tl.where(inside, z_blank - normaliser - sigma, 0.0), mask=there)
    tl.store(lp_label + place, tl.where(labelled, z_label - normaliser - sigma, 0.0), mask=there)

    index = tl.arange(0, DURATIONS)
    wanted = inside[:, None] & (index < D)[None, :]
    z = tl.load(row[:, None] + V + index[None, :], mask=wanted, other=NEGATIVE).to(tl.float32)
    z = z - tl.max(z, 1)[:, None]
    z = z - tl.log(tl.sum(tl.where((index < D)[None, :], tl.exp(z), 0.0), 1))[:, None]
    tl.store(
        lp_duration + place[:, None] + index[None, :] * plane,
        tl.where(wanted, z, 0.0),
        mask=there[:, None] & (index < D)[None, :],
    )


@triton.jit
def gradient_kernel(
    logits, out, targets, logit_len, target_len, norm, occupancy_blank, occupancy_label, of_durations, grad_losses,
    cells: tl.int64, T, W, V, D, blank, stride_targets, emphasis, clamp,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Tokens: p (ob + ol') - [blank] ob - [label] ol' with ol' = emphasis*ol, clamped; durations as they were given.

    Both times grad_losses. `out` may be `logits`.
    """
    cell = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    there = cell < cells
    u = cell % W
    t = (cell // W) % T
    b = cell // (W * T)
    target_count = tl.load(target_len + b, mask=there, other=0)
    inside = there & (t < tl.load(logit_len + b, mask=there, other=0)) & (u <= target_count)
    blank_share = tl.load(occupancy_blank + cell, mask=inside, other=0.0)
    label_share = tl.load(occupancy_label + cell, mask=inside, other=0.0) * emphasis
    normaliser = tl.load(norm + cell, mask=inside, other=0.0)
    label = tl.load(targets + b * stride_targets + u, mask=inside & (u < target_count), other=-1)
    scale = tl.load(grad_losses + b, mask=inside, other=0.0)
    row = cell * (V + D)
    place = row[:, None] + column
    is_token = column < V
    z = tl.load(logits + place, mask=inside[:, None] & is_token, other=float("-inf")).to(tl.float32)
    grad = tl.exp(z - normaliser[:, None]) * (blank_share + label_share)[:, None]
    grad -= tl.where(column == blank, blank_share[:, None], 0.0)
    grad -= tl.where(column == label[:, None], label_share[:, None], 0.0)
    if clamp > 0:
        grad = tl.minimum(tl.maximum(grad, -clamp), clamp)
    is_duration = (column >= V) & (column < V + D)
    timing = tl.load(of_durations + cell[:, None] * D + column - V, mask=inside[:, None] & is_duration, other=0.0)
    grad = tl.where(inside[:, None], tl.where(is_token, grad, timing) * scale[:, None], 0.0)
    tl.store(out + place, grad.to(out.dtype.element_ty), mask=there[:, None] & (column < V + D))


def scores(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    n_durations: int,
    blank: int,
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the lattice needs of every cell.

    Args:
        logits: (B, T, W, V + D), contiguous; W is U + 1.
        targets: (B, U) labels.
        logit_len: (B,) frames of each utterance.
        target_len: (B,) labels of each utterance.
        n_durations: D.
        blank: index of the blank, not negative.
        sigma: taken from the log probabilities of the blank and of the label.

    Returns:
        The tokens' normaliser (B, T, W); log p(blank) and log p(next label) (B, T, W), log p of the durations
        (D, B, T, W), these three skewed, anti-diagonal by anti-diagonal. All float32, zero outside the lattice.
    """
    B, T, W, width = logits.shape
    V = width - n_durations
    norm = torch.empty((B, T, W), dtype=torch.float32, device=logits.device)
    lp_blank, lp_label = skewed_plane(norm), skewed_plane(norm)
    lp_duration = skewed_plane(norm[:1].expand(n_durations * B, T, W)).unflatten(0, (n_durations, B))
    targets32 = lengths32(targets)
    form = rows_form(V)
    scores_kernel[(triton.cdiv(B * T * W, form.constants["ROWS"]),)](
        logits, targets32, lengths32(logit_len), lengths32(target_len), norm, lp_blank, lp_label, lp_duration,
        B * T * W, T, W, V, n_durations, blank, *lp_blank.stride(), lp_duration.stride(0), targets32.shape[1], sigma,
        DURATIONS=triton.next_power_of_2(n_durations), **form.launch,
    )  # fmt: skip
    return norm, lp_blank, lp_label, lp_duration


def write_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    norm: torch.Tensor,
    occupancy_blank: torch.Tensor,
    occupancy_label: torch.Tensor,
    of_durations: torch.Tensor,
    grad_losses: torch.Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the losses with respect to the logits, written to `out`.

    Args:
        logits: (B, T, W, V + D), contiguous.
        targets: (B, U).
        logit_len: (B,).
        target_len: (B,).
        norm: (B, T, W) from `scores`.
        occupancy_blank: (B, T, W) from `lattice`.
        occupancy_label: (B, T, W) from `lattice`.
        of_durations: (B, T, W, D) from `lattice`.
        grad_losses: (B,) gradient with respect to each utterance's loss; multiplied after the clamp.
        blank: index of the blank, not negative.
        clamp: bound of a token's gradient; none if not positive.
        fastemit_lambda: weight added to the labels' share.
        out: (B, T, W, V + D), contiguous, of the logits' type; may be the logits themselves.
    """
    B, T, W, width = logits.shape
    D = of_durations.shape[-1]
    targets32 = lengths32(targets)
    form = rows_form(width)
    grid = (triton.cdiv(B * T * W, form.constants["ROWS"]), triton.cdiv(width, form.constants["COLUMNS"]))
    gradient_kernel[grid](
        logits, out, targets32, lengths32(logit_len), lengths32(target_len), norm, occupancy_blank, occupancy_label,
        of_durations, grad_losses.to(torch.float32).contiguous(), B * T * W, T, W, width - D, D, blank,
        targets32.shape[1], 1.0 + fastemit_lambda, float(clamp), **form.launch,
    )  # fmt: skip
    return out
