"""Configs of models as dataclasses, for scripts that make theirs in Python, by NVIDIA's names.

builder = configs.EncDecCTCModelConfigBuilder(name="quartznet_15x5")
builder.set_labels(labels)
model = EncDecCTCModel(cfg=builder.build(), trainer=trainer)
"""

from nemo_asr.models.configs.asr_models_config import ASRDatasetConfig, EncDecCTCConfig, EncDecCTCModelConfig
from nemo_asr.models.configs.quartznet_config import (
    EncDecCTCModelConfigBuilder,
    JasperModelConfig,
    QuartzNetModelConfig,
)
from nemo_asr.modules.audio_preprocessing import (
    AudioToMelSpectrogramPreprocessorConfig,
    SpectrogramAugmentationConfig,
)
from nemo_asr.modules.conv_asr import ConvASRDecoderConfig, ConvASREncoderConfig, JasperEncoderConfig

__all__ = [
    "ASRDatasetConfig",
    "AudioToMelSpectrogramPreprocessorConfig",
    "ConvASRDecoderConfig",
    "ConvASREncoderConfig",
    "EncDecCTCConfig",
    "EncDecCTCModelConfig",
    "EncDecCTCModelConfigBuilder",
    "JasperEncoderConfig",
    "JasperModelConfig",
    "QuartzNetModelConfig",
    "SpectrogramAugmentationConfig",
]
