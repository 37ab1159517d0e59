"""What the losses with durations ask of their arguments beyond what every transducer loss does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nemo_kernels.transducer import check_batch, check_tokens


def check_durations(name: str, durations: Sequence[int], least: int) -> list[int]:
    """The durations as a list of distinct whole numbers from `least` on.

    Raises:
        ValueError: if they are not.
    """
    values = list(durations)
    if not values or any(value < least for value in values) or len(set(values)) < len(values):
        raise ValueError(f"{name}: {values} must be distinct whole numbers from {least} on, and at least one")
    return values


def check_not_negative(**numbers: float) -> None:
    """Raises ValueError for an option that is below 0, or no number."""
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}: {value} must be at least 0")


def check_logits(
    logits: Tensor, n_durations: int, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor
) -> int:
    """Checks logits (B, T, U+1, V + n_durations) and what belongs to them; the number of tokens V.

    Raises:
        ValueError: if shapes, types or values do not fit.
    """
    if logits.dim() != 4 or not logits.is_floating_point() or 0 in logits.shape or logits.shape[-1] <= n_durations:
        beside = f" + {n_durations}" if n_durations else ""
        raise ValueError(
            f"logits: {logits.dtype} of shape {tuple(logits.shape)} must be floating (B, T, U + 1, V{beside})"
        )
    batch, frames, positions, width = logits.shape
    check_batch(frames, positions, batch, targets, logit_lengths, target_lengths)
    check_tokens(targets, target_lengths, width - n_durations)
    return width - n_durations
