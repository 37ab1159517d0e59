"""How the attention of one item is cut into tiles that fit the cache: some heads, some queries, and the keys they see.

Keys that none of a tile's queries sees are never touched: a window costs what it sees, and padding costs nothing.

Shapes: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries of a tile. One thread, K = 64, 2,000 keys: 64 took 1.1 of the time of 128, and 256 the same; within windows of
# 257 keys 128 took 1.1 to 1.2 of the time of 64, since the keys that a tile touches are its queries' and the window's.
ROWS, ROWS_OF_WINDOW, WINDOW = 128, 64, 512
# scores of a tile; 2^17 took 1.05 of the time at 500 keys, 2^16 1.1
ELEMENTS = 1 << 18


class Tile(NamedTuple):
    """Heads, queries and keys, each from the first to before the last; and a number that no other tile of a call has.

    `ragged` says that some query sees only a part of the keys.
    """

    item: int
    heads: slice
    queries: slice
    keys: slice
    ragged: bool
    number: int

    @property
    def n_queries(self) -> int:
        return int(self.queries.stop - self.queries.start)

    @property
    def n_keys(self) -> int:
        return int(self.keys.stop - self.keys.start)


def tiles(first: Tensor, last: Tensor, heads: int, keys: int) -> Iterator[Tile]:
    """The tiles of a batch whose query i sees the keys first[b, i] <= j < last[b, i], both (B, T)."""
    rows = _rows(heads, keys, first, last)
    number = 0
    for item, row in enumerate(_summaries(first, last, rows)):
        for block, (above, below, low, high, highest_first, lowest_last) in enumerate(row):
            if below <= above:
                continue
            queries = slice(block * rows + above, block * rows + below)
            ragged = highest_first > low or lowest_last < high
            step = max(1, ELEMENTS // ((below - above) * (high - low)))
            for head in range(0, heads, step):
                number += 1
                yield Tile(item, slice(head, min(head + step, heads)), queries, slice(low, high), ragged, number)


def _rows(heads: int, keys: int, first: Tensor, last: Tensor) -> int:
    """Queries of a tile: as many as there are if all heads' scores fit."""
    queries = first.size(1)
    if heads * queries * keys <= ELEMENTS:
        return queries
    return min(ROWS if int((last - first).amax()) >= WINDOW else ROWS_OF_WINDOW, queries)


def _summaries(first: Tensor, last: Tensor, rows: int) -> list[list[list[int]]]:
    """For each item and block of `rows` queries: the first and the end of those that see something, the least and
    greatest key that they see, and the greatest first and the least last key."""
    spare = -first.size(1) % rows
    first, last = (F.pad(x.long(), (0, spare)).view(x.size(0), -1, rows) for x in (first, last))
    sees, row, far = last > first, torch.arange(rows, device=first.device), torch.iinfo(torch.int64).max
    columns = [
        torch.where(sees, row, rows).amin(2),
        torch.where(sees, row + 1, 0).amax(2),
        torch.where(sees, first, far).amin(2),
        last.amax(2),
        first.amax(2),
        torch.where(sees, last, far).amin(2),
    ]
    summaries: list[list[list[int]]] = torch.stack(columns, 2).tolist()
    return summaries
