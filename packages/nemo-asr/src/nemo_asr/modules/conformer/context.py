"""What an attention layer may look at: NVIDIA's att_context_size in each of its styles, as one kind of window.

    regular                  [left, right] frames around each frame
    chunked_limited          chunks of right + 1 frames; each sees itself and left frames before its chunk
    chunked_limited_with_rc  [left, chunk, right]; chunks that also see frames after them

-1 is unlimited.  Several sizes may be given: training draws one at every step, otherwise the first holds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

STYLES = ("regular", "chunked_limited", "chunked_limited_with_rc")


@dataclass(frozen=True)
class Window:
    """A query of chunk c sees the keys from `left` frames before c to `right` frames after it; -1 is unlimited."""

    left: int = -1
    right: int = -1
    chunk: int = 1

    @classmethod
    def of(cls, size: Sequence[int], style: str) -> Window:
        """The window that `size` means in `style`."""
        if style == "chunked_limited_with_rc":
            left, chunk, right = size
            return cls(left, right, max(chunk, 1))
        left, right = size
        if style == "regular" or right < 0:
            return cls(left, right)
        chunk = right + 1
        return cls(left // chunk * chunk if left >= 0 else -1, 0, chunk)


@dataclass(frozen=True)
class AttentionContexts:
    """The sizes that a model was configured with, and how often training uses each."""

    sizes: tuple[tuple[int, ...], ...]
    probabilities: tuple[float, ...]
    style: str

    @classmethod
    def parse(
        cls,
        sizes: Sequence[int] | Sequence[Sequence[int]] | None,
        probabilities: Sequence[float] | None,
        style: str,
    ) -> AttentionContexts:
        """Checks and normalises the values of att_context_size, att_context_probs and att_context_style."""
        if style not in STYLES:
            raise ValueError(f"att_context_style: {style} is none of {', '.join(STYLES)}")
        if style == "chunked_limited_with_rc":
            # as NVIDIA's: unlimited until a size of three is set
            return cls(((-1, -1, -1),), (1.0,), style)
        every = _as_pairs(sizes)
        for size in every:
            _check_size(size, style, alone=len(every) == 1)
        return cls(every, _checked_probabilities(probabilities, len(every)), style)

    @property
    def default(self) -> tuple[int, ...]:
        return self.sizes[0]

    def draw(self) -> tuple[int, ...]:
        """One size, at random with the configured probabilities."""
        return random.choices(self.sizes, weights=self.probabilities)[0]


def convolution_padding(size: str | Sequence[int] | None, kernel_size: int) -> tuple[int, int]:
    """Frames padded before and after, from NVIDIA's conv_context_size (None, 'causal' or [left, right])."""
    if kernel_size % 2 == 0:
        raise ValueError(f"conv_kernel_size: {kernel_size} must be odd")
    if size is None:
        return kernel_size // 2, kernel_size // 2
    if size == "causal":
        return kernel_size - 1, 0
    if isinstance(size, str) or len(size) != 2:
        raise ValueError(f"conv_context_size: {size} is neither 'causal' nor two integers")
    if sum(size) + 1 != kernel_size:
        raise ValueError(
            f"conv_context_size: {list(size)} and the frame itself do not make conv_kernel_size {kernel_size}"
        )
    return size[0], size[1]


def _as_pairs(sizes: Sequence[int] | Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    if not sizes:
        return ((-1, -1),)
    if isinstance(sizes[0], int):
        pairs: tuple[tuple[int, ...], ...] = (tuple(sizes),)  # type: ignore[arg-type]
    else:
        pairs = tuple(tuple(size) for size in sizes)  # type: ignore[arg-type]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"att_context_size: {list(pair)} is not a pair [left, right]")
    return pairs


def _check_size(size: tuple[int, ...], style: str, *, alone: bool) -> None:
    left, right = size
    if style != "chunked_limited":
        return
    if right < 0 and alone:
        raise ValueError(f"att_context_size: {list(size)} needs a limited right context in style chunked_limited")
    if left > 0 and right >= 0 and left % (right + 1):
        raise ValueError(f"att_context_size: {list(size)}: left must be a multiple of right + 1")


def _checked_probabilities(probabilities: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if not probabilities:
        return (1.0 / count,) * count
    if len(probabilities) != count:
        raise ValueError(f"att_context_probs: {list(probabilities)} has not one value for each of {count} sizes")
    if not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
        raise ValueError(f"att_context_probs: {list(probabilities)} does not sum to 1")
    return tuple(probabilities)
