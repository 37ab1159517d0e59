"""Multi-head attention, with or without relative positions (Transformer-XL, arXiv 1901.02860).

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_(i-j)) / sqrt(K)

u and v are learned per head, p_d is the projected sinusoid of distance d.  Without positions, q_i . k_j / sqrt(K).
This function is the one place that the layers get attention from.

Shapes: B batch, T queries, S keys, H heads, K head width, P = 2 S - 1 distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_asr.modules.conformer.context import Window

# the score of what must not be seen: its weight underflows to zero, and a row of nothing else stays finite
BLOCKED_SCORE = -10000.0


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """Which keys the queries may see.

    Args:
        padded: (B, T), true beyond an item's length.
        window: what each frame may look at.
    """

    padded: Tensor
    window: Window

    @classmethod
    def of_lengths(cls, lengths: Tensor, frames: int, window: Window) -> AttentionMask:
        """The mask of a batch of `frames` frames whose items have `lengths` (B,)."""
        return cls(torch.arange(frames, device=lengths.device) >= lengths.unsqueeze(1), window)

    @cached_property
    def blocked(self) -> Tensor:
        """(B, 1, T or 1, T), true where a key must not be seen; rows of padded queries hold nothing of meaning."""
        blocked = self.padded[:, None, None, :]
        if self.window.unlimited:
            return blocked
        return blocked | ~self.window.visible(self.padded.size(1), self.padded.device)


class RelativePosition(NamedTuple):
    """What makes attention depend on distance.

    Args:
        embedding: (1, H, P, K), projected sinusoids from the furthest past (first) to the furthest future.
        content_bias: u (H, K).
        position_bias: v (H, K).
    """

    embedding: Tensor
    content_bias: Tensor
    position_bias: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: AttentionMask,
    position: RelativePosition | None = None,
    dropout_p: float = 0.0,
    fused: bool = False,
    fused_backends: Sequence[str] = (),
) -> Tensor:
    """Weighted sums of the values.

    Args:
        query: (B, H, T, K).
        key: (B, H, S, K), of which the last T frames are those of the queries.
        value: (B, H, S, K).
        mask: what may be seen.
        position: relative positions, or None.
        dropout_p: probability that a weight is dropped.
        fused: compute with torch's scaled_dot_product_attention.
        fused_backends: names of torch.nn.attention.SDPBackend to choose from; all where empty.

    Returns:
        (B, H, T, K); the rows of padded queries hold nothing of meaning.
    """
    scale = 1.0 / math.sqrt(query.size(3))
    bias: Tensor | None = None
    if position is None:
        query = query * scale
    else:
        by_distance = ((query + position.position_bias.unsqueeze(1)) * scale).matmul(position.embedding.transpose(2, 3))
        bias = by_distance_to_by_key(by_distance, key.size(2))
        query = (query + position.content_bias.unsqueeze(1)) * scale
    if fused:
        return _fused_attention(query, key, value, bias, mask, dropout_p, fused_backends)
    scores = query.matmul(key.transpose(2, 3))
    if bias is not None:
        scores += bias
    weights = scores.masked_fill_(mask.blocked, BLOCKED_SCORE).softmax(dim=3).to(value.dtype)
    return F.dropout(weights, dropout_p, training=dropout_p > 0).matmul(value)


def by_distance_to_by_key(scores: Tensor, keys: int) -> Tensor:
    """Reorders scores (B, H, T, P) by distance into scores (B, H, T, S) by key: a view, nothing is copied.

    Query i of T, the last of S keys, finds key j in column j - i + T - 1.  In rows that are one column shorter,
    which a flat view of the memory from element T - 1 on has, that is column j of row i.
    """
    queries, distances = scores.shape[2:]
    if distances == 1:
        return scores
    flat = scores.flatten(2)[..., queries - 1 : -1]
    return torch.unflatten(flat, 2, (queries, distances - 1))[..., :keys]


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: AttentionMask,
    dropout_p: float,
    backends: Sequence[str],
) -> Tensor:
    scores = query.new_zeros(()).expand(mask.blocked.shape) if bias is None else bias
    with _chosen(backends):
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=scores.masked_fill(mask.blocked, BLOCKED_SCORE),
            dropout_p=dropout_p,
            scale=1.0,
        )


def _chosen(backends: Sequence[str]) -> AbstractContextManager[None]:
    if not backends:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.__members__[name] for name in backends])
