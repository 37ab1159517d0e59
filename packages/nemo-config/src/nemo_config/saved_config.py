"""The one writer of the config inside a `.nemo` file.

What a person wrote becomes what NVIDIA's toolkit restores: interpolations resolved, files as `nemo:` references,
NVIDIA's spelling of every `target` and `_target_`, and the derived values that its constructors ask for.
"""

from collections.abc import Mapping
from typing import Any

from nemo_config.errors import ConfigError
from nemo_config.plain import plain, plain_value
from nemo_config.targets import nvidia_name

TARGET_KEYS = ("_target_", "target", "cls")


def saved_config(
    config: Any, *, target: str | type, references: Mapping[str, str], derived: Mapping[str, Any]
) -> dict[str, Any]:
    """The plain dict that goes into the archive; `config` itself is not changed.

    Args:
        config: the model section (DictConfig, mapping or dataclass).
        target: the model's class, or its name in any spelling; appended as `target` in NVIDIA's.
        references: dotted path of each file in the config to its `nemo:<name>`.
        derived: dotted path to value, for what the constructor computed and NVIDIA's toolkit wants to read.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a dotted path that runs into a scalar.
    """
    saved = plain(config)
    for path, value in (*derived.items(), *references.items()):
        _set(saved, path, plain_value(value, path))
    saved.pop("target", None)
    respelled = {key: _respelled(key, value) for key, value in saved.items()}
    return {**respelled, "target": nvidia_name(target)}


def _set(container: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        container = _child(container, key, path, ".".join(parents[: depth + 1]))
    if isinstance(container, list):
        container[_index(container, last, path)] = value
    else:
        container[last] = value


def _child(container: Any, key: str, path: str, here: str) -> Any:
    """The section or list below `key`; a section that is not there, or null, is made."""
    if isinstance(container, list):
        child = container[_index(container, key, path)]
    else:
        child = container.get(key)
        if child is None:
            child = container[key] = {}
    if not isinstance(child, (dict, list)):
        raise ConfigError(here, child, f"is no section: {path} cannot be set")
    return child


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(path, key, f"is not a place in a list of {len(items)}")
    return int(key)


def _respelled(key: object, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _respelled(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_respelled(None, item) for item in value]
    if key in TARGET_KEYS and isinstance(value, str):
        return nvidia_name(value)
    return value
