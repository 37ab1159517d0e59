"""Which keys a query sees: always a range, so that a mask is two numbers for each query and never a matrix.

Query i stands at key a = i + S - T, in the chunk of `chunk` frames that begins at c = a - a mod chunk. It sees the keys

    max(key_start, c - left) <= j < min(key_len, c + chunk + right)

    left, right, chunk = -1, -1, 1    everything
    left, right, chunk = 128, 128, 1  a window around each query
    left, right, chunk = -1, 0, 1     causal
    left, right, chunk = 12, 0, 4     "chunked limited" attention with 12 frames before a chunk of 4

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeyRanges(NamedTuple):
    """Query i of item b sees the keys first[b, i] <= j < last[b, i].

    Args:
        first: (B or 1, T or 1), int32.
        last: (B or 1, T or 1), int32.
        query_len: (B,), queries of each item; those beyond see nothing. All count where None.
    """

    first: Tensor
    last: Tensor
    query_len: Tensor | None

    @classmethod
    def of(
        cls,
        queries: int,
        keys: int,
        device: torch.device,
        *,
        query_len: Tensor | None = None,
        key_start: Tensor | None = None,
        key_len: Tensor | None = None,
        window: tuple[int, int] = (-1, -1),
        chunk: int = 1,
    ) -> KeyRanges:
        """The ranges of `queries` queries, the last of which stands at the last of `keys` keys."""
        first = _column(key_start, 0, device)
        last = _column(key_len, keys, device)
        left, right = window
        if left >= 0 or right >= 0:
            position = torch.arange(keys - queries, keys, dtype=torch.int32, device=device).unsqueeze(0)
            begin = position if chunk == 1 else position - position % chunk
            if left >= 0:
                first = torch.maximum(first, begin - left)
            if right >= 0:
                last = torch.minimum(last, begin + (chunk + right))
        return cls(first, last, None if query_len is None else query_len.to(device, torch.int32))

    def seen(self, keys: int) -> Tensor:
        """(B or 1, 1, T or 1, S), true where a key is seen, whatever query_len says."""
        key = torch.arange(keys, dtype=torch.int32, device=self.first.device)
        return ((key >= self.first.unsqueeze(2)) & (key < self.last.unsqueeze(2))).unsqueeze(1)

    def blind(self, queries: int) -> Tensor:
        """(B or 1, T or 1), true for queries that see nothing."""
        nothing = self.last <= self.first
        if self.query_len is None:
            return nothing
        query = torch.arange(queries, dtype=torch.int32, device=self.first.device)
        return nothing | (query >= self.query_len.unsqueeze(1))

    def for_each_query(self, batch: int, queries: int) -> tuple[Tensor, Tensor]:
        """first and last as (B, T) tensors; both are zero for queries that see nothing."""
        sees = ~self.blind(queries)
        return (self.first * sees).expand(batch, queries), (self.last * sees).expand(batch, queries)


def _column(length: Tensor | None, otherwise: int, device: torch.device) -> Tensor:
    if length is None:
        return torch.full((1, 1), otherwise, dtype=torch.int32, device=device)
    return length.to(device, torch.int32).unsqueeze(1)
