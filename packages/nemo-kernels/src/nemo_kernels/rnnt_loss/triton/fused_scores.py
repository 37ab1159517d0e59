"""Scores straight from encoder and predictor rows: the logits exist in registers alone.

A program owns FRAMES x LABELS cells. For each COLUMNS of the vocabulary it makes their joint states from encoder and
predictor, multiplies them with the output weight on the tensor cores, and folds the products into a log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nemo_kernels.builds import architecture_of
from nemo_kernels.rnnt_loss.triton.activation import activate
from nemo_kernels.rnnt_loss.triton.builds import joint_scores_form
from nemo_kernels.rnnt_loss.triton.planes import lengths32, skewed_plane

NEGATIVE = tl.constexpr(-1e30)


@triton.jit
def joint_scores_kernel(
    encoder, predictor, weight, bias, targets, logit_len, target_len, lse, lp_blank, lp_label,
    T, W, V, width, blank, stride_b, stride_t, stride_u, stride_targets,
    FRAMES: tl.constexpr, LABELS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """lse, log p(blank), log p(label) of a tile of cells. EVEN: CHANNELS divides width. UPCAST: multiply as float32."""
    ROWS: tl.constexpr = FRAMES * LABELS
    row = tl.arange(0, ROWS)
    t = tl.program_id(0) * FRAMES + row // LABELS
    u = tl.program_id(1) * LABELS + row % LABELS
    b = tl.program_id(2).to(tl.int64)
    frames = tl.load(logit_len + b)
    labels = tl.load(target_len + b)
    there = (t < T) & (u < W)
    inside = (t < frames) & (u <= labels)
    labelled = inside & (u < labels)
    label = tl.load(targets + b * stride_targets + u, mask=labelled, other=-1)
    greatest = tl.full((ROWS,), NEGATIVE, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    z_blank = tl.zeros((ROWS,), tl.float32)
    z_label = tl.zeros((ROWS,), tl.float32)
    # a tile beside the lattice multiplies nothing, and neither reads nor needs a vocabulary
    columns = tl.where((tl.program_id(0) * FRAMES < frames) & (tl.program_id(1) * LABELS <= labels), V, 0)
    encoded_row = encoder + (b * T + tl.where(inside, t, 0))[:, None] * width
    predicted_row = predictor + (b * W + tl.where(inside, u, 0))[:, None] * width
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        exists = column < V
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, width, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            if EVEN:
                encoded = tl.load(encoded_row + channel[None, :])
                predicted = tl.load(predicted_row + channel[None, :])
                factor = tl.load(weight + column[None, :] * width + channel[:, None], mask=exists[None, :], other=0.0)
            else:
                has = channel < width
                encoded = tl.load(encoded_row + channel[None, :], mask=has[None, :], other=0.0)
                predicted = tl.load(predicted_row + channel[None, :], mask=has[None, :], other=0.0)
                factor = tl.load(
                    weight + column[None, :] * width + channel[:, None], mask=exists[None, :] & has[:, None], other=0.0
                )
            state = activate(encoded.to(tl.float32) + predicted.to(tl.float32), ACTIVATION).to(factor.dtype)
            if UPCAST:
                state = state.to(tl.float32)
                factor = factor.to(tl.float32)
            z = tl.dot(state, factor, z, input_precision="ieee")
        z += tl.load(bias + column, mask=exists, other=float("-inf")).to(tl.float32)[None, :]
        z_blank += tl.sum(tl.where(column[None, :] == blank, z, 0.0), 1)
        z_label += tl.sum(tl.where(column[None, :] == label[:, None], z, 0.0), 1)
        greater = tl.maximum(greatest, tl.max(z, 1))
        total = total * tl.exp(greatest - greater) + tl.sum(tl.exp(z - greater[:, None]), 1)
        greatest = greater
    normalizer = tl.where(inside, greatest + tl.log(tl.where(inside, total, 1.0)), 0.0)
    place = b * stride_b + t * stride_t + u * stride_u
    tl.store(lse + (b * T + t) * W + u, normalizer, mask=there)
    tl.store(lp_blank + place, tl.where(inside, z_blank - normalizer, 0.0), mask=there)
    tl.store(lp_label + place, tl.where(labelled, z_label - normalizer, 0.0), mask=there)


def joint_scores(
    encoder: torch.Tensor,
    predictor: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    blank: int,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `scores` returns for logits = activation(encoder + predictor) @ weight.T + bias, without making them.

    Args:
        encoder: (B, T, D).
        predictor: (B, W, D).
        weight: (V, D), of the same type; halves use the tensor cores.
        bias: (V,).
        targets: (B, U).
        logit_len: (B,).
        target_len: (B,).
        blank: index of the blank, not negative.
        activation: relu, tanh or sigmoid.
    """
    B, T, width = encoder.shape
    W, V = predictor.shape[1], weight.shape[0]
    lse = torch.empty((B, T, W), dtype=torch.float32, device=encoder.device)
    lp_blank, lp_label = skewed_plane(lse), skewed_plane(lse)
    targets32 = lengths32(targets)
    form = joint_scores_form(
        architecture_of(encoder.device), activation, width, interpreted=encoder.device.type == "cpu"
    )
    grid = (triton.cdiv(T, form.constants["FRAMES"]), triton.cdiv(W, form.constants["LABELS"]), B)
    joint_scores_kernel[grid](
        encoder.contiguous(), predictor.contiguous(), weight.contiguous(), bias.contiguous(), targets32,
        lengths32(logit_len), lengths32(target_len), lse, lp_blank, lp_label,
        T, W, V, width, blank, *lp_blank.stride(), targets32.shape[1], **form.launch,
    )  # fmt: skip
    return lse, lp_blank, lp_label
