"""One layer of the Squeezeformer: attention, feed-forward, convolution, feed-forward, each with its scale and norm.

    x <- norm(x + part(scale * x + bias))

B batch, T frames, D width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.byte_dropout import ByteDropout
from nemo_asr.modules.conformer.convolution import ConformerConvolution
from nemo_asr.modules.conformer.layer import ConformerFeedForward, LayerOptions
from nemo_asr.modules.conformer.multi_head import MultiHeadAttention


class ScaleBias(nn.Module):
    """Scales and shifts each channel; where it does not learn, by 1 and 0, which files hold all the same."""

    scale: Tensor
    bias: Tensor

    def __init__(self, d_model: int, *, learns: bool) -> None:
        super().__init__()
        for name, values in (("scale", torch.ones(d_model)), ("bias", torch.zeros(d_model))):
            if learns:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.scale)


class SqueezeformerLayer(nn.Module):
    """A layer around `self_attn`.

    Args:
        options: what all layers have in common.
        self_attn: attention.
        adaptive_scale: the scales before the parts learn.
    """

    def __init__(self, options: LayerOptions, self_attn: MultiHeadAttention, *, adaptive_scale: bool) -> None:
        super().__init__()
        width = options.d_model
        self.norm_feed_forward1 = nn.LayerNorm(width)
        self.feed_forward1 = _feed_forward(options)
        self.feed_forward1_scale = ScaleBias(width, learns=adaptive_scale)
        self.norm_conv = nn.LayerNorm(width)
        self.conv = ConformerConvolution(
            width, options.conv_padding, norm_type=options.conv_norm_type, use_bias=options.use_bias, gated=False
        )
        _draw_convolution(self.conv, width)
        self.conv_scale = ScaleBias(width, learns=adaptive_scale)
        self.norm_self_att = nn.LayerNorm(width)
        self.self_attn = self_attn
        self.self_attn_scale = ScaleBias(width, learns=adaptive_scale)
        self.norm_feed_forward2 = nn.LayerNorm(width)
        self.feed_forward2 = _feed_forward(options)
        self.feed_forward2_scale = ScaleBias(width, learns=adaptive_scale)
        self.dropout = ByteDropout(options.dropout_p)

    def forward(self, x: Tensor, mask: AttentionMask, positions: Tensor) -> Tensor:
        """Transforms x (B, T, D).

        Args:
            x: the frames.
            mask: which of them are padding, and which see which.
            positions: (1, P, D), what the encoder's positional encoding gave.
        """
        x = self.norm_self_att(x + self.dropout(self.self_attn(self.self_attn_scale(x), mask, positions)))
        x = self.norm_feed_forward1(x + self.dropout(self.feed_forward1(self.feed_forward1_scale(x))))
        x = self.norm_conv(x + self.dropout(self.conv(self.conv_scale(x), mask.padded)))
        return self.norm_feed_forward2(x + self.dropout(self.feed_forward2(self.feed_forward2_scale(x))))


def draw_uniform(layer: nn.Module, fan: float) -> None:
    """Draws weight and bias within 1 / sqrt(fan) of zero, as the paper's authors do."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(fan**-0.5), fan**-0.5)


def _feed_forward(options: LayerOptions) -> ConformerFeedForward:
    part = ConformerFeedForward(options.d_model, options.d_ff, options.dropout_p, use_bias=options.use_bias)
    draw_uniform(part.linear1, options.d_model)
    draw_uniform(part.linear2, options.d_ff)
    return part


def _draw_convolution(conv: ConformerConvolution, d_model: int) -> None:
    draw_uniform(conv.pointwise_conv1, d_model)
    draw_uniform(conv.pointwise_conv2, d_model)
    draw_uniform(conv.depthwise_conv, conv.depthwise_conv.kernel_size[0])
