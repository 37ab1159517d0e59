"""TDT loss of a joint's output, as an operation of its own: one pass forward, the gradient in closed form.

Xu, Jia, Majumdar, Huang, Watanabe, Ginsburg, "Efficient Sequence Transduction by Jointly Predicting Tokens and
Durations", arXiv 2304.06795. `reference` has the formula in textbook form.

B batch, T frames, U target steps, V tokens with blank, D durations
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss.loss import runs_kernels
from nemo_kernels.tdt_loss.analytic import Occupied, Options, tdt_backward, tdt_forward
from nemo_kernels.tdt_loss.arguments import check_durations, check_logits, check_not_negative
from nemo_kernels.tdt_loss.scores import working_dtype
from nemo_kernels.transducer import Reduction, blank_index, check_reduction, reduce_losses


def tdt_loss(
    logits: Tensor,
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
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Minus the log probability of the targets under a token-and-duration transducer.

    Args:
        logits: (B, T, U+1, V+D) joint output, neither part normalised: V tokens with the blank, then D durations.
        targets: (B, U) token indices, of any integer type; what follows an utterance's own targets is not read.
        logit_lengths: (B,) frames of each utterance, 1 to T, on any device.
        target_lengths: (B,) targets of each utterance, 0 to U, on any device.
        durations: the D distinct durations in frames, from 0 on, in the order of the logits.
        blank: its index among the tokens; a negative one counts from their end.
        clamp: where positive, the gradient of each token logit is kept within plus and minus this, before the
            gradient that comes from the reduction is multiplied in. Durations are not clamped.
        fastemit_lambda: FastEmit's weight (arXiv 2010.11148): multiplies the gradient through each label's token by
            1 + lambda and, as in NVIDIA's toolkit, the returned loss too.
        sigma: subtracted from each token's log probability, which favours longer durations.
        omega: probability with which this call returns the RNNT loss of the tokens alone, without sigma.
        reduction: as of `rnnt_loss`.
        inplace: the caller gives the logits away: they are overwritten, in the end by their gradient, and backward can
            run once. Saves their size in memory and one of two exponentials per element. Takes effect where a gradient
            is wanted, and not under torch.compile.
        generator: draws the number that omega is compared with; torch's default generator where None.

    Returns:
        Losses (B,) for `none`, otherwise one number; float64 for float64 logits and float32 for all others. Where no
        path exists, as when durations of 0 and 2 are to cross an odd number of frames, the loss is infinite and its
        gradient zero.

    Raises:
        ValueError: if an argument breaks its rule; it names the argument, its value and the rule.
    """
    check_reduction(reduction)
    check_not_negative(fastemit_lambda=fastemit_lambda, sigma=sigma, omega=omega)
    durations = check_durations("durations", durations, least=0)
    blank = blank_index(blank, check_logits(logits, len(durations), targets, logit_lengths, target_lengths))
    targets, frame_len, target_len = (
        each.to(logits.device, torch.int64) for each in (targets, logit_lengths, target_lengths)
    )
    plain = torch.rand((), generator=generator) < omega if omega > 0 else None
    arguments = (logits, targets, frame_len, target_len, durations, blank, clamp, fastemit_lambda, sigma, plain)
    if inplace and logits.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        losses = _InPlace.apply(*arguments)
    else:
        losses = _loss(*arguments)[0]
    return reduce_losses(losses, target_len, reduction)


@torch.library.custom_op("nemo_kernels::tdt_loss", mutates_args=())
def _loss(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    durations: Sequence[int],
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    sigma: float,
    plain: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = Options(durations, blank, fastemit_lambda, sigma, plain is not None and bool(plain))
    return tuple(_solve(logits, targets, frame_len, target_len, options))  # type: ignore[return-value]


def _solve(
    logits: Tensor, targets: Tensor, frame_len: Tensor, target_len: Tensor, options: Options, *, overwrite: bool = False
) -> Occupied:
    if runs_kernels(logits):
        from nemo_kernels.tdt_loss import triton as kernels

        return kernels.forward(logits, targets, frame_len, target_len, options)
    return tdt_forward(logits, targets, frame_len, target_len, options, overwrite=overwrite)


@_loss.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    durations: Sequence[int],
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    sigma: float,
    plain: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, cells = working_dtype(logits.dtype), logits.shape[:3]
    planes = [logits.new_empty(cells, dtype=dtype) for _ in range(3)]
    gradient = logits.new_empty((*cells, len(durations)), dtype=dtype)
    return logits.new_empty(cells[:1], dtype=dtype), planes[0], planes[1], planes[2], gradient


@torch.library.custom_op("nemo_kernels::tdt_loss_gradient", mutates_args=())
def _gradient(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    norm: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    duration_gradient: Tensor,
    weights: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
) -> Tensor:
    occupied = Occupied(weights, norm, occupancy_blank, occupancy_label, duration_gradient)
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return _write(logits, targets, frame_len, target_len, occupied, weights, blank, clamp, fastemit_lambda, out=out)


@_gradient.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _write(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    occupied: Occupied,
    weights: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    *,
    out: Tensor,
    overwritten: bool = False,
) -> Tensor:
    if runs_kernels(logits):
        from nemo_kernels.tdt_loss import triton as kernels

        return kernels.gradient(
            logits, targets, frame_len, target_len, occupied, weights, blank, clamp, fastemit_lambda, out=out
        )
    tokens = Options((0,) * occupied.durations.shape[-1], blank, 0.0, 0.0, False).tokens(logits.shape[-1])
    return tdt_backward(
        logits, targets, frame_len, target_len, occupied, weights, tokens,
        clamp=clamp, fastemit_lambda=fastemit_lambda, overwritten=overwritten, out=out,
    )  # fmt: skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, frame_len, target_len, _, ctx.blank, ctx.clamp, ctx.fastemit_lambda, *_ = inputs
    _, *solved = output
    ctx.mark_non_differentiable(*solved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, frame_len, target_len, *solved)


def _backward(ctx: Any, weights: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    gradient = None
    if weights is not None:
        gradient = _gradient(*ctx.saved_tensors, weights.contiguous(), ctx.blank, ctx.clamp, ctx.fastemit_lambda)
    return (gradient, *(None,) * 9)


_loss.register_autograd(_backward, setup_context=_keep)


class _InPlace(torch.autograd.Function):
    """The same in the logits' own memory: an operation of torch.library may not return its argument."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        frame_len: Tensor,
        target_len: Tensor,
        durations: Sequence[int],
        blank: int,
        clamp: float,
        fastemit_lambda: float,
        sigma: float,
        plain: Tensor | None,
    ) -> Tensor:
        options = Options(durations, blank, fastemit_lambda, sigma, plain is not None and bool(plain))
        # halves keep their logits: exp(z - max) in 16 bits would cost the gradient its precision
        ctx.overwritten = logits.dtype == working_dtype(logits.dtype) and not runs_kernels(logits)
        own = logits.detach()
        occupied = _solve(own, targets, frame_len, target_len, options, overwrite=ctx.overwritten)
        ctx.settings = (blank, clamp, fastemit_lambda)
        ctx.save_for_backward(own, targets, frame_len, target_len, *occupied[1:])
        return occupied.losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, frame_len, target_len, *solved = ctx.saved_tensors
        gradient = _write(
            logits, targets, frame_len, target_len, Occupied(weights[0], *solved), weights[0], *ctx.settings,
            out=logits, overwritten=ctx.overwritten,
        )  # fmt: skip
        return (gradient, *(None,) * 9)
