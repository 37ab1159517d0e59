"""The forward kernel: a block of queries against one block of keys after the other, with an online softmax.

The block of scores by distance that is far for one block of keys is near for the next: one product with the embedding
for each block of keys, beside the two of plain attention.

T queries, S keys, P rows of the embedding, H heads; tensors are (B, T, H, CHANNELS) in memory, row after row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nemo_kernels.attention.triton.tile import (
    LN_2,
    LOG2_E,
    NOTHING,
    by_key,
    is_kept,
    load_rows,
    position_block,
    store_rows,
)


@triton.jit
def forward_kernel(
    content_query, position_query, key, value, embedding, first, last, seed, output, log_sum,
    T, S, P, H, shift, scale, threshold,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and, for each query, the logarithm of its sum of exponentials (infinite where nothing is seen)."""
    start = tl.program_id(0) * BLOCK
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    stride = H * CHANNELS
    i, c = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    there = i < T
    first_key = tl.load(first + batch * T + i, mask=there, other=0)
    last_key = tl.load(last + batch * T + i, mask=there, other=0)
    sees = last_key > first_key
    low, high = tl.min(tl.where(sees, first_key, S)), tl.max(last_key)

    content = load_rows(content_query + (batch * T * H + head) * CHANNELS, i, sees, stride, CHANNELS)
    place = load_rows(position_query + (batch * T * H + head) * CHANNELS, i, sees, stride, CHANNELS)
    kind: tl.constexpr = content.dtype
    keys, values = key + (batch * S * H + head) * CHANNELS, value + (batch * S * H + head) * CHANNELS
    rows = embedding + head * CHANNELS

    greatest = tl.full((BLOCK,), NOTHING, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    gathered = tl.zeros((BLOCK, CHANNELS), tl.float32)
    near_rows = position_block(rows, low - start + shift - (BLOCK - 1), P, stride, BLOCK, CHANNELS)
    near = tl.dot(place, tl.trans(near_rows), input_precision=PRECISION)
    for n in range(low, high, BLOCK):
        j = n + c
        far_rows = position_block(rows, n - start + shift + 1, P, stride, BLOCK, CHANNELS)
        far = tl.dot(place, tl.trans(far_rows), input_precision=PRECISION)
        k = load_rows(keys, j, j < high, stride, CHANNELS)
        scores = (tl.dot(content, tl.trans(k), input_precision=PRECISION) + by_key(near, far, BLOCK)) * (scale * LOG2_E)
        near = far
        seen = (j[None, :] >= first_key[:, None]) & (j[None, :] < last_key[:, None])
        scores = tl.where(seen, scores, NOTHING)
        greater = tl.maximum(greatest, tl.max(scores, 1))
        reference = tl.where(greater == NOTHING, 0.0, greater)
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(greatest - reference)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights = tl.where(is_kept(seed, tl.program_id(1), i[:, None], j[None, :], threshold), weights, 0.0)
        v = load_rows(values, j, j < high, stride, CHANNELS)
        gathered = tl.dot(weights.to(kind), v, gathered * shrink[:, None], input_precision=PRECISION)
        greatest = greater
    divisor = tl.where(sees, total, 1.0)
    result = gathered / divisor[:, None]
    if DROPOUT:
        result *= 16777216.0 / threshold
    store_rows(output + (batch * T * H + head) * CHANNELS, i, there, stride, result, CHANNELS)
    normalizer = tl.where(sees, (greatest + tl.log2(divisor)) * LN_2, float("inf"))
    tl.store(log_sum + tl.program_id(1) * T + i, normalizer, mask=there)
