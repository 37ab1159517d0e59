"""Attention as the textbook has it: every score in one matrix.  The oracle of the tests, in any floating type.

    weights(i, .) = softmax over the keys j that i sees of scale ((q_i + u) . k_j + (q_i + v) . p_(distance of i and j))
    output(i)     = sum_j weights(i, j) v_j, zero where i sees nothing

B batch, H heads, T queries, S keys, K head width
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_kernels.attention.key_ranges import KeyRanges
from nemo_kernels.attention.positions import RelativePosition


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: KeyRanges,
    position: RelativePosition | None = None,
    *,
    scale: float | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """(B, H, T, K): what each query (B, H, T, K) gathers of the values (B, H, S, K).

    Args:
        query: queries.
        key: keys (B, H, S, K).
        value: values (B, H, S, K).
        ranges: which keys each query sees.
        position: relative positions, or None.
        scale: factor on the scores; 1 / sqrt(K) where None.
        keep: (B, H, T, S), true where dropout keeps a weight.
        dropout_p: probability with which `keep` was drawn.
    """
    queries, keys = query.size(2), key.size(2)
    if position is None:
        scores = query @ key.mT
    else:
        i, j = torch.arange(queries).unsqueeze(1), torch.arange(keys)
        rows = (j - i + position.shift(queries, keys)).clamp(0, position.embedding.size(1) - 1)
        content = (query + position.content_bias.unsqueeze(1)) @ key.mT
        place = torch.einsum(
            "bhik,hijk->bhij", query + position.position_bias.unsqueeze(1), position.embedding[:, rows]
        )
        scores = content + place
    seen = ranges.seen(keys) & ~ranges.blind(queries)[:, None, :, None]
    scores = (scores * (1 / math.sqrt(query.size(3)) if scale is None else scale)).masked_fill(~seen, -math.inf)
    weights = torch.where(seen, scores.softmax(3), 0.0)  # a row of nothing but -inf is NaN
    if keep is not None:
        weights = weights * keep / (1 - dropout_p)
    return weights @ value
