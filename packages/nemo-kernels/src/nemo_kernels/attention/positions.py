"""Relative positions (Transformer-XL, arXiv 1901.02860) as an index into the embedded distances.

    score(i, j) = scale ((q_i + u) . k_j + (q_i + v) . p_r),    r = j - i + shift

Row r of the embedding is p of the distance `furthest` - r.  Query i stands at key i + S - T (a cache of keys is longer
than the queries), so that the distance to key j is i + S - T - j, and shift = furthest - (S - T).  For a block of rows,
the products with the embedding in a matrix by distance, read in rows that are one shorter, are a matrix by key: a view.

Shapes: T queries, S keys, H heads, K head width, P distances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class RelativePosition(NamedTuple):
    """What makes attention depend on distance.

    Args:
        embedding: (H, P, K), projected distances from `furthest` in the past (first row) towards the future.
        content_bias: u, (H, K).
        position_bias: v, (H, K).
        furthest: distance of the first row; S - 1, from the last query to the first key, where None.
    """

    embedding: Tensor
    content_bias: Tensor
    position_bias: Tensor
    furthest: int | None = None

    def shift(self, queries: int, keys: int) -> int:
        """r - (j - i): the row of a query's distance to the key of its own index."""
        furthest = keys - 1 if self.furthest is None else self.furthest
        return furthest - (keys - queries)


def rows_with_zeros(embedding: Tensor, first: int, count: int) -> Tensor:
    """Rows `first` to `first + count` of (H, P, K), zero where there are none."""
    size = embedding.size(1)
    last = first + count
    rows = embedding[:, max(first, 0) : max(min(last, size), 0)]
    before, after = min(max(-first, 0), count), min(max(last - max(size, first), 0), count)
    return F.pad(rows, (0, 0, before, after)) if before or after else rows


def by_key(by_distance: Tensor, keys: int) -> Tensor:
    """Reads scores (..., M, M + N - 1) by distance as scores (..., M, N) by key: a view, nothing is copied.

    Row i begins M - 1 - i columns after the first, at the distance of its first key.
    """
    rows = by_distance.size(-2)
    *outer, row, column = by_distance.stride()
    offset = by_distance.storage_offset() + (rows - 1) * column
    shape = (*by_distance.shape[:-2], rows, keys)
    return by_distance.as_strided(shape, (*outer, row - column, column), offset)
