"""Planes (B, T, W) of numbers, one for each lattice cell, and their layouts.

A wavefront visits the cells of one anti-diagonal t + u at once, a lane for each u. In the skewed layout these are
neighbours in memory: cell (t, u) of an utterance is at (t + u) * W + u. As strides, that is W for t and W + 1 for u.
"""

from __future__ import annotations

import torch


def skewed_plane(like: torch.Tensor) -> torch.Tensor:
    """An uninitialised plane like `like` (B, T, W): a view of storage (B, T + W - 1, W)."""
    B, T, W = like.shape
    diagonals = torch.empty((B, T + W - 1, W), dtype=like.dtype, device=like.device)
    return diagonals.as_strided((B, T, W), ((T + W - 1) * W, W, W + 1))


def lengths32(numbers: torch.Tensor) -> torch.Tensor:
    """Lengths or labels as the kernels read them: contiguous int32."""
    return numbers.to(torch.int32).contiguous()
