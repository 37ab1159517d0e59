"""Subsampling once more, between two layers or after the last (NVIDIA's keys reduction, reduction_position).

B batch, T frames, D width
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.subsampling import ConvSubsampling


class SubsamplingReductionModule(nn.Module):
    """Fewer frames of the same width.

    Args:
        reduction: pooling (the greatest of each `reduction_factor` frames) or striding (convolutions).
        d_model: width D.
        reduction_factor: frames in per frame out, a power of two.
    """

    def __init__(self, reduction: str, d_model: int, reduction_factor: int) -> None:
        super().__init__()
        if reduction not in ("pooling", "striding"):
            raise ValueError(f"reduction: {reduction} is neither pooling nor striding")
        if reduction_factor & (reduction_factor - 1):
            raise ValueError(f"reduction_factor: {reduction_factor} is not a power of 2")
        self.reduction_factor = reduction_factor
        if reduction == "striding":
            self.reduction_enc = ConvSubsampling("striding", reduction_factor, d_model, d_model, d_model)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Reduces x (B, T, D) with lengths (B,): gives (B, T', D) and the new lengths (B,), int64."""
        if hasattr(self, "reduction_enc"):
            return self.reduction_enc(x, lengths)
        pooled = F.max_pool1d(x.transpose(1, 2), self.reduction_factor).transpose(1, 2)
        # as NVIDIA counts: a factor of 4 shortens the frames by 4 and, done twice, the lengths by 16
        for _ in range(self.reduction_factor.bit_length() - 1):
            lengths = lengths // self.reduction_factor
        return pooled, lengths.long()
