"""TDT loss together with the joint network, without a tensor (B, T, U + 1, V + D).

As `rnnt_loss_fused`: the logits are made for a tile of the lattice, reduced to a few numbers per cell, and forgotten;
backward makes them again and goes on to the four inputs.

B batch, T frames, U target steps, H width of the joint, V tokens with blank, D durations
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss.fused import Activation, autocast_inputs, check_joint, check_options
from nemo_kernels.rnnt_loss.joint_tiles import Joint
from nemo_kernels.rnnt_loss.loss import runs_kernels
from nemo_kernels.rnnt_loss.rows import Lattices, precision
from nemo_kernels.tdt_loss import joint_tiles
from nemo_kernels.tdt_loss.analytic import Occupied, Options
from nemo_kernels.tdt_loss.arguments import check_durations, check_not_negative
from nemo_kernels.transducer import (
    Reduction,
    blank_index,
    check_batch,
    check_reduction,
    check_tokens,
    reduce_losses,
)


def tdt_loss_fused(
    encoder_out: Tensor,
    predictor_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    durations: Sequence[int],
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    sigma: float = 0.0,
    omega: float = 0.0,
    reduction: Reduction = "mean",
    activation: Activation = "relu",
    dropout_p: float = 0.0,
    max_rows: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """TDT loss of logits = dropout(activation(encoder_out + predictor_out)) @ weight.T + bias.

    Args:
        encoder_out: (B, T, H), the encoder's output projected to the joint's width.
        predictor_out: (B, U + 1, H), the predictor's, the start symbol's state first.
        weight: (V + D, H) of the output layer, the tokens' rows first.
        bias: (V + D,), or None.
        targets: (B, U) integers.
        logit_lengths: (B,) frames, 1 to T, on any device.
        target_lengths: (B,) target steps, 0 to U, on any device.
        durations: as in `tdt_loss`; so are blank, clamp, fastemit_lambda, sigma, omega, reduction and generator.
        blank: see `tdt_loss`.
        clamp: see `tdt_loss`; it bounds the derivatives by the token logits, before they go on to the inputs.
        fastemit_lambda: see `tdt_loss`.
        sigma: see `tdt_loss`.
        omega: see `tdt_loss`.
        reduction: see `tdt_loss`.
        activation: of the joint: relu, tanh or sigmoid.
        dropout_p: probability of zeroing an element of the activation's result; 0 outside of training. The masks
            follow torch's random state and do not depend on max_rows.
        max_rows: cells of a tile, whose logits (max_rows, V + D) are the largest tensor; chosen for the cache if None.
        generator: see `tdt_loss`; dropout does not use it.

    Under autocast the four inputs are cast to its type. Sums are float32, or float64 for float64.

    Returns:
        Losses (B,) for `none`, otherwise one number; float32, or float64 for float64 inputs.

    Raises:
        ValueError: if an argument breaks its rule; it names the argument, its value and the rule.
    """
    check_reduction(reduction)
    check_not_negative(fastemit_lambda=fastemit_lambda, sigma=sigma, omega=omega)
    durations = check_durations("durations", durations, least=0)
    check_options(activation, dropout_p, max_rows)
    encoder_out, predictor_out, weight, bias = autocast_inputs(encoder_out, predictor_out, weight, bias)
    check_joint(encoder_out, predictor_out, weight, bias)
    n_tokens = len(weight) - len(durations)
    if n_tokens < 1:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} has no rows for tokens beside {len(durations)} durations"
        )
    check_batch(encoder_out.shape[1], predictor_out.shape[1], len(encoder_out), targets, logit_lengths, target_lengths)
    check_tokens(targets, target_lengths, n_tokens)
    targets, frame_len, target_len = (
        each.to(encoder_out.device, torch.int64) for each in (targets, logit_lengths, target_lengths)
    )
    seed = torch.randint(1 << 62, ()) if dropout_p > 0 else torch.zeros((), dtype=torch.int64)
    plain = torch.rand((), generator=generator) < omega if omega > 0 else None
    losses, *_ = _joint_loss(
        encoder_out, predictor_out, weight, bias, targets, frame_len, target_len, seed, plain, durations,
        blank_index(blank, n_tokens), clamp, fastemit_lambda, sigma, activation, dropout_p, max_rows,
    )  # fmt: skip
    return reduce_losses(losses, target_len, reduction)


@torch.library.custom_op("nemo_kernels::tdt_loss_fused", mutates_args=())
def _joint_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    seed: Tensor,
    plain: Tensor | None,
    durations: Sequence[int],
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    sigma: float,
    activation: str,
    dropout_p: float,
    max_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    joint = Joint(encoder, predictor, weight, bias, activation, dropout_p, int(seed))
    lattices = Lattices(targets, frame_len, target_len, blank)
    options = Options(durations, blank, fastemit_lambda, sigma, plain is not None and bool(plain))
    forward = joint_tiles.forward_triton if runs_kernels(encoder) else joint_tiles.forward
    with torch.autocast(encoder.device.type, enabled=False):
        return tuple(forward(joint, lattices, options, max_rows))  # type: ignore[return-value]


@_joint_loss.register_fake
def _(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    seed: Tensor,
    plain: Tensor | None,
    durations: Sequence[int],
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, cells = precision(encoder.dtype), (*encoder.shape[:2], predictor.shape[1])
    planes = [encoder.new_empty(cells, dtype=dtype) for _ in range(3)]
    gradient = encoder.new_empty((*cells, len(durations)), dtype=dtype)
    return encoder.new_empty(cells[:1], dtype=dtype), planes[0], planes[1], planes[2], gradient


@torch.library.custom_op("nemo_kernels::tdt_loss_fused_gradients", mutates_args=())
def _joint_gradients(
    weights: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    seed: Tensor,
    norm: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    duration_gradient: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    activation: str,
    dropout_p: float,
    max_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joint = Joint(encoder, predictor, weight, bias, activation, dropout_p, int(seed))
    occupied = Occupied(weights, norm, occupancy_blank, occupancy_label, duration_gradient)
    gradients = joint_tiles.gradients_triton if runs_kernels(encoder) else joint_tiles.gradients
    lattices = Lattices(targets, frame_len, target_len, blank)
    wanted = joint_tiles.Wanted(weights, clamp, fastemit_lambda)
    with torch.autocast(encoder.device.type, enabled=False):
        found = gradients(joint, lattices, occupied, wanted, max_rows)
    of_encoder, of_predictor, of_weight, of_bias = (gradient.to(encoder.dtype) for gradient in found)
    return of_encoder, of_predictor, of_weight, of_bias


@_joint_gradients.register_fake
def _(
    weights: Tensor, encoder: Tensor, predictor: Tensor, weight: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_encoder, of_predictor, of_weight = (x.new_empty(x.shape) for x in (encoder, predictor, weight))
    return of_encoder, of_predictor, of_weight, weight.new_empty(weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, ctx.blank, ctx.clamp, ctx.fastemit_lambda, _, *ctx.joint = inputs[8:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:8], *output[1:])


def _backward(ctx: Any, weights: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor | None, ...] = (None,) * 4
    if weights is not None:
        settings = (ctx.blank, ctx.clamp, ctx.fastemit_lambda, *ctx.joint)
        gradients = _joint_gradients(weights.contiguous(), *ctx.saved_tensors, *settings)
    of_bias = gradients[3] if ctx.saved_tensors[3] is not None else None
    return (*gradients[:3], of_bias, *(None,) * 13)


_joint_loss.register_autograd(_backward, setup_context=_keep)
