"""`attention`: checks the arguments and chooses the implementation, the one place where that is done.

B batch, H heads, T queries, S keys, K head width, P distances
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_kernels.attention.full_matrix import full_matrix_attention
from nemo_kernels.attention.key_ranges import KeyRanges
from nemo_kernels.attention.operation import compute, relative_attention
from nemo_kernels.attention.positions import RelativePosition
from nemo_kernels.dispatch import uses_triton

# Keys from which on tiles take no more time than the full matrix. One thread of a CPU, B = 8, H = 4, K = 64, the time
# of tiles over that of the matrix: forward and backward 1.2 at 200 keys, 1.1 at 300, 1.0 at 400 to 500, 0.7 to 0.76 at
# 2,000; forward alone 1.07 at 100, 0.94 at 200, 0.7 at 500. (The backward computes again what the matrix has kept.)
TILED_FROM_KEYS = {"learning": 500, "inference": 160}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    position: RelativePosition | None = None,
    query_len: Tensor | None = None,
    key_start: Tensor | None = None,
    key_len: Tensor | None = None,
    window: tuple[int, int] = (-1, -1),
    chunk: int = 1,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Weighted sums of the values, with memory that grows with T + S and not with T S.

        softmax_j(scale ((q_i + u) . k_j + (q_i + v) . p_(i + S - T - j))) v_j

    Without positions it is scale q_i . k_j, computed by torch's scaled_dot_product_attention.

    Query i stands at key a = i + S - T, in a chunk that begins at c = a - a mod chunk. It sees the keys from c - left
    to before c + chunk + right that are in [key_start, key_len); a query that sees none gives zero.

    Args:
        query: (B, H, T, K), of any floating type and any strides.
        key: (B, H, S, K), S >= T if there are positions or a window: a cache, then the queries' own.
        value: (B, H, S, K).
        position: relative positions, or None.
        query_len: (B,) queries of each item; those beyond give zero. All count where None.
        key_start: (B,) keys of each item that are not to be seen, at the beginning; 0 where None.
        key_len: (B,) keys of each item, with those at the beginning; S where None.
        window: (left, right) keys seen before and after the query or its chunk, -1 for all.
        chunk: queries that share a window.
        scale: factor on the scores; 1 / sqrt(K) where None.
        dropout_p: probability that a weight is dropped, in [0, 1).

    Returns:
        (B, H, T, K), of the type of query.

    Raises:
        ValueError: naming the argument, its value and the rule that it breaks.
    """
    _check_tensors(query, key, value)
    _check_lengths(query.size(0), query_len=query_len, key_start=key_start, key_len=key_len)
    _check_numbers(window, chunk, dropout_p)
    queries, keys = query.size(2), key.size(2)
    if (position is not None or max(window) >= 0) and keys < queries:
        raise ValueError(f"key: {keys} keys are fewer than the {queries} queries, which stand at the last of them")
    if scale is None:
        scale = 1.0 / math.sqrt(query.size(3))
    ranges = KeyRanges.of(
        queries, keys, query.device,
        query_len=query_len, key_start=key_start, key_len=key_len, window=window, chunk=chunk,
    )  # fmt: skip
    if position is None:
        return _without_positions(query, key, value, ranges, scale, dropout_p)
    _check_position(query, keys, position, window, chunk)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, *position[:3]))
    if _full_matrix_is_better(query.device, keys, learns):
        return full_matrix_attention(query, key, value, ranges, position, scale=scale, dropout_p=dropout_p)
    first, last = ranges.for_each_query(query.size(0), queries)
    plain = not learns and type(query) is Tensor and not torch.compiler.is_compiling()
    output, _ = (compute if plain else relative_attention)(
        query, key, value, position.embedding, position.content_bias, position.position_bias,
        first, last, _seed(query.device, dropout_p), position.shift(queries, keys), scale, dropout_p,
    )  # fmt: skip
    return output


def _full_matrix_is_better(device: torch.device, keys: int, learns: bool) -> bool:
    """Whether all scores at once are to be preferred to tiles of them."""
    if torch.onnx.is_in_onnx_export():
        return True
    return keys < TILED_FROM_KEYS["learning" if learns else "inference"] and not uses_triton(device)


def _without_positions(
    query: Tensor, key: Tensor, value: Tensor, ranges: KeyRanges, scale: float, dropout_p: float
) -> Tensor:
    queries, keys = query.size(2), key.size(2)
    seen = ranges.seen(keys)
    nothing = ~seen.any(3, keepdim=True)  # all for them, since torch's result for nothing depends on its version
    context = F.scaled_dot_product_attention(query, key, value, seen | nothing, dropout_p, scale=scale)
    return context.masked_fill(ranges.blind(queries)[:, None, :, None], 0.0)


def _seed(device: torch.device, dropout_p: float) -> Tensor:
    """() int64, from torch's generator of the device, so that torch.manual_seed repeats a run."""
    if dropout_p == 0.0:
        return torch.zeros((), dtype=torch.int64, device=device)
    return torch.randint(1 << 31, (), dtype=torch.int64, device=device)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4 or 0 in tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not (B, H, frames, K) with at least one of each")
        if not tensor.is_floating_point() or tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name}: {tensor.dtype} on {tensor.device} is not of query's floating type and device, "
                f"{query.dtype} on {query.device}"
            )
    if key.shape != value.shape:
        raise ValueError(f"value: shape {tuple(value.shape)} is not that of key, {tuple(key.shape)}")
    batch, heads, _, width = query.shape
    if (*key.shape[:2], key.size(3)) != (batch, heads, width):
        raise ValueError(f"key: shape {tuple(key.shape)} does not fit the query's, {tuple(query.shape)}")


def _check_lengths(batch: int, **lengths: Tensor | None) -> None:
    for name, length in lengths.items():
        if length is None:
            continue
        if tuple(length.shape) != (batch,) or length.is_floating_point() or length.dtype == torch.bool:
            raise ValueError(f"{name}: {length.dtype} of shape {tuple(length.shape)} is not integers of ({batch},)")


def _check_numbers(window: tuple[int, int], chunk: int, dropout_p: float) -> None:
    if len(window) != 2 or min(window) < -1:
        raise ValueError(f"window: {window} is not (left, right), each at least 0, or -1 for all")
    if chunk < 1:
        raise ValueError(f"chunk: {chunk} is less than 1")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: {dropout_p} is not in [0, 1)")


def _check_position(query: Tensor, keys: int, position: RelativePosition, window: tuple[int, int], chunk: int) -> None:
    _, heads, queries, width = query.shape
    embedding, shift = position.embedding, position.shift(queries, keys)
    if embedding.dim() != 3 or (embedding.size(0), embedding.size(2)) != (heads, width):
        raise ValueError(f"position.embedding: shape {tuple(embedding.shape)} is not ({heads}, P, {width})")
    for name in ("content_bias", "position_bias"):
        shape = tuple(getattr(position, name).shape)
        if shape != (heads, width):
            raise ValueError(f"position.{name}: shape {shape} is not ({heads}, {width})")
    past, future = keys - 1, queries - 1  # the greatest distances that occur
    left, right = window
    if left >= 0:
        past = min(past, left + chunk - 1)
    if right >= 0:
        future = min(future, right + chunk - 1)
    furthest = shift + keys - queries
    if past > furthest or future > embedding.size(1) - 1 - furthest:
        raise ValueError(
            f"position.embedding: {embedding.size(1)} rows from distance {furthest} on do not hold "
            f"all from {past} to {-future}"
        )
