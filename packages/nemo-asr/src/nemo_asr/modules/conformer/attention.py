"""Multi-head attention within an encoder's mask, with or without relative positions: nemo_kernels' under a mask.

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_(i-j)) / sqrt(K)

u and v are learned per head, p_d is the projected sinusoid of distance d.  Without positions, q_i . k_j / sqrt(K).
This function is the one place that the layers get attention from.

Shapes: B batch, T queries, S keys, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nemo_asr.modules.conformer.context import Window
from nemo_kernels.attention import RelativePosition
from nemo_kernels.attention import attention as kernel_attention


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """Which keys the queries may see.

    The keys are `cached` frames of the past, and then the queries' own frames.

    Args:
        lengths: (B,), frames of each item; those beyond are padding.
        frames: T, frames of the longest.
        window: what each frame may look at; chunks are counted from the first key on.
        cached: frames of the past that are there as keys.
        cached_len: (B,), how many of them each item has, the last ones; all where None.
    """

    lengths: Tensor
    frames: int
    window: Window
    cached: int = 0
    cached_len: Tensor | None = None

    @cached_property
    def padded(self) -> Tensor:
        """(B, T), true beyond an item's length."""
        return torch.arange(self.frames, device=self.lengths.device) >= self.lengths.unsqueeze(1)

    @property
    def key_start(self) -> Tensor | None:
        """(B,), the first key that an item has."""
        return None if self.cached_len is None else self.cached - self.cached_len

    @property
    def key_len(self) -> Tensor:
        """(B,), the end of an item's keys."""
        return self.lengths + self.cached


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: AttentionMask,
    position: RelativePosition | None = None,
    dropout_p: float = 0.0,
    backends: Sequence[str] = (),
) -> Tensor:
    """Weighted sums of the values.

    Args:
        query: (B, H, T, K).
        key: (B, H, S, K), of which the last T frames are those of the queries.
        value: (B, H, S, K).
        mask: what may be seen.
        position: relative positions, or None.
        dropout_p: probability that a weight is dropped.
        backends: names of torch.nn.attention.SDPBackend to choose from without positions; all where empty.

    Returns:
        (B, H, T, K), zero where a query is padded.
    """
    with _chosen(backends):
        return kernel_attention(
            query,
            key,
            value,
            position=position,
            query_len=mask.lengths,
            key_start=mask.key_start,
            key_len=mask.key_len,
            window=(max(mask.window.left, -1), max(mask.window.right, -1)),
            chunk=mask.window.chunk,
            dropout_p=dropout_p,
        )


def _chosen(backends: Sequence[str]) -> AbstractContextManager[None]:
    if not backends:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.__members__[name] for name in backends])
