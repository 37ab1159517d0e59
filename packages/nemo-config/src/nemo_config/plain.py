"""A config as plain dicts and lists: what constructors get and what is written into files.

Interpolations are resolved. A `???` stays the string `???`, also where an interpolation leads to one: whether it is an
error is for the reader to say. OmegaConf is imported only for its own objects and for text with an interpolation in it.
"""

import dataclasses
import enum
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemo_config.errors import ABSENT, MISSING, ConfigError, join
from nemo_config.resolvers import register_resolvers

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig
    from omegaconf.errors import OmegaConfBaseException


def plain(config: Any, path: str = "") -> dict[str, Any]:
    """Copies `config` (DictConfig, Mapping or dataclass) into plain dicts, lists and scalars.

    Raises:
        ConfigError: for an interpolation that cannot be resolved, or a config that is no mapping;
            `path` is where the config stands and begins the dotted path of the message.
    """
    value = plain_value(config, path)
    if not isinstance(value, dict):
        raise ConfigError(path, value, "must be a section (a mapping of keys to values)")
    return value


def plain_value(value: Any, path: str = "") -> Any:
    """`plain` for whatever may stand in a config: sections, lists and scalars."""
    if is_omegaconf(value):
        register_resolvers()
        return _from_omegaconf(value, path)
    value = _copied(value)
    if isinstance(value, (dict, list)) and _has_interpolation(value):
        from omegaconf import OmegaConf

        register_resolvers()
        return _from_omegaconf(OmegaConf.create(value, flags={"allow_objects": True}), path)
    return value


def is_omegaconf(value: object) -> bool:
    """Whether `value` is a DictConfig or ListConfig; does not import OmegaConf to find out."""
    omegaconf = sys.modules.get("omegaconf")
    return omegaconf is not None and isinstance(value, (omegaconf.DictConfig, omegaconf.ListConfig))


def _copied(value: Any) -> Any:
    if is_omegaconf(value):
        return plain_value(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _copied(item) for name, item in _attributes(value).items()}
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item) for item in value]
    return _scalar(value)


def _attributes(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, and what a script has set on it beside them (`cfg.optim.betas = [0.9, 0.98]`)."""
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    beside = getattr(value, "__dict__", {})
    return given | {name: item for name, item in beside.items() if name[0] != "_" and not hasattr(type(value), name)}


def _scalar(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_interpolation(item) for item in value)
    return isinstance(value, str) and "${" in value


def _from_omegaconf(node: "DictConfig | ListConfig", path: str) -> Any:
    from omegaconf import ListConfig

    if node._is_none():
        return None
    if node._is_missing():
        return MISSING
    if isinstance(node, ListConfig):
        return [_item(node, index, path) for index in range(len(node))]
    return {key: _item(node, key, path) for key in node}


def _item(node: "DictConfig | ListConfig", key: Any, path: str) -> Any:
    from omegaconf.errors import (
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    try:
        value = node[key]
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        return MISSING
    except OmegaConfBaseException as error:
        raise _unresolved(node, key, join(path, key), error) from error
    return _from_omegaconf(value, join(path, key)) if is_omegaconf(value) else _scalar(value)


def _unresolved(node: "DictConfig | ListConfig", key: Any, path: str, error: "OmegaConfBaseException") -> ConfigError:
    child = node._get_node(key)
    written = getattr(child, "_value", lambda: ABSENT)()
    reason = (str(error).splitlines() or ["unknown reason"])[0]
    return ConfigError(path, written, f"cannot be resolved: {reason}")
