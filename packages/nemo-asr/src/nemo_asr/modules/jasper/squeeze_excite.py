"""Squeeze-and-excitation (arXiv 1709.01507): channels are weighted by what the whole utterance holds.

    out = x * sigmoid(W2 act(W1 mean_t(x)))

B batch, D channels, T frames
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.jasper.masked_conv import valid_frames


class SqueezeExcite(nn.Module):
    """Weights the channels of each utterance; computed in float32 at least.

    Args:
        channels: D.
        reduction_ratio: D is squeezed to D // reduction_ratio.
        context_window: in training, the mean is over a random stretch of this many frames; negative: over all.
        activation: between the two linear layers.
    """

    def __init__(self, channels: int, reduction_ratio: int, context_window: int, activation: nn.Module) -> None:
        super().__init__()
        squeezed = channels // reduction_ratio
        self.context_window = context_window
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False), activation, nn.Linear(squeezed, channels, bias=False)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D, T), zero after lengths (B,), with its channels weighted; the lengths stay."""
        dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
            valid = valid_frames(lengths, x.shape[2], x.device)
            x = x.masked_fill(~valid, 0)
            return (x * torch.sigmoid(self._excite(self._squeeze(x, valid))[..., None])).to(dtype), lengths

    def _squeeze(self, x: Tensor, valid: Tensor) -> Tensor:
        """The mean (B, D) over valid frames."""
        spare = x.shape[2] - self.context_window
        if self.training and self.context_window >= 0 and spare >= 0:
            start = int(torch.randint(spare + 1, ()))
            x = x[:, :, start : start + self.context_window]
            valid = valid[:, :, start : start + self.context_window]
        return x.sum(dim=2) / valid.sum(dim=2).clamp(min=1)

    def _excite(self, mean: Tensor) -> Tensor:
        hidden = F.linear(mean, self.fc[0].get_parameter("weight").to(mean.dtype))
        return F.linear(self.fc[1](hidden), self.fc[2].get_parameter("weight").to(mean.dtype))
