"""Starting weights from other models, by keys of a training config:

    init_from_nemo_model: base.nemo                        # or several, each in part:
    init_from_pretrained_model: nvidia/stt_en_conformer_ctc_small
    init_from_ptl_ckpt:
      encoder: {path: last.ckpt, include: [encoder.], exclude: [encoder.pre_encode]}

At most one of the three. `include` and `exclude` are lists of substrings of parameter names; exclude wins. Only
tensors are read: the other model is never built.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nemo_config import ConfigError, check_keys

if TYPE_CHECKING:
    from nemo_expmgr.model import NemoModel

logger = logging.getLogger(__name__)

KEYS = ("init_from_nemo_model", "init_from_pretrained_model", "init_from_ptl_ckpt")
_SHOWN = 10


@dataclass(frozen=True)
class Source:
    """One file or name to take weights from, and which of them."""

    location: str
    config_path: str
    include: tuple[str, ...] = ("",)
    exclude: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether the parameter of this name is wanted."""
        return any(part in name for part in self.include) and not any(part in name for part in self.exclude)


@dataclass
class LoadReport:
    """Parameter names by what became of them."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # by include and exclude
    unknown: list[str] = field(default_factory=list)  # wanted, but the model has none of that name
    untouched: list[str] = field(default_factory=list)  # of the model, not in the file


def init_from_pretrained(model: NemoModel, cfg: Mapping[str, Any], map_location: str = "cpu") -> list[LoadReport]:
    """Loads what the config's init_from_* key names into the model; nothing where there is no such key.

    Raises:
        ConfigError: two of the keys, a wrong form, shapes that differ, or no parameter in common.
    """
    chosen = [key for key in KEYS if cfg.get(key) is not None]
    if len(chosen) > 1:
        raise ConfigError(chosen[0], cfg[chosen[0]], f"excludes {' and '.join(chosen[1:])}: give only one of them")
    if not chosen:
        return []
    key = chosen[0]
    resumed_from = getattr(model._trainer, "ckpt_path", None)
    if resumed_from:
        logger.info("%s is ignored: training resumes from %s", key, resumed_from)
        return []
    return [
        load_part(model, _read_state_dict(model, key, source, map_location), source)
        for source in parse_sources(key, cfg[key])
    ]


def parse_sources(key: str, value: Any) -> list[Source]:
    """The sources that the value of an init_from_* key names: a string, one mapping, or a mapping of named ones."""
    location_key = "name" if key == "init_from_pretrained_model" else "path"
    if isinstance(value, str | Path):
        return [Source(str(value), key)]
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(key, value, f"must be a {location_key} or a mapping of {{{location_key}, include, exclude}}")
    if isinstance(value.get(location_key), str):
        return [_parse_source(key, value, location_key)]
    return [_parse_source(f"{key}.{name}", entry, location_key) for name, entry in value.items()]


def _parse_source(path: str, entry: Any, location_key: str) -> Source:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(location_key), str):
        raise ConfigError(path, entry, f"must be a mapping with {location_key}, and optionally include and exclude")
    known = check_keys(entry, (location_key, "include", "exclude"), path)
    return Source(
        known[location_key],
        path,
        _parse_parts(path, "include", known.get("include"), ("",)),
        _parse_parts(path, "exclude", known.get("exclude"), ()),
    )


def _parse_parts(path: str, key: str, value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    if isinstance(value, str) or not all(isinstance(part, str) for part in value):
        raise ConfigError(f"{path}.{key}", value, "must be a list of parts of parameter names")
    return tuple(value)


def _read_state_dict(model: NemoModel, key: str, source: Source, map_location: str) -> Mapping[str, Tensor]:
    if key == "init_from_ptl_ckpt":
        from nemo_expmgr.lightning_checkpoint import read_checkpoint

        return read_checkpoint(source.location, map_location)["state_dict"]
    from nemo_archive.torch import load_state_dict

    path = Path(source.location).expanduser()
    if key == "init_from_pretrained_model":
        from nemo_expmgr.pretrained import locate_pretrained

        path = locate_pretrained(source.location, type(model).list_available_models())
    return load_state_dict(path, map_location=map_location)


def load_part(model: NemoModel, state_dict: Mapping[str, Tensor], source: Source) -> LoadReport:
    """Copies the wanted tensors of a state dict into the model and logs one summary.

    Raises:
        ConfigError: a wanted tensor has another shape than the model's, or the model has none of the wanted names.
    """
    own = model.state_dict()
    wanted = {name: tensor for name, tensor in state_dict.items() if source.takes(name)}
    _check_shapes(own, wanted, source)
    result = model.load_state_dict(wanted, strict=False)
    unknown = set(result.unexpected_keys)
    report = LoadReport(
        loaded=[name for name in wanted if name not in unknown],
        skipped=[name for name in state_dict if name not in wanted],
        unknown=sorted(unknown),
        untouched=list(result.missing_keys),
    )
    if not report.loaded:
        raise ConfigError(
            source.config_path,
            source.location,
            f"has no parameter to load: of its {len(state_dict)}, {len(wanted)} are wanted and none is in "
            f"{type(model).__name__}",
        )
    _log(source, report)
    return report


def _check_shapes(own: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Source) -> None:
    differing = [
        f"{name} {tuple(tensor.shape)}, here {tuple(own[name].shape)}"
        for name, tensor in wanted.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if differing:
        form = "{path: ..., exclude: [...]}"
        raise ConfigError(
            source.config_path,
            source.location,
            f"has {len(differing)} parameters of another shape; give them as {form} to start them afresh: "
            + _shorten(differing, "; "),
        )


def _log(source: Source, report: LoadReport) -> None:
    parts = [f"{len(report.loaded)} parameters loaded"]
    for what, names in (
        ("left out by include and exclude", report.skipped),
        ("unknown to this model", report.unknown),
        ("not in the file and left as they are", report.untouched),
    ):
        if names:
            parts.append(f"{len(names)} {what} ({_shorten(names)})")
    logger.info("%s: %s: %s", source.config_path, source.location, "; ".join(parts))


def _shorten(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
