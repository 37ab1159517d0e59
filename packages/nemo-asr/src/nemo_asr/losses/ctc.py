"""CTC loss with NVIDIA's reductions (Graves et al. 2006): -log of the summed probability of all paths to the target.

B batch, T frames, U target steps, V vocabulary with blank, which is the last class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTIONS = ("none", "sum", "mean", "mean_batch", "mean_volume")
_TORCH_REDUCTION = {"sum": "sum", "mean": "mean"}


class CTCLoss(nn.Module):
    """CTC loss over a vocabulary whose last class is blank.

    Args:
        num_classes: tokens without blank, thus the id of blank.
        zero_infinity: a target longer than its audio costs 0 instead of infinity, and gives no gradient.
        reduction: `none` (B,); `sum`; `mean`: each loss by its target's length, then the mean; `mean_batch`: mean over
            the batch; `mean_volume`: sum of the losses by the sum of the target lengths, so longer ones count more.
    """

    def __init__(self, num_classes: int, zero_infinity: bool = False, reduction: str = "mean_batch") -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: {reduction!r} is none of {', '.join(REDUCTIONS)}")
        self.blank = num_classes
        self.zero_infinity = zero_infinity
        self.reduction = reduction

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """Loss, a scalar or (B,) for `none`.

        Args:
            log_probs: (B, T, V), normalised over V.
            targets: token ids (B, U), padded with anything.
            input_lengths: frames of each (B,).
            target_lengths: tokens of each (B,).
        """
        if log_probs.dtype in (torch.float16, torch.bfloat16):
            log_probs = log_probs.float()
        target_lengths = target_lengths.long()
        losses = nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            targets.long(),
            input_lengths.long(),
            target_lengths,
            blank=self.blank,
            reduction=_TORCH_REDUCTION.get(self.reduction, "none"),
            zero_infinity=self.zero_infinity,
        )
        if self.reduction == "mean_batch":
            return losses.mean()
        if self.reduction == "mean_volume":
            return losses.sum() / target_lengths.sum()
        return losses
