"""y = linear(dropout(silu(h))) that keeps h for its backward, and neither silu's result nor a mask of floats.

torch keeps h for silu, a factor per element for dropout, and the product for the weight's gradient: three tensors of
h's size.  Here it is h and, with dropout, a byte per element; the product is computed again, which takes a CPU a
twentieth of the linear map's time at D = 256, and an eighth at D = 96: what is not written to memory makes up for it.

    dW = dy^T a,  db = sum dy,  dh = silu'(h) * m * (dy W),  with a = silu(h) * m
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.conformer.byte_dropout import draw_kept, is_traced, rescaling


def activated_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, dropout_p: float = 0.0) -> Tensor:
    """Swish, dropout and a linear map.

    Where nothing learns, under torch.compile and the exporters, and for tensors of other classes (quantised,
    distributed, fake) these are torch's own operations.

    Args:
        hidden: (..., H), of any floating type; autocast casts the rest to it.
        weight: (D, H).
        bias: (D,) or None.
        dropout_p: probability that an element is dropped, in [0, 1].

    Returns:
        (..., D).
    """
    if not _is_eager_learning(hidden, weight, bias):
        return F.linear(F.dropout(F.silu(hidden), dropout_p, training=dropout_p > 0), weight, bias)
    kept = draw_kept(hidden, dropout_p) if dropout_p > 0 else None
    bias = None if bias is None else bias.to(hidden.dtype)
    return _ActivatedLinear.apply(hidden, weight.to(hidden.dtype), bias, kept, rescaling(dropout_p))


class _ActivatedLinear(torch.autograd.Function):
    """Arguments as of `activated_linear`, but `kept` (..., H), 1 or 0, and the factor on what is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor | None, scale: float) -> Tensor:
        return F.linear(_activated(hidden, kept, scale), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        hidden, weight, _, kept, ctx.scale = inputs
        ctx.save_for_backward(hidden, weight, kept)
        ctx.save_for_forward(hidden, weight, kept)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, kept = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        rows = _rows(grad_output)
        if ctx.needs_input_grad[1]:
            grad_weight = rows.mT.matmul(_rows(_activated(hidden, kept, ctx.scale)))
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        if ctx.needs_input_grad[0]:
            grad_activated = _rescaled(grad_output.matmul(weight), kept, ctx.scale)
            grad_hidden = _through_silu(grad_activated, hidden)
        return grad_hidden, grad_weight, grad_bias, None, None

    @staticmethod
    def jvp(ctx: Any, hidden_t: Tensor, weight_t: Tensor, bias_t: Tensor | None, *_: Any) -> Tensor:
        hidden, weight, kept = ctx.saved_tensors
        activated_t = _rescaled(_through_silu(hidden_t, hidden), kept, ctx.scale)
        return F.linear(activated_t, weight, bias_t) + F.linear(_activated(hidden, kept, ctx.scale), weight_t)


def _activated(hidden: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    return _rescaled(F.silu(hidden), kept, scale)


def _through_silu(gradient: Tensor, hidden: Tensor) -> Tensor:
    """gradient * silu'(hidden)."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(gradient, hidden)
    gate = hidden.sigmoid()  # torch's operation has no derivative, and that of a derivative is asked for
    return gradient * gate * (1 + hidden * (1 - gate))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.size(-1))


def _rescaled(x: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    """What is kept of x times the scale, in place of x."""
    return x if kept is None else x.mul_(kept).mul_(scale)


def _is_eager_learning(hidden: Tensor, *parameters: Tensor | None) -> bool:
    """Whether gradients are asked for by eager torch, of tensors that the linear map would take as they are."""
    tensors = [hidden, *(parameter for parameter in parameters if parameter is not None)]
    if is_traced() or not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return False
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return False
    device = hidden.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return hidden.dtype == torch.get_autocast_dtype(device)
    return all(tensor.dtype == hidden.dtype for tensor in tensors)
