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

from omegaconf import DictConfig, ListConfig, OmegaConf

from nemo_config import ConfigError

if TYPE_CHECKING:
    from nemo_expmgr.trainable import TrainableModule

# Keys that are read here and that a dataset never sees.
_OWN_KEYS = frozenset({"ds_item", "val_dl_idx", "test_dl_idx", "defer_setup"})


@dataclass(frozen=True)
class DataSet:
    """One set of a section: its prefix in the logs (ends in _, empty where it has none) and what describes it."""

    prefix: str
    section: DictConfig
    path: str


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


def dataset_section(section: Mapping[str, Any] | DictConfig) -> DictConfig:
    """A copy of a data section with what a dataset reads of it."""
    config = section if isinstance(section, DictConfig) else OmegaConf.create(dict(section))
    kept = [key for key in config if key not in _OWN_KEYS]
    copy = OmegaConf.masked_copy(config, kept)
    copy._set_parent(config._get_parent())
    return copy


def is_given(section: Any, path: str, key: str) -> bool:
    """Whether a config names data in this section: it is there, and its `key`, if it has one, is not null.

    Raises:
        ConfigError: the key is still '???'.
    """
    if section is None:
        return False
    if OmegaConf.is_missing(section, key):
        raise ConfigError(f"{path}.{key}", "???", "must be set before training or evaluation starts")
    return key not in section or section[key] is not None


def split_sets(section: Mapping[str, Any] | DictConfig, path: str, key: str) -> list[DataSet]:
    """The sets of a section, one for each entry where the value of `key` is a list.

    Raises:
        ConfigError: as many names as sets are needed.
    """
    config = section if isinstance(section, DictConfig) else OmegaConf.create(dict(section))
    item = config.get("ds_item")
    if isinstance(item, ListConfig):
        return [
            DataSet(_prefix(part.get("name") or str(index)), _without_name(part), f"{path}.ds_item.{index}")
            for index, part in enumerate(item)
        ]
    key = item if isinstance(item, str) and item in config else key
    value = config.get(key)
    plain = _without_name(config)
    if not isinstance(value, ListConfig):
        return [DataSet(_prefix(config.get("name") or value or ""), plain, path)]
    sections = [_with_value(plain, key, entry) for entry in value]
    return [DataSet(prefix, part, path) for prefix, part in zip(_prefixes(config, value, path), sections, strict=True)]


def _without_name(config: DictConfig) -> DictConfig:
    copy = dataset_section(config)
    copy.pop("name", None)
    return copy


def _with_value(config: DictConfig, key: str, value: Any) -> DictConfig:
    copy = dataset_section(config)
    copy[key] = value
    return copy


def _prefixes(config: DictConfig, values: Sequence[Any], path: str) -> list[str]:
    names = config.get("name")
    if names is None:
        return _make_unique([_prefix(value) for value in values])
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != len(values):
        raise ConfigError(f"{path}.name", names, f"must have {len(values)} entries, one for each set")
    return _make_unique([_prefix(name) for name in names])


def _prefix(source: Any) -> str:
    """`data/dev-clean_manifest.json` to `dev_clean_`, and `data/dev/manifest.json` to `dev_`."""
    first = source[0] if isinstance(source, ListConfig | list) and source else source
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
