"""Changes of an encoder that a model already has.  Each gives the keys of the `encoder` section that then say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nemo_asr.modules import ConformerEncoder, ConvASREncoder
from nemo_asr.modules.jasper.masked_conv import MaskedConv1d
from nemo_asr.modules.jasper.squeeze_excite import SqueezeExcite
from nemo_asr.modules.subsampling import ConvSubsampling


def change_attention(
    encoder: nn.Module, self_attention_model: str | None, att_context_size: Sequence[int] | None
) -> dict[str, Any]:
    """Replaces the attention of a Conformer, keeping its weights (`ConformerEncoder.change_attention_model`)."""
    if not isinstance(encoder, ConformerEncoder):
        raise TypeError(f"change_attention_model: {type(encoder).__name__} has no attention")
    return encoder.change_attention_model(self_attention_model, att_context_size)


def change_chunking(encoder: nn.Module, pieces: int) -> dict[str, Any]:
    """Sets in how many pieces a Conformer subsamples (`ConvSubsampling`)."""
    subsampling = encoder.pre_encode if isinstance(encoder, ConformerEncoder) else None
    if not isinstance(subsampling, ConvSubsampling):
        name = type(encoder if subsampling is None else subsampling).__name__
        raise TypeError(f"change_subsampling_conv_chunking_factor: {name} subsamples without convolutions")
    subsampling.change_subsampling_conv_chunking_factor(pieces)
    return {"subsampling_conv_chunking_factor": pieces}


def change_squeeze_windows(encoder: nn.Module, section: Mapping[str, Any], context_window: int) -> dict[str, Any]:
    """Sets over how many frames the blocks of a Jasper encoder squeeze in training.

    Args:
        encoder: blocks after a stride get a window of as much time.
        section: the encoder's section.
        context_window: frames of the features; negative for all.

    Raises:
        ValueError: a window that is less than a frame of some block.
    """
    if not isinstance(encoder, ConvASREncoder):
        raise TypeError(f"change_conv_asr_se_context_window: {type(encoder).__name__} has no squeeze and excitation")
    blocks = [dict(block) for block in section["jasper"]]
    windows: list[tuple[SqueezeExcite, dict[str, Any], int]] = []
    window, stride = context_window, 1
    for block, options in zip(encoder.encoder, blocks, strict=True):
        for layer in block.get_submodule("mconv").modules():
            if isinstance(layer, MaskedConv1d):
                window, stride = window // layer.conv.stride[0], stride * layer.conv.stride[0]
            if isinstance(layer, SqueezeExcite):
                windows.append((layer, options, window))
    if any(own == 0 for _, _, own in windows):
        rule = f"must be negative, or at least the {stride} frames that the encoder makes one of"
        raise ValueError(f"change_conv_asr_se_context_window: {context_window} {rule}")
    for layer, options, own in windows:
        layer.context_window = options["se_context_size"] = own
    return {"jasper": blocks}
