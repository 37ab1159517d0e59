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
    if "transf_decoder" in config:
        raise ConfigError("model.transf_decoder", "", "is of a model family that this version does not have")
    has_tokenizer = config.get("tokenizer") is not None
    if "aux_ctc" in config:
        return models.EncDecHybridRNNTCTCBPEModel if has_tokenizer else models.EncDecHybridRNNTCTCModel
    if "joint" in config:
        return models.EncDecRNNTBPEModel if has_tokenizer else models.EncDecRNNTModel
    return models.EncDecCTCModelBPE if has_tokenizer else models.EncDecCTCModel
