"""Network modules under NVIDIA's names: their YAML keys are the constructors' keywords."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_asr.modules.conformer import ConformerEncoder
    from nemo_asr.modules.features import AudioToMelSpectrogramPreprocessor
    from nemo_asr.modules.jasper import ConvASRDecoder, ConvASREncoder, ParallelConvASREncoder
    from nemo_asr.modules.joint import HATJoint, RNNTJoint
    from nemo_asr.modules.prediction import RNNTDecoder, StatelessTransducerDecoder
    from nemo_asr.modules.recurrent import RNNEncoder
    from nemo_asr.modules.sampled_joint import SampledRNNTJoint
    from nemo_asr.modules.spec_augment import SpectrogramAugmentation
    from nemo_asr.modules.squeezeformer import SqueezeformerEncoder
    from nemo_asr.modules.wav2vec import ConvFeatureEncoder, Wav2VecTransformerEncoder

__all__ = [
    "AudioToMelSpectrogramPreprocessor",
    "ConformerEncoder",
    "ConvASRDecoder",
    "ConvASREncoder",
    "ConvFeatureEncoder",
    "HATJoint",
    "ParallelConvASREncoder",
    "RNNEncoder",
    "RNNTDecoder",
    "RNNTJoint",
    "SampledRNNTJoint",
    "SpectrogramAugmentation",
    "SqueezeformerEncoder",
    "StatelessTransducerDecoder",
    "Wav2VecTransformerEncoder",
]

_HOMES = {
    "AudioToMelSpectrogramPreprocessor": "nemo_asr.modules.features",
    "ConformerEncoder": "nemo_asr.modules.conformer",
    "ConvASRDecoder": "nemo_asr.modules.jasper",
    "ConvASREncoder": "nemo_asr.modules.jasper",
    "ConvFeatureEncoder": "nemo_asr.modules.wav2vec",
    "HATJoint": "nemo_asr.modules.joint",
    "ParallelConvASREncoder": "nemo_asr.modules.jasper",
    "RNNEncoder": "nemo_asr.modules.recurrent",
    "RNNTDecoder": "nemo_asr.modules.prediction",
    "RNNTJoint": "nemo_asr.modules.joint",
    "SampledRNNTJoint": "nemo_asr.modules.sampled_joint",
    "SpectrogramAugmentation": "nemo_asr.modules.spec_augment",
    "SqueezeformerEncoder": "nemo_asr.modules.squeezeformer",
    "StatelessTransducerDecoder": "nemo_asr.modules.prediction",
    "Wav2VecTransformerEncoder": "nemo_asr.modules.wav2vec",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("audio_preprocessing", "conv_asr"):  # NVIDIA's names of modules that scripts look into
        return importlib.import_module(f"nemo_asr.modules.{name}")
    raise AttributeError(f"module 'nemo_asr.modules' has no attribute {name!r}")
