"""The tiles of the fused loss on a GPU: Triton's kernels around torch's matrix products.

A tile is some frames of all utterances (or of as many as fit), so that nothing here waits for the GPU to tell a length;
its logits stay in the second-level cache between the product that writes them and the kernel that reads them.
B batch, T frames, U target steps, W = U + 1, D width of the joint, V vocabulary with blank
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss.joint_tiles import Joint
from nemo_kernels.rnnt_loss.rows import Lattices, Planes

CACHE_BYTES = 32 << 20  # of the logits of a tile: an H100's second-level cache has 50 MB
FEWEST_ROWS, MOST_ROWS = 2048, 65536


def tile_rows(joint: Joint) -> int:
    """Rows of a tile where the caller does not say."""
    row_bytes = joint.weight.shape[0] * joint.weight.element_size()
    return min(max(CACHE_BYTES // row_bytes, FEWEST_ROWS), MOST_ROWS)


def scores(joint: Joint, lattices: Lattices, max_rows: int | None) -> Planes:
    """lse and both log probabilities (B, T, W) of the joint's logits."""
    from nemo_kernels.rnnt_loss import triton as kernels

    batch, frames, _ = joint.encoder.shape
    planes = Planes.zeros((batch, frames, joint.predictor.shape[1]), joint.encoder)
    for b, t in tiles(joint, max_rows):
        logits, _ = logits_and_states(joint, lattices, b, t)
        for plane, part in zip(planes, kernels.scores(logits, *of_tile(lattices, b, t)), strict=True):
            plane[b, t] = part
    return planes


def scores_at_once(joint: Joint, lattices: Lattices) -> Planes:
    """The same from one kernel that makes no logits at all, for a joint without dropout."""
    from nemo_kernels.rnnt_loss import triton as kernels

    bias = joint.weight.new_zeros(len(joint.weight)) if joint.bias is None else joint.bias
    return Planes(
        *kernels.joint_scores(joint.encoder, joint.predictor, joint.weight, bias, *lattices, joint.activation)
    )


def gradients(
    grad_losses: Tensor,
    joint: Joint,
    planes: Planes,
    lattices: Lattices,
    clamp: float,
    fastemit_lambda: float,
    max_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by encoder, predictor, weight and bias, in float32; arguments as of `rows.gradient`."""
    from nemo_kernels.rnnt_loss import triton as kernels

    of_encoder, of_predictor, of_weight = (
        x.new_zeros(x.shape, dtype=torch.float32) for x in (joint.encoder, joint.predictor, joint.weight)
    )
    of_bias = of_weight.new_zeros(of_weight.shape[0])
    for b, t in tiles(joint, max_rows):
        logits, hidden = logits_and_states(joint, lattices, b, t)
        lse, blank, label = (plane[b, t].contiguous() for plane in planes)
        targets, frames, steps, index = of_tile(lattices, b, t)
        kernels.gradient(
            logits, lse, blank, label, targets, frames, steps, grad_losses[b], index, clamp, fastemit_lambda, logits
        )
        of_logits = logits.flatten(0, 2)
        of_weight += torch.mm(of_logits.t(), hidden.flatten(0, 2))
        of_bias += of_logits.sum(0, dtype=torch.float32)
        kernels.join_backward(
            torch.mm(of_logits, joint.weight).view(hidden.shape), joint.encoder[b, t], joint.predictor[b],
            lattices.logit_len[b], lattices.target_len[b], joint.activation, of_encoder[b, t], of_predictor[b],
            dropout_p=joint.dropout_p, seed=joint.seed, first_utterance=b.start, first_frame=t.start,
        )  # fmt: skip
    return of_encoder, of_predictor, of_weight, of_bias


def tiles(joint: Joint, max_rows: int | None) -> Iterator[tuple[slice, slice]]:
    """Utterances and frames of each tile."""
    batch, frames, _ = joint.encoder.shape
    width, limit = joint.predictor.shape[1], max_rows or tile_rows(joint)
    utterances = min(batch, max(1, limit // width))
    count = max(1, limit // (utterances * width))
    for b in range(0, batch, utterances):
        for t in range(0, frames, count):
            yield slice(b, min(b + utterances, batch)), slice(t, min(t + count, frames))


def of_tile(lattices: Lattices, b: slice, t: slice) -> Lattices:
    """The lattices of a tile: the utterances' frames that lie in it, which may be none."""
    frames = (lattices.logit_len[b] - t.start).clamp(0, t.stop - t.start)
    return Lattices(lattices.targets[b], frames, lattices.target_len[b], lattices.blank)


def logits_and_states(joint: Joint, lattices: Lattices, b: slice, t: slice) -> tuple[Tensor, Tensor]:
    """Logits (B, T, W, V) and hidden states (B, T, W, D)."""
    from nemo_kernels.rnnt_loss import triton as kernels

    hidden = kernels.join(
        joint.encoder[b, t], joint.predictor[b], lattices.logit_len[b], lattices.target_len[b], joint.activation,
        dropout_p=joint.dropout_p, seed=joint.seed, first_utterance=b.start, first_frame=t.start,
    )  # fmt: skip
    states, columns = hidden.flatten(0, 2), joint.weight.t()
    logits = torch.mm(states, columns) if joint.bias is None else torch.addmm(joint.bias, states, columns)
    return logits.view(*hidden.shape[:3], -1), hidden
