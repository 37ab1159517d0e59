"""The lattice: forward and backward sums over all alignments, and the occupancies of its arcs.

alpha(t, u) = logaddexp(alpha(t-1, u) + lp_blank(t-1, u), alpha(t, u-1) + lp_label(t, u-1)), and beta likewise from the
other corner (Graves 2012, arXiv 1211.3711). The cells of an anti-diagonal are independent: they are the lanes of a
program, and one program sweeps forwards, another backwards. Sums are float64, which a GPU adds quickly; only the
bounded term log(1 + exp(-difference)) is float32. So the error does not grow with the loss, as it does in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nemo_kernels.rnnt_loss.triton.builds import cells_form, wavefront_form
from nemo_kernels.rnnt_loss.triton.planes import lengths32

# finite: the difference of two infinities is not a number. Far from both ends of float32: sums of many stay finite
NEGATIVE = tl.constexpr(-1e30)
IMPOSSIBLE = tl.constexpr(-1e29)


@triton.jit
def _log_add(a, b):
    distance = tl.abs(a - b).to(tl.float32)
    return tl.maximum(a, b) + tl.log(1.0 + tl.exp(-distance)).to(tl.float64)


@triton.jit
def _score(plane, place, wanted):
    return tl.maximum(tl.load(plane + place, mask=wanted, other=NEGATIVE), NEGATIVE).to(tl.float64)


@triton.jit
def wavefront_kernel(
    lp_blank, lp_label, logit_len, target_len, alpha_beta, log_p,
    T, W, stride_b, stride_t, stride_u,
    LANES: tl.constexpr,
):  # fmt: skip
    """alpha (second index of the grid 0) or beta (1) of one utterance, strips of LANES target positions one by one.

    Beta is alpha of the lattice read from its last cell: step (i, j) is cell (frames-1-i, labels-j), and an arc's score
    is then found at its own end of the arc, not at its neighbour's.
    """
    b = tl.program_id(0).to(tl.int64)
    backwards = tl.program_id(1)
    frames = tl.minimum(tl.load(logit_len + b), T)
    labels = tl.minimum(tl.load(target_len + b), W - 1)
    forwards = 1 - backwards
    sign = 1 - 2 * backwards
    lp_blank += b * stride_b
    lp_label += b * stride_b
    sums = alpha_beta + (backwards * tl.num_programs(0) + b) * (T + W - 1) * W
    lane = tl.arange(0, LANES)
    corner = _score(lp_blank, (frames - 1) * stride_t + labels * stride_u, frames > 0)
    start = tl.where(backwards == 1, corner, 0.0)
    last = start
    for first in range(0, labels + 1, LANES):
        j = first + lane
        u = backwards * labels + sign * j
        in_strip = j <= labels
        lanes_used = tl.minimum(LANES, labels + 1 - first)
        previous = tl.full((LANES,), NEGATIVE, tl.float64)
        ready = in_strip & (lane == 0) & (j > 0)
        blank_next = tl.full((LANES,), NEGATIVE, tl.float64)
        label_next = _score(lp_label, backwards * (frames - 1) * stride_t + (u - forwards) * stride_u, ready)
        for step in range(frames + lanes_used - 1):
            blank = blank_next
            label = label_next
            i = step - lane
            t = backwards * (frames - 1) + sign * i
            inside = in_strip & (i >= 0) & (i < frames)
            # the next diagonal's scores do not depend on this one's sums: they are on their way while it is computed
            coming = in_strip & (i + 1 >= 0) & (i + 1 < frames)
            blank_next = _score(lp_blank, (t + sign - forwards) * stride_t + u * stride_u, coming & (i + 1 > 0))
            label_next = _score(lp_label, (t + sign) * stride_t + (u - forwards) * stride_u, coming & (j > 0))
            neighbour = tl.gather(previous, tl.maximum(lane - 1, 0), 0)
            if first > 0:
                edge = inside & (lane == 0)
                before = tl.load(sums + (t + u - sign) * W + u - sign, mask=edge, other=NEGATIVE)
                neighbour = tl.where(edge, before, neighbour)
            current = _log_add(previous + blank, neighbour + label)
            current = tl.where((i == 0) & (j == 0), start, current)
            current = tl.where(inside, tl.maximum(current, NEGATIVE), NEGATIVE)
            tl.store(sums + (t + u) * W + u, current, mask=inside)
            previous = current
        last = tl.sum(tl.where(j == labels, previous, 0.0), 0)
        tl.debug_barrier()  # the next strip reads this one's last column
    if backwards == 0:
        tl.store(log_p + b, tl.where(frames > 0, last + corner, NEGATIVE))


@triton.jit
def occupancies_kernel(
    lp_blank, lp_label, logit_len, target_len, alpha_beta, log_p, occupancy_blank, occupancy_label,
    T, W, stride_b, stride_t, stride_u,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Probability, given the labels, that an alignment takes the blank or the label arc of a cell."""
    b = tl.program_id(1).to(tl.int64)
    frames = tl.minimum(tl.load(logit_len + b), T)
    labels = tl.minimum(tl.load(target_len + b), W - 1)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    total = tl.load(log_p + b + tl.zeros((CELLS,), tl.int32))
    t = cell // W
    u = cell % W
    there = t < T
    inside = there & (t < frames) & (u <= labels) & (total > IMPOSSIBLE)
    labelled = inside & (u < labels)
    goes_on = inside & (t < frames - 1)
    final = inside & (t == frames - 1) & (u == labels)
    place = b * stride_b + t * stride_t + u * stride_u
    alpha = alpha_beta + b * (T + W - 1) * W + (t + u) * W + u
    beta = alpha + tl.num_programs(1).to(tl.int64) * (T + W - 1) * W
    before = tl.load(alpha, mask=inside, other=0.0) - total
    blank = _score(lp_blank, place, inside)
    label = _score(lp_label, place, labelled)
    after_blank = tl.load(beta + W, mask=goes_on, other=NEGATIVE)
    after_label = tl.load(beta + W + 1, mask=labelled, other=NEGATIVE)
    through_blank = tl.exp(tl.minimum(before + blank + after_blank, 0.0).to(tl.float32))
    through_label = tl.exp(tl.minimum(before + label + after_label, 0.0).to(tl.float32))
    cells = b * T * W + cell
    tl.store(occupancy_blank + cells, tl.where(final, 1.0, tl.where(goes_on, through_blank, 0.0)), mask=there)
    tl.store(occupancy_label + cells, tl.where(labelled, through_label, 0.0), mask=there)


def lattice(
    lp_blank: torch.Tensor, lp_label: torch.Tensor, logit_len: torch.Tensor, target_len: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses and occupancies of a batch of lattices.

    Args:
        lp_blank: (B, T, W), any strides.
        lp_label: (B, T, W).
        logit_len: (B,) at least 1.
        target_len: (B,).

    Returns:
        loss (B,), infinite where no alignment has a probability; occupancy_blank and occupancy_label (B, T, W), zero
        outside an utterance's lattice and where the loss is infinite. All in the type of the scores.
    """
    B, T, W = lp_blank.shape
    if lp_label.stride() != lp_blank.stride():
        lp_blank, lp_label = lp_blank.contiguous(), lp_label.contiguous()
    frames, labels = lengths32(logit_len), lengths32(target_len)
    alpha_beta = torch.empty((2, B, T + W - 1, W), dtype=torch.float64, device=lp_blank.device)
    log_p = torch.empty((B,), dtype=torch.float64, device=lp_blank.device)
    occupancy_blank, occupancy_label = (
        torch.empty((B, T, W), dtype=lp_blank.dtype, device=lp_blank.device) for _ in range(2)
    )
    strides = (T, W, *lp_blank.stride())
    wavefront_kernel[(B, 2)](
        lp_blank, lp_label, frames, labels, alpha_beta, log_p, *strides, **wavefront_form(W).launch
    )  # fmt: skip
    form = cells_form()
    occupancies_kernel[(triton.cdiv(T * W, form.constants["CELLS"]), B)](
        lp_blank, lp_label, frames, labels, alpha_beta, log_p, occupancy_blank, occupancy_label, *strides,
        **form.launch,
    )  # fmt: skip
    loss = torch.where(log_p > IMPOSSIBLE.value, -log_p, float("inf"))
    return loss.to(lp_blank.dtype), occupancy_blank, occupancy_label
