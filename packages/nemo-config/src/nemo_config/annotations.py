"""Checks a value of a config against a type annotation.

An int is widened for a float and a list becomes a tuple where a tuple is annotated; a number in quotes is an error, as
is a float for an int. Annotations that say nothing about scalars (a Tensor, a callable, a protocol) are not checked.
"""

import collections.abc
import contextlib
import enum
import inspect
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from nemo_config.errors import ConfigError, join
from nemo_config.plain import plain_value

SCALARS = (bool, int, float, str)
LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def checked(value: Any, annotation: Any, path: str) -> Any:
    """`value` as `annotation` wants it.

    Raises:
        ConfigError: the value is of another type; the path, the value and the type are named.
    """
    origin = typing.get_origin(annotation)
    if annotation is None or annotation is type(None):
        return value if value is None else _refuse(path, value, "null")
    if origin in (Union, types.UnionType):
        return _checked_union(value, annotation, path)
    if origin is typing.Annotated or origin is typing.Final:
        return checked(value, typing.get_args(annotation)[0], path)
    if origin is Literal:
        allowed = typing.get_args(annotation)
        same = any(value == item and type(value) is type(item) for item in allowed)
        return value if same else _refuse(path, value, "one of " + ", ".join(map(repr, allowed)))
    if annotation in SCALARS:
        return _checked_scalar(value, annotation, path)
    return _checked_container(value, annotation, origin or annotation, path)


def _checked_scalar(value: Any, kind: type, path: str) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    # A subclass (numpy.float64, a str enum) comes from code; a bool is an int only to Python.
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    return _refuse(path, value, _spelled(kind))


def _checked_container(value: Any, annotation: Any, origin: Any, path: str) -> Any:
    arguments = typing.get_args(annotation)
    if origin in LISTS:
        return _checked_items(value, arguments[:1] * _length(value), annotation, path)
    if origin is tuple:
        if arguments[1:] == (...,):
            arguments = arguments[:1] * _length(value)
        return tuple(_checked_items(value, arguments, annotation, path))
    if origin in MAPPINGS:
        if not isinstance(value, Mapping):
            return _refuse(path, value, _spelled(annotation))
        item = arguments[1] if len(arguments) == 2 else Any
        return {key: checked(part, item, join(path, key)) for key, part in plain_value(value, path).items()}
    if origin in (pathlib.Path, os.PathLike):
        return pathlib.Path(value) if isinstance(value, (str, os.PathLike)) else _refuse(path, value, "a path")
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return _checked_enum(value, origin, path)
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, collections.abc.Sized) else 0


def _checked_items(value: Any, kinds: tuple[Any, ...], annotation: Any, path: str) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, collections.abc.Sequence):
        _refuse(path, value, _spelled(annotation))
    items = plain_value(list(value), path)
    if kinds and len(kinds) != len(items):
        _refuse(path, items, f"{_spelled(annotation)}, {len(kinds)} values")
    kinds = kinds or (Any,) * len(items)
    return [checked(item, kind, join(path, index)) for index, (item, kind) in enumerate(zip(items, kinds, strict=True))]


def _checked_enum(value: Any, kind: type[enum.Enum], path: str) -> Any:
    if isinstance(value, kind):
        return value
    for member in kind:
        if value == member.value or value == member.name:
            return member
    return _refuse(path, value, "one of " + ", ".join(member.name for member in kind))


def _checked_union(value: Any, annotation: Any, path: str) -> Any:
    members = typing.get_args(annotation)
    if any(type(value) is member for member in members):  # 1 for int | float stays 1
        return value
    errors = []
    for member in members:
        try:
            if _says_something(member) or not isinstance(member, type) or isinstance(value, member):
                return checked(value, member, path)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1 or (errors and errors[0].path != path):
        raise errors[0]
    deeper = [error for error in errors if error.path != path]
    if deeper:
        raise deeper[0]
    return _refuse(path, value, _spelled(annotation))


def _says_something(member: Any) -> bool:
    """Whether `checked` can refuse a scalar for this member of a union (a Tensor takes none, a Protocol may)."""
    if not isinstance(member, type) or getattr(member, "_is_protocol", False):
        return True
    known = (*SCALARS, *LISTS, *MAPPINGS, tuple, type(None), object)
    return member in known or issubclass(member, (enum.Enum, os.PathLike))


def _refuse(path: str, value: Any, wanted: str) -> Any:
    raise ConfigError(path, value, f"must be {wanted}")


def _spelled(annotation: Any) -> str:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_spelled(member) for member in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        article = "an" if annotation.__name__[0] in "aeiou" else "a"
        return f"{article} {annotation.__name__}"
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("NoneType", "None")


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The evaluated annotations of a function's or constructor's parameters, without those that cannot be evaluated.

    Those of a dataclass are read from its fields: each is evaluated in the module of the class that declares it, while
    the generated constructor knows only the module of the last one.
    """
    owner: Any = function
    if inspect.isclass(function) and not _has_generated_constructor(function):
        owner = function.__init__
    try:
        return typing.get_type_hints(owner)
    except Exception:  # one of the names exists for the type checker only
        return _evaluated_one_by_one(owner)


def _has_generated_constructor(owner: type) -> bool:
    definer = next(base for base in owner.__mro__ if "__init__" in vars(base))
    made = vars(definer).get("__dataclass_params__")
    return made is not None and made.init


def _evaluated_one_by_one(owner: Any) -> dict[str, Any]:
    found = {}
    for declaring in reversed(owner.__mro__) if inspect.isclass(owner) else (owner,):
        module = sys.modules.get(getattr(declaring, "__module__", ""))
        names = getattr(declaring, "__globals__", None) or getattr(module, "__dict__", {})
        for name, annotation in inspect.get_annotations(declaring).items():
            single = types.SimpleNamespace(__annotations__={name: annotation})
            with contextlib.suppress(Exception):
                found.update(typing.get_type_hints(single, names))
    return found
