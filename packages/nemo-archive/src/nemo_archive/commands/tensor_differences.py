"""Comparing the tensors of two checkpoints: bytes first, which needs no array library, then by how much they differ."""

from __future__ import annotations

from math import isnan, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_archive.commands.weights import elements

if TYPE_CHECKING:
    import numpy as np

    from nemo_archive.checkpoint import Checkpoint, TensorInfo
    from nemo_archive.reader import Archive

PIECE = 1 << 18  # elements
_PIECE_BYTES = 1 << 20


class Difference(NamedTuple):
    """One tensor that is not the same in both.

    Attributes:
        name: of the tensor; with the checkpoint before a colon, where it is not that of the model.
        kind: only_in_a, only_in_b, shape, dtype or values.
        a: shape and dtype, None where it is absent.
        b: the same of the other.
        largest: the largest absolute difference; None where it has no meaning or was not computed.
    """

    name: str
    kind: str
    a: TensorInfo | None
    b: TensorInfo | None
    largest: float | None


def tensor_differences(a: Archive, b: Archive, *, tolerance: float = 0.0) -> list[Difference]:
    """Every tensor that differs between two archives, whichever format their weights have.

    Args:
        a: an open archive.
        b: another.
        tolerance: absolute differences up to this do not count; needs numpy where it is not 0.

    Raises:
        ArchiveError: if weights cannot be read, or a tolerance is given and numpy is missing.
    """
    found = []
    ours, theirs = _checkpoints(a), _checkpoints(b)
    for stem in dict.fromkeys((*ours, *theirs)):
        prefix = "" if stem == "model_weights" else f"{stem}:"
        one, other = ours.get(stem), theirs.get(stem)
        names = dict.fromkeys((*(one.tensors if one else ()), *(other.tensors if other else ())))
        for name in names:
            left = one.tensors.get(name) if one else None
            right = other.tensors.get(name) if other else None
            if one is None or left is None:
                found.append(Difference(prefix + name, "only_in_b", None, right, None))
            elif other is None or right is None:
                found.append(Difference(prefix + name, "only_in_a", left, None, None))
            elif left.shape != right.shape:
                found.append(Difference(prefix + name, "shape", left, right, None))
            elif left.dtype != right.dtype or not _same_bytes(elements(one, left), elements(other, right)):
                arrays = _arrays(a, b, stem, name) if tolerance or has_numpy() else None
                largest = None if arrays is None else largest_difference(*arrays)
                if left.dtype != right.dtype or largest is None or not largest <= tolerance:
                    kind = "values" if left.dtype == right.dtype else "dtype"
                    found.append(Difference(prefix + name, kind, left, right, largest))
    return found


def has_numpy() -> bool:
    from importlib.util import find_spec

    return find_spec("numpy") is not None


def _checkpoints(archive: Archive) -> dict[str, Checkpoint]:
    """By name without the suffix, so that weights of different formats meet."""
    return {_stem(name): archive.checkpoint(name) for name in archive.checkpoints()}


def _stem(name: str) -> str:
    return name.removesuffix(".ckpt").removesuffix(".safetensors")


def _same_bytes(a: memoryview, b: memoryview) -> bool:
    # Copies of pieces: comparing two memoryviews goes element by element.
    steps = range(0, len(a), _PIECE_BYTES)
    return len(a) == len(b) and all(bytes(a[i : i + _PIECE_BYTES]) == bytes(b[i : i + _PIECE_BYTES]) for i in steps)


def _arrays(a: Archive, b: Archive, stem: str, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from nemo_archive.numpy import load_array

    ours, theirs = (next(member for member in archive.checkpoints() if _stem(member) == stem) for archive in (a, b))
    return load_array(a, name, member=ours), load_array(b, name, member=theirs)


def largest_difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """max |a - b| over two arrays of one shape; equal infinities, and NaN in both, differ by 0, NaN in one by NaN."""
    import numpy as np

    a, b = a.reshape(-1), b.reshape(-1)
    largest = 0.0
    for start in range(0, a.size, PIECE):
        one, other = _wide(a[start : start + PIECE]), _wide(b[start : start + PIECE])
        with np.errstate(invalid="ignore"):
            steps = np.abs(one - other)
        steps[(one == other) | (np.isnan(one) & np.isnan(other))] = 0
        own = float(steps.max())
        if isnan(own):
            return nan
        largest = max(largest, own)
    return largest


def _wide(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A type in which subtracting is exact enough: 64-bit integers need a longer mantissa than float64's."""
    import numpy as np

    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    return array.astype(np.longdouble if array.dtype.kind in "iu" and array.dtype.itemsize == 8 else np.float64)
