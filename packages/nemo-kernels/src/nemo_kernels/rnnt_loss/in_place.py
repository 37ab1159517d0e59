"""The loss whose gradient takes the logits' own storage: for a caller that owns the logits and needs them no more.

No custom operation may return what it was given, so this is an autograd.Function, out of torch.compile's sight.
On a CPU forward leaves exp(z - max) in the logits, and backward only multiplies: one exponential per element in all.
With Triton's kernels, and for half precision, whose exponentials would be too coarse, it is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_kernels import dispatch
from nemo_kernels.rnnt_loss import rows
from nemo_kernels.rnnt_loss.forward_backward import forward_backward
from nemo_kernels.rnnt_loss.rows import Lattices, Planes


class LossInPlace(torch.autograd.Function):
    """Losses (B,) of logits (B, T, W, V); arguments as of the operation `nemo_kernels::rnnt_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        logit_len: Tensor,
        target_len: Tensor,
        blank: int,
        clamp: float,
        fastemit_lambda: float,
    ) -> Tensor:
        owned = logits.detach()
        lattices = Lattices(targets, logit_len, target_len, blank)
        ctx.kernels = owned.dtype != torch.float64 and dispatch.uses_triton(owned.device)
        ctx.kept = not ctx.kernels and owned.dtype == rows.precision(owned.dtype)
        if ctx.kernels:
            from nemo_kernels.rnnt_loss import triton as kernels

            planes = Planes(*kernels.scores(owned, *lattices))
            losses, *occupancies = kernels.lattice(planes.blank, planes.label, logit_len, target_len)
        else:
            planes = rows.scores(owned, lattices, ctx.kept)
            losses, *occupancies = forward_backward(planes.blank, planes.label, logit_len, target_len)
        ctx.blank, ctx.clamp, ctx.fastemit_lambda = blank, clamp, fastemit_lambda
        ctx.owned = owned  # not saved: autograd would find it changed, rightly, and refuse
        ctx.save_for_backward(planes.lse, *occupancies, targets, logit_len, target_len)
        torch.autograd.graph.increment_version(logits)  # any other who saved the logits must learn of it
        return losses * (1.0 + fastemit_lambda)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        owned, ctx.owned = ctx.owned, None
        if owned is None:
            raise RuntimeError("rnnt_loss(inplace=True): its logits already hold the gradient; backward runs once")
        lse, occupancy_blank, occupancy_label, targets, logit_len, target_len = ctx.saved_tensors
        planes = Planes(lse, occupancy_blank, occupancy_label)
        lattices = Lattices(targets, logit_len, target_len, ctx.blank)
        if ctx.kernels:
            from nemo_kernels.rnnt_loss import triton as kernels

            kernels.gradient(
                owned,
                *planes,
                targets,
                logit_len,
                target_len,
                grad_losses,
                ctx.blank,
                ctx.clamp,
                ctx.fastemit_lambda,
                owned,
            )
        else:
            rows.gradient(grad_losses, owned, planes, lattices, ctx.clamp, ctx.fastemit_lambda, owned, ctx.kept)
        return owned, None, None, None, None, None, None
