"""Which model class a config asks for: its `target`, or what its sections say (NVIDIA's scripts each know theirs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_asr.models import ASRModel


def model_class_for(config: Mapping[str, Any]) -> type[ASRModel]:
    """The class of a `model` section.

    Raises:
        nemo_config.ConfigError: the section is of a family that is not here.
    """
    from nemo_asr import models
    from nemo_config import ConfigError, resolve_target

    if config.get("target"):
        found = resolve_target(str(config["target"]), path="model.target")
        if not (isinstance(found, type) and issubclass(found, models.ASRModel)):
            raise ConfigError("model.target", config["target"], "is no speech recognition model")
        return found
    for section in ("joint", "aux_ctc", "transf_decoder"):
        if section in config:
            raise ConfigError(f"model.{section}", "", "is of a model family that this version does not have")
    return models.EncDecCTCModelBPE if config.get("tokenizer") is not None else models.EncDecCTCModel
