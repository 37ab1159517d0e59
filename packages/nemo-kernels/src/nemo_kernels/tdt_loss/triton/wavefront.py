"""The lattice of tokens and durations: forward and backward sums over all paths, occupancies, duration gradients.

A cell's sum takes from the cells that a blank of duration d or a label of duration d left, d = 0, 1, ... (see
`nemo_kernels.tdt_loss.lattice`). The cells of an anti-diagonal are the lanes of a program, and the last RING diagonals,
RING > every duration, stay in its registers twice, as the lane's own and as its left neighbour's: diagonal n is column
n mod RING, so a step replaces one column and moves nothing. Sums are float64; only the bounded log sum exp of the
differences is float32, so the error does not grow with the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from nemo_kernels.rnnt_loss.triton.planes import lengths32
from nemo_kernels.tdt_loss.triton.builds import cells_form, wavefront_form

# finite: the difference of two infinities is not a number. Far from both ends of float32: sums of many stay finite
NEGATIVE = tl.constexpr(-1e30)
IMPOSSIBLE = tl.constexpr(-1e29)


@triton.jit
def _arc_scores(
    lp_blank, lp_label, lp_duration, slots, i, j, step, frames, labels, backwards, stride_t, stride_u, plane,
    RING: tl.constexpr,
):  # fmt: skip
    """Scores (lanes, RING) of the arcs into cells (i, j) of a diagonal: blanks from the lane, labels from its left.

    Column c is the diagonal of age 1 + (step - 1 - c) mod RING: a blank of duration age, a label of duration age - 1.
    """
    age = 1 + (step - 1 - tl.arange(0, RING) + RING) % RING
    t = tl.where(backwards == 1, frames - i, i)[:, None] + tl.zeros_like(age)[None, :]
    u = tl.where(backwards == 1, labels - j, j)[:, None] + tl.zeros_like(age)[None, :]
    forwards = 1 - backwards

    slot = tl.load(slots + age)[None, :]
    source = t - forwards * age[None, :]
    ends = source + age[None, :]
    wanted = (slot >= 0) & (source >= 0) & (source < frames) & (u >= 0) & (u <= labels)
    wanted &= (ends < frames) | ((ends == frames) & (u == labels))
    place = source * stride_t + u * stride_u
    blank = tl.load(lp_blank + place, mask=wanted, other=NEGATIVE)
    blank += tl.load(lp_duration + slot * plane + place, mask=wanted, other=NEGATIVE)

    slot = tl.load(slots + age - 1)[None, :]
    source = t - forwards * (age - 1)[None, :]
    before = u - forwards
    wanted = (slot >= 0) & (source >= 0) & (source + age[None, :] <= frames) & (before >= 0) & (before < labels)
    place = source * stride_t + before * stride_u
    label = tl.load(lp_label + place, mask=wanted, other=NEGATIVE)
    label += tl.load(lp_duration + slot * plane + place, mask=wanted, other=NEGATIVE)
    return tl.maximum(blank, NEGATIVE), tl.maximum(label, NEGATIVE)


@triton.jit
def wavefront_kernel(
    lp_blank, lp_label, lp_duration, slots, logit_len, target_len, alpha_beta, log_p,
    T, W, stride_b, stride_t, stride_u, plane: tl.int64,
    LANES: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """alpha (second index of the grid 0) or beta (1) of one utterance, strips of LANES target positions one by one.

    Beta is alpha of the lattice read from its end: step (i, j) is cell (frames - i, labels - j), and an arc's score is
    then found at the cell it enters. i = frames forwards, and i = 0 backwards, are the virtual cell behind the last.
    """
    b = tl.program_id(0).to(tl.int64)
    backwards = tl.program_id(1)
    frames = tl.minimum(tl.load(logit_len + b), T)
    labels = tl.minimum(tl.load(target_len + b), W - 1)
    sign = 1 - 2 * backwards
    lp_blank += b * stride_b
    lp_label += b * stride_b
    lp_duration += b * stride_b
    sums = alpha_beta + (backwards * tl.num_programs(0) + b) * (T + W - 1) * W
    lane = tl.arange(0, LANES)
    column = tl.arange(0, RING)[None, :]
    last = tl.full((), NEGATIVE, tl.float64)
    for first in range(0, labels + 1, LANES):
        j = first + lane
        u = backwards * labels + sign * j
        lanes_used = tl.minimum(LANES, labels + 1 - first)
        own = tl.full((LANES, RING), NEGATIVE, tl.float64)
        left = tl.full((LANES, RING), NEGATIVE, tl.float64)
        if first > 0:
            edge = (lane == 0) & (backwards == 0)
            before = tl.load(sums + (u - 1) * W + u - 1, mask=edge, other=NEGATIVE)
            left = tl.where(column == RING - 1, before[:, None], left)
        current = tl.full((LANES,), NEGATIVE, tl.float64)
        blank_next, label_next = _arc_scores(
            lp_blank, lp_label, lp_duration, slots, -lane, j, 0, frames, labels, backwards, stride_t,
            stride_u, plane, RING,
        )  # fmt: skip
        for step in range(frames + lanes_used):
            blank = own + blank_next
            label = left + label_next
            i = step - lane
            t = backwards * frames + sign * i
            # the next diagonal's scores do not depend on this one's sums: they are on their way while it is computed
            blank_next, label_next = _arc_scores(
                lp_blank, lp_label, lp_duration, slots, i + 1, j, step + 1, frames, labels, backwards, stride_t,
                stride_u, plane, RING,
            )  # fmt: skip
            greatest = tl.maximum(tl.max(blank, 1), tl.max(label, 1))
            total = tl.sum(tl.exp((blank - greatest[:, None]).to(tl.float32)), 1)
            total += tl.sum(tl.exp((label - greatest[:, None]).to(tl.float32)), 1)
            current = tl.maximum(greatest + tl.log(total).to(tl.float64), NEGATIVE)
            current = tl.where((i == 0) & (j == 0), 0.0, current)
            current = tl.where((i >= 0) & (i <= frames) & (j <= labels), current, NEGATIVE)
            inside = (j <= labels) & (t >= 0) & (t < frames)
            tl.store(sums + (t + u) * W + u, current, mask=inside)
            neighbour = tl.gather(current, tl.maximum(lane - 1, 0), 0)
            edge = (lane == 0) & (t + sign >= 0) & (t + sign < frames) & (first > 0)
            before = tl.load(sums + (t + u) * W + u - sign, mask=edge, other=NEGATIVE)
            neighbour = tl.where(lane == 0, before, neighbour)
            own = tl.where(column == step % RING, current[:, None], own)
            left = tl.where(column == step % RING, neighbour[:, None], left)
        last = tl.sum(tl.where(j == labels, current, 0.0), 0)
        tl.debug_barrier()  # the next strip reads this one's last column
    if backwards == 0:
        tl.store(log_p + b, last)


@triton.jit
def occupancies_kernel(
    lp_blank, lp_label, lp_duration, durations, logit_len, target_len, alpha_beta, log_p,
    occupancy_blank, occupancy_label, of_durations,
    T, W, D, stride_b, stride_t, stride_u, plane: tl.int64,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Probability, given the labels, that a path takes a blank or the label at a cell; duration gradients."""
    b = tl.program_id(1).to(tl.int64)
    frames = tl.minimum(tl.load(logit_len + b), T)
    labels = tl.minimum(tl.load(target_len + b), W - 1)
    total = tl.load(log_p + b) + tl.zeros((CELLS,), tl.float64)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    t = cell // W
    u = cell % W
    there = t < T
    inside = there & (t < frames) & (u <= labels) & (total > IMPOSSIBLE)
    labelled = inside & (u < labels)
    place = b * stride_b + t * stride_t + u * stride_u
    alpha = alpha_beta + b * (T + W - 1) * W + (t + u) * W + u
    beta = alpha + tl.num_programs(1).to(tl.int64) * (T + W - 1) * W
    before = tl.load(alpha, mask=inside, other=NEGATIVE) - total
    visited = tl.exp(tl.minimum(before + tl.load(beta, mask=inside, other=NEGATIVE), 0.0).to(tl.float32))
    blank = before + tl.maximum(tl.load(lp_blank + place, mask=inside, other=NEGATIVE), NEGATIVE)
    label = before + tl.maximum(tl.load(lp_label + place, mask=labelled, other=NEGATIVE), NEGATIVE)
    blanks = tl.zeros((CELLS,), tl.float32)
    emitted = tl.zeros((CELLS,), tl.float32)
    cells = b * T * W + cell
    for index in range(D):
        duration = tl.load(durations + index)
        score = tl.maximum(tl.load(lp_duration + index * plane + place, mask=inside, other=NEGATIVE), NEGATIVE)
        goes_on = inside & (t + duration < frames)
        ends = inside & (t + duration == frames) & (u == labels)
        after = tl.load(beta + duration * W, mask=goes_on, other=NEGATIVE)
        after = tl.where(ends, 0.0, after)
        taken = (goes_on | ends) & (duration > 0)
        through_blank = tl.where(taken, tl.exp(tl.minimum(blank + score + after, 0.0).to(tl.float32)), 0.0)
        taken = goes_on & labelled
        after = tl.load(beta + (duration + 1) * W + 1, mask=taken, other=NEGATIVE)
        through_label = tl.where(taken, tl.exp(tl.minimum(label + score + after, 0.0).to(tl.float32)), 0.0)
        blanks += through_blank
        emitted += through_label
        share = through_blank + through_label
        tl.store(of_durations + cells * D + index, tl.where(inside, tl.exp(score) * visited - share, 0.0), mask=there)
    tl.store(occupancy_blank + cells, blanks, mask=there)
    tl.store(occupancy_label + cells, emitted, mask=there)


def lattice(
    lp_blank: torch.Tensor,
    lp_label: torch.Tensor,
    lp_duration: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    durations: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, occupancies and duration gradients of a batch of lattices.

    Args:
        lp_blank: (B, T, W) float32, any strides, less sigma.
        lp_label: (B, T, W) float32, of the same strides.
        lp_duration: (D, B, T, W) float32, of the same strides in its planes.
        logit_len: (B,) at least 1.
        target_len: (B,).
        durations: the D durations.

    Returns:
        loss (B,), infinite where there is no path; occupancies of the blanks and of the labels (B, T, W); gradient of
        the duration logits (B, T, W, D). Zero outside an utterance's lattice and where the loss is infinite. float32.
    """
    B, T, W = lp_blank.shape
    device, D = lp_blank.device, len(durations)
    frames, labels = lengths32(logit_len), lengths32(target_len)
    alpha_beta = torch.empty((2, B, T + W - 1, W), dtype=torch.float64, device=device)
    log_p = torch.empty((B,), dtype=torch.float64, device=device)
    blanks, emitted = (torch.empty((B, T, W), dtype=torch.float32, device=device) for _ in range(2))
    of_durations = torch.empty((B, T, W, D), dtype=torch.float32, device=device)
    form = wavefront_form(W, max(durations))
    slots = torch.full((form.constants["RING"] + 1,), -1, dtype=torch.int32)
    slots[list(durations)] = torch.arange(D, dtype=torch.int32)
    strides = (*lp_blank.stride(), lp_duration.stride(0))
    wavefront_kernel[(B, 2)](
        lp_blank, lp_label, lp_duration, slots.to(device), frames, labels, alpha_beta, log_p, T, W, *strides,
        **form.launch,
    )  # fmt: skip
    form = cells_form()
    occupancies_kernel[(triton.cdiv(T * W, form.constants["CELLS"]), B)](
        lp_blank, lp_label, lp_duration, torch.tensor(durations, dtype=torch.int32, device=device), frames, labels,
        alpha_beta, log_p, blanks, emitted, of_durations, T, W, D, *strides, **form.launch,
    )  # fmt: skip
    loss = torch.where(log_p > IMPOSSIBLE.value, -log_p, float("inf"))
    return loss.to(torch.float32), blanks, emitted, of_durations
