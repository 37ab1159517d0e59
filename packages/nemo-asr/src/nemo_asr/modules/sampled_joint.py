"""Joint network trained on a sample of the vocabulary (Lee et al., arXiv 2203.16868), to save memory where it is large.

The softmax of a training step is over the tokens of the batch, blank, and some others drawn at random.

B batch, T frames, U target steps, H joint width, V vocabulary with blank (the last), S labels of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.joint import RNNTJoint

if TYPE_CHECKING:
    from nemo_asr.losses.rnnt import RNNTLoss


@dataclass(frozen=True)
class SampledHead:
    """The last layer of a joint, cut down to a sample of its outputs, of which blank is the last.

    Attributes:
        hidden: the layers below it.
        weight: (S, H), a part of the whole layer's, to which gradients flow back.
        bias: (S,).
        targets: tokens (B, U) by their place in the sample; padding is blank.
    """

    hidden: nn.Module
    weight: Tensor
    bias: Tensor
    targets: Tensor

    def logits(self, f: Tensor, g: Tensor) -> Tensor:
        """Unnormalised scores (B, T, U, S) of projections (B, T, H) and (B, U, H)."""
        return F.linear(self.hidden(f.unsqueeze(2) + g.unsqueeze(1)), self.weight, self.bias)


class SampledRNNTJoint(RNNTJoint):
    """Joint network whose loss is computed over a sample in training, and over all tokens elsewhere.

    A batch has one sample; NVIDIA's class draws one for every `fused_batch_size` utterances, and needs `fuse_loss_wer`.
    There the smallest token of the targets, padding included, counts as blank: a mistake of 3.0.0, not repeated here.

    Args:
        n_samples: tokens drawn beside those of the batch, of which some may be drawn, too; as many as there are, or
            more, give the whole loss.
        jointnet, num_classes, vocabulary, log_softmax, preserve_memory: as RNNTJoint's.
        fuse_loss_wer, fused_batch_size: as RNNTJoint's.

    Raises:
        ValueError: an option out of its range, named as in the config.
    """

    def __init__(
        self,
        jointnet: Mapping[str, Any],
        num_classes: int,
        n_samples: int,
        vocabulary: Sequence[str] | None = None,
        log_softmax: bool | None = None,
        preserve_memory: bool = False,
        fuse_loss_wer: bool = False,
        fused_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            jointnet,
            num_classes,
            vocabulary=vocabulary,
            log_softmax=log_softmax,
            fuse_loss_wer=fuse_loss_wer,
            fused_batch_size=fused_batch_size,
        )
        if n_samples < 0:
            raise ValueError(f"n_samples: {n_samples} must be 0 or above")
        self.n_samples = n_samples

    def set_loss(self, loss: RNNTLoss) -> None:
        if loss.family != "rnnt":
            raise ValueError(f"loss.loss_name: a SampledRNNTJoint needs an RNNT loss, and this one is of {loss.family}")
        super().set_loss(loss)

    def sampled_head(self, targets: Tensor, target_lengths: Tensor) -> SampledHead | None:
        blank = self.num_classes_with_blank - 1
        if not (self.training and torch.is_grad_enabled()) or self.n_samples >= blank:
            return None
        output: Any = self.joint_net[-1]
        labels, targets = sample_labels(targets.to(output.weight.device), target_lengths, blank, self.n_samples)
        return SampledHead(self.joint_net[:-1], output.weight[labels], output.bias[labels], targets)


def sample_labels(targets: Tensor, target_lengths: Tensor, blank: int, n_samples: int) -> tuple[Tensor, Tensor]:
    """The labels (S,) of a sample in rising order, and targets (B, U) by their place among them.

    Args:
        targets: token ids (B, U), padded with anything.
        target_lengths: tokens of each (B,).
        blank: its id, above all tokens.
        n_samples: how many of the tokens are drawn, each at most once; those that are targets change nothing.
    """
    steps = torch.arange(targets.shape[1], device=targets.device)
    targets = targets.long().masked_fill(steps >= target_lengths.to(targets.device)[:, None], blank)
    chosen = torch.zeros(blank + 1, dtype=torch.bool, device=targets.device)
    chosen[blank] = True
    chosen.index_fill_(0, targets.flatten(), True)
    chosen.index_fill_(0, torch.randperm(blank, device=targets.device)[:n_samples], True)
    return chosen.nonzero().squeeze(1), (chosen.cumsum(0) - 1)[targets]
