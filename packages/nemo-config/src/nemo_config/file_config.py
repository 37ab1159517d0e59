"""The config inside a model file: somebody else's text, which may refer to its own values and to nothing else.

OmegaConf's resolvers are programs of this machine: `${oc.env:HF_TOKEN}` in a file would put a secret of whoever
restores it into the model, and from there into logs and the next file that is saved. So only references (`${depth}`,
`${.rate}`) and the resolvers in PURE are resolved here, and only where the result stays small: references to references
can stand for billions of values. What a person types, in a training config or an override, is not restricted.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_config.errors import ABSENT, ConfigError, join
from nemo_config.plain import plain

LONGEST = 1000  # characters of a text with an interpolation in it
MOST_EXPANSIONS = 10_000  # of texts that put together several references
MOST_VALUES = 200_000  # that references to whole sections add
PURE = frozenset({"multiply", "sum", "oc.select", "oc.dict.keys", "oc.dict.values"})


def file_config(config: Mapping[str, Any], origin: object) -> dict[str, Any]:
    """The config of a file with its interpolations resolved; nothing is left that a later reader would resolve.

    Args:
        config: what the file says, as plain containers.
        origin: the file, for messages.

    Raises:
        ConfigError: an interpolation that would read something outside the file, or that cannot be resolved.
    """
    given = dict(_texts(config, ""))
    if not any("${" in text for text in given.values()):
        return dict(config)
    for path, text in given.items():
        if "${" in text and len(text) > LONGEST:
            raise ConfigError(path, text[:60], f"... of {len(text)} characters holds an interpolation; in {origin}")
        if "${" in text and (resolver := _forbidden_resolver(path, text, origin)):
            raise _refusal(path, text, f"uses the resolver {resolver}", origin)
    _check_growth(config, given, origin)
    try:
        resolved = plain(config)
    except RecursionError:
        raise ConfigError("", ABSENT, f"its references lead in a circle; in {origin}") from None
    for path, text in _texts(resolved, ""):
        if "${" in text:  # escaped, or put together of pieces: it would be resolved the next time
            raise _refusal(path, given.get(path, text), "becomes an interpolation by being resolved", origin)
    return resolved


def _check_growth(config: Mapping[str, Any], given: Mapping[str, str], origin: object) -> None:
    """Bounds what the interpolations can make of the file before they are resolved."""
    from omegaconf import OmegaConf

    counts = {path: text.count("${") for path, text in given.items() if "${" in text}
    if math.prod(counts.values()) > MOST_EXPANSIONS:
        path = max(counts, key=lambda path: counts[path])
        raise ConfigError(path, given[path], f"and others like it put together too many references; in {origin}")
    root = OmegaConf.create(dict(config), flags={"allow_objects": True})
    added = 0
    for path, text in given.items():
        if "${" in text:
            section = _section_at(root, path)
            if section is not None:
                added += len(str(section))
                if "${" in str(section):
                    raise ConfigError(path, text, f"refers to a section that holds references itself; in {origin}")
                if added > MOST_VALUES:
                    raise ConfigError(path, text, f"and others refer to sections that are too large; in {origin}")


def _section_at(root: Any, path: str) -> Any:
    """The section that the interpolation at a path refers to, unresolved; None where it refers to a single value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        target = OmegaConf.select(root, path)
    except (OmegaConfBaseException, RecursionError):
        return None  # `plain` says so
    return OmegaConf.to_container(target, resolve=False) if OmegaConf.is_config(target) else None


def _refusal(path: str, text: str, what: str, origin: object) -> ConfigError:
    allowed = ", ".join(sorted(PURE))
    return ConfigError(
        path,
        text,
        f"{what}, which the config of a file must not: it may name its own values, and {allowed}; in {origin}",
    )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text with its dotted path; keys, too, since those of a mapping become texts of `oc.dict.keys`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and "${" in key:
                yield join(path, key), key
            yield from _texts(item, join(path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, join(path, index))


def _forbidden_resolver(path: str, text: str, origin: object) -> str | None:
    """The name of the first resolver in a text that is not in PURE, as OmegaConf's own grammar sees it."""
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    try:
        pending = [parse(text)]
    except GrammarParseError as error:
        raise ConfigError(path, text, f"is no interpolation ({str(error).splitlines()[0]}); in {origin}") from None
    while pending:
        node = pending.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            name = node.resolverName().getText()
            if name not in PURE:
                return str(name)
        pending.extend(getattr(node, "children", None) or [])
    return None
