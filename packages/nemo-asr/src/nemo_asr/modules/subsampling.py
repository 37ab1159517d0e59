"""Subsampling: fewer, wider frames before the encoder's layers.

A convolution of kernel k and stride 2 that pads l frames before and r frames after makes
floor((T + l + r - k) / 2) + 1 frames out of T; log2(factor) of them follow one another.

    striding            3x3 convolutions over time and mel bins (arXiv 1904.11660)
    dw_striding         the first as above, then depthwise 3x3 and pointwise 1x1 (FastConformer, arXiv 2305.05084)
    vggnet              two 3x3 convolutions and a 2x2 maximum (arXiv 1910.12977)
    striding_conv1d     kernel 5 over time, mel bins as channels
    dw_striding_conv1d  the same, depthwise and pointwise
    stacking            neighbouring frames side by side, then a projection; stacking_norm normalises first

Frames beyond an item's length count as zero at every stage, so an item's result does not depend on the others in
its batch.  Shapes: B batch, T frames, F mel bins, C channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Length = TypeVar("_Length", int, Tensor)

# cuDNN and mkldnn index a tensor with 32 bits
_MAX_ELEMENTS = 2**31
# output frames computed on both sides of a piece in time and thrown away: what its borders can reach
_HALO = 2


@dataclass(frozen=True)
class Halving:
    """One stride-2 stage: its kernel, the frames padded before and after, and whether a last part counts."""

    kernel: int
    left: int
    right: int
    ceil: bool = False

    def length(self, frames: _Length) -> _Length:
        """The number of frames that come out of `frames`."""
        spare = frames + (self.left + self.right - self.kernel)
        return (spare + 1 if self.ceil else spare) // 2 + 1

    @classmethod
    def of(cls, subsampling: str, causal: bool) -> Halving:
        """The stage that the strategy `subsampling` repeats."""
        if subsampling == "vggnet":
            return cls(kernel=2, left=0, right=0, ceil=True)
        kernel = 5 if subsampling.endswith("conv1d") else 3
        if causal:
            return cls(kernel, left=kernel - 1, right=1)
        return cls(kernel, left=kernel // 2, right=kernel // 2)


class PaddedConv1d(nn.Conv1d):
    """Conv1d of stride 2 with different padding before and after."""

    def __init__(self, in_channels: int, out_channels: int, stage: Halving, *, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, stage.kernel, stride=2, groups=groups)
        self.pads = (stage.left, stage.right)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.pads))


class PaddedConv2d(nn.Conv2d):
    """Conv2d of stride 2 with different padding before and after, on both axes."""

    def __init__(self, in_channels: int, out_channels: int, stage: Halving, *, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, stage.kernel, stride=2, groups=groups)
        self.pads = (stage.left, stage.right, stage.left, stage.right)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.pads))


def _strided(stage: Halving, inputs: int, outputs: int, *, dims: int, groups: int = 1) -> nn.Module:
    if stage.left == stage.right:
        conv = nn.Conv2d if dims == 2 else nn.Conv1d
        return conv(inputs, outputs, stage.kernel, stride=2, padding=stage.left, groups=groups)
    padded = PaddedConv2d if dims == 2 else PaddedConv1d
    return padded(inputs, outputs, stage, groups=groups)


def _striding(stage: Halving, repeats: int, channels: int) -> Iterator[nn.Module]:
    for index in range(repeats):
        yield _strided(stage, channels if index else 1, channels, dims=2)
        yield nn.ReLU(inplace=True)


def _dw_striding(stage: Halving, repeats: int, channels: int) -> Iterator[nn.Module]:
    yield _strided(stage, 1, channels, dims=2)
    yield nn.ReLU(inplace=True)
    for _ in range(repeats - 1):
        yield _strided(stage, channels, channels, dims=2, groups=channels)
        yield nn.Conv2d(channels, channels, 1)
        yield nn.ReLU(inplace=True)


def _vggnet(repeats: int, channels: int) -> Iterator[nn.Module]:
    for index in range(repeats):
        yield nn.Conv2d(channels if index else 1, channels, 3, padding=1)
        yield nn.ReLU(inplace=True)
        yield nn.Conv2d(channels, channels, 3, padding=1)
        yield nn.ReLU(inplace=True)
        yield nn.MaxPool2d(2, stride=2, ceil_mode=True)


def _conv1d(stage: Halving, sizes: list[int], depthwise: bool) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(sizes):
        if depthwise:
            yield _strided(stage, inputs, inputs, dims=1, groups=inputs)
            yield nn.Conv1d(inputs, outputs, 1)
        else:
            yield _strided(stage, inputs, outputs, dims=1)
        yield nn.ReLU(inplace=True)


def _conv_layers(
    subsampling: str, stage: Halving, repeats: int, feat_in: int, feat_out: int, channels: int
) -> Iterator[nn.Module]:
    match subsampling:
        case "striding":
            return _striding(stage, repeats, channels)
        case "dw_striding":
            return _dw_striding(stage, repeats, channels)
        case "vggnet":
            return _vggnet(repeats, channels)
        case "striding_conv1d" | "dw_striding_conv1d":
            sizes = [feat_in, *[channels] * (repeats - 1), feat_out]
            return _conv1d(stage, sizes, depthwise=subsampling.startswith("dw_"))
    known = "striding, dw_striding, vggnet, striding_conv1d, dw_striding_conv1d, stacking, stacking_norm"
    raise ValueError(f"subsampling: {subsampling} is none of {known}")


class ConvSubsampling(nn.Module):
    """Convolutions that halve the frames log2(subsampling_factor) times.

    Args:
        subsampling: one of the strategies at the head of this module that have convolutions.
        subsampling_factor: frames in per frame out, a power of two.
        feat_in: mel bins F.
        feat_out: width D.
        conv_channels: channels C of the convolutions.
        subsampling_conv_chunking_factor: in how many pieces a large input is computed, to save memory: 1 decides
            by size, -1 never splits, another power of two always splits. The result is the same.
        is_causal: no stage looks ahead further than its stride does.
    """

    def __init__(
        self,
        subsampling: str,
        subsampling_factor: int,
        feat_in: int,
        feat_out: int,
        conv_channels: int,
        subsampling_conv_chunking_factor: int = 1,
        *,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        if subsampling_factor < 2 or subsampling_factor & (subsampling_factor - 1):
            raise ValueError(f"subsampling_factor: {subsampling_factor} is not a power of 2")
        self.change_subsampling_conv_chunking_factor(subsampling_conv_chunking_factor)
        self.subsampling_factor = subsampling_factor
        self.conv_channels = conv_channels
        self.halvings = subsampling_factor.bit_length() - 1
        self.stage = Halving.of(subsampling, is_causal and subsampling != "dw_striding_conv1d")
        self.depthwise = subsampling.startswith("dw_")
        self.over_mel_bins = not subsampling.endswith("conv1d")
        # out before conv: checkpoints of optimizers count parameters in NVIDIA's order
        self.out = nn.Linear(conv_channels * self.length(feat_in), feat_out) if self.over_mel_bins else None
        layers = _conv_layers(subsampling, self.stage, self.halvings, feat_in, feat_out, conv_channels)
        self.conv = nn.Sequential(*layers)

    def change_subsampling_conv_chunking_factor(self, subsampling_conv_chunking_factor: int) -> None:
        """Sets in how many pieces inputs are computed (see the class)."""
        pieces = subsampling_conv_chunking_factor
        if pieces != -1 and (pieces < 1 or pieces & (pieces - 1)):
            raise ValueError(f"subsampling_conv_chunking_factor: {pieces} is neither -1, 1 nor a power of 2")
        self.subsampling_conv_chunking_factor = pieces

    def length(self, frames: _Length) -> _Length:
        """The number of frames that come out of `frames`."""
        for _ in range(self.halvings):
            frames = self.stage.length(frames)
        return frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsamples x (B, T, F) with lengths (B,): gives (B, T', D) and the new lengths (B,), int64."""
        lengths = lengths.long()
        pieces = self._pieces(x) if self.over_mel_bins else 1
        if pieces == 1:
            encoded = self._project(x, lengths)
        elif pieces <= x.size(0):
            size = x.size(0) // pieces
            parts = zip(torch.split(x, size), torch.split(lengths, size), strict=True)
            encoded = torch.cat([self._project(part, part_len) for part, part_len in parts])
        else:
            encoded = torch.cat(list(self._pieces_in_time(x, lengths, pieces)), dim=1)
        return encoded, self.length(lengths)

    def _pieces(self, x: Tensor) -> int:
        if self.subsampling_conv_chunking_factor != 1:
            return max(self.subsampling_conv_chunking_factor, 1)
        elements = x.numel() * self.conv_channels / 4
        return 1 if elements <= _MAX_ELEMENTS else 2 ** math.ceil(math.log2(elements / _MAX_ELEMENTS))

    def _pieces_in_time(self, x: Tensor, lengths: Tensor, pieces: int) -> Iterator[Tensor]:
        factor, frames = self.subsampling_factor, self.length(x.size(1))
        step = max(math.ceil(frames / pieces), 1)
        for start in range(0, frames, step):
            stop = min(start + step, frames)
            first = max(start - _HALO, 0)
            last = x.size(1) if stop == frames else min((stop + _HALO) * factor, x.size(1))
            piece_len = (lengths - first * factor).clamp(0, last - first * factor)
            yield self._project(x[:, first * factor : last], piece_len)[:, start - first : stop - first]

    def _project(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x.masked_fill(~_valid(x.size(1), lengths).unsqueeze(2), 0.0)
        if self.out is None:
            return self._convolve(x.transpose(1, 2), lengths).transpose(1, 2)
        # channels last is up to twice as fast on a CPU, but for the gradients of full convolutions
        channels_last = self.depthwise or not torch.is_grad_enabled()
        x_BCTF = x.unsqueeze(3).permute(0, 3, 1, 2) if channels_last else x.unsqueeze(1)
        return self.out(self._convolve(x_BCTF, lengths).transpose(1, 2).flatten(2))

    def _convolve(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The convolutions on x (B, C, T[, F]), with frames beyond the lengths set to zero before each activation."""
        for layer in self.conv:
            if isinstance(layer, nn.ReLU):
                valid = _valid(x.size(2), lengths)
                # in place: no convolution needs its own result to go backward
                x = x.mul_(valid.view(x.size(0), 1, -1, *[1] * (x.dim() - 3)).to(x.dtype))
            x = layer(x)
            if _halves(layer):
                lengths = self.stage.length(lengths)
        return x


class StackingSubsampling(nn.Module):
    """Puts `subsampling_factor` frames side by side and projects them.

    Args:
        subsampling_factor: frames in per frame out.
        feat_in: mel bins F.
        feat_out: width D.
        norm: normalise each frame first.
    """

    def __init__(self, subsampling_factor: int, feat_in: int, feat_out: int, *, norm: bool = False) -> None:
        super().__init__()
        self.subsampling_factor = subsampling_factor
        self.proj_out = nn.Linear(subsampling_factor * feat_in, feat_out)
        self.pre_norm = nn.LayerNorm(feat_in) if norm else None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks x (B, T, F) with lengths (B,): gives (B, T', D) and the new lengths (B,), int64."""
        pad = -x.size(1) % self.subsampling_factor
        x = F.pad(x, (0, 0, 0, pad))
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        stacked = x.reshape(x.size(0), x.size(1) // self.subsampling_factor, -1)
        # the padding of the batch counts for every item: the released checkpoints were trained so
        return self.proj_out(stacked), (lengths.long() + pad) // self.subsampling_factor


def build_subsampling(
    subsampling: str | None,
    subsampling_factor: int,
    feat_in: int,
    feat_out: int,
    conv_channels: int,
    *,
    chunking_factor: int = 1,
    is_causal: bool = False,
) -> ConvSubsampling | StackingSubsampling | nn.Linear:
    """The module that goes before the layers; a plain projection where nothing is to be subsampled."""
    if not subsampling or subsampling_factor == 1:
        return nn.Linear(feat_in, feat_out)
    if subsampling in ("stacking", "stacking_norm"):
        return StackingSubsampling(subsampling_factor, feat_in, feat_out, norm=subsampling == "stacking_norm")
    return ConvSubsampling(
        subsampling, subsampling_factor, feat_in, feat_out, conv_channels, chunking_factor, is_causal=is_causal
    )


def _halves(layer: nn.Module) -> bool:
    stride = getattr(layer, "stride", 1)
    return (stride[0] if isinstance(stride, tuple) else stride) == 2


def _valid(frames: int, lengths: Tensor) -> Tensor:
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)
