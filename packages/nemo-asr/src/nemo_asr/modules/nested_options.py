"""Options that stand in a mapping below a module's own, such as `prednet` and `jointnet`, read into a dataclass."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Options = TypeVar("Options")


def read_options(kind: type[Options], section: Mapping[str, Any], path: str) -> Options:
    """The options of a section.

    Raises:
        ValueError: a missing key, or one that looks like a misspelt one.
    """
    known = fields(kind)  # type: ignore[arg-type]
    names = [field.name for field in known]
    for key in section:
        if key not in names:
            refuse_misspelling(str(key), names, path)
    for field in known:
        if field.default is MISSING and field.name not in section:
            raise ValueError(f"{path}.{field.name}: is missing")
    return kind(**{name: section[name] for name in names if name in section})


def refuse_misspelling(key: str, names: Sequence[str], path: str) -> None:
    """An unknown key close to a known one is a mistake; another may be of a release that this one does not know.

    Raises:
        ValueError: it is close to one of `names`.
    """
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    if near:
        raise ValueError(f"{path}.{key}: is no option; nearest: {near[0]}")
    logger.warning("%s.%s: is no option here and is ignored", path, key)
