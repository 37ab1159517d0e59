"""Convolution over padded batches: frames after an utterance's end count as zeros.

    out_len = (len + padding - dilation (kernel - 1) - 1) // stride + 1

B batch, D channels, T frames
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = int | tuple[int, int]


def valid_frames(lengths: Tensor, n_frames: int, device: torch.device) -> Tensor:
    """(B, 1, T), true inside of the utterances."""
    return (torch.arange(n_frames, device=device) < lengths.to(device)[:, None])[:, None]


def scaled_kernel(kernel_size: int, factor: float) -> int:
    """The kernel of a wider or narrower model: scaled, rounded down, and made odd by adding one."""
    scaled = max(int(kernel_size * factor), 1)
    return scaled + 1 if scaled % 2 == 0 else scaled


def same_padding(kernel_size: int, stride: int, dilation: int) -> int:
    """Padding on each side that keeps the length at stride 1.

    Raises:
        ValueError: both stride and dilation are above 1.
    """
    if stride > 1 and dilation > 1:
        raise ValueError(f"stride: {stride} and dilation {dilation} cannot both be above 1")
    return dilation * (kernel_size - 1) // 2


def context_padding(kernel_size: int, stride: int, dilation: int, future_context: int) -> Padding:
    """(left, right) padding for a convolution that sees `future_context` kernel steps ahead.

    A negative context, or one that the kernel does not reach, is the symmetric padding. A dilated kernel gets
    dilation - 1 frames more on the left than it needs, as in NVIDIA's networks, whose lengths depend on it.
    """
    symmetric = same_padding(kernel_size, stride, dilation)
    if future_context < 0 or kernel_size <= future_context:
        return symmetric
    if dilation > 1:
        return dilation * kernel_size - 1 - dilation * future_context, dilation * future_context
    return kernel_size - 1 - future_context, future_context


class MaskedConv1d(nn.Module):
    """Convolution along time that keeps track of the lengths; the weights are in `conv`.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        kernel_size: frames.
        stride: frames.
        padding: frames on each side, or (left, right).
        dilation: frames between the taps of the kernel.
        groups: of channels.
        heads: kernels of a depthwise convolution that the channels share; -1 gives each channel its own.
    """

    def __init__(
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
        bias: bool = False,
    ) -> None:
        super().__init__()
        if heads != -1:
            if groups != in_channels or in_channels % heads:
                raise ValueError(f"heads: {heads} must divide the {in_channels} channels of a separable convolution")
            in_channels = out_channels = groups = heads
        self.heads = heads
        self.sides = padding if isinstance(padding, tuple) else None
        self.conv = nn.Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=0 if isinstance(padding, tuple) else padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        total = sum(padding) if isinstance(padding, tuple) else 2 * padding
        self.lost_frames = dilation * (kernel_size - 1) - total

    def output_length(self, lengths: Tensor) -> Tensor:
        """Frames (B,) after this layer."""
        stride = self.conv.stride[0]
        if stride == 1 and self.lost_frames == 0:
            return lengths
        return torch.div(lengths - self.lost_frames - 1, stride, rounding_mode="trunc") + 1

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Convolves x (B, D, T) with lengths (B,); gives the output and its lengths."""
        x = x.masked_fill(~valid_frames(lengths, x.shape[2], x.device), 0)
        if self.sides is not None:
            x = F.pad(x, self.sides)
        if self.heads == -1:
            return self.conv(x), self.output_length(lengths)
        batch, channels, frames = x.shape
        out = self.conv(x.reshape(-1, self.heads, frames))
        return out.reshape(batch, channels, -1), self.output_length(lengths)
