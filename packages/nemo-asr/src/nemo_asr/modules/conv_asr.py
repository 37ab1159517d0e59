"""NVIDIA's name for the convolutional networks, with their configs as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_asr.modules.jasper import ConvASRDecoder, ConvASREncoder, ParallelConvASREncoder
from nemo_config.errors import MISSING

__all__ = [
    "ConvASRDecoder",
    "ConvASRDecoderConfig",
    "ConvASREncoder",
    "ConvASREncoderConfig",
    "JasperEncoderConfig",
    "ParallelConvASREncoder",
]


@dataclass
class JasperEncoderConfig:
    """An entry of an encoder's `jasper`; the fields are those of `nemo_asr.modules.jasper.block_options`."""

    filters: int = MISSING  # type: ignore[assignment]
    repeat: int = MISSING  # type: ignore[assignment]
    kernel: list[int] = MISSING  # type: ignore[assignment]
    stride: list[int] = MISSING  # type: ignore[assignment]
    dilation: list[int] = MISSING  # type: ignore[assignment]
    dropout: float = MISSING  # type: ignore[assignment]
    residual: bool = MISSING  # type: ignore[assignment]
    groups: int = 1
    separable: bool = False
    heads: int = -1
    residual_mode: str = "add"
    residual_dense: bool = False
    se: bool = False
    se_reduction_ratio: int = 8
    se_context_size: int = -1
    se_interpolation_mode: str = "nearest"
    kernel_size_factor: float = 1.0
    stride_last: bool = False


@dataclass
class ConvASREncoderConfig:
    """The `encoder` section for a `ConvASREncoder`."""

    _target_: str = "nemo.collections.asr.modules.ConvASREncoder"
    jasper: list[JasperEncoderConfig] | None = field(default_factory=list)
    activation: str = MISSING
    feat_in: int = MISSING  # type: ignore[assignment]
    normalization_mode: str = "batch"
    residual_mode: str = "add"
    norm_groups: int = -1
    conv_mask: bool = True
    frame_splicing: int = 1
    init_mode: str | None = "xavier_uniform"


@dataclass
class ConvASRDecoderConfig:
    """The `decoder` section for a `ConvASRDecoder`."""

    _target_: str = "nemo.collections.asr.modules.ConvASRDecoder"
    feat_in: int = MISSING  # type: ignore[assignment]
    num_classes: int = MISSING  # type: ignore[assignment]
    init_mode: str | None = "xavier_uniform"
    vocabulary: list[str] | None = field(default_factory=list)
