"""Half the frames for the layers in the middle, and all of them again for the last (a temporal U-Net).

B batch, T frames, D width
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.squeezeformer.layer import draw_uniform

_Count = TypeVar("_Count", int, Tensor)

_KERNEL, _STRIDE = 5, 2


class TimeReduction(nn.Module):
    """Depthwise convolution of stride 2, which sees three frames before and one after, and a pointwise one."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dw_conv = nn.Conv1d(d_model, d_model, _KERNEL, _STRIDE, padding=_KERNEL - _STRIDE, groups=d_model)
        self.pw_conv = nn.Conv1d(d_model, d_model, 1)
        draw_uniform(self.dw_conv, _KERNEL)
        draw_uniform(self.pw_conv, d_model)

    def forward(self, x: Tensor, mask: AttentionMask) -> tuple[Tensor, AttentionMask]:
        """Every other frame of x (B, T, D), and what they may look at."""
        frames = halved(x.size(1))
        x = x.masked_fill(mask.padded.unsqueeze(2), 0.0).transpose(1, 2)
        reduced: Tensor = self.pw_conv(self.dw_conv(x)[:, :, :frames]).transpose(1, 2)
        # two reduced frames are twice as far from each other as they count
        window = replace(mask.window, left=_halved_reach(mask.window.left), right=_halved_reach(mask.window.right))
        return reduced, AttentionMask(halved(mask.lengths), frames, window)


def halved(frames: _Count) -> _Count:
    """How many of so many frames are kept."""
    return (frames + 1) // 2


def _halved_reach(frames: int) -> int:
    return frames // 2 if frames >= 0 else -1
