"""Counting NaN and infinity in raw bytes, without an array library.

A floating-point number is not finite where all bits of its exponent are set (for float8 e4m3fn, e8m0fnu and the `fnuz`
types: where it is the one or two patterns of NaN). The byte that holds the upper exponent bits is looked at first; in
weights it is hardly ever all ones, and then a search for one byte value is all that is needed. Little-endian.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

PIECE = 1 << 22  # bytes


class _Rule(NamedTuple):
    """An element is not finite where its last byte is one of `last` and, if given, the byte before one of `before`."""

    item_bytes: int
    last: Callable[[int], bool]
    before: Callable[[int], bool] | None = None


def _all_ones(byte: int) -> bool:
    return byte & 0x7F == 0x7F


def _upper_five(byte: int) -> bool:
    return byte & 0x7C == 0x7C


def _top_bit(byte: int) -> bool:
    return byte & 0x80 == 0x80


def _upper_four(byte: int) -> bool:
    return byte & 0xF0 == 0xF0


_RULES: Mapping[str, _Rule] = {
    "float64": _Rule(8, _all_ones, _upper_four),
    "float32": _Rule(4, _all_ones, _top_bit),
    "bfloat16": _Rule(2, _all_ones, _top_bit),
    "float16": _Rule(2, _upper_five),
    "complex128": _Rule(8, _all_ones, _upper_four),  # two numbers each
    "complex64": _Rule(4, _all_ones, _top_bit),
    "float8_e5m2": _Rule(1, _upper_five),
    "float8_e4m3fn": _Rule(1, _all_ones),
    "float8_e4m3fnuz": _Rule(1, lambda byte: byte == 0x80),
    "float8_e5m2fnuz": _Rule(1, lambda byte: byte == 0x80),
    "float8_e8m0fnu": _Rule(1, lambda byte: byte == 0xFF),
}


def count_not_finite(data: memoryview, dtype: str) -> int:
    """How many numbers in `data` (bytes of elements of `dtype`) are NaN or infinite; 0 for integers and booleans."""
    rule = _RULES.get(dtype)
    if rule is None:
        return 0
    return sum(_count(bytes(data[start : start + PIECE]), rule) for start in range(0, len(data), PIECE))


def _count(piece: bytes, rule: _Rule) -> int:
    size = rule.item_bytes
    last, before = (size - 1, size - 2) if sys.byteorder == "little" else (0, 1)
    marked = piece[last::size].translate(_marks(rule.last))
    if rule.before is None or b"\1" not in marked:
        return marked.count(1)
    both = int.from_bytes(marked, "big") & int.from_bytes(piece[before::size].translate(_marks(rule.before)), "big")
    return both.bit_count()


@cache
def _marks(test: Callable[[int], bool]) -> bytes:
    return bytes(test(byte) for byte in range(256))
