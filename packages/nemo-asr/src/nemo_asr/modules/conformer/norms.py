"""Normalisation inside the Conformer convolution, on (B, T, D), by NVIDIA's conv_norm_type.  B batch, T frames, D width

Statistics over time include the padding of a batch, as in the released checkpoints' training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm over all frames of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, 1)).view_as(input)


class FrameInstanceNorm(nn.InstanceNorm1d):
    """Norm of each channel over an item's frames."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class FrameGroupNorm(nn.GroupNorm):
    """Norm of each group of channels over an item's frames."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class FusedBatchNorm(nn.Module):
    """Batch norm whose statistics were folded into weight and bias (D,)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


def build_norm(norm_type: str, d_model: int) -> nn.Module:
    """The norm that conv_norm_type names, for frames (B, T, D)."""
    match norm_type:
        case "batch_norm":
            return FrameBatchNorm(d_model)
        case "layer_norm":
            return nn.LayerNorm(d_model)
        case "instance_norm":
            return FrameInstanceNorm(d_model)
        case "fused_batch_norm":
            return FusedBatchNorm(d_model)
    groups = norm_type.removeprefix("group_norm")
    if groups == norm_type or not groups.isdecimal():
        known = "batch_norm, layer_norm, instance_norm, fused_batch_norm, group_norm<groups>"
        raise ValueError(f"conv_norm_type: {norm_type} is none of {known}")
    if int(groups) < 1 or d_model % int(groups):
        raise ValueError(f"conv_norm_type: {norm_type}: {groups} does not divide d_model {d_model}")
    return FrameGroupNorm(int(groups), d_model)
