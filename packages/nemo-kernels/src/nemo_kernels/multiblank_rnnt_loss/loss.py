"""Multi-blank transducer loss of a joint's output, the gradient in closed form.

Xu, Jia, Majumdar, Watanabe, Ginsburg, "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541.
`reference` has the formula in textbook form. The lattice is that of TDT with other arcs: a blank for each duration,
with its own score, and a label of duration 0. torch's operations run it on every device.

B batch, T frames, U target steps, V vocabulary with all blanks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_kernels.tdt_loss.arguments import check_durations, check_logits, check_not_negative
from nemo_kernels.tdt_loss.lattice import Arcs, forbid_impossible_arcs, skewed_scores, sum_paths
from nemo_kernels.tdt_loss.scores import TokenGradient, Tokens, score_cells, working_dtype, write_gradient
from nemo_kernels.transducer import Reduction, blank_index, check_reduction, lattice_sizes, reduce_losses


def multiblank_rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    big_blank_durations: Sequence[int],
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    sigma: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Minus the log probability of the targets under a transducer whose blanks may last several frames.

    Args:
        logits: (B, T, U+1, V) joint output, not normalised: labels, big blanks, then the blank, as NVIDIA lays it out.
        targets: (B, U) token indices, of any integer type; what follows an utterance's own targets is not read.
        logit_lengths: (B,) frames of each utterance, 1 to T, on any device.
        target_lengths: (B,) targets of each utterance, 0 to U, on any device.
        big_blank_durations: frames that each big blank lasts, distinct and from 2 on; the first belongs to the token
            just before the blank, blank - 1, the next to blank - 2, and so on.
        blank: index of the blank that lasts one frame; a negative one counts from the end.
        clamp: where positive, the gradient of each logit is kept within plus and minus this, before the gradient that
            comes from the reduction is multiplied in.
        fastemit_lambda: FastEmit's weight (arXiv 2010.11148), as in `tdt_loss`.
        sigma: subtracted from the log probability of each label and blank, which favours longer blanks.
        reduction: as of `rnnt_loss`.

    Returns:
        Losses (B,) for `none`, otherwise one number; float64 for float64 logits and float32 for all others.

    Raises:
        ValueError: if an argument breaks its rule; it names the argument, its value and the rule.
    """
    check_reduction(reduction)
    check_not_negative(fastemit_lambda=fastemit_lambda, sigma=sigma)
    big = check_durations("big_blank_durations", big_blank_durations, least=2)
    blank = blank_index(blank, check_logits(logits, 0, targets, logit_lengths, target_lengths))
    if blank < len(big):
        raise ValueError(f"blank: {blank} leaves no room before it for {len(big)} big blanks")
    targets, frame_len, target_len = (
        each.to(logits.device, torch.int64) for each in (targets, logit_lengths, target_lengths)
    )
    losses, *_ = _loss(logits, targets, frame_len, target_len, big, blank, clamp, fastemit_lambda, sigma)
    return reduce_losses(losses, target_len, reduction)


def _blanks(big: Sequence[int], blank: int) -> tuple[int, ...]:
    """Tokens of the blanks, the one of one frame first."""
    return tuple(blank - index for index in range(len(big) + 1))


@torch.library.custom_op("nemo_kernels::multiblank_rnnt_loss", mutates_args=())
def _loss(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    big: Sequence[int],
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    sigma: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = lattice_sizes(frame_len, target_len, *logits.shape[1:3])
    frames, labels = [size[0] for size in sizes], [size[1] for size in sizes]
    tokens = Tokens(logits.shape[-1], _blanks(big, blank))
    scores = score_cells(logits, targets, frames, labels, tokens, overwrite=False)
    arcs = Arcs((1, *big), (0,))
    storage, view = skewed_scores(arcs, scores.norm)
    torch.sub(scores.blank, sigma, out=view[:-1])
    torch.sub(scores.label, sigma, out=view[-1])
    forbid_impossible_arcs(view, arcs, frame_len, target_len)
    losses = -(1 + fastemit_lambda) * sum_paths(storage, arcs, frame_len, target_len)
    occupancies = view.to(working_dtype(logits.dtype), memory_format=torch.contiguous_format, copy=True)
    norm = scores.norm.to(occupancies.dtype)
    return losses.to(occupancies.dtype), norm, occupancies[:-1].clone(), occupancies[-1].clone()


@_loss.register_fake
def _(
    logits: Tensor, targets: Tensor, frame_len: Tensor, target_len: Tensor, big: Sequence[int], *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, cells = working_dtype(logits.dtype), logits.shape[:3]
    norm, label = (logits.new_empty(cells, dtype=dtype) for _ in range(2))
    return (
        logits.new_empty(cells[:1], dtype=dtype),
        norm,
        logits.new_empty((len(big) + 1, *cells), dtype=dtype),
        label,
    )


@torch.library.custom_op("nemo_kernels::multiblank_rnnt_loss_gradient", mutates_args=())
def _gradient(
    logits: Tensor,
    targets: Tensor,
    frame_len: Tensor,
    target_len: Tensor,
    norm: Tensor,
    occupancy_blank: Tensor,
    occupancy_label: Tensor,
    weights: Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
) -> Tensor:
    tokens = Tokens(logits.shape[-1], _blanks(range(len(occupancy_blank) - 1), blank))
    gradient = TokenGradient(tokens, norm, occupancy_blank, occupancy_label, clamp, fastemit_lambda, False)
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    write_gradient(logits, targets, frame_len.tolist(), target_len.tolist(), gradient, weights.tolist(), out)
    return out


@_gradient.register_fake
def _(logits: Tensor, *_: object) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, frame_len, target_len, _, ctx.blank, ctx.clamp, ctx.fastemit_lambda, _ = inputs
    _, *solved = output
    ctx.mark_non_differentiable(*solved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, frame_len, target_len, *solved)


def _backward(ctx: Any, weights: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    gradient = None
    if weights is not None:
        gradient = _gradient(*ctx.saved_tensors, weights.contiguous(), ctx.blank, ctx.clamp, ctx.fastemit_lambda)
    return (gradient, *(None,) * 8)


_loss.register_autograd(_backward, setup_context=_keep)
