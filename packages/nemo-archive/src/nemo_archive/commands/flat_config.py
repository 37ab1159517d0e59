"""A config as a flat mapping of dotted paths to values, to compare two of them and to say what an edit changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Change(NamedTuple):
    """One key: `kind` is added, removed or changed; the value that is not there is None."""

    kind: str
    key: str
    before: Any
    after: Any


def flatten(config: Any) -> dict[str, Any]:
    """Dotted path to value, in the config's order. Lists of plain values and empty sections are values themselves."""
    flat: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", config)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and (value or not path):
            entries = list(value.items())
        elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
            entries = list(enumerate(value))
        else:
            flat[path] = value
            continue
        stack.extend((f"{path}.{key}" if path else str(key), entry) for key, entry in reversed(entries))
    return flat


def changes(before: Any, after: Any, equal: Callable[[str, Any, Any], bool] | None = None) -> list[Change]:
    """What differs between two configs, keys of the first in its order, then those that only the second has.

    Args:
        before: the first config.
        after: the second.
        equal: (key, value, value) to whether they count as equal; by default the same type and value.
    """
    ours, theirs, is_equal = flatten(before), flatten(after), equal or (lambda key, a, b: same(a, b))
    found = []
    for key, value in ours.items():
        if key not in theirs:
            found.append(Change("removed", key, value, None))
        elif not is_equal(key, value, theirs[key]):
            found.append(Change("changed", key, value, theirs[key]))
    return found + [Change("added", key, None, value) for key, value in theirs.items() if key not in ours]


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, so that 1, 1.0 and True differ; NaN equals itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)
