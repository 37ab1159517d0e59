"""What the `optim` and `sched` sections have in common: the older nested layout, numbers typed as text, errors."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_config import ConfigError
from nemo_config.errors import ABSENT, from_constructor, missing_value, nearest


def own_arguments(section: Mapping[str, Any], shared: frozenset[str]) -> dict[str, Any]:
    """The constructor's arguments of a section, whichever layout it has.

    New: beside the name and the other `shared` keys. Old: under `args`, or under `args.params` where `args.name` says
    `auto`; only lr and max_steps may then stand outside. A bare `args: auto` says nothing.
    """
    args = section.get("args")
    if not isinstance(args, Mapping):
        return {key: value for key, value in section.items() if key not in shared}
    outside = {key: section[key] for key in ("lr", "max_steps") if key in section}
    inner = args.get("params", args) or {}
    return {**outside, **{key: value for key, value in inner.items() if key not in ("name", "cls")}}


def number(value: Any, path: str) -> Any:
    """A number typed as text ('1e-3', which plain YAML reads so) as a number; a list as a tuple; the rest as it is."""
    if isinstance(value, (list, tuple)):
        return tuple(number(item, path) for item in value)
    if value == "???":
        raise missing_value(path)
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def construct(factory: type[Any], subject: Any, options: Mapping[str, Any], path: str) -> Any:
    """`factory(subject, **options)`, whose complaints become ConfigErrors with the section's path.

    Raises:
        ConfigError: a required option is missing, or the constructor refuses one.
    """
    required = [
        name
        for name, parameter in list(inspect.signature(factory).parameters.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    missing = [name for name in required if name not in options]
    if missing:
        raise ConfigError(f"{path}.{missing[0]}", ABSENT, f"must be given: {factory.__name__} needs it")
    values = {key: number(value, f"{path}.{key}") for key, value in options.items()}
    try:
        return factory(subject, **values)
    except ValueError as error:
        raise from_constructor(error, path, values) from error
    except TypeError as error:
        raise ConfigError(path, ABSENT, f"does not make a {factory.__name__} of {values}: {error}") from error


def unknown_name(name: Any, known: Iterable[str], path: str, kind: str) -> ConfigError:
    """The error for a `name` that stands for nothing; it gives the nearest one and all the others."""
    names = sorted(known)
    near = nearest(str(name), names)
    question = f"; did you mean {near}?" if near else ""
    return ConfigError(f"{path}.name", name, f"is no known {kind}{question} (known: {', '.join(names)})")
