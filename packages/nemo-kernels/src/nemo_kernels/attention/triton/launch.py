"""The launches: tensors into the kernels' layout, grids, and the sums of what the backward's programs leave.

In memory tensors are (B, T, H, K), as a layer's linear maps give them, so that nothing is copied for a model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from nemo_kernels.attention.tiled import TiledGradients, empty_heads
from nemo_kernels.attention.triton.backward import embedding_kernel, key_kernel, query_kernel
from nemo_kernels.attention.triton.builds import channels_of, form_of
from nemo_kernels.attention.triton.forward import forward_kernel
from nemo_kernels.builds import architecture_of

_STEPS_OF_DROPOUT = 1 << 24
# programs over distances: the batch is cut in parts until there are so many, for GPUs of 100 to 150 multiprocessors
_PROGRAMS = 256


def launch_forward(
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
    """As `tiled_forward`."""
    like = query
    inputs = _prepared(query, key, value, embedding, content_bias, position_bias, first, last, seed)
    query, _, key, _, embedding, *_ = inputs
    batch, heads, queries, channels = query.shape
    output = empty_heads(query)
    log_sum = torch.empty((batch, heads, queries), dtype=torch.float32, device=query.device)
    form = form_of("forward", query.dtype, channels, dropout_p > 0, architecture_of(query.device))
    forward_kernel[triton.cdiv(queries, form.block), batch * heads](
        *inputs, output, log_sum, *_sizes(key, embedding, queries, shift, scale, dropout_p), **form.launch
    )
    return _as_heads(output, like), log_sum


def launch_backward(
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
) -> TiledGradients:
    """As `tiled_backward`."""
    tensors = (query, key, value, embedding, content_bias, position_bias)
    inputs = _prepared(*tensors, first, last, seed)
    query, _, key, _, embedding, *_ = inputs
    batch, heads, queries, channels = query.shape
    keys, distances = key.size(2), embedding.size(1)
    along_output = (grad_output.float() * output.float()).sum(3)
    inputs = (*inputs, log_sum, along_output, _row_after_row(_with_channels(grad_output.to(query.dtype))))
    sizes = _sizes(key, embedding, queries, shift, scale, dropout_p)
    query_form, key_form, embedding_form = (
        form_of(kernel, query.dtype, channels, dropout_p > 0, architecture_of(query.device))
        for kernel in ("query", "key", "embedding")
    )

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=query.device)

    blocks = triton.cdiv(queries, query_form.block)
    grad_query, biases = (
        empty_heads(query),
        (floats(batch, heads, blocks, channels), floats(batch, heads, blocks, channels)),
    )
    query_kernel[blocks, batch * heads](*inputs, grad_query, *biases, *sizes, **query_form.launch)

    grad_key, grad_value = empty_heads(key), empty_heads(key)
    key_kernel[triton.cdiv(keys, key_form.block), batch * heads](
        *inputs, grad_key, grad_value, *sizes, **key_form.launch
    )

    blocks = triton.cdiv(distances, embedding_form.block)
    parts = min(batch, max(1, _PROGRAMS // (blocks * heads)))
    parts = triton.cdiv(batch, triton.cdiv(batch, parts))
    of_parts = floats(parts, distances, heads, channels)
    embedding_kernel[blocks, heads, parts](*inputs, of_parts, batch, *sizes, **embedding_form.launch)

    width = tensors[0].size(3)
    summed = (of_parts.sum(0).transpose(0, 1), *(bias.sum((0, 2)) for bias in biases))
    return TiledGradients(
        *(
            _as_heads(gradient, tensor)
            for gradient, tensor in zip((grad_query, grad_key, grad_value), tensors, strict=False)
        ),
        *(
            gradient[..., :width].to(tensor.dtype).contiguous()
            for gradient, tensor in zip(summed, tensors[3:], strict=True)
        ),
    )


def _prepared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    first: Tensor,
    last: Tensor,
    seed: Tensor,
) -> tuple[Tensor, ...]:
    """Q + u, Q + v and the other inputs as the kernels read them.

    The kernels multiply what they load as it is, so that it need not pass through registers. The interpreter multiplies
    bfloat16 wrongly, and is given float32.
    """
    dtype = torch.float32 if query.device.type == "cpu" and query.dtype == torch.bfloat16 else query.dtype
    queries = ((query + bias.unsqueeze(1)).to(dtype) for bias in (content_bias, position_bias))
    return (
        *(_row_after_row(_with_channels(tensor)) for tensor in (*queries, key.to(dtype), value.to(dtype))),
        _row_after_row(_with_channels(embedding.to(dtype)).unsqueeze(0)).squeeze(0),
        first.contiguous(),
        last.contiguous(),
        seed,
    )


def _with_channels(x: Tensor) -> Tensor:
    """(..., K) with zeros up to the channels that a kernel reads."""
    return F.pad(x, (0, channels_of(x.size(-1)) - x.size(-1)))


def _as_heads(x: Tensor, like: Tensor) -> Tensor:
    """(B, H, T, channels) as a tensor of the shape and type of `like`."""
    if x.shape == like.shape and x.dtype == like.dtype:
        return x
    return empty_heads(like).copy_(x[..., : like.size(3)])


def _row_after_row(x: Tensor) -> Tensor:
    """(B, H, T, K) in the order (B, T, H, K) in memory; itself where it is so."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _sizes(
    key: Tensor, embedding: Tensor, queries: int, shift: int, scale: float, dropout_p: float
) -> tuple[int | float, ...]:
    """T, S, P, H, shift, scale, threshold."""
    threshold = max(round((1.0 - dropout_p) * _STEPS_OF_DROPOUT), 1)
    return queries, key.size(2), embedding.size(1), key.size(1), shift, scale, threshold
