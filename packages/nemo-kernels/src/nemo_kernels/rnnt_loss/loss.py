"""The transducer (RNN-T) loss from joint logits: minus the log probability of the targets, over all alignments.

B batch, T frames, U target steps, V vocabulary with blank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_kernels import dispatch
from nemo_kernels.rnnt_loss import rows
from nemo_kernels.rnnt_loss.forward_backward import forward_backward
from nemo_kernels.rnnt_loss.in_place import LossInPlace
from nemo_kernels.rnnt_loss.rows import Lattices, Planes
from nemo_kernels.transducer import (
    Reduction,
    blank_index,
    check_batch,
    check_reduction,
    check_tokens,
    reduce_losses,
)


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
    inplace: bool = False,
) -> Tensor:
    """RNN-T loss of joint logits, which need no log-softmax.

    Args:
        logits: (B, T, U + 1, V), any floating type and strides; sums are float32, or float64 for float64.
        targets: (B, U) integers; what lies beyond a target length may be anything.
        logit_lengths: (B,) frames, 1 to T, on any device.
        target_lengths: (B,) target steps, 0 to U, on any device.
        blank: index of the blank, negative ones from the end.
        clamp: largest magnitude of a loss's derivative by a logit, applied before the gradient that comes from
            above (as NVIDIA does); no limit unless positive.
        fastemit_lambda: FastEmit's weight (arXiv 2010.11148): label moves count 1 + lambda times in the gradient;
            as in NVIDIA's toolkit the loss is multiplied by 1 + lambda, and its gradient is not.
        reduction: `none`, `sum`, `mean` or `mean_batch` (over B), `mean_volume` (per target token of the batch) or
            `mean_target` (mean over B of the loss per target token).
        inplace: the caller gives the logits away: they are overwritten, in the end by their gradient, and backward
            can run once. Takes effect where a gradient is wanted and the logits are contiguous, not under
            torch.compile.

    Returns:
        A scalar, or the losses (B,); float32, or float64 for float64 logits. A loss is infinite, and its gradient
        zero, where no alignment has a probability.

    Raises:
        ValueError: if shapes, types, lengths, targets, blank or reduction are not as above.
    """
    check_reduction(reduction)
    blank = _check(logits, targets, logit_lengths, target_lengths, blank)
    targets, logit_len, target_len = (
        values.to(logits.device, torch.int64) for values in (targets, logit_lengths, target_lengths)
    )
    if inplace and _may_overwrite(logits):
        losses = LossInPlace.apply(logits, targets, logit_len, target_len, blank, clamp, fastemit_lambda)
    else:
        losses = losses_and_occupancies(logits, targets, logit_len, target_len, blank, clamp, fastemit_lambda)[0]
    return reduce_losses(losses, target_len, reduction)


def _check(logits: Tensor, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, blank: int) -> int:
    if logits.dim() != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(f"logits: {logits.dtype} of shape {tuple(logits.shape)} must be floating (B, T, U + 1, V)")
    batch, frames, width, vocabulary = logits.shape
    check_batch(frames, width, batch, targets, logit_lengths, target_lengths)
    check_tokens(targets, target_lengths, vocabulary)
    return blank_index(blank, vocabulary)


def _may_overwrite(logits: Tensor) -> bool:
    wanted = logits.requires_grad and torch.is_grad_enabled()
    return wanted and logits.is_contiguous() and not torch.compiler.is_compiling()


def runs_kernels(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve a tensor: they compute in float32, so float64 stays with torch's operations."""
    return tensor.dtype != torch.float64 and dispatch.uses_triton(tensor.device)


@torch.library.custom_op("nemo_kernels::rnnt_loss", mutates_args=())
def losses_and_occupancies(
    logits: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (B,), and what their gradient needs: the planes lse, occupancy of blanks, occupancy of labels."""
    if runs_kernels(logits):
        from nemo_kernels.rnnt_loss import triton as kernels

        lse, lp_blank, lp_label = kernels.scores(logits.contiguous(), targets, logit_len, target_len, blank)
        losses, occupancy_blank, occupancy_label = kernels.lattice(lp_blank, lp_label, logit_len, target_len)
    else:
        lse, lp_blank, lp_label = rows.scores(logits, Lattices(targets, logit_len, target_len, blank))
        losses, occupancy_blank, occupancy_label = forward_backward(lp_blank, lp_label, logit_len, target_len)
    return losses * (1.0 + fastemit_lambda), lse, occupancy_blank, occupancy_label


@losses_and_occupancies.register_fake
def _(
    logits: Tensor, targets: Tensor, logit_len: Tensor, target_len: Tensor, blank: int, clamp: float, fastemit: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = rows.precision(logits.dtype)
    planes = [logits.new_empty(logits.shape[:3], dtype=dtype) for _ in range(3)]
    return logits.new_empty(logits.shape[:1], dtype=dtype), planes[0], planes[1], planes[2]


@torch.library.custom_op("nemo_kernels::rnnt_loss_gradient", mutates_args=())
def logits_gradient(
    grad_losses: Tensor,
    logits: Tensor,
    lse: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
) -> Tensor:
    """The gradient by the logits, a new tensor: the graph may be kept and gone through again."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if runs_kernels(logits):
        from nemo_kernels.rnnt_loss import triton as kernels

        return kernels.gradient(
            logits.contiguous(), lse, occupancy_blank, occupancy_label, targets, logit_len, target_len, grad_losses,
            blank, clamp, fastemit_lambda, out,
        )  # fmt: skip
    planes = Planes(lse, occupancy_blank, occupancy_label)
    lattices = Lattices(targets, logit_len, target_len, blank)
    return rows.gradient(grad_losses, logits, planes, lattices, clamp, fastemit_lambda, out)


@logits_gradient.register_fake
def _(grad_losses: Tensor, logits: Tensor, *_: object) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, logit_len, target_len, ctx.blank, ctx.clamp, ctx.fastemit_lambda = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, *output[1:], targets, logit_len, target_len)


def _backward(ctx: Any, grad_losses: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    grad = None
    if grad_losses is not None:
        grad = logits_gradient(grad_losses, *ctx.saved_tensors, ctx.blank, ctx.clamp, ctx.fastemit_lambda)
    return grad, None, None, None, None, None, None


losses_and_occupancies.register_autograd(_backward, setup_context=_setup_context)
