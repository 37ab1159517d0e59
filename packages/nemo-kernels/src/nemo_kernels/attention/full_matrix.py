"""Attention with relative positions in torch's own operations, all scores at once: for few keys, and for export.

B batch, H heads, T queries, S keys, K head width
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_kernels.attention.key_ranges import KeyRanges
from nemo_kernels.attention.positions import RelativePosition, by_key, rows_with_zeros


def full_matrix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: KeyRanges,
    position: RelativePosition,
    *,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """(B, H, T, K), by way of the scores (B, H, T, S); halves are computed in float32."""
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        scores = _scores(query, key, position, scale)
        scores = scores.masked_fill_(~ranges.seen(key.size(2)), torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=3)
        if dropout_p > 0:  # as F.dropout draws, but on a CPU that keeps a float for each weight, and this a bool
            weights, _ = torch.native_dropout(weights, dropout_p, True)
        context = weights.matmul(value)
    return context.masked_fill(ranges.blind(query.size(2))[:, None, :, None], 0.0).to(dtype)


def _scores(query: Tensor, key: Tensor, position: RelativePosition, scale: float) -> Tensor:
    queries, keys = query.size(2), key.size(2)
    embedding = position.embedding.to(query.dtype)
    rows = rows_with_zeros(embedding, position.shift(queries, keys) - (queries - 1), queries + keys - 1)
    # heads first: a product of all items at once, while one of (B, H, T, K) would copy and keep the rows for each item
    by_distance = ((query + position.position_bias.unsqueeze(1)) * scale).transpose(0, 1).flatten(1, 2).matmul(rows.mT)
    scores = ((query + position.content_bias.unsqueeze(1)) * scale).matmul(key.mT)
    scores += by_key(torch.unflatten(by_distance, 1, (query.size(0), queries)), keys).transpose(0, 1)
    return scores.to(query.dtype)
