"""Builds the object that a section describes: `_target_` names the class, the other keys are its arguments.

The sections follow Hydra's rules (nested sections and lists are built first, `_partial_`, `_recursive_`, `_args_`),
with three differences: the class comes from the table in `targets` and from nowhere else; every key and every value
is checked against the signature before the call; containers reach the class as plain lists and dicts, whatever
`_convert_` says.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from nemo_config.annotations import annotations_of, checked
from nemo_config.errors import ABSENT, ConfigError, from_constructor, join
from nemo_config.plain import plain
from nemo_config.sections import known_part, refuse_missing
from nemo_config.targets import check_target, resolve_target

log = logging.getLogger(__name__)

SPECIAL_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def instantiate(section: Any, *args: Any, path: str = "", strict: bool = True, **kwargs: Any) -> Any:
    """Calls the class that `section._target_` names with the section's keys as keyword arguments.

    Args:
        section: a DictConfig, a mapping or a dataclass with `_target_`. It is not changed.
        args: positional arguments, in place of the keys of the same names.
        path: where the section stands in the config, for messages.
        strict: whether a key that the class does not take, or a value of another type than it is annotated with, is
            an error; if not, the key is left out, the value is passed on, and one line in the log says so. Keys in the
            class attribute `IGNORED_KEYS` are left out either way.
        kwargs: arguments from the program; they win over the section's keys and are not checked.

    Returns:
        the object, or a `functools.partial` of the class where the section says `_partial_: true`.

    Raises:
        ConfigError: a `_target_` that is not in the table (before anything is imported or called), an unknown key, a
            `???`, a value of a wrong type, an argument that is missing, or a ValueError of the class itself.
    """
    return _build(_from_old_form(plain(section, path)), args, kwargs, path, strict)


def _from_old_form(section: dict[str, Any]) -> dict[str, Any]:
    """NVIDIA's files from before 1.0 write `cls` (or `target`) and `params` for what is now one section."""
    name, params = section.get("cls", section.get("target")), section.get("params")
    if "_target_" in section or name is None or not isinstance(params, dict):
        return section
    return {"_target_": name, **params}


def _build(section: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str, strict: bool) -> Any:
    if "_target_" not in section:
        raise ConfigError(path, ABSENT, "has no _target_, the name of the class to build")
    target = resolve_target(section["_target_"], join(path, "_target_"))
    parameters = _parameters(target)
    listed = [] if args else checked(section.get("_args_") or [], list, join(path, "_args_"))
    taken = {*kwargs, *_names_of_positions(parameters, len(args or listed))}
    values = {key: value for key, value in section.items() if key not in SPECIAL_KEYS and key not in taken}
    values = _accepted(values, target, parameters, path, strict)
    recursive = checked(section.get("_recursive_", True), bool, join(path, "_recursive_"))
    partial = checked(section.get("_partial_", False), bool, join(path, "_partial_"))
    if recursive:
        _check_nested_targets(values, path)
        _check_nested_targets(listed, join(path, "_args_"))
    annotations = annotations_of(target)
    given = {
        key: None
        if value is None and _defaults_to_none(key, parameters)
        else _argument(value, annotations.get(key, Any), join(path, key), recursive, strict)
        for key, value in values.items()
    }
    args = args or tuple(_argument(listed, list, join(path, "_args_"), recursive, strict))
    return _call(target, args, {**given, **kwargs}, parameters, partial, path)


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a class or function; None if it has no signature to read (a builtin)."""
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None


def _names_of_positions(parameters: dict[str, inspect.Parameter] | None, count: int) -> list[str]:
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in (parameters or {}).items() if parameter.kind in by_position][:count]


def _defaults_to_none(name: str, parameters: dict[str, inspect.Parameter] | None) -> bool:
    return parameters is not None and name in parameters and parameters[name].default is None


def _accepted(
    values: dict[str, Any],
    target: Callable[..., Any],
    parameters: dict[str, inspect.Parameter] | None,
    path: str,
    strict: bool,
) -> dict[str, Any]:
    ignored = frozenset(getattr(target, "IGNORED_KEYS", ()))
    if parameters is None or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        valid = frozenset(values) - ignored  # it takes any key: only the class itself can tell
    else:
        valid = frozenset(name for name, parameter in parameters.items() if parameter.kind in NAMED)
    return known_part(values, valid, path, ignored, strict, _name(target))


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", str(target))


def _check_nested_targets(value: Any, path: str) -> None:
    """Refuses a forbidden name anywhere below, so that no sibling of it is built before."""
    if isinstance(value, dict):
        if "_target_" in value:
            check_target(value["_target_"], join(path, "_target_"))
        for key, item in value.items():
            _check_nested_targets(item, join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_nested_targets(item, join(path, index))


def _argument(value: Any, annotation: Any, path: str, recursive: bool, strict: bool) -> Any:
    if recursive and _names_a_target(value):
        return _with_nested_built(value, path, strict)
    refuse_missing(value, path)
    try:
        return checked(value, annotation, path)
    except ConfigError as error:
        if strict:
            raise
        log.warning("%s; it is passed on as it stands in the file", error)
        return value


def _names_a_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_names_a_target, value.values()))
    return isinstance(value, list) and any(map(_names_a_target, value))


def _with_nested_built(value: Any, path: str, strict: bool) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return _build(value, (), {}, path, strict)
    if isinstance(value, dict):
        return {key: _with_nested_built(item, join(path, key), strict) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nested_built(item, join(path, index), strict) for index, item in enumerate(value)]
    refuse_missing(value, path)
    return value


def _call(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: dict[str, inspect.Parameter] | None,
    partial: bool,
    path: str,
) -> Any:
    if partial:
        return functools.partial(target, *args, **kwargs)
    positional = _names_of_positions(parameters, len(args))
    for name, parameter in (parameters or {}).items():
        given = name in kwargs or name in positional or parameter.kind not in NAMED
        if not given and parameter.default is inspect.Parameter.empty:
            raise ConfigError(join(path, name), ABSENT, f"must be given: {_name(target)} needs it")
    try:
        return target(*args, **kwargs)
    except ValueError as error:
        raise from_constructor(error, path, kwargs) from error
