"""Attention with relative positions as an operation of torch: CPU and GPU, autograd, shapes for compilers.

`nemo_kernels::relative_attention` gives the output (B, H, T, K) and, for its backward, the logarithm of each query's
sum of exponentials (B, H, T).  Both are written by Triton's kernels or by `tiled`, as `dispatch` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_kernels.attention.tiled import empty_heads, tiled_backward, tiled_forward
from nemo_kernels.dispatch import uses_triton


def compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    first: Tensor,
    last: Tensor,
    seed: Tensor,
    shift: int,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sums; see `tiled` for the meaning, `attention` for the shapes. `seed` is () int64."""
    inputs = query, key, value, embedding, content_bias, position_bias, first, last
    if _by_kernels(query):
        from nemo_kernels.attention.triton.launch import launch_forward

        return launch_forward(*inputs, seed, shift, scale, dropout_p)
    return tiled_forward(*inputs, shift, scale, dropout_p, int(seed))


# `compute` itself serves where nothing learns: the first call of any custom_op imports torch's compiler, 160 MB and 3 s
relative_attention = torch.library.custom_op("nemo_kernels::relative_attention", compute, mutates_args=())


@relative_attention.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_heads(query), query.new_empty(query.shape[:3], dtype=_sum_dtype(query))


@torch.library.custom_op("nemo_kernels::relative_attention_backward", mutates_args=())
def relative_attention_backward(
    grad_output: Tensor,
    output: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    first: Tensor,
    last: Tensor,
    seed: Tensor,
    shift: int,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, embedding and the two biases."""
    tensors = (
        grad_output, output, log_sum, query, key, value, embedding, content_bias, position_bias, first, last,
    )  # fmt: skip
    if _by_kernels(query):
        from nemo_kernels.attention.triton.launch import launch_backward

        gradients = launch_backward(*tensors, seed, shift, scale, dropout_p)
    else:
        gradients = tiled_backward(*tensors, shift, scale, dropout_p, int(seed))
    return tuple(gradients)  # type: ignore[return-value]


@relative_attention_backward.register_fake
def _(
    grad_output: Tensor,
    output: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    heads = (empty_heads(tensor) for tensor in (query, key, value))
    others = (tensor.new_empty(tensor.shape) for tensor in (embedding, content_bias, position_bias))
    return (*heads, *others)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, shift, scale, dropout_p = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.numbers = shift, scale, dropout_p


def _backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = relative_attention_backward(grad_output, *ctx.saved_tensors, *ctx.numbers)
    return (*gradients, *(None,) * 6)


relative_attention.register_autograd(_backward, setup_context=_keep_for_backward)


def _by_kernels(query: Tensor) -> bool:
    """Whether Triton's kernels run here, and take heads of this type and width."""
    if not uses_triton(query.device):
        return False
    from nemo_kernels.attention.triton.builds import LARGEST_WIDTH

    return query.size(3) <= LARGEST_WIDTH.get(query.dtype, 0)


def _sum_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32
