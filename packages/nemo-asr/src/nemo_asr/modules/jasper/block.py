"""One block of Jasper, QuartzNet or Citrinet: a few convolutions, and a way around them.

    [convolution, norm, activation, dropout] x (repeat - 1), convolution, norm, [squeeze-and-excitation],
    + norm(1x1 convolution(input)), activation, dropout

In a dense network (Jasper DR) the way around starts at every earlier block. B batch, D channels, T frames
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nemo_asr.modules.jasper.block_options import BlockOptions
from nemo_asr.modules.jasper.masked_conv import MaskedConv1d, Padding, context_padding
from nemo_asr.modules.jasper.squeeze_excite import SqueezeExcite


class GroupShuffle(nn.Module):
    """Mixes the channels of a grouped convolution, so that the next one sees all groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, T) with channel g * (D / groups) + i moved to i * groups + g."""
        batch, channels, frames = x.shape
        grouped = x.reshape(batch, self.groups, channels // self.groups, frames)
        return grouped.transpose(1, 2).reshape(batch, channels, frames)


class WayAround(nn.ModuleList):
    """The residual branch: a convolution of width 1 and its norm."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, D, T) with lengths (B,) to (B, D', T')."""
        out = self[0](x, lengths)[0] if isinstance(self[0], MaskedConv1d) else self[0](x)
        normalized: Tensor = self[1](out)
        return normalized


class LayerMaker:
    """Makes the layers that the blocks of one encoder have in common.

    Args:
        activation: makes an activation.
        normalization: batch, layer, group or instance.
        norm_groups: of group normalisation; -1 for one in each channel.
        conv_mask: convolutions treat padding as zeros and follow the lengths.
    """

    def __init__(
        self, activation: Callable[[], nn.Module], normalization: str, norm_groups: int, *, conv_mask: bool
    ) -> None:
        self.activation = activation
        self.normalization = normalization
        self.norm_groups = norm_groups
        self.conv_mask = conv_mask
        if normalization not in ("batch", "layer", "group", "instance"):
            raise ValueError(f"normalization_mode: {normalization!r} must be batch, layer, group or instance")

    def norm(self, channels: int) -> nn.Module:
        """Normalisation over (B, D, T)."""
        if self.normalization == "batch":
            return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.1)
        groups = {"layer": 1, "instance": channels, "group": self.norm_groups}[self.normalization]
        groups = channels if groups == -1 else groups
        if channels % groups:
            raise ValueError(f"filters: {channels} are not divisible by norm_groups {groups}")
        return nn.GroupNorm(groups, channels)

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        heads: int = -1,
    ) -> nn.Module:
        """A convolution without bias; a plain one where lengths are not followed."""
        if self.conv_mask:
            return MaskedConv1d(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                heads=heads,
            )
        if isinstance(padding, tuple):
            raise ValueError("future_context: needs conv_mask")
        return nn.Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        )

    def activation_and_dropout(self, dropout: float) -> list[nn.Module]:
        """What follows every normalised sum."""
        return [self.activation(), nn.Dropout(dropout)]


class JasperBlock(nn.Module):
    """The block of a network that `options` describe; the names of its children are those of NVIDIA's files.

    Args:
        in_channels: D of the input.
        options: the block's section, with its residual mode filled in.
        layers: the makers shared by all blocks.
        ways: channels of the inputs of the ways around: (in_channels,), or those of the earlier dense blocks.
    """

    def __init__(self, in_channels: int, options: BlockOptions, layers: LayerMaker, ways: tuple[int, ...]) -> None:
        super().__init__()
        self.options = options
        padding = context_padding(options.kernel, options.stride, options.dilation, options.future_context)
        self.mconv = nn.ModuleList()
        for step in range(options.repeat):
            last = step == options.repeat - 1
            stride = 1 if options.stride_last and not last else options.stride
            self.mconv.extend(_convolution(in_channels, options, layers, stride, padding))
            in_channels = options.filters
            if not last:
                self.mconv.extend(layers.activation_and_dropout(options.dropout))
        if options.se:
            self.mconv.append(
                SqueezeExcite(options.filters, options.se_reduction_ratio, options.se_context_size, layers.activation())
            )
        self.dense = options.residual and options.residual_dense
        self.res = _ways_around(ways, options, layers) if options.residual else None
        self.mout = nn.Sequential(*layers.activation_and_dropout(options.dropout))

    def forward(self, panes: list[Tensor], lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of earlier blocks (the last is this block's input, B, D, T) to those of the next, and lengths."""
        out, out_lengths = panes[-1], lengths
        for layer in self.mconv:
            if isinstance(layer, MaskedConv1d | SqueezeExcite):
                out, out_lengths = layer(out, out_lengths)
            else:
                out = layer(out)
        if self.res is not None:
            # A dense block has as many ways around as there are panes; a plain one takes the first pane.
            for pane, way in zip(panes, self.res, strict=False):
                out = self._merge(out, way(pane, lengths))
        out = self.mout(out)
        return [*panes, out] if self.dense else [out], out_lengths

    def _merge(self, out: Tensor, around: Tensor) -> Tensor:
        return out + around if str(self.options.residual_mode).endswith("add") else torch.maximum(out, around)


def _convolution(
    in_channels: int, options: BlockOptions, make: LayerMaker, stride: int, padding: Padding
) -> list[nn.Module]:
    """One of the block's convolutions, its norm, and the shuffle of its groups."""
    geometry = {"stride": stride, "dilation": options.dilation}
    filters, kernel, groups = options.filters, options.kernel, options.groups
    if options.separable:
        convolutions = [
            make.conv(
                in_channels, in_channels, kernel, padding=padding, groups=in_channels, heads=options.heads, **geometry
            ),
            make.conv(in_channels, filters, 1, groups=groups),
        ]
    else:
        convolutions = [make.conv(in_channels, filters, kernel, padding=padding, groups=groups, **geometry)]
    shuffle = [GroupShuffle(groups)] if groups > 1 else []
    return [*convolutions, make.norm(filters), *shuffle]


def _ways_around(ways: tuple[int, ...], options: BlockOptions, make: LayerMaker) -> nn.ModuleList:
    stride = options.stride if str(options.residual_mode).startswith("stride_") else 1
    filters = options.filters
    return nn.ModuleList(
        WayAround([make.conv(channels, filters, 1, stride=stride), make.norm(filters)]) for channels in ways
    )
