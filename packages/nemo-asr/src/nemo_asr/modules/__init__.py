"""Network modules under NVIDIA's names: their YAML keys are the constructors' keywords."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_asr.modules.conformer import ConformerEncoder
    from nemo_asr.modules.features import AudioToMelSpectrogramPreprocessor
    from nemo_asr.modules.jasper import ConvASRDecoder, ConvASREncoder
    from nemo_asr.modules.joint import HATJoint, RNNTJoint
    from nemo_asr.modules.prediction import RNNTDecoder, StatelessTransducerDecoder
    from nemo_asr.modules.spec_augment import SpectrogramAugmentation

__all__ = [
    "AudioToMelSpectrogramPreprocessor",
    "ConformerEncoder",
    "ConvASRDecoder",
    "ConvASREncoder",
    "HATJoint",
    "RNNTDecoder",
    "RNNTJoint",
    "SpectrogramAugmentation",
    "StatelessTransducerDecoder",
]

_HOMES = {
    "AudioToMelSpectrogramPreprocessor": "nemo_asr.modules.features",
    "ConformerEncoder": "nemo_asr.modules.conformer",
    "ConvASRDecoder": "nemo_asr.modules.jasper",
    "ConvASREncoder": "nemo_asr.modules.jasper",
    "HATJoint": "nemo_asr.modules.joint",
    "RNNTDecoder": "nemo_asr.modules.prediction",
    "RNNTJoint": "nemo_asr.modules.joint",
    "SpectrogramAugmentation": "nemo_asr.modules.spec_augment",
    "StatelessTransducerDecoder": "nemo_asr.modules.prediction",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nemo_asr.modules' has no attribute {name!r}")
