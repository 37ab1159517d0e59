"""The transducer loss together with the joint network, without a tensor (B, T, U + 1, V).

The logits are made for a tile of the lattice, reduced to three numbers per cell, and forgotten; the lattice is solved;
backward makes each tile's logits again, turns them into their gradient in place, and goes on to the four inputs.
One more matrix product than a joint whose logits are kept, and memory for the cells instead of for the vocabulary.
B batch, T frames, U target steps, D width of the joint, V vocabulary with blank
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss import joint_tiles, joint_tiles_triton
from nemo_kernels.rnnt_loss.forward_backward import forward_backward
from nemo_kernels.rnnt_loss.joint_tiles import Joint
from nemo_kernels.rnnt_loss.loss import runs_kernels
from nemo_kernels.rnnt_loss.rows import Lattices, Planes, precision
from nemo_kernels.transducer import (
    Reduction,
    blank_index,
    check_batch,
    check_reduction,
    check_tokens,
    reduce_losses,
)

Activation = Literal["relu", "tanh", "sigmoid"]


def rnnt_loss_fused(
    encoder_out: Tensor,
    predictor_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
    activation: Activation = "relu",
    dropout_p: float = 0.0,
    max_rows: int | None = None,
) -> Tensor:
    """RNN-T loss of logits = dropout(activation(encoder_out + predictor_out)) @ weight.T + bias.

    Args:
        encoder_out: (B, T, D), the encoder's output projected to the joint's width.
        predictor_out: (B, U + 1, D), the predictor's, the start symbol's state first.
        weight: (V, D) of the output layer.
        bias: (V,), or None.
        targets: (B, U) integers.
        logit_lengths: (B,) frames, 1 to T, on any device.
        target_lengths: (B,) target steps, 0 to U, on any device.
        blank: as in `rnnt_loss`; so are clamp, fastemit_lambda and reduction.
        clamp: see `rnnt_loss`; it bounds the derivatives by the logits, before they go on to the inputs.
        fastemit_lambda: see `rnnt_loss`.
        reduction: see `rnnt_loss`.
        activation: of the joint.
        dropout_p: probability of zeroing an element of the activation's result; 0 outside of training. The masks
            follow torch's random state and do not depend on max_rows.
        max_rows: cells of a tile, whose logits (max_rows, V) are the largest tensor; chosen for the cache if None.

    Under autocast the four inputs are cast to its type. Sums are float32, or float64 for float64.

    Returns:
        A scalar, or the losses (B,); float32, or float64 for float64 inputs.

    Raises:
        ValueError: if shapes, types, lengths, targets or options are not as above.
    """
    check_reduction(reduction)
    check_options(activation, dropout_p, max_rows)
    encoder_out, predictor_out, weight, bias = autocast_inputs(encoder_out, predictor_out, weight, bias)
    check_joint(encoder_out, predictor_out, weight, bias)
    check_batch(encoder_out.shape[1], predictor_out.shape[1], len(encoder_out), targets, logit_lengths, target_lengths)
    check_tokens(targets, target_lengths, weight.shape[0])
    device = encoder_out.device
    targets, logit_len, target_len = (x.to(device, torch.int64) for x in (targets, logit_lengths, target_lengths))
    seed = torch.randint(1 << 62, ()) if dropout_p > 0 else torch.zeros((), dtype=torch.int64)
    inputs = (encoder_out, predictor_out, weight, bias)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    losses, *_ = joint_losses(
        *inputs, targets, logit_len, target_len, seed, blank_index(blank, len(weight)),
        clamp, fastemit_lambda, activation, dropout_p, max_rows, differentiable,
    )  # fmt: skip
    return reduce_losses(losses, target_len, reduction)


def autocast_inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's type where it is on, but for float64."""
    device = tensors[0].device.type if tensors[0] is not None else "cpu"
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def check_options(activation: str, dropout_p: float, max_rows: int | None) -> None:
    if activation not in get_args(Activation):
        raise ValueError(f"activation: {activation!r} must be one of {', '.join(get_args(Activation))}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p: {dropout_p} must lie between 0 and 1")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows: {max_rows} must be positive")


def check_joint(encoder_out: Tensor, predictor_out: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if encoder_out.dim() != 3 or not encoder_out.is_floating_point() or 0 in encoder_out.shape:
        raise ValueError(
            f"encoder_out: {encoder_out.dtype} of shape {tuple(encoder_out.shape)} must be floating (B, T, D)"
        )
    batch, _, depth = encoder_out.shape
    if predictor_out.dim() != 3 or predictor_out.shape[::2] != (batch, depth) or 0 in predictor_out.shape:
        raise ValueError(
            f"predictor_out: shape {tuple(predictor_out.shape)} must be (B, U + 1, D) with B {batch} and D {depth}"
        )
    if weight.dim() != 2 or weight.shape[1] != depth or 0 in weight.shape:
        raise ValueError(f"weight: shape {tuple(weight.shape)} must be (V, D) with D {depth}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: shape {tuple(bias.shape)} must be (V,) with V {weight.shape[0]}")
    for name, tensor in (("predictor_out", predictor_out), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != encoder_out.dtype:
            raise ValueError(f"{name}: {tensor.dtype} must be encoder_out's type, {encoder_out.dtype}")


@torch.library.custom_op("nemo_kernels::rnnt_loss_fused", mutates_args=())
def joint_losses(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    seed: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    activation: str,
    dropout_p: float,
    max_rows: int | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (B,), and what their gradients need: the planes lse, occupancy of blanks, occupancy of labels."""
    joint = Joint(encoder, predictor, weight, bias, activation, dropout_p, int(seed))
    lattices = Lattices(targets, logit_len, target_len, blank)
    with torch.autocast(encoder.device.type, enabled=False):
        if runs_kernels(encoder):
            from nemo_kernels.rnnt_loss import triton as kernels

            if differentiable or dropout_p > 0 or encoder.dtype == torch.float32:
                lse, lp_blank, lp_label = joint_tiles_triton.scores(joint, lattices, max_rows)
            else:  # backward, which makes the logits by torch's products, will not ask for the very same ones
                lse, lp_blank, lp_label = joint_tiles_triton.scores_at_once(joint, lattices)
            losses, *occupancies = kernels.lattice(lp_blank, lp_label, logit_len, target_len)
        else:
            lse, lp_blank, lp_label = joint_tiles.scores(joint, lattices, max_rows)
            losses, *occupancies = forward_backward(lp_blank, lp_label, logit_len, target_len)
    return losses * (1.0 + fastemit_lambda), lse, occupancies[0], occupancies[1]


@joint_losses.register_fake
def _(encoder: Tensor, predictor: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = precision(encoder.dtype)
    shape = (*encoder.shape[:2], predictor.shape[1])
    planes = [encoder.new_empty(shape, dtype=dtype) for _ in range(3)]
    return encoder.new_empty(encoder.shape[:1], dtype=dtype), planes[0], planes[1], planes[2]


@torch.library.custom_op("nemo_kernels::rnnt_loss_fused_gradients", mutates_args=())
def joint_gradients(
    grad_losses: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    seed: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    activation: str,
    dropout_p: float,
    max_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by encoder, predictor, weight and bias."""
    joint = Joint(encoder, predictor, weight, bias, activation, dropout_p, int(seed))
    planes, lattices = Planes(lse, occupancy_blank, occupancy_label), Lattices(targets, logit_len, target_len, blank)
    tiles = joint_tiles_triton if runs_kernels(encoder) else joint_tiles
    with torch.autocast(encoder.device.type, enabled=False):
        gradients = tiles.gradients(grad_losses, joint, planes, lattices, clamp, fastemit_lambda, max_rows)
    of_encoder, of_predictor, of_weight, of_bias = (gradient.to(encoder.dtype) for gradient in gradients)
    return of_encoder, of_predictor, of_weight, of_bias


@joint_gradients.register_fake
def _(
    grad_losses: Tensor, encoder: Tensor, predictor: Tensor, weight: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        encoder.new_empty(encoder.shape),
        predictor.new_empty(predictor.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *joint, targets, logit_len, target_len, seed = inputs[:8]
    ctx.options = inputs[8:14]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*joint, *output[1:], targets, logit_len, target_len, seed)


def _backward(ctx: Any, grad_losses: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor | None, ...] = (None,) * 4
    if grad_losses is not None:
        gradients = joint_gradients(grad_losses, *ctx.saved_tensors, *ctx.options)
    of_bias = gradients[3] if ctx.saved_tensors[3] is not None else None
    return (*gradients[:3], of_bias, *(None,) * 11)


joint_losses.register_autograd(_backward, setup_context=_setup_context)
