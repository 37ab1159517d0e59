"""The transducer lattice by diagonals: cells (t, u) with the same t + u do not depend on each other.

A plane (B, T, W) holds one number per cell, W = U + 1. Its skewed form (T + W - 1, B, W) has the cell (t, u) of
utterance b at [t + u, b, u], so that one step of the recursion reads and writes whole contiguous rows.
"""

from __future__ import annotations

from torch import Tensor

IMPOSSIBLE = float("-inf")  # the logarithm of probability zero


def on_diagonals(skewed: Tensor, frames: int) -> Tensor:
    """The view (B, T, W) of a skewed tensor (D, B, W), D >= T + W - 1; writing to it fills the diagonals."""
    _, batch, width = skewed.shape
    along_diagonals, along_batch, along_steps = skewed.stride()
    return skewed.as_strided(
        (batch, frames, width),
        (along_batch, along_diagonals, along_diagonals + along_steps),
        skewed.storage_offset(),
    )
