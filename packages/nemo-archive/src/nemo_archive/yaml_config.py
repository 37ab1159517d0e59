"""The YAML of `model_config.yaml`, read and written by OmegaConf's rules but without OmegaConf.

Those rules are YAML 1.1 with plain types only, except that `1e-3` is a float (YAML 1.1 calls it text), dates stay
text, a key may stand once, and paths that OmegaConf writes as `!!python/object/apply:pathlib.PosixPath` are text here.
Any other tag is refused. Interpolations (`${...}`) and `???` stay as the strings they are.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_archive.safety import ArchiveError

LARGEST_CONFIG = 64 << 20  # bytes
MOST_VALUES = 500_000
_DEEPEST = 100
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(
    r"""^(?: [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
           | [-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
           | \.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
           | [-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
           | [-+]?\.(?:inf|Inf|INF)
           | \.(?:nan|NaN|NAN) )$""",
    re.VERBOSE,
)


def parse_config(data: bytes) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars.

    Raises:
        ArchiveError: if it is no YAML mapping of plain types; the caller adds path and member.
    """
    import yaml

    if len(data) > LARGEST_CONFIG:
        raise ArchiveError(f"a config of {len(data)} bytes is refused (at most {LARGEST_CONFIG})")
    try:
        _check_depth(data)
        config = yaml.load(data, Loader=_loader())
    except yaml.YAMLError as error:
        raise ArchiveError(f"unreadable YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ArchiveError(f"unreadable YAML: {error}") from None
    if not isinstance(config, dict):
        raise ArchiveError(f"holds a {type(config).__name__} where a mapping is expected")
    _check_extent(config)
    return config


def _check_depth(data: bytes) -> None:
    """Walks the events first: the C composer recurses on the C stack, where many brackets would end the process."""
    import yaml

    depth = 0
    for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise ArchiveError(f"a config of over {_DEEPEST} levels is refused")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_extent(config: Any) -> None:
    """Bounds what anchors can make of a few lines: billions of values, or a list that holds itself."""
    stack = [(config, 0)]
    visited = 0
    while stack:
        value, depth = stack.pop()
        visited += 1
        if visited > MOST_VALUES or depth > _DEEPEST:
            raise ArchiveError(f"a config of over {MOST_VALUES} values or {_DEEPEST} levels is refused")
        if isinstance(value, dict | list):
            stack.extend((entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value))


def write_config(config: Mapping[str, Any]) -> bytes:
    """The config as YAML that OmegaConf and this module read back as equal.

    Raises:
        ArchiveError: if it holds something other than mappings, sequences, strings, numbers, booleans and None.
    """
    import yaml

    text = yaml.dump(_plain(config, ""), Dumper=_dumper(), sort_keys=False, allow_unicode=True)
    return text.encode("utf-8")


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # 7 ms against 49
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep=deep)

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MOST_VALUES:  # merge keys (`<<`) can double at each line
                raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)

    Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            Loader.add_constructor(f"tag:yaml.org,2002:python/object/apply:{module}.{name}", _path_as_text)
    return Loader


def _path_as_text(loader: Any, node: Any) -> str:
    parts = [str(part) for part in loader.construct_sequence(node)]
    return os.path.join(*parts) if parts else "."  # noqa: PTH118 - text, not a path of this machine


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    # A string that reads as a float by OmegaConf's rule gets quotes.
    Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
    return Dumper


def _plain(value: Any, path: str, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ArchiveError(f"config nested deeper than {_DEEPEST} levels at {path[:100]}")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(entry, f"{path}.{key}".lstrip("."), depth + 1) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(entry, f"{path}.{index}".lstrip("."), depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):  # a subclass, such as an enum of strings or numpy.float64
            return kind(value)
    raise ArchiveError(f"config value {path}: a {type(value).__name__} cannot be written as YAML")
