"""What the commands print: tables, JSON, sizes; control characters of file names and tensors never reach a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import Any

# C0 except tab and line feed, delete, and C1: what a terminal may take as a command.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_JSON_CONTROL = {code: f"\\u{code:04x}" for code in range(127, 160)}  # which JSON need not, but may escape
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def printable(text: str) -> str:
    """The text with control characters written as `\\x1b`; tabs and line ends stay.

    File names that Python could not decode by the locale become UTF-8 again.
    """
    if not text.isascii():
        with suppress(UnicodeEncodeError):  # half a surrogate pair
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.translate(_CONTROL)


def print_text(text: str) -> None:
    """Prints text from a file: as it is into a pipe, with control characters made visible on a terminal."""
    print(printable(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Prints JSON with an indent of two; what JSON has no number for becomes "NaN", "Infinity" or "-Infinity"."""
    import json

    print(json.dumps(_for_json(value), indent=2, ensure_ascii=False, allow_nan=False).translate(_JSON_CONTROL))


def _for_json(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(entry) for entry in value]
    return value


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Prints aligned columns, two spaces apart.

    Args:
        header: names of the columns.
        rows: one text per column; line ends are made visible.
        right: the columns that are aligned at their right end.
    """
    cells = [[printable(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells, strict=True)]
    for number, row in enumerate([list(header), *cells]):
        padded = [
            " " * (width - _width(cell)) + cell if index in right else cell + " " * (width - _width(cell))
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(padded).rstrip()
        print(f"\x1b[1m{line}\x1b[0m" if number == 0 and _in_colour() else line)


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def human_size(count: int) -> str:
    """`1.2 MB`: decimal units, as disks and hubs count."""
    size, unit = float(count), 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} byte{'s' * (count != 1)}"


def shortened(value: Any, width: int = 60) -> str:
    """A config value on one line, cut to `width` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def counted(count: int, noun: str) -> str:
    """`1 tensor`, `2,048 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
