"""The fused loss's tiles: the joint's logits of a few frames, reduced to scores, later turned into gradients.

The tiles and the joint network are the RNNT loss's; what differs is the tile's own work, tokens and durations.
B batch, T frames, W = U + 1 positions, D width of the joint, V tokens with blank
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss import joint_tiles_triton as gpu_tiles
from nemo_kernels.rnnt_loss.joint_tiles import Joint, Tiles, times_slope
from nemo_kernels.rnnt_loss.rows import Lattices, precision
from nemo_kernels.tdt_loss.analytic import Occupied, Options, score_durations, solve
from nemo_kernels.tdt_loss.scores import CellScores, TokenGradient, score_rows


class Wanted(NamedTuple):
    """Which gradient: of the losses times `weights` (B,), the tokens' clamped before, with FastEmit's weight."""

    weights: Tensor
    clamp: float
    fastemit_lambda: float


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # by encoder, predictor, weight and bias


def forward(joint: Joint, lattices: Lattices, options: Options, max_rows: int | None) -> Occupied:
    """Solves the lattices of a joint network, in torch's operations."""
    joint = joint.to(precision(joint.encoder.dtype))
    tokens = options.tokens(len(joint.weight))
    batch, frames, _ = joint.encoder.shape
    planes = joint.encoder.new_zeros(
        (3 + len(options.durations), batch, frames, joint.predictor.shape[1]), dtype=torch.float64
    )
    scores, durations = CellScores(planes[0], planes[1:2], planes[2]), planes[3:]
    tiles = Tiles(joint, max_rows)
    for b, t, w in tiles.places(lattices.sizes(frames)):
        logits, *_ = tiles.logits(b, t, w)
        here = (b, t, slice(w))
        score_rows(logits, lattices.targets[b], tokens, scores, here, overwrite=False)
        rows = score_durations(logits[None, ..., tokens.count :], [t.stop - t.start], [w - 1])
        durations[:, *here] = rows[:, 0]
    return solve(scores, durations, lattices.logit_len, lattices.target_len, options, joint.encoder.dtype)


def gradients(joint: Joint, lattices: Lattices, occupied: Occupied, wanted: Wanted, max_rows: int | None) -> Gradients:
    """Gradients by the four inputs in the type of sums, in torch's operations."""
    joint = joint.to(occupied.norm.dtype)
    tokens = Options((0,) * occupied.durations.shape[-1], lattices.blank, 0.0, 0.0, False).tokens(len(joint.weight))
    of_tokens = TokenGradient(
        tokens, occupied.norm, occupied.blank[None], occupied.label, wanted.clamp, wanted.fastemit_lambda, False
    )
    of_encoder, of_predictor, of_weight = (x.new_zeros(x.shape) for x in (joint.encoder, joint.predictor, joint.weight))
    of_bias, factors = joint.weight.new_zeros(len(joint.weight)), wanted.weights.tolist()
    tiles = Tiles(joint, max_rows)
    for b, t, w in tiles.places(lattices.sizes(joint.encoder.shape[1])):
        logits, hidden, mask, dropped = tiles.logits(b, t, w)
        here = (b, t, slice(w))
        of_tokens.write(logits, lattices.targets[b], logits, here, factors[b])
        torch.mul(occupied.durations[here], factors[b], out=logits[..., tokens.count :])
        of_logits = logits.flatten(0, 1)
        of_weight.addmm_(of_logits.t(), dropped)
        of_bias += of_logits.sum(0)
        of_hidden = torch.mm(of_logits, joint.weight, out=tiles.take("gradient", *hidden.shape))
        if mask is not None:
            of_hidden *= mask
        times_slope(joint.activation, of_hidden, hidden)
        cells = of_hidden.view(-1, w, hidden.shape[1])
        torch.sum(cells, 1, out=of_encoder[b, t])
        of_predictor[b, :w] += cells.sum(0)
    return of_encoder, of_predictor, of_weight, of_bias


def forward_triton(joint: Joint, lattices: Lattices, options: Options, max_rows: int | None) -> Occupied:
    """The same with Triton's kernels around torch's matrix products."""
    from nemo_kernels.tdt_loss import triton as kernels

    batch, frames, _ = joint.encoder.shape
    sigma = 0.0 if options.plain else options.sigma
    shape = (3 + len(options.durations), batch, frames, joint.predictor.shape[1])
    planes = torch.zeros(shape, dtype=torch.float32, device=joint.encoder.device)
    for b, t in gpu_tiles.tiles(joint, max_rows):
        logits, _ = gpu_tiles.logits_and_states(joint, lattices, b, t)
        targets, frame_len, target_len, blank = gpu_tiles.of_tile(lattices, b, t)
        *three, durations = kernels.scores(
            logits, targets, frame_len, target_len, len(options.durations), blank, sigma
        )  # fmt: skip
        for plane, part in zip(planes, (*three, *durations), strict=True):
            plane[b, t] = part
    return kernels.solve(
        (planes[0], planes[1], planes[2], planes[3:]), lattices.logit_len, lattices.target_len, options
    )  # fmt: skip


def gradients_triton(
    joint: Joint, lattices: Lattices, occupied: Occupied, wanted: Wanted, max_rows: int | None
) -> Gradients:
    """The same in float32 with Triton's kernels around torch's matrix products."""
    from nemo_kernels.rnnt_loss.triton import join_backward
    from nemo_kernels.tdt_loss import triton as kernels

    of_encoder, of_predictor, of_weight = (
        x.new_zeros(x.shape, dtype=torch.float32) for x in (joint.encoder, joint.predictor, joint.weight)
    )
    of_bias = of_weight.new_zeros(len(of_weight))
    for b, t in gpu_tiles.tiles(joint, max_rows):
        logits, hidden = gpu_tiles.logits_and_states(joint, lattices, b, t)
        targets, frame_len, target_len, blank = gpu_tiles.of_tile(lattices, b, t)
        norm, of_blank, of_label, of_durations = (plane[b, t].contiguous() for plane in occupied[1:])
        kernels.write_gradient(
            logits, targets, frame_len, target_len, norm, of_blank, of_label, of_durations, wanted.weights[b], blank,
            wanted.clamp, wanted.fastemit_lambda, logits,
        )  # fmt: skip
        of_logits = logits.flatten(0, 2)
        of_weight += torch.mm(of_logits.t(), hidden.flatten(0, 2))
        of_bias += of_logits.sum(0, dtype=torch.float32)
        join_backward(
            torch.mm(of_logits, joint.weight).view(hidden.shape), joint.encoder[b, t], joint.predictor[b],
            lattices.logit_len[b], lattices.target_len[b], joint.activation, of_encoder[b, t], of_predictor[b],
            dropout_p=joint.dropout_p, seed=joint.seed, first_utterance=b.start, first_frame=t.start,
        )  # fmt: skip
    return of_encoder, of_predictor, of_weight, of_bias
