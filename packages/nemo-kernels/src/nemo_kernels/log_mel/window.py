"""Symmetric analysis windows (first sample equal to the last), named as in NVIDIA's configs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WINDOWS: dict[str, Callable[..., Tensor]] = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}
_RECTANGULAR = ("none", "ones")


def analysis_window(name: str | None, size: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The window (size,) called `name`; "none", "ones" or None is the rectangular one.

    Raises:
        ValueError: no window has that name.
    """
    if name is None or name in _RECTANGULAR:
        return torch.ones(size, dtype=dtype)
    if name not in _WINDOWS:
        raise ValueError(f"window: {name!r} is none of {', '.join((*_WINDOWS, *_RECTANGULAR))}")
    return _WINDOWS[name](size, periodic=False, dtype=dtype)
