"""One layer of the Conformer (arXiv 2005.08100): half a feed-forward, attention, convolution, the other half, norm.

B batch, T frames, D width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.conformer.activated_linear import activated_linear
from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.byte_dropout import ByteDropout
from nemo_asr.modules.conformer.convolution import ConformerConvolution
from nemo_asr.modules.conformer.multi_head import MultiHeadAttention
from nemo_asr.modules.untouched import is_untouched


class ConformerFeedForward(nn.Module):
    """Linear, Swish, dropout, linear.

    Args:
        d_model: width D.
        d_ff: width in between.
        dropout_p: dropout in between.
        use_bias: whether the linear maps have one.
    """

    def __init__(self, d_model: int, d_ff: int, dropout_p: float, *, use_bias: bool = True) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff, bias=use_bias)
        self.dropout = ByteDropout(dropout_p)
        self.linear2 = nn.Linear(d_ff, d_model, bias=use_bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        dropout, linear = self.dropout, self.linear2
        if not (is_untouched(dropout, ByteDropout) and is_untouched(linear, nn.Linear)):
            return linear(dropout(F.silu(hidden)))
        return activated_linear(hidden, linear.weight, linear.bias, dropout.p if dropout.training else 0.0)


class ConformerLayer(nn.Module):
    """A layer of the parts it is given.

    Args:
        d_model: width D.
        feed_forward1: the part before attention.
        self_attn: attention.
        conv: convolution.
        feed_forward2: the part after convolution.
        dropout_p: dropout of what each part adds.
    """

    def __init__(
        self,
        d_model: int,
        feed_forward1: ConformerFeedForward,
        self_attn: MultiHeadAttention,
        conv: ConformerConvolution,
        feed_forward2: ConformerFeedForward,
        dropout_p: float,
    ) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(d_model)
        self.feed_forward1 = feed_forward1
        self.norm_conv = nn.LayerNorm(d_model)
        self.conv = conv
        self.norm_self_att = nn.LayerNorm(d_model)
        self.self_attn = self_attn
        self.norm_feed_forward2 = nn.LayerNorm(d_model)
        self.feed_forward2 = feed_forward2
        self.dropout = ByteDropout(dropout_p)
        self.norm_out = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, mask: AttentionMask, positions: Tensor) -> Tensor:
        """Transforms x (B, T, D).

        Args:
            x: the frames.
            mask: which of them are padding, and which see which.
            positions: (1, P, D), what the encoder's positional encoding gave.
        """
        x = torch.add(x, self.dropout(self.feed_forward1(self.norm_feed_forward1(x))), alpha=0.5)
        x = x + self.dropout(self.self_attn(self.norm_self_att(x), mask, positions))
        x = x + self.dropout(self.conv(self.norm_conv(x), mask.padded))
        x = torch.add(x, self.dropout(self.feed_forward2(self.norm_feed_forward2(x))), alpha=0.5)
        return self.norm_out(x)


@dataclass(frozen=True)
class LayerOptions:
    """What all layers have in common, but for their attention."""

    d_model: int
    d_ff: int
    conv_padding: tuple[int, int]
    conv_norm_type: str
    dropout_p: float
    use_bias: bool


def build_layer(options: LayerOptions, self_attn: MultiHeadAttention) -> ConformerLayer:
    """A layer around `self_attn`."""
    width, bias = options.d_model, options.use_bias
    return ConformerLayer(
        width,
        ConformerFeedForward(width, options.d_ff, options.dropout_p, use_bias=bias),
        self_attn,
        ConformerConvolution(width, options.conv_padding, norm_type=options.conv_norm_type, use_bias=bias),
        ConformerFeedForward(width, options.d_ff, options.dropout_p, use_bias=bias),
        options.dropout_p,
    )
