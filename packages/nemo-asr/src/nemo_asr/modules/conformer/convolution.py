"""Conformer convolution: pointwise-GLU, depthwise, norm, Swish, pointwise (arXiv 2005.08100).

Squeezeformer's (arXiv 2206.00888) has a Swish in place of the GLU, so that the convolution in the middle is 2 D wide.

B batch, T frames, D width
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.conformer.activated_linear import activated_linear
from nemo_asr.modules.conformer.norms import build_norm


class ConformerConvolution(nn.Module):
    """Mixes frames within `padding` of each other.

    Args:
        d_model: width D.
        padding: frames of zeros before and after; the kernel is as long as both and the frame itself.
        norm_type: batch_norm, layer_norm, instance_norm, fused_batch_norm or group_norm<groups>.
        use_bias: whether the convolutions have one.
        gated: GLU after the first convolution; otherwise Swish.
    """

    def __init__(
        self,
        d_model: int,
        padding: tuple[int, int],
        *,
        norm_type: str = "batch_norm",
        use_bias: bool = True,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.gated = gated
        inner = d_model if gated else 2 * d_model
        self.pointwise_conv1 = nn.Conv1d(d_model, 2 * d_model, 1, bias=use_bias)
        self.depthwise_conv = nn.Conv1d(inner, inner, sum(padding) + 1, groups=inner, bias=use_bias)
        self.batch_norm = build_norm(norm_type, inner)
        self.pointwise_conv2 = nn.Conv1d(inner, d_model, 1, bias=use_bias)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        """Mixes x (B, T, D) along time; frames where padded (B, T) is true contribute nothing."""
        x = _pointwise(self.pointwise_conv1, x)
        x = (F.glu(x, dim=2) if self.gated else F.silu(x)).masked_fill_(padded.unsqueeze(2), 0.0)
        conv = self.pointwise_conv2
        return activated_linear(self.batch_norm(self._depthwise(x)), conv.weight.squeeze(2), conv.bias)

    def _depthwise(self, x: Tensor) -> Tensor:
        # (B, T, D) is (B, D, 1, T) with channels last: nothing is transposed, and on a CPU it is up to twice as fast
        left, right = self.padding
        if left != right:
            x, left = F.pad(x, (0, 0, left, right)), 0
        conv = self.depthwise_conv
        mixed = F.conv2d(
            x.unsqueeze(1).permute(0, 3, 1, 2),
            conv.weight.unsqueeze(2),
            conv.bias,
            padding=(0, left),
            groups=conv.groups,
        )
        return mixed.permute(0, 2, 3, 1).squeeze(1)


def _pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    return F.linear(x, conv.weight.squeeze(2), conv.bias)
