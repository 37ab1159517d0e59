"""The keys of a section: which are valid, which are ignored, and a dataclass read from them.

A class that reads a section may list in `IGNORED_KEYS` the keys that NVIDIA's configs carry and that mean nothing to
it: they are dropped with one line in the log. Any other unknown key is an error where a person types (`strict`) and
one line in the log where a file speaks.
"""

import dataclasses
import logging
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union

from nemo_config.annotations import annotations_of, checked
from nemo_config.errors import ABSENT, MISSING, ConfigError, from_constructor, join, missing_value, unknown_key
from nemo_config.plain import plain

log = logging.getLogger(__name__)
T = TypeVar("T")


def check_keys(
    section: Any, valid: Iterable[str], path: str, *, ignored: Iterable[str] = (), strict: bool = True
) -> dict[str, Any]:
    """The part of a section whose keys are valid, as a plain dict; a `???` in it is still there.

    Args:
        section: a DictConfig, a mapping or a dataclass.
        path: where the section stands in the config.
        ignored: keys that are dropped with one line in the log.
        strict: whether an unknown key is an error; if not, it is dropped with one line in the log.

    Raises:
        ConfigError: an unknown key, with the nearest valid one.
    """
    return known_part(plain(section, path), valid, path, ignored, strict, path or "the config")


def known_part(
    values: Mapping[str, Any], valid: Iterable[str], path: str, ignored: Iterable[str], strict: bool, owner: str
) -> dict[str, Any]:
    """`check_keys` for a plain mapping; `owner` is what the message says the keys belong to."""
    valid, ignored = frozenset(valid), frozenset(ignored)
    surplus = [key for key in values if key not in valid]
    unknown = [key for key in surplus if key not in ignored]
    if unknown and strict:
        raise unknown_key(path, str(unknown[0]), values[unknown[0]], valid, owner)
    if unknown:
        log.warning("%s: keys that %s does not know are left out: %s", path, owner, _listed(unknown))
    if len(surplus) > len(unknown):
        meaningless = [key for key in surplus if key in ignored]
        log.info("%s: keys without a meaning for %s are ignored: %s", path, owner, _listed(meaningless))
    return {key: value for key, value in values.items() if key in valid}


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, keys)))


def refuse_missing(value: Any, path: str) -> None:
    """Raises ConfigError for a `???` in a value that is read, at any depth."""
    if isinstance(value, str) and value == MISSING:
        raise missing_value(path)
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_missing(item, join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_missing(item, join(path, index))


def read_section(schema: type[T], section: Any, path: str, *, strict: bool = True) -> T:
    """A dataclass filled from a section; fields that the section does not have keep their defaults.

    Nested dataclasses (also optional ones, and lists and dicts of them) are read by the same rules. Values are checked
    against the annotations, and an int is widened for a float.

    Args:
        schema: the dataclass; its `IGNORED_KEYS: ClassVar[frozenset[str]]` are dropped with one line in the log.
        section: a DictConfig, a mapping, None for all defaults, or a `schema` object, which is returned as it is.
        path: where the section stands in the config.
        strict: whether an unknown key is an error.

    Raises:
        ConfigError: an unknown key, a `???`, a value of a wrong type, a field without value, or what the dataclass
            itself refuses with a ValueError.
    """
    if isinstance(section, schema):
        return section
    values = plain({} if section is None else section, path)
    fields = [field for field in dataclasses.fields(schema) if field.init]  # type: ignore[arg-type]
    ignored = getattr(schema, "IGNORED_KEYS", ())
    known = known_part(values, (field.name for field in fields), path, ignored, strict, schema.__name__)
    annotations = annotations_of(schema)
    optional = {field.name for field in fields if field.default is None}
    given = {
        key: None
        if value is None and key in optional
        else _field_value(value, annotations.get(key, Any), join(path, key), strict)
        for key, value in known.items()
    }
    for field in fields:
        if field.name not in given and _is_required(field):
            raise ConfigError(join(path, field.name), ABSENT, f"must be given: {schema.__name__} needs it")
    try:
        return schema(**given)
    except ValueError as error:
        raise from_constructor(error, path, given) from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return False
    return field.default is dataclasses.MISSING or (isinstance(field.default, str) and field.default == MISSING)


def _field_value(value: Any, annotation: Any, path: str, strict: bool) -> Any:
    if not _holds_sections(annotation) or (isinstance(value, str) and value == MISSING):
        refuse_missing(value, path)
        return checked(value, annotation, path)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _nested(value, annotation, path, strict)
    if origin in (Union, types.UnionType):
        holders = [member for member in arguments if _holds_sections(member)]
        if isinstance(value, (dict, list)) or (len(arguments) == 2 and value is not None):
            return _field_value(value, holders[0], path, strict)
    if origin is list and isinstance(value, list):
        return [_field_value(item, arguments[0], join(path, index), strict) for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _field_value(item, arguments[1], join(path, key), strict) for key, item in value.items()}
    return checked(value, annotation, path)


def _holds_sections(annotation: Any) -> bool:
    """Whether the annotation is a dataclass or a list, dict or option of one."""
    return dataclasses.is_dataclass(annotation) or any(map(_holds_sections, typing.get_args(annotation)))


def _nested(value: Any, schema: Any, path: str, strict: bool) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(path, value, f"must be a section with the keys of {schema.__name__}")
    return read_section(schema, value, path, strict=strict)
