"""Features that are learned from the waveform: strided convolutions, a projection and a norm.

B batch, L samples, D width, C channels, T frames
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
from nemo_asr.modules.neural_module import NeuralModule

EXTRACTOR_MODES = ("layer_norm", "group_norm")


@dataclass(frozen=True)
class ConvolutionOptions:
    """An entry of `conv_layers`: channels, and kernel and stride in frames of the layer before."""

    emb_dim: int
    kernel_size: int
    stride: int


class ChannelNorm(nn.Sequential):
    """Layer norm over the channels of (B, C, T); files hold it as the second of three."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Identity(), nn.LayerNorm(channels), nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        normalized: Tensor = self[1](input.transpose(1, 2))
        return normalized.transpose(1, 2)


class ConvFeatureEncoder(NeuralModule):
    """A front end: stands where others compute log-mel features.

    Frames that padding cannot reach do not depend on it, but in mode group_norm, whose statistics are over the batch's
    whole length, as in NVIDIA's toolkit.

    Args:
        conv_layers: as `ConvolutionOptions`.
        extractor_mode: layer_norm after every convolution and at the end; group_norm after the first one only.
        conv_bias: the convolutions have biases.
        feature_grad_mult: factor of the gradient of the convolutions; with 0 they do not learn.
        normalize_audio: each utterance is brought to mean 0 and variance 1.
        embedding_dim: D.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        conv_layers: Sequence[Mapping[str, int]],
        extractor_mode: str = "layer_norm",
        conv_bias: bool = False,
        feature_grad_mult: float = 1.0,
        normalize_audio: bool = True,
        embedding_dim: int = 768,
    ) -> None:
        super().__init__()
        if extractor_mode not in EXTRACTOR_MODES:
            raise ValueError(f"extractor_mode: {extractor_mode!r} is neither layer_norm nor group_norm")
        if not conv_layers:
            raise ValueError("conv_layers: [] makes no features")
        self.mode, self.grad_mult, self.normalize_input = extractor_mode, feature_grad_mult, normalize_audio
        self.convolutions = [
            read_options(ConvolutionOptions, section, f"conv_layers.{index}")
            for index, section in enumerate(conv_layers)
        ]
        self.conv_layers = nn.ModuleList()
        channels = 1
        for index, options in enumerate(self.convolutions):
            self.conv_layers.append(_layer(channels, options, extractor_mode, first=index == 0, bias=conv_bias))
            channels = options.emb_dim
        self.post_extract_proj = nn.Linear(channels, embedding_dim) if channels != embedding_dim else None
        self.layer_norm = nn.LayerNorm(embedding_dim)

    @property
    def samples_per_frame(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(options.stride for options in self.convolutions)

    def get_lengths(self, audio_lengths: Tensor) -> Tensor:
        """Frames (B,) of so many samples (B,)."""
        for options in self.convolutions:
            audio_lengths = (audio_lengths - options.kernel_size) // options.stride + 1
        return audio_lengths

    def forward(self, input_signal: Tensor, length: Tensor, pad_to: int | str | None = None) -> tuple[Tensor, Tensor]:
        """Features of a batch.

        Args:
            input_signal: audio (B, L).
            length: samples of each (B,).
            pad_to: nothing; other front ends pad their frames.

        Returns:
            features (B, D, T) and valid frames (B,).

        Raises:
            ValueError: the longest utterance is too short for one frame.
        """
        frames_len = self.get_lengths(length.long())
        if int(self.get_lengths(torch.tensor(input_signal.size(1)))) < 1:
            raise ValueError(f"input_signal: {input_signal.size(1)} samples are too few for one frame")
        audio = _normalized(input_signal, length) if self.normalize_input else input_signal
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.grad_mult > 0):
            x = audio.to(self.layer_norm.weight.dtype).unsqueeze(1)
            for layer in self.conv_layers:
                x = layer(x)
        if self.grad_mult > 0 and self.grad_mult != 1.0 and x.requires_grad:
            # the value stays as it is, and the gradient is multiplied
            x = x * self.grad_mult + (x * (1 - self.grad_mult)).detach()
        x = x.transpose(1, 2)
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        if self.mode == "layer_norm":
            x = self.layer_norm(x)
        return x.transpose(1, 2), frames_len.clamp(min=0)


def _layer(channels: int, options: ConvolutionOptions, mode: str, *, first: bool, bias: bool) -> nn.Sequential:
    conv = nn.Conv1d(channels, options.emb_dim, options.kernel_size, stride=options.stride, bias=bias)
    nn.init.kaiming_normal_(conv.weight)
    if mode == "layer_norm":
        return nn.Sequential(conv, ChannelNorm(options.emb_dim), nn.GELU())
    if first:
        return nn.Sequential(conv, nn.GroupNorm(options.emb_dim, options.emb_dim), nn.GELU())
    return nn.Sequential(conv, nn.GELU())


@torch.no_grad()
def _normalized(audio: Tensor, audio_len: Tensor) -> Tensor:
    """Audio (B, L), each utterance normalised over its samples; what comes after them stays."""
    valid = torch.arange(audio.size(1), device=audio.device) < audio_len.to(audio.device).unsqueeze(1)
    samples = audio_len.to(audio.device).clamp(min=1).unsqueeze(1)
    mean = audio.masked_fill(~valid, 0.0).sum(1, keepdim=True) / samples
    centred = (audio - mean).masked_fill(~valid, 0.0)
    variance = centred.square().sum(1, keepdim=True) / samples
    return torch.where(valid, centred * torch.rsqrt(variance + 1e-5), audio)
