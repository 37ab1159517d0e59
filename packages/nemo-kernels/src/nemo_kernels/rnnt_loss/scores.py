"""The loss from a lattice's scores alone, and the occupancies of its moves: for joints of one's own and alignments.

B batch, T frames, U target steps
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_kernels import dispatch
from nemo_kernels.rnnt_loss.forward_backward import forward_backward
from nemo_kernels.transducer import Reduction, check_lengths, check_reduction, reduce_losses


def rnnt_loss_from_scores(
    lp_blank: Tensor,
    lp_label: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """RNN-T loss of the log probabilities of both moves out of each cell; they need not be normalised.

    Args:
        lp_blank: (B, T, U + 1), log probability of the blank in cell (t, u).
        lp_label: (B, T, U + 1), of target u; the last column is never read.
        logit_lengths: (B,) frames, 1 to T.
        target_lengths: (B,) target steps, 0 to U.
        fastemit_lambda: FastEmit's weight, as in `rnnt_loss`.
        reduction: as in `rnnt_loss`.

    Returns:
        A scalar, or the losses (B,); float32, or float64 for float64 scores.

    Raises:
        ValueError: if shapes, types, lengths or reduction are not as above.
    """
    check_reduction(reduction)
    logit_len, target_len = _checked_lengths(lp_blank, lp_label, logit_lengths, target_lengths)
    losses, _, _ = lattice_losses(lp_blank, lp_label, logit_len, target_len, fastemit_lambda)
    return reduce_losses(losses, target_len, reduction)


def rnnt_occupancies(
    lp_blank: Tensor, lp_label: Tensor, logit_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """How probable each move is, given the targets: a soft alignment.

    Arguments as of `rnnt_loss_from_scores`. The label of an utterance's step u is emitted in exactly one frame, so
    occupancy_label[b, :, u] is a distribution over frames; each frame is left by exactly one blank, so
    occupancy_blank[b, t] is a distribution over the steps emitted by then.

    Returns:
        occupancy_blank and occupancy_label, (B, T, U + 1), zero outside of the lengths and where no alignment is
        possible. No gradient flows through them.
    """
    logit_len, target_len = _checked_lengths(lp_blank, lp_label, logit_lengths, target_lengths)
    _, occupancy_blank, occupancy_label = lattice_losses(
        lp_blank.detach(), lp_label.detach(), logit_len, target_len, 0.0
    )
    return occupancy_blank, occupancy_label


def _checked_lengths(
    lp_blank: Tensor, lp_label: Tensor, logit_lengths: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    for name, plane in (("lp_blank", lp_blank), ("lp_label", lp_label)):
        if plane.dim() != 3 or not plane.is_floating_point() or 0 in plane.shape:
            raise ValueError(f"{name}: {plane.dtype} of shape {tuple(plane.shape)} must be floating (B, T, U + 1)")
    if lp_label.shape != lp_blank.shape or lp_label.dtype != lp_blank.dtype:
        raise ValueError(
            f"lp_label: {lp_label.dtype} {tuple(lp_label.shape)} must be as lp_blank, "
            f"{lp_blank.dtype} {tuple(lp_blank.shape)}"
        )
    batch, frames, width = lp_blank.shape
    check_lengths("logit_lengths", logit_lengths, batch, 1, frames)
    check_lengths("target_lengths", target_lengths, batch, 0, width - 1)
    return logit_lengths.to(lp_blank.device, torch.int64), target_lengths.to(lp_blank.device, torch.int64)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op("nemo_kernels::rnnt_lattice", mutates_args=())
def lattice_losses(
    lp_blank: Tensor, lp_label: Tensor, logit_len: Tensor, target_len: Tensor, fastemit_lambda: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) and the occupancies of blanks and labels (B, T, W)."""
    blank, label = (plane.to(_sum_type(plane.dtype)) for plane in (lp_blank, lp_label))
    if dispatch.uses_triton(blank.device):
        from nemo_kernels.rnnt_loss import triton as kernels

        losses, *occupancies = kernels.lattice(blank, label, logit_len, target_len)
    else:
        losses, *occupancies = forward_backward(blank, label, logit_len, target_len)
    return losses * (1.0 + fastemit_lambda), occupancies[0], occupancies[1]


@lattice_losses.register_fake
def _(
    lp_blank: Tensor, lp_label: Tensor, logit_len: Tensor, target_len: Tensor, fastemit_lambda: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _sum_type(lp_blank.dtype)
    planes = [lp_blank.new_empty(lp_blank.shape, dtype=dtype) for _ in range(2)]
    return lp_blank.new_empty(lp_blank.shape[:1], dtype=dtype), planes[0], planes[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtype, ctx.fastemit_lambda = inputs[0].dtype, inputs[4]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_losses: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if grad_losses is None:
        return None, None, None, None, None
    occupancy_blank, occupancy_label = ctx.saved_tensors
    factor = -grad_losses[:, None, None]
    of_blank = (occupancy_blank * factor).to(ctx.dtype)
    of_label = (occupancy_label * (factor * (1.0 + ctx.fastemit_lambda))).to(ctx.dtype)
    return of_blank, of_label, None, None, None


lattice_losses.register_autograd(_backward, setup_context=_setup_context)
