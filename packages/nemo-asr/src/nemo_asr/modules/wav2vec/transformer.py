"""The Transformer of wav2vec 2.0: positions by a wide convolution, then attention and feed-forward layers.

B batch, T frames, D width, H heads, K head width
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
from nemo_asr.modules.neural_module import NeuralModule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class PositionConvolutionOptions:
    """The `pos_embed` section: width D, frames that the convolution sees, and its groups."""

    embedding_dim: int
    conv_pos: int
    conv_pos_groups: int


@dataclass(frozen=True)
class TransformerOptions:
    """The `transformer` section.

    Attributes:
        num_layers: number of layers.
        hidden_size: D.
        inner_size: width inside the feed-forward parts.
        num_attention_heads: H.
        attn_score_dropout: on the attention weights.
        attn_layer_dropout: on what attention adds.
        ffn_dropout: on what the feed-forward part adds.
        hidden_act: gelu or relu.
        pre_ln: norms stand before the parts; else after them.
        mask_future: nothing; NVIDIA's encoder takes it and masks no future either.
        pre_ln_final_layer_norm: with pre_ln files hold one more norm, which NVIDIA's encoder does not apply.
    """

    num_layers: int
    hidden_size: int
    inner_size: int
    num_attention_heads: int = 1
    attn_score_dropout: float = 0.0
    attn_layer_dropout: float = 0.0
    ffn_dropout: float = 0.0
    hidden_act: str = "relu"
    pre_ln: bool = False
    mask_future: bool = False
    pre_ln_final_layer_norm: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            rule = f"does not divide hidden_size {self.hidden_size}"
            raise ValueError(f"transformer.num_attention_heads: {self.num_attention_heads} {rule}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"transformer.hidden_act: {self.hidden_act!r} is neither gelu nor relu")


class PositionConvolution(nn.Module):
    """A wide grouped convolution, its weight as direction v and, for each of its frames, length g.

    Args:
        options: its size.
        dropout_p: dropout of the layers after it, which the initial weights allow for.
    """

    def __init__(self, options: PositionConvolutionOptions, dropout_p: float) -> None:
        super().__init__()
        width, frames, groups = options.embedding_dim, options.conv_pos, options.conv_pos_groups
        if width % groups:
            raise ValueError(f"pos_embed.conv_pos_groups: {groups} does not divide embedding_dim {width}")
        self.groups = groups
        self.bias = nn.Parameter(torch.zeros(width))
        direction = torch.randn(width, width // groups, frames) * math.sqrt(4 * (1 - dropout_p) / (frames * width))
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(direction)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes x (B, D, T) along time."""
        length = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / length)
        frames = weight.size(2)
        mixed = F.conv1d(x, weight, self.bias, padding=frames // 2, groups=self.groups)
        return mixed[:, :, : x.size(2)]  # an even kernel makes one more


class SelfAttention(nn.Module):
    """Attention without positions, under the names of NVIDIA's files."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        width = options.hidden_size
        self.heads, self.score_dropout_p = options.num_attention_heads, options.attn_score_dropout
        self.query_net = nn.Linear(width, width)
        self.key_net = nn.Linear(width, width)
        self.value_net = nn.Linear(width, width)
        self.out_projection = nn.Linear(width, width)
        self.layer_dropout = nn.Dropout(options.attn_layer_dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Mixes those frames of x (B, T, D) that are valid (B, T); the others get a mixture, too."""
        query, key, value = (self._heads(net(x)) for net in (self.query_net, self.key_net, self.value_net))
        dropout_p = self.score_dropout_p if self.training else 0.0
        keys = valid[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropout_p)
        return self.layer_dropout(self.out_projection(mixed.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, activation, linear, dropout, under the names of NVIDIA's files."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[options.hidden_act]
        self.dense_in = nn.Linear(options.hidden_size, options.inner_size)
        self.dense_out = nn.Linear(options.inner_size, options.hidden_size)
        self.layer_dropout = nn.Dropout(options.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_dropout(self.dense_out(self.activation(self.dense_in(x))))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each added to its input, with a norm before or after."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.pre_ln = options.pre_ln
        self.layer_norm_1 = nn.LayerNorm(options.hidden_size)
        self.first_sub_layer = SelfAttention(options)
        self.layer_norm_2 = nn.LayerNorm(options.hidden_size)
        self.second_sub_layer = FeedForward(options)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Transforms x (B, T, D), of which the frames `valid` (B, T) may be looked at."""
        if self.pre_ln:
            x = x + self.first_sub_layer(self.layer_norm_1(x), valid)
            return x + self.second_sub_layer(self.layer_norm_2(x))
        x = self.layer_norm_1(x + self.first_sub_layer(x, valid))
        return self.layer_norm_2(x + self.second_sub_layer(x))


class Wav2VecTransformerEncoder(NeuralModule):
    """Encodes the features of a `ConvFeatureEncoder`.

    Args:
        pos_embed: as `PositionConvolutionOptions`.
        transformer: as `TransformerOptions`.
        layer_drop: probability that training leaves out a layer.

    Raises:
        ValueError: an option out of its range.
    """

    subsampling_factor = 1

    def __init__(self, pos_embed: Mapping[str, Any], transformer: Mapping[str, Any], layer_drop: float = 0.0) -> None:
        super().__init__()
        options = read_options(TransformerOptions, transformer, "transformer")
        positions = read_options(PositionConvolutionOptions, pos_embed, "pos_embed")
        width = positions.embedding_dim
        if width != options.hidden_size:
            raise ValueError(f"pos_embed.embedding_dim: {width} differs from transformer.hidden_size")
        self._feat_in = self._feat_out = width
        self.layer_drop = layer_drop
        if options.pre_ln and options.pre_ln_final_layer_norm:
            self.final_layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(TransformerLayer(options) for _ in range(options.num_layers))
        self.pos_conv = nn.Sequential(PositionConvolution(positions, options.attn_layer_dropout))
        self.layer_norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes features (B, D, T) with valid frames (B,) to (B, D, T) and the same frames."""
        valid = torch.arange(audio_signal.size(2), device=length.device) < length.unsqueeze(1)
        x = audio_signal.masked_fill(~valid.unsqueeze(1), 0.0)
        x = self.layer_norm((x + F.gelu(self.pos_conv(x))).transpose(1, 2))
        for layer in self.layers:
            if self.training and random.random() < self.layer_drop:
                # times zero, so that every parameter has a gradient in every process of a distributed training
                x = x + layer(x, valid) * 0.0
            else:
                x = layer(x, valid)
        return x.transpose(1, 2), length
