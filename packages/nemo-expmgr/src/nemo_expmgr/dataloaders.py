"""One data section to one or several sets, and their names.

    validation_ds:
      manifest_filepath: [dev_clean.json, dev_other.json]  # two sets, logged as dev_clean_val_loss, ...
      name: [clean, other]                                 # or named here
      val_dl_idx: 0                                        # the set whose metrics are also logged without its name

`ds_item` names the key to split by, if it is another, or is itself a list of whole sections, each with its `name`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nemo_config import ConfigError, plain

if TYPE_CHECKING:
    from nemo_expmgr.trainable import TrainableModule

# Keys that are read here and that a dataset never sees.
_OWN_KEYS = frozenset({"ds_item", "val_dl_idx", "test_dl_idx", "defer_setup"})
_SET_KEYS = _OWN_KEYS | {"name"}


@dataclass(frozen=True)
class DataSet:
    """One set of a section: its prefix in the logs (ends in _, empty where it has none) and what describes it."""

    prefix: str
    section: DictConfig


@dataclass(frozen=True)
class Phase:
    """validation or test: the names of its section and of the model's attributes, which are NVIDIA's."""

    name: str
    short: str

    @property
    def path(self) -> str:
        return f"model.{self.name}_ds"


VALIDATION = Phase("validation", "val")
TEST = Phase("test", "test")


def dataset_section(section: Mapping[str, Any] | DictConfig, path: str) -> DictConfig:
    """A resolved copy of a data section with what a dataset reads of it."""
    return _without(plain(section, path), _OWN_KEYS)


def is_given(section: Any, path: str, key: str) -> bool:
    """Whether a config names data in this section: it is not empty, and its `key`, if it has one, not null or [].

    Raises:
        ConfigError: the key is still '???'.
    """
    if section is None or len(section) == 0:
        return False
    if OmegaConf.is_missing(section, key):
        raise ConfigError(f"{path}.{key}", "???", "must be set before training or evaluation starts")
    return key not in section or not (section[key] is None or section[key] == [])


def split_sets(section: Mapping[str, Any] | DictConfig, path: str, key: str) -> list[DataSet]:
    """The sets of a section, one for each entry where the value of `key` is a list.

    Raises:
        ConfigError: as many names as sets are needed.
    """
    given = plain(section, path)
    item = given.get("ds_item")
    if isinstance(item, list):
        names = [part.get("name") or str(index) for index, part in enumerate(item)]
        return [DataSet(_prefix(name), _without(part, _SET_KEYS)) for name, part in zip(names, item, strict=True)]
    key = item if isinstance(item, str) and item in given else key
    value = given.get(key)
    if not isinstance(value, list):
        return [DataSet(_prefix(given.get("name") or value or ""), _without(given, _SET_KEYS))]
    prefixes = _prefixes(given.get("name"), value, path)
    return [
        DataSet(prefix, _without({**given, key: entry}, _SET_KEYS))
        for prefix, entry in zip(prefixes, value, strict=True)
    ]


def _without(section: Mapping[str, Any], keys: frozenset[str]) -> DictConfig:
    return OmegaConf.create({key: value for key, value in section.items() if key not in keys})


def _prefixes(names: Any, values: Sequence[Any], path: str) -> list[str]:
    if names is None:
        return _make_unique([_prefix(value) for value in values])
    names = [names] if isinstance(names, str) else names
    if len(names) != len(values):
        raise ConfigError(f"{path}.name", names, f"must have {len(values)} entries, one for each set")
    return _make_unique([_prefix(name) for name in names])


def _prefix(source: Any) -> str:
    """`data/dev-clean_manifest.json` to `dev_clean_`, and `data/dev/manifest.json` to `dev_`."""
    first = source[0] if isinstance(source, list) and source else source
    path = Path(str(first))
    for candidate in (path.stem, path.parent.name):
        name = candidate.replace("-", "_").replace("manifest", "").replace("dataset", "").strip("_")
        if name:
            return name + "_"
    return ""


def _make_unique(prefixes: list[str]) -> list[str]:
    unique: list[str] = []
    for index, prefix in enumerate(prefixes):
        unique.append(prefix if prefix and prefixes.count(prefix) == 1 else f"{prefix}{index}_")
    return unique


def setup_sets(model: TrainableModule, phase: Phase, section: Mapping[str, Any] | DictConfig) -> None:
    """Builds the loaders of all sets through the model's setup_<phase>_data, which a subclass may have overridden."""
    sets = split_sets(section, phase.path, model.several_sets_key)
    if not sets:
        raise ConfigError(phase.path, plain(section), "names no set of data")
    loader_attribute = f"_{phase.name}_dl"
    setup_one = getattr(model, f"setup_{phase.name}_data")
    loaders = []
    for part in sets:
        setup_one(part.section)
        loaders.append(getattr(model, loader_attribute))
    setattr(model, loader_attribute, loaders if len(loaders) > 1 else loaders[0])
    setattr(model, f"_{phase.name}_names", [part.prefix for part in sets])
    setattr(model, f"_{phase.short}_dl_idx", section.get(f"{phase.short}_dl_idx", 0))
    model.keep_section(f"{phase.name}_ds", section)
