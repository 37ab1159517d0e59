"""What the elements of a tensor are like, in float64 and in pieces, so that the memory needed stays small."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PIECE = 1 << 18  # elements


def statistics(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """min, max, mean and std of the finite elements (None where there are none), and the counts `nan` and `inf`.

    Complex tensors have the counts alone. Pieces are joined by Chan's rule: with n = a + b and d = mean_b - mean_a,
    mean = mean_a + d b/n and M2 = M2_a + M2_b + d^2 a b/n.
    """
    import numpy as np

    array = array.reshape(-1)

    count, mean, squares, nans, infinite = 0, 0.0, 0.0, 0, 0
    low: Any = None
    high: Any = None
    for start in range(0, array.size, PIECE):
        piece = array[start : start + PIECE]
        if piece.dtype.kind not in "iub":
            piece = piece.astype(np.complex128 if piece.dtype.kind == "c" else np.float64)
            nan = np.isnan(piece)
            finite = np.isfinite(piece)
            nans += int(nan.sum())
            infinite += int(piece.size - finite.sum() - nan.sum())
            piece = piece[finite]
        if piece.size == 0 or piece.dtype.kind == "c":
            continue
        smallest, largest = piece.min().item(), piece.max().item()
        low = smallest if low is None else min(low, smallest)
        high = largest if high is None else max(high, largest)
        piece = piece.astype(np.float64)
        own_mean = float(piece.mean())
        step, total = own_mean - mean, count + piece.size
        mean += step * piece.size / total
        squares += float(np.square(piece - own_mean).sum()) + step * step * count * piece.size / total
        count = total
    return {
        "min": low if low is None else _plain(low),
        "max": high if high is None else _plain(high),
        "mean": mean if count else None,
        "std": sqrt(squares / count) if count else None,
        "nan": nans,
        "inf": infinite,
    }


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
