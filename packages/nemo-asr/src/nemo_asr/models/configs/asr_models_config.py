"""The sections of a CTC model on characters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemo_asr.decoding.ctc_config import CtcDecodingConfig
from nemo_asr.modules.audio_preprocessing import (
    AudioToMelSpectrogramPreprocessorConfig,
    SpectrogramAugmentationConfig,
)
from nemo_asr.modules.conv_asr import ConvASRDecoderConfig, ConvASREncoderConfig
from nemo_config.errors import MISSING
from nemo_expmgr.schema import modelPT


@dataclass
class ASRDatasetConfig(modelPT.DatasetConfig):
    """A data section; `nemo_asr.data.config` says what the keys mean."""

    manifest_filepath: Any = None
    sample_rate: int = MISSING  # type: ignore[assignment]
    labels: list[str] = MISSING  # type: ignore[assignment]
    pin_memory: bool = False
    trim_silence: bool = False
    is_tarred: bool = False
    tarred_audio_filepaths: Any = None
    tarred_shard_strategy: str = "scatter"
    shard_manifests: bool = False
    shuffle_n: int = 0
    use_lhotse: bool = False
    use_bucketing: bool = False
    batch_duration: float | None = None
    quadratic_duration: float | None = None
    bucket_batch_size: Any = None
    bucket_duration_bins: Any = None
    num_buckets: int = 30
    int_values: int | None = None
    augmentor: dict[str, Any] | None = None
    max_duration: float | None = None
    min_duration: float | None = None
    max_utts: int = 0
    blank_index: int = -1
    unk_index: int = -1
    normalize: bool = False
    normalize_transcripts: bool = False
    parser: str = "en"
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int = 0
    use_start_end_token: bool = False
    return_sample_id: bool = False
    channel_selector: Any = None
    bucketing_strategy: str = "synced_randomized"
    bucketing_batch_size: Any = None
    bucketing_weights: list[int] | None = None


def train_set(**values: Any) -> ASRDatasetConfig:
    """A data section for training."""
    return ASRDatasetConfig(shuffle=True, **values)


def _optim() -> modelPT.OptimConfig:
    return modelPT.OptimConfig(sched=modelPT.SchedConfig())


@dataclass
class EncDecCTCConfig(modelPT.ModelConfig):
    """The `model` section of an `EncDecCTCModel`."""

    sample_rate: int = 16000
    repeat: int = 1
    dropout: float = 0.0
    separable: bool = False
    labels: list[str] = MISSING  # type: ignore[assignment]
    train_ds: ASRDatasetConfig = field(default_factory=train_set)
    validation_ds: ASRDatasetConfig = field(default_factory=ASRDatasetConfig)
    test_ds: ASRDatasetConfig = field(default_factory=ASRDatasetConfig)
    optim: modelPT.OptimConfig | None = field(default_factory=_optim)
    preprocessor: AudioToMelSpectrogramPreprocessorConfig = field(
        default_factory=AudioToMelSpectrogramPreprocessorConfig
    )
    spec_augment: SpectrogramAugmentationConfig | None = field(default_factory=SpectrogramAugmentationConfig)
    encoder: ConvASREncoderConfig = field(default_factory=ConvASREncoderConfig)
    decoder: ConvASRDecoderConfig = field(default_factory=ConvASRDecoderConfig)
    decoding: CtcDecodingConfig = field(default_factory=CtcDecodingConfig)


@dataclass
class EncDecCTCModelConfig(modelPT.NemoConfig):
    """The whole config of a run with an `EncDecCTCModel`."""

    model: EncDecCTCConfig = field(default_factory=EncDecCTCConfig)
