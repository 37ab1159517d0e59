"""Transducer losses by NVIDIA's names, all computed by nemo-kernels: RNNT (Graves, arXiv 1211.3711), token and duration
(TDT, arXiv 2304.06795), multi-blank (arXiv 2211.03541).

B batch, T frames, U target steps, D width, V vocabulary with blank and extra outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nemo_asr.modules.joint import RNNTJoint
    from nemo_asr.modules.sampled_joint import SampledHead

logger = logging.getLogger(__name__)

REDUCTIONS = (None, "none", "mean", "sum", "mean_batch", "mean_volume")
FAMILIES = {
    "default": "rnnt",
    "warprnnt_numba": "rnnt",
    "warprnnt": "rnnt",
    "pytorch": "rnnt",
    "rnnt_pytorch": "rnnt",
    "flash_rnnt": "rnnt",
    "tdt": "tdt",
    "tdt_pytorch": "tdt",
    "multiblank_rnnt": "multiblank",
    "multiblank_rnnt_pytorch": "multiblank",
}
"""What is computed for each of NVIDIA's names."""
OPTIONS = {
    "rnnt": ("fastemit_lambda", "clamp"),
    "tdt": ("durations", "fastemit_lambda", "clamp", "sigma", "omega"),
    "multiblank": ("big_blank_durations", "fastemit_lambda", "clamp", "sigma"),
}
"""The options of each family."""
DEFAULT_LOSS = "warprnnt_numba"
SCORES_TO_HOLD = 256 << 20
"""Bytes of scores (B, T, U + 1, V) up to which they are held: that is faster; above, they are computed in tiles."""


class RNNTLoss(nn.Module):
    """A transducer loss.

    Args:
        num_classes: id of blank: the tokens, and for multi-blank the big blanks, come before it.
        reduction: `none` or None (B,); `sum`; `mean_batch`: mean over the batch; `mean`: each loss by its target's
            length, then the mean; `mean_volume`: sum of the losses by the sum of the target lengths.
        loss_name: one of FAMILIES.
        loss_kwargs: options of the family; others are logged and ignored, as NVIDIA's toolkit does it.

    Raises:
        ValueError: an unknown reduction or loss, or an option that is missing.
    """

    def __init__(
        self,
        num_classes: int,
        reduction: str | None = "mean_batch",
        loss_name: str = "default",
        loss_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: {reduction!r} is none of {', '.join(map(str, REDUCTIONS))}")
        if loss_name not in FAMILIES:
            raise ValueError(f"loss_name: {loss_name!r} is none of {', '.join(FAMILIES)}")
        self.blank = num_classes
        self.reduction = reduction
        self.family = FAMILIES[loss_name]
        self.options = self._read_options(loss_name, dict(loss_kwargs or {}))

    def _read_options(self, loss_name: str, given: dict[str, Any]) -> dict[str, Any]:
        known = OPTIONS[self.family]
        for key in given.keys() - set(known):
            logger.warning("loss %s: %s: %r is no option of it and is ignored", loss_name, key, given[key])
        for key in ("durations", "big_blank_durations"):
            if key in known and not given.get(key):
                raise ValueError(f"{key}: {given.get(key)!r} must be a list of durations in frames ({loss_name})")
        return {key: given[key] for key in known if key in given}

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """Loss, a scalar or (B,) without a reduction.

        Args:
            log_probs: the joint's scores (B, T, U + 1, V), normalised or not.
            targets: token ids (B, U), padded with anything.
            input_lengths: frames of each (B,).
            target_lengths: tokens of each (B,).
        """
        lengths = (input_lengths, target_lengths)
        losses = self._losses(_at_least_float32(log_probs), targets, *lengths, blank=self.blank)
        return self.reduce(losses, target_lengths)

    def of_joint(
        self,
        joint: RNNTJoint,
        encoder_outputs: Tensor,
        decoder_outputs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        scores_to_hold: int = SCORES_TO_HOLD,
    ) -> Tensor:
        """The loss from the joint's inputs (B, D, T) and (B, D, U + 1); beyond some bytes, scores are never held."""
        frames, steps = int(input_lengths.max()), int(target_lengths.max()) + 1
        f = joint.project_encoder(encoder_outputs[:, :, :frames].transpose(1, 2))
        g = joint.mask_predictions(joint.project_prednet(decoder_outputs[:, :, :steps].transpose(1, 2)))
        targets = targets[:, : steps - 1]
        head = joint.sampled_head(targets, target_lengths)
        lengths = (targets if head is None else head.targets, input_lengths, target_lengths)
        outputs = joint.num_classes_with_blank if head is None else len(head.bias)
        if f.shape[0] * frames * steps * outputs * 4 <= scores_to_hold:
            logits = _at_least_float32((head or joint).logits(f, g))
            losses = self._losses(logits, *lengths, blank=self._blank_of(head), inplace=True)
        elif self.family in ("rnnt", "tdt") and joint.is_linear:
            losses = self._fused_losses(joint, head, f, g, *lengths)
        else:
            losses = self._losses_by_parts(joint, f, g, *lengths)
        return self.reduce(losses, target_lengths)

    def _blank_of(self, head: SampledHead | None) -> int:
        return self.blank if head is None else len(head.bias) - 1

    def _losses(
        self,
        logits: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        *,
        blank: int,
        inplace: bool = False,
    ) -> Tensor:
        from nemo_kernels import multiblank_rnnt_loss, rnnt_loss, tdt_loss

        compute: Any = {"rnnt": rnnt_loss, "tdt": tdt_loss, "multiblank": multiblank_rnnt_loss}[self.family]
        options: dict[str, Any] = {**self.options, "blank": blank, "reduction": "none"}
        if self.family != "multiblank":
            options["inplace"] = inplace
        losses: Tensor = compute(logits, targets, input_lengths, target_lengths, **options)
        return losses

    def _fused_losses(
        self,
        joint: RNNTJoint,
        head: SampledHead | None,
        f: Tensor,
        g: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
    ) -> Tensor:
        import nemo_kernels

        compute: Any = nemo_kernels.rnnt_loss_fused if self.family == "rnnt" else nemo_kernels.tdt_loss_fused
        output: Any = head or joint.joint_net[-1]
        losses: Tensor = compute(
            f,
            g,
            output.weight,
            output.bias,
            targets,
            input_lengths,
            target_lengths,
            blank=self._blank_of(head),
            reduction="none",
            activation=joint.options.activation,
            dropout_p=joint.options.dropout if joint.training else 0.0,
            **self.options,
        )
        return losses

    def _losses_by_parts(
        self, joint: RNNTJoint, f: Tensor, g: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        """A few utterances at a time; their scores are computed again for the gradient."""
        from torch.utils.checkpoint import checkpoint

        def losses_of(f: Tensor, g: Tensor, targets: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
            logits = _at_least_float32(joint.logits(f, g))
            return self._losses(logits, targets, frames, tokens, blank=self.blank, inplace=True)

        size = joint.fused_batch_size or 1
        parts = zip(*(torch.split(x, size) for x in (f, g, targets, input_lengths, target_lengths)), strict=True)
        return torch.cat([checkpoint(losses_of, *part, use_reentrant=False) for part in parts])

    def reduce(self, losses: Tensor, target_lengths: Tensor) -> Tensor:
        """The reduction of losses (B,) with target_lengths (B,)."""
        if self.reduction == "mean_batch":
            return losses.mean()
        if self.reduction == "mean":
            return (losses / target_lengths.to(losses.device)).mean()
        if self.reduction == "sum":
            return losses.sum()
        if self.reduction == "mean_volume":
            return losses.sum() / target_lengths.sum().to(losses.device)
        return losses


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
