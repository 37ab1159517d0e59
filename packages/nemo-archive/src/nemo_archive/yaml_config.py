"""The YAML of `model_config.yaml`, read and written by OmegaConf's rules but without OmegaConf.

Those rules are YAML 1.1 with plain types only, except that `1e-3` is a float (YAML 1.1 calls it text), dates stay
text, a key may stand once, and paths that OmegaConf writes as `!!python/object/apply:pathlib.PosixPath` are text here.
Any other tag is refused, also those of the standard that OmegaConf has no type for (`!!binary`, `!!set`).
Interpolations (`${...}`) and `???` stay as the strings they are.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_archive.safety import ArchiveError

LARGEST_CONFIG = 64 << 20  # bytes
MOST_VALUES = 200_000  # a character model of Chinese has 7000
LONGEST_KEY = 1000  # characters
_LONGEST_NUMBER = 400  # characters; reading the base 60 of YAML 1.1 takes the square of it
_LARGEST_KEY = 1 << 60  # whole numbers beyond it can be chosen to have equal hashes, which makes dicts slow
_DEEPEST = 100
_TOO_DEEP = f"a config of over {_DEEPEST} levels is refused"
_TAG = "tag:yaml.org,2002:"
_FLOAT_TAG = f"{_TAG}float"
_PLAIN_TAGS = frozenset(f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
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
        _check_events(data)
        config = yaml.load(data, Loader=_loader())
    except yaml.YAMLError as error:
        if "maximum nesting" in str(error):  # since PyYAML 6.0.4 libyaml's scanner, ahead of the events, ends at 1,000
            raise ArchiveError(_TOO_DEEP) from None
        raise ArchiveError(f"unreadable YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise ArchiveError(f"unreadable YAML: {error}") from None
    if not isinstance(config, dict):
        raise ArchiveError(f"holds a {type(config).__name__} where a mapping is expected")
    _check_extent(config)
    return config


def _check_events(data: bytes) -> None:
    """Walks the events first: the C composer recurses on the C stack, where many brackets would end the process."""
    import yaml

    depth = 0
    for count, event in enumerate(yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        if count > 2 * MOST_VALUES:
            raise ArchiveError(f"a config of over {MOST_VALUES} values is refused")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise ArchiveError(_TOO_DEEP)
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
        merged = 0

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                _check_key(key)
                if key.tag == f"{_TAG}str" and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(str(key.value))
            mapping = super().construct_mapping(node, deep=deep)
            if any(type(key) is int and abs(key) > _LARGEST_KEY for key in mapping):
                raise yaml.constructor.ConstructorError(None, None, "a huge number as a key", node.start_mark)
            return mapping

        def flatten_mapping(self, node: Any) -> None:
            """Puts what merge keys (`<<`) name into the mapping; a few lines of them can stand for billions of keys."""
            own = [pair for pair in node.value if pair[0].tag != f"{_TAG}merge"]
            if len(own) == len(node.value):
                return
            inherited: dict[Any, Any] = {}
            for merge in (value for key, value in node.value if key.tag == f"{_TAG}merge"):
                for source in merge.value[::-1] if isinstance(merge, yaml.SequenceNode) else [merge]:
                    if not isinstance(source, yaml.MappingNode):
                        raise yaml.constructor.ConstructorError(
                            None, None, "a merge key names no mapping", source.start_mark
                        )
                    self.flatten_mapping(source)
                    self.merged += len(source.value)
                    if self.merged > MOST_VALUES:
                        raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)
                    inherited |= {_identity(pair[0]): pair for pair in source.value}
            named = {_identity(key) for key, _ in own}
            node.value = [pair for key, pair in inherited.items() if key not in named] + own

    Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    Loader.yaml_constructors = {
        tag: function for tag, function in Loader.yaml_constructors.items() if tag in _PLAIN_TAGS
    }
    for kind in ("int", "float"):
        Loader.add_constructor(f"{_TAG}{kind}", _bounded(getattr(Loader, f"construct_yaml_{kind}")))
    Loader.add_constructor(None, _refuse_tag)
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            Loader.add_constructor(f"{_TAG}python/object/apply:{module}.{name}", _path_as_text)
    return Loader


def _check_key(key: Any) -> None:
    import yaml

    if not isinstance(key, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key.start_mark)
    if len(key.value) > LONGEST_KEY:
        rule = f"a key of {len(key.value)} characters (at most {LONGEST_KEY})"
        raise yaml.constructor.ConstructorError(None, None, rule, key.start_mark)


def _identity(key: Any) -> Any:
    return (key.tag, key.value) if isinstance(key.value, str) else id(key)


def _bounded(construct: Any) -> Any:
    def construct_number(loader: Any, node: Any) -> Any:
        if len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(node.value)} characters")
        return construct(loader, node)

    return construct_number


def _refuse_tag(loader: Any, node: Any) -> Any:
    tag = node.tag.replace(_TAG, "!!", 1) if node.tag.startswith(_TAG) else node.tag
    raise ArchiveError(f"the YAML tag {tag[:100]!r} in line {node.start_mark.line + 1} is refused")


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
