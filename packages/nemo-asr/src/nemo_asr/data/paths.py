"""Lists of paths in the spellings that configs use: comma-separated, nested lists, and brace ranges.

a.json,b.json      [[a.json], [b.json]]      audio_{0..127}.tar      audio__OP_0..127_CL_.tar
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TypeAlias, Union

PathSpec: TypeAlias = Union[str, Path, "Iterable[PathSpec]"]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_OPENING = ("(", "[", "<", "_OP_")
_CLOSING = (")", "]", ">", "_CL_")


def flatten_paths(spec: PathSpec) -> list[str]:
    """The single paths of a specification, in order: commas split, lists flattened, braces expanded."""
    if isinstance(spec, Path):
        return [str(spec)]
    if isinstance(spec, str):
        return [path for part in _split_commas(spec) for path in expand_braces(part)]
    return [path for part in spec for path in flatten_paths(part)]


def group_paths(spec: PathSpec) -> list[list[str]]:
    """One list of paths for each bucket: a list of several entries has a bucket an entry, all else is one bucket."""
    if isinstance(spec, (str, Path)):
        return [flatten_paths(spec)]
    return [flatten_paths(part) for part in spec]


def expand_braces(pattern: str) -> list[str]:
    """Expands `{0..3}`, `{000..127}` and `{a,b}`; where a shell is in the way, ( [ < and _OP_ open a brace too.

    The replacements count only where they enclose a range or a list, so that a folder named `a (1)` stays one.
    """
    parts = _BRACES.split(_with_braces(pattern))
    if len(parts) == 1:
        return [pattern]
    choices = [_alternatives(part) if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(combination) for combination in product(*choices)]


def _with_braces(pattern: str) -> str:
    for opening, closing in zip(_OPENING, _CLOSING, strict=True):
        enclosed = rf"{re.escape(opening)}(-?\d+\.\.-?\d+|[^,{{}}]*(?:,[^,{{}}]*)+?){re.escape(closing)}"
        pattern = re.sub(enclosed, r"{\1}", pattern)
    return pattern


def _alternatives(inside: str) -> list[str]:
    matched = _RANGE.fullmatch(inside)
    if matched is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = matched.groups()
    width = len(first) if first.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _split_commas(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    marked = text.replace("_OP_", "{---").replace("_CL_", "}---")
    for place, character in enumerate(marked):
        depth += (character in "{([<") - (character in "})]>")
        if character == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
