"""QuartzNet 15x5 (arXiv 1910.10261) and Jasper 10x5 DR (arXiv 1904.03288) as dataclasses, and their builder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_asr.models.configs.asr_models_config import ASRDatasetConfig, EncDecCTCConfig, train_set
from nemo_asr.modules.audio_preprocessing import SpectrogramAugmentationConfig
from nemo_asr.modules.conv_asr import ConvASREncoderConfig, JasperEncoderConfig
from nemo_expmgr.schema import modelPT


def _relu_encoder() -> ConvASREncoderConfig:
    return ConvASREncoderConfig(activation="relu")


def _trimmed_train_set() -> ASRDatasetConfig:
    return train_set(trim_silence=True)


@dataclass
class JasperModelConfig(EncDecCTCConfig):
    """The `model` section of a Jasper."""

    train_ds: ASRDatasetConfig = field(default_factory=_trimmed_train_set)
    encoder: ConvASREncoderConfig = field(default_factory=_relu_encoder)


@dataclass
class QuartzNetModelConfig(JasperModelConfig):
    """The `model` section of a QuartzNet."""

    separable: bool = True


def _block(filters: int, kernel: int, repeat: int = 5, **options: Any) -> JasperEncoderConfig:
    geometry: dict[str, Any] = {"stride": [1], "dilation": [1], "dropout": 0.0, "residual": repeat > 1}
    return JasperEncoderConfig(filters=filters, kernel=[kernel], repeat=repeat, **geometry | options)


def qn_15x5() -> list[JasperEncoderConfig]:
    """QuartzNet's five groups of three blocks of five convolutions, and what stands before and after."""
    return list(_quartznet())


def _quartznet() -> Iterator[JasperEncoderConfig]:
    yield _block(256, 33, 1, stride=[2], separable=True)
    for filters, kernel in [(256, 33), (256, 39), (512, 51), (512, 63), (512, 75)]:
        yield from (_block(filters, kernel, separable=True) for _ in range(3))
    yield _block(512, 87, 1, dilation=[2], separable=True)
    yield _block(1024, 1, 1)


def jasper_10x5_dr() -> list[JasperEncoderConfig]:
    """Jasper's ten dense blocks of five convolutions, and what stands before and after."""
    return list(_jasper())


def _jasper() -> Iterator[JasperEncoderConfig]:
    yield _block(256, 11, 1, stride=[2], dropout=0.2)
    sizes = [(256, 11, 0.2), (384, 13, 0.2), (512, 17, 0.2), (640, 21, 0.3), (768, 25, 0.3)]
    for filters, kernel, dropout in sizes:
        yield from (_block(filters, kernel, dropout=dropout, residual_dense=True) for _ in range(2))
    yield _block(896, 29, 1, dilation=[2], dropout=0.4)
    yield _block(1024, 1, 1, dropout=0.4)


class EncDecCTCModelConfigBuilder(modelPT.ModelConfigBuilder[EncDecCTCConfig]):
    """Builds the `model` section of a known network.

    Args:
        name: quartznet_15x5, quartznet_15x5_zh or jasper_10x5dr.
        encoder_cfg_func: gives other blocks.

    Raises:
        ValueError: no such name.
    """

    VALID_CONFIGS = ("quartznet_15x5", "quartznet_15x5_zh", "jasper_10x5dr")

    def __init__(
        self, name: str = "quartznet_15x5", encoder_cfg_func: Callable[[], list[JasperEncoderConfig]] | None = None
    ) -> None:
        if name not in self.VALID_CONFIGS:
            raise ValueError(f"name: {name!r} is none of {', '.join(self.VALID_CONFIGS)}")
        self.name = name
        separable = name.startswith("quartznet")
        kind = QuartzNetModelConfig if separable else JasperModelConfig
        blocks = (encoder_cfg_func or (qn_15x5 if separable else jasper_10x5_dr))()
        super().__init__(
            kind(
                repeat=5,
                separable=separable,
                spec_augment=SpectrogramAugmentationConfig(rect_masks=5, rect_freq=50, rect_time=120),
                encoder=ConvASREncoderConfig(jasper=blocks, activation="relu"),
            )
        )
        if name.endswith("zh"):
            self.set_dataset_normalize(False)

    def set_labels(self, labels: list[str]) -> None:
        """The characters."""
        self.model_cfg.labels = labels

    def set_separable(self, separable: bool) -> None:
        """Whether the convolutions are depthwise and pointwise."""
        self.model_cfg.separable = separable

    def set_repeat(self, repeat: int) -> None:
        """Convolutions in a block."""
        self.model_cfg.repeat = repeat

    def set_sample_rate(self, sample_rate: int) -> None:
        """Samples per second."""
        self.model_cfg.sample_rate = sample_rate

    def set_dropout(self, dropout: float = 0.0) -> None:
        """Dropout of all blocks."""
        self.model_cfg.dropout = dropout

    def set_dataset_normalize(self, normalize: bool) -> None:
        """Whether transcripts are cleaned up."""
        for section in self._data_sections():
            section.normalize = normalize

    def _data_sections(self) -> list[ASRDatasetConfig]:
        model = self.model_cfg
        return [section for section in (model.train_ds, model.validation_ds, model.test_ds) if section is not None]

    def _finalize_cfg(self) -> None:
        model = self.model_cfg
        blocks = model.encoder.jasper or []
        for section in self._data_sections():
            section.labels, section.sample_rate = model.labels, model.sample_rate
        model.preprocessor.sample_rate = model.sample_rate
        model.encoder.feat_in = model.preprocessor.features
        model.decoder.feat_in = blocks[-1].filters
        model.decoder.vocabulary, model.decoder.num_classes = model.labels, len(model.labels)
        for block in blocks:
            block.dropout = model.dropout
        for block in blocks[:-1]:
            block.separable = model.separable
        for block in blocks[1:-2]:
            block.repeat = model.repeat
