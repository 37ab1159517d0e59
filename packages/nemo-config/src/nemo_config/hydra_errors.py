"""Hydra's and OmegaConf's errors about a config, each as one sentence in the form of `ConfigError`.

Hydra says `Could not override 'model.lrr'. To append to your config use +model.lrr=0.1`, and a page of traceback; here
that is `model.lrr: 0.1 is given, but model has no such key; nearest valid key: model.lr`.
"""

import re
import traceback
from pathlib import Path
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from nemo_config.errors import ABSENT, LISTED_KEYS, ConfigError, join, missing_value, nearest, unknown_key

TYPE_OF_NODE = {
    "IntegerNode": "an int",
    "FloatNode": "a float",
    "BooleanNode": "a bool (true or false)",
    "StringNode": "a str",
    "DictConfig": "a section",
    "ListConfig": "a list",
}
LIBRARIES = re.compile(r"[/\\](omegaconf|hydra|antlr4|nemo_config)[/\\]")


def is_about_config(error: Exception, *, composing: bool) -> bool:
    """Whether an error is about the config, not the program; while `composing`, all that Hydra raises is."""
    if isinstance(error, (ConfigError, OmegaConfBaseException)):
        return True
    return (
        composing and isinstance(error, (HydraException, YAMLError)) and not isinstance(error, InstantiationException)
    )


def one_line(error: Exception, config_dir: str = "", config_name: str | None = None) -> str:
    """The sentence for an error of which `is_about_config` is true."""
    if isinstance(error, OmegaConfBaseException):
        message = f"{_of_omegaconf(error, said='is read, but')}{_place(error)}"
    elif isinstance(error, MissingConfigException):
        message = str(_of_missing_file(error, config_dir, config_name))
    elif isinstance(error, HydraException):
        message = f"{_of_hydra(error)}{_file(error)}"
    else:
        message = str(error)
    return " ".join(message.split())


def _place(error: Exception) -> str:
    """Which line of the program read the config, where that can be told."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not LIBRARIES.search(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _file(error: Exception) -> str:
    """Which file of the config Hydra was composing, where it says so."""
    composed = re.match(r"In '(.+?)': \w+ raised while composing", str(error))
    return f" (in {composed[1]}.yaml)" if composed else ""


def _of_omegaconf(
    error: OmegaConfBaseException, value: object = ABSENT, typed: str = "", said: str = "is given, but"
) -> ConfigError:
    """`value` and `typed` are what an override gave, and its full key, if the error is about one."""
    path = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return missing_value(path)
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and isinstance(error.parent_node, DictConfig):
        return _of_unknown_key(path, value, error.parent_node, typed or path, said)
    kind = TYPE_OF_NODE.get(type(error.child_node).__name__)
    if isinstance(error, ValidationError) and kind is not None:
        return ConfigError(path, error.value, f"must be {kind}")
    return ConfigError(path, ABSENT, _first_line(error))


def _of_unknown_key(path: str, value: object, parent: DictConfig, typed: str, said: str) -> ConfigError:
    """`typed` is the whole key of the override, of which `path` is the part that leads out of the config."""
    above, _, key = path.rpartition(".")
    known = _dotted_paths(parent._get_root())
    elsewhere = [candidate for candidate in known if candidate.endswith("." + typed)]
    if elsewhere:
        found = min(elsewhere, key=lambda candidate: candidate.count("."))
        return ConfigError(typed, value, f"{said} the config has no such key; nearest valid key: {found}")
    siblings = [str(name) for name in parent if above or name != "hydra"]
    near = join(above, nearest(key, siblings) or key)
    if near + typed.removeprefix(path) in known:
        near += typed.removeprefix(path)
    if near in known:
        owner = above or "the config"
        return ConfigError(typed, value, f"{said} {owner} has no such key; nearest valid key: {near}")
    rule = unknown_key(above, key, value, siblings, above or "the config").rule
    return ConfigError(typed, value, rule.replace("is given, but", said, 1))


def _dotted_paths(node: Any) -> list[str]:
    container = OmegaConf.to_container(node, resolve=False)
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        if path:
            found.append(path)
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else str(key))

    walk({key: value for key, value in container.items() if key != "hydra"} if isinstance(container, dict) else {}, "")
    return found


def _of_hydra(error: HydraException) -> ConfigError:
    if isinstance(error, OverrideParseException):
        reason = [line for line in error.message.splitlines() if not line.startswith(("Error parsing", "See http"))]
        return ConfigError("", error.override, f"is not an override (key=value): {' '.join(reason)}")
    text = str(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        override = re.search(r"(?:use \+|merging override )([^=\n]+)=(.*)", text)
        typed, given = override.groups() if override else ("", None)
        return _of_omegaconf(cause, ABSENT if given is None else _parsed(given), typed)
    deleted = re.match(r"Could not delete from config\. '(.+)' does not exist", text)
    if deleted:
        return _of_deletion(error, deleted[1])
    appended = re.match(r"Could not append to config\. An item is already at '(.+)'", text)
    if appended:
        return ConfigError(appended[1], ABSENT, "is in the config already: leave out the +")
    return ConfigError("", ABSENT, text)


def _parsed(text: str) -> object:
    """The value of an override as YAML reads it, for the message."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index,call-overload]
    except Exception:  # Hydra's grammar is wider than YAML's; then the text itself is shown
        return text


def _of_deletion(error: HydraException, key: str) -> ConfigError:
    config = _config_below(error)
    known = _dotted_paths(config) if config is not None else []
    near = nearest(key, known)
    hint = f"; nearest valid key: {near}" if near else ""
    return ConfigError(key, ABSENT, f"cannot be removed: the config has no such key{hint}")


def _config_below(error: BaseException) -> DictConfig | None:
    """The composed config, which Hydra's error about a deletion does not carry but its stack does."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_apply_overrides_to_config" and isinstance(frame.f_locals.get("cfg"), DictConfig):
            found: DictConfig = frame.f_locals["cfg"]
            return found
    return None


def _of_missing_file(error: MissingConfigException, config_dir: str, config_name: str | None) -> ConfigError:
    missing = error.missing_cfg_file
    if missing is None:
        if config_dir and not config_dir.startswith("pkg://") and not Path(config_dir).is_dir():
            return ConfigError("config_path", config_dir, "is not a folder")
        return ConfigError("", ABSENT, _first_line(error))
    group, _, name = missing.rpartition("/")
    if config_name is None or missing.removesuffix(".yaml") != config_name:
        return ConfigError(group, name, f"is not one of its configs{_choice(name, list(error.options or []))}")
    options = [] if config_dir.startswith("pkg://") else sorted(path.stem for path in Path(config_dir).glob("*.yaml"))
    return ConfigError("config_name", config_name, f"is not a config in {config_dir}{_choice(name, options)}")


def _choice(name: str, options: list[str]) -> str:
    near = nearest(name, options)
    if near is not None:
        return f"; nearest: {near}"
    return "; there are: " + ", ".join(options[:LISTED_KEYS]) if options else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
