"""Triton's kernels of the TDT loss: scores of tokens and durations, lattice, gradient.

They run on CUDA tensors, and on CPU tensors where TRITON_INTERPRET=1 was set before this import.
"""

from __future__ import annotations

import torch

from nemo_kernels.rnnt_loss import triton as rnnt
from nemo_kernels.tdt_loss.analytic import Occupied, Options
from nemo_kernels.tdt_loss.triton.softmax import scores, write_gradient
from nemo_kernels.tdt_loss.triton.wavefront import lattice

__all__ = ["forward", "gradient", "lattice", "scores", "solve", "write_gradient"]


def forward(
    logits: torch.Tensor, targets: torch.Tensor, frame_len: torch.Tensor, target_len: torch.Tensor, options: Options
) -> Occupied:
    """The same as `tdt_forward`, with the kernels."""
    sigma = 0.0 if options.plain else options.sigma
    D = len(options.durations)
    planes = scores(logits.contiguous(), targets, frame_len, target_len, D, options.blank, sigma)
    return solve(planes, frame_len, target_len, options)


def solve(
    planes: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    frame_len: torch.Tensor,
    target_len: torch.Tensor,
    options: Options,
) -> Occupied:
    """Losses, occupancies and duration gradients from what `scores` gave."""
    norm, lp_blank, lp_label, lp_duration = planes
    if options.plain:
        losses, blank, label = rnnt.lattice(lp_blank, lp_label, frame_len, target_len)
        of_durations = norm.new_zeros((*norm.shape, len(options.durations)))
    else:
        losses, blank, label, of_durations = lattice(
            lp_blank, lp_label, lp_duration, frame_len, target_len, options.durations
        )
    return Occupied(losses * (1 + options.fastemit_lambda), norm, blank, label, of_durations)


def gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    frame_len: torch.Tensor,
    target_len: torch.Tensor,
    occupied: Occupied,
    weights: torch.Tensor,
    blank: int,
    clamp: float,
    fastemit_lambda: float,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the weighted losses for all logits into `out`, which may be the logits themselves."""
    logits, written = logits.contiguous(), out if out.is_contiguous() else torch.empty_like(logits)
    write_gradient(
        logits, targets, frame_len, target_len, *occupied[1:], weights, blank, clamp, fastemit_lambda, written
    )  # fmt: skip
    return out if written is out else out.copy_(written)
