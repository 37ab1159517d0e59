"""The backward kernels: weights are computed again from the scores and their log-sums, W = exp(score - L).

    dS = W (M dO V^T - sum(dO O))        M dropout's mask

`query_kernel`      dQ, and what each block of queries gives to du and dv       one program for a block of queries
`key_kernel`        dK and dV                                                   one program for a block of keys
`embedding_kernel`  dP, in parts of the batch that are summed afterwards        one program for a block of distances

Every element has one writer and sums have one order: no atomics, the same result at every run.

T queries, S keys, P rows of the embedding, H heads; tensors are (B, T, H, CHANNELS) in memory, row after row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nemo_kernels.attention.triton.tile import (
    LOG2_E,
    NOTHING,
    along_diagonals,
    by_distance,
    by_key,
    in_near,
    is_kept,
    load_rows,
    position_block,
    store_rows,
)

_SCANNED = tl.constexpr(1024)  # queries at a time in the search for those that see a block


@triton.jit
def query_kernel(
    content_query, position_query, key, value, embedding, first, last, seed, log_sum, along_output, grad_output,
    grad_query, grad_content_bias, grad_position_bias,
    T, S, P, H, shift, scale, threshold,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ (B, T, H, CHANNELS), and du and dv (B H, blocks of queries, CHANNELS)."""
    start = tl.program_id(0) * BLOCK
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    stride = H * CHANNELS
    i, c = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    there = i < T
    first_key = tl.load(first + batch * T + i, mask=there, other=0)
    last_key = tl.load(last + batch * T + i, mask=there, other=0)
    sees = last_key > first_key
    low, high = tl.min(tl.where(sees, first_key, S)), tl.max(last_key)

    base = (batch * T * H + head) * CHANNELS
    content = load_rows(content_query + base, i, sees, stride, CHANNELS)
    place = load_rows(position_query + base, i, sees, stride, CHANNELS)
    kind: tl.constexpr = content.dtype
    upstream = load_rows(grad_output + base, i, sees, stride, CHANNELS)
    normalizer = tl.load(log_sum + tl.program_id(1) * T + i, mask=sees, other=float("inf")) * LOG2_E
    along = tl.load(along_output + tl.program_id(1) * T + i, mask=sees, other=0.0)
    keys, values = key + (batch * S * H + head) * CHANNELS, value + (batch * S * H + head) * CHANNELS
    rows = embedding + head * CHANNELS

    grad_content = tl.zeros((BLOCK, CHANNELS), tl.float32)
    grad_place = tl.zeros((BLOCK, CHANNELS), tl.float32)
    carried = tl.zeros((BLOCK, BLOCK), kind)  # gradients of scores by distance that belong to the next near block
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
        weights = tl.exp2(tl.where(seen, scores, NOTHING) - normalizer[:, None])
        v = load_rows(values, j, j < high, stride, CHANNELS)
        grad_weights = tl.dot(upstream, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            kept = is_kept(seed, tl.program_id(1), i[:, None], j[None, :], threshold)
            grad_weights = tl.where(kept, grad_weights * (16777216.0 / threshold), 0.0)
        grad_scores = (weights * (grad_weights - along[:, None])).to(kind)
        grad_content = tl.dot(grad_scores, k, grad_content, input_precision=PRECISION)
        turned = by_distance(grad_scores, BLOCK)
        of_near = tl.where(in_near(BLOCK), turned, 0.0).to(kind) + carried
        near_rows = position_block(rows, n - start + shift - (BLOCK - 1), P, stride, BLOCK, CHANNELS)
        grad_place = tl.dot(of_near, near_rows, grad_place, input_precision=PRECISION)
        carried = tl.where(in_near(BLOCK), 0.0, turned).to(kind)
    end = low + tl.cdiv(tl.maximum(high - low, 0), BLOCK) * BLOCK
    near_rows = position_block(rows, end - start + shift - (BLOCK - 1), P, stride, BLOCK, CHANNELS)
    grad_place = tl.dot(carried, near_rows, grad_place, input_precision=PRECISION) * scale
    grad_content *= scale
    store_rows(grad_query + base, i, there, stride, grad_content + grad_place, CHANNELS)
    channel = tl.arange(0, CHANNELS)
    part = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * CHANNELS + channel
    tl.store(grad_content_bias + part, tl.sum(grad_content, 0))
    tl.store(grad_position_bias + part, tl.sum(grad_place, 0))


@triton.jit
def key_kernel(
    content_query, position_query, key, value, embedding, first, last, seed, log_sum, along_output, grad_output,
    grad_key, grad_value,
    T, S, P, H, shift, scale, threshold,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV (B, S, H, CHANNELS)."""
    start = tl.program_id(0) * BLOCK
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    stride = H * CHANNELS
    c = tl.arange(0, BLOCK)
    j = start + c
    base = (batch * S * H + head) * CHANNELS
    k = load_rows(key + base, j, j < S, stride, CHANNELS)
    v = load_rows(value + base, j, j < S, stride, CHANNELS)
    kind: tl.constexpr = k.dtype
    of_item = (batch * T * H + head) * CHANNELS
    rows = embedding + head * CHANNELS

    low, high = T, 0
    for begin in range(0, T, _SCANNED):
        i = begin + tl.arange(0, _SCANNED)
        first_key = tl.load(first + batch * T + i, mask=i < T, other=0)
        last_key = tl.load(last + batch * T + i, mask=i < T, other=0)
        meets = (last_key > first_key) & (first_key < start + BLOCK) & (last_key > start)
        low = tl.minimum(low, tl.min(tl.where(meets, i, T)))
        high = tl.maximum(high, tl.max(tl.where(meets, i + 1, 0)))

    grad_k = tl.zeros((BLOCK, CHANNELS), tl.float32)
    grad_v = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for m in range(low, high, BLOCK):
        i = m + c
        first_key = tl.load(first + batch * T + i, mask=i < T, other=0)
        last_key = tl.load(last + batch * T + i, mask=i < T, other=0)
        sees = last_key > first_key
        place = load_rows(position_query + of_item, i, sees, stride, CHANNELS)
        near_rows = position_block(rows, start - m + shift - (BLOCK - 1), P, stride, BLOCK, CHANNELS)
        near = tl.dot(place, tl.trans(near_rows), input_precision=PRECISION)
        far_rows = position_block(rows, start - m + shift + 1, P, stride, BLOCK, CHANNELS)
        far = tl.dot(place, tl.trans(far_rows), input_precision=PRECISION)
        content = load_rows(content_query + of_item, i, sees, stride, CHANNELS)
        scores = (tl.dot(content, tl.trans(k), input_precision=PRECISION) + by_key(near, far, BLOCK)) * (scale * LOG2_E)
        seen = (j[None, :] >= first_key[:, None]) & (j[None, :] < last_key[:, None])
        normalizer = tl.load(log_sum + tl.program_id(1) * T + i, mask=sees, other=float("inf")) * LOG2_E
        weights = tl.exp2(tl.where(seen, scores, NOTHING) - normalizer[:, None])
        upstream = load_rows(grad_output + of_item, i, sees, stride, CHANNELS)
        grad_weights = tl.dot(upstream, tl.trans(v), input_precision=PRECISION)
        dropped = weights
        if DROPOUT:
            kept = is_kept(seed, tl.program_id(1), i[:, None], j[None, :], threshold)
            factor = tl.where(kept, 16777216.0 / threshold, 0.0)
            grad_weights *= factor
            dropped *= factor
        grad_v = tl.dot(tl.trans(dropped.to(kind)), upstream, grad_v, input_precision=PRECISION)
        along = tl.load(along_output + tl.program_id(1) * T + i, mask=sees, other=0.0)
        grad_scores = tl.where(seen, weights * (grad_weights - along[:, None]), 0.0).to(kind)
        grad_k = tl.dot(tl.trans(grad_scores), content, grad_k, input_precision=PRECISION)
    store_rows(grad_key + base, j, j < S, stride, grad_k * scale, CHANNELS)
    store_rows(grad_value + base, j, j < S, stride, grad_v, CHANNELS)


@triton.jit
def embedding_kernel(
    content_query, position_query, key, value, embedding, first, last, seed, log_sum, along_output, grad_output,
    grad_embedding,
    B, T, S, P, H, shift, scale, threshold,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP (parts, P, H, CHANNELS) float32: a block of distances crosses every block of queries along a diagonal."""
    start = tl.program_id(0) * BLOCK
    head, part = tl.program_id(1), tl.program_id(2)
    stride = H * CHANNELS
    c = tl.arange(0, BLOCK)
    rows = position_block(embedding + head * CHANNELS, start, P, stride, BLOCK, CHANNELS)
    kind: tl.constexpr = rows.dtype
    share = tl.cdiv(B, tl.num_programs(2))
    first_batch = part.to(tl.int64) * share

    grad_rows = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for item in range(tl.minimum(share, B - part * share)):
        batch = first_batch + item
        batch_and_head = batch * H + head
        of_item = (batch * T * H + head) * CHANNELS
        keys, values = key + (batch * S * H + head) * CHANNELS, value + (batch * S * H + head) * CHANNELS
        low, high = T, 0
        for begin in range(0, T, _SCANNED):
            i = begin + tl.arange(0, _SCANNED)
            first_key = tl.load(first + batch * T + i, mask=i < T, other=0)
            last_key = tl.load(last + batch * T + i, mask=i < T, other=0)
            nearest = start + i - shift
            meets = (last_key > first_key) & (first_key < nearest + BLOCK) & (last_key > nearest)
            low = tl.minimum(low, tl.min(tl.where(meets, i, T)))
            high = tl.maximum(high, tl.max(tl.where(meets, i + 1, 0)))
        for m in range(low, high, BLOCK):
            i = m + c
            first_key = tl.load(first + batch * T + i, mask=i < T, other=0)
            last_key = tl.load(last + batch * T + i, mask=i < T, other=0)
            sees = last_key > first_key
            content = load_rows(content_query + of_item, i, sees, stride, CHANNELS)
            near_keys = start + m - shift + c
            far_keys = near_keys + BLOCK
            near_there, far_there = (near_keys >= 0) & (near_keys < S), (far_keys >= 0) & (far_keys < S)
            near = load_rows(keys, near_keys, near_there, stride, CHANNELS)
            far = load_rows(keys, far_keys, far_there, stride, CHANNELS)
            scores = along_diagonals(
                tl.dot(content, tl.trans(near), input_precision=PRECISION),
                tl.dot(content, tl.trans(far), input_precision=PRECISION),
                BLOCK,
            )
            place = load_rows(position_query + of_item, i, sees, stride, CHANNELS)
            scores = (scores + tl.dot(place, tl.trans(rows), input_precision=PRECISION)) * (scale * LOG2_E)
            j = start + m - shift + c[:, None] + c[None, :]
            seen = (j >= first_key[:, None]) & (j < last_key[:, None])
            normalizer = tl.load(log_sum + batch_and_head * T + i, mask=sees, other=float("inf")) * LOG2_E
            weights = tl.exp2(tl.where(seen, scores, NOTHING) - normalizer[:, None])
            near = load_rows(values, near_keys, near_there, stride, CHANNELS)
            far = load_rows(values, far_keys, far_there, stride, CHANNELS)
            upstream = load_rows(grad_output + of_item, i, sees, stride, CHANNELS)
            grad_weights = along_diagonals(
                tl.dot(upstream, tl.trans(near), input_precision=PRECISION),
                tl.dot(upstream, tl.trans(far), input_precision=PRECISION),
                BLOCK,
            )
            if DROPOUT:
                kept = is_kept(seed, batch_and_head, i[:, None], j, threshold)
                grad_weights = tl.where(kept, grad_weights * (16777216.0 / threshold), 0.0)
            along = tl.load(along_output + batch_and_head * T + i, mask=sees, other=0.0)
            grad_scores = tl.where(seen, weights * (grad_weights - along[:, None]), 0.0).to(kind)
            grad_rows = tl.dot(tl.trans(grad_scores), place, grad_rows, input_precision=PRECISION)
    r = start + c
    store_rows(
        grad_embedding + part.to(tl.int64) * P * stride + head * CHANNELS,
        r,
        r < P,
        stride,
        grad_rows * scale,
        CHANNELS,
    )
