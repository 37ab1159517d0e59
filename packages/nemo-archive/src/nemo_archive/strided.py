"""Copying strided elements between buffers, without an array library: views into row order, pieces into a whole.

Strides and starts count elements. Axes that run on in both buffers are merged first, so that whole tensors, and pieces
of a tensor that is cut along its first axis, are one copy.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Layout(NamedTuple):
    """Where the elements of an array stand in a buffer: the first one, and the distance along each axis."""

    start: int
    strides: tuple[int, ...]


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array without gaps whose last axis runs fastest."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, shape[axis + 1])
    return tuple(strides)


def in_row_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements follow one another in row order (axes of one entry may have any stride)."""
    expected = row_strides(shape)
    return 0 in shape or all(
        size == 1 or stride == wanted for size, stride, wanted in zip(shape, strides, expected, strict=True)
    )


def copy_elements(
    source: memoryview, at: Layout, target: memoryview, to: Layout, shape: tuple[int, ...], item_bytes: int
) -> None:
    """Copies an array of `shape` from one buffer of bytes into another; both must hold it (the caller has checked)."""
    if 0 in shape:
        return
    if item_bytes == 16:  # complex128, as pairs
        shape, item_bytes = (*shape, 2), 8
        at = Layout(2 * at.start, (*(2 * stride for stride in at.strides), 1))
        to = Layout(2 * to.start, (*(2 * stride for stride in to.strides), 1))
    *outer, (count, step_from, step_to) = _merged(shape, at.strides, to.strides)
    elements, room = _cast(source, item_bytes), _cast(target, item_bytes)
    for indexes in itertools.product(*(range(size) for size, _, _ in outer)):
        first = at.start + sum(index * axis[1] for index, axis in zip(indexes, outer, strict=True))
        place = to.start + sum(index * axis[2] for index, axis in zip(indexes, outer, strict=True))
        if step_from == 0:  # an expanded axis repeats one element
            run = _cast(memoryview(bytes(elements[first : first + 1]) * count), item_bytes)
        else:
            run = elements[first : first + (count - 1) * step_from + 1 : step_from]
        room[place : place + (count - 1) * step_to + 1 : step_to] = run


def row_order(source: memoryview, at: Layout, shape: tuple[int, ...], item_bytes: int) -> memoryview:
    """The elements of an array in row order: a part of `source` where they stand so, else a copy."""
    count = 1
    for size in shape:
        count *= size
    if in_row_order(shape, at.strides):
        return source[at.start * item_bytes : (at.start + count) * item_bytes]
    gathered = memoryview(bytearray(count * item_bytes))
    copy_elements(source, at, gathered, Layout(0, row_strides(shape)), shape, item_bytes)
    return gathered


def _cast(buffer: memoryview, item_bytes: int) -> memoryview:
    return buffer[: len(buffer) // item_bytes * item_bytes].cast(_FORMATS[item_bytes])  # type: ignore[call-overload]


def _merged(
    shape: tuple[int, ...], from_strides: tuple[int, ...], to_strides: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """(size, stride in the source, stride in the target) of each axis, as few as possible; at least one."""
    axes: list[tuple[int, int, int]] = []
    for size, step_from, step_to in zip(shape, from_strides, to_strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * step_from and axes[-1][2] == size * step_to:
            axes[-1] = (axes[-1][0] * size, step_from, step_to)
        else:
            axes.append((size, step_from, step_to))
    return axes or [(1, 1, 1)]
