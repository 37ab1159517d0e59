"""Network modules under NVIDIA's names: their YAML keys are the constructors' keywords."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_asr.modules.conformer import ConformerEncoder
    from nemo_asr.modules.features import AudioToMelSpectrogramPreprocessor
    from nemo_asr.modules.jasper import ConvASRDecoder, ConvASREncoder
    from nemo_asr.modules.spec_augment import SpectrogramAugmentation

__all__ = [
    "AudioToMelSpectrogramPreprocessor",
    "ConformerEncoder",
    "ConvASRDecoder",
    "ConvASREncoder",
    "SpectrogramAugmentation",
]

_HOMES = {
    "AudioToMelSpectrogramPreprocessor": "nemo_asr.modules.features",
    "ConformerEncoder": "nemo_asr.modules.conformer",
    "ConvASRDecoder": "nemo_asr.modules.jasper",
    "ConvASREncoder": "nemo_asr.modules.jasper",
    "SpectrogramAugmentation": "nemo_asr.modules.spec_augment",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nemo_asr.modules' has no attribute {name!r}")
