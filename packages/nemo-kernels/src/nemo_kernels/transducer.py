"""What every transducer loss asks of its arguments, and how a batch of losses becomes one number.

B batch, T frames, U target steps, V vocabulary with blank
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum", "mean_batch", "mean_volume", "mean_target"]


def check_reduction(reduction: str) -> None:
    """Raises ValueError for a reduction of unknown name."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction: {reduction!r} must be one of {', '.join(get_args(Reduction))}")


def reduce_losses(losses: Tensor, target_lengths: Tensor, reduction: Reduction) -> Tensor:
    """Makes the losses (B,) of a batch one number.

    `none` leaves them; `sum` adds them; `mean` and `mean_batch` divide the sum by B; `mean_volume` divides it by the
    number of target tokens in the batch; `mean_target` averages the losses per target token of each utterance (in
    NVIDIA's RNNTLoss module that one is called `mean`, in torchaudio and in NVIDIA's numba loss `mean` is as here).
    """
    check_reduction(reduction)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean_volume":
        return losses.sum() / target_lengths.sum().to(losses)
    if reduction == "mean_target":
        return (losses / target_lengths.to(losses)).mean()
    return losses.mean()


def blank_index(blank: int, vocabulary: int) -> int:
    """The index of the blank, counted from the front; -1 is the last of the vocabulary."""
    if not -vocabulary <= blank < vocabulary:
        raise ValueError(f"blank: {blank} is not an index into a vocabulary of {vocabulary}")
    return blank % vocabulary


def check_batch(
    frames: int, width: int, batch: int, targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor
) -> None:
    """Raises ValueError where targets or lengths do not fit a lattice of `frames` x `width` cells, width = U + 1.

    Values are read on a CPU only: looking at them on a GPU would stop the queue.
    """
    if targets.shape != (batch, width - 1):
        raise ValueError(f"targets: shape {tuple(targets.shape)} must be (B, U) = {(batch, width - 1)}")
    _check_integers("targets", targets)
    check_lengths("logit_lengths", logit_lengths, batch, 1, frames)
    check_lengths("target_lengths", target_lengths, batch, 0, width - 1)


def check_lengths(name: str, lengths: Tensor, batch: int, low: int, high: int) -> None:
    """Raises ValueError unless lengths are B integers between low and high."""
    if lengths.shape != (batch,):
        raise ValueError(f"{name}: shape {tuple(lengths.shape)} must be (B,) = {(batch,)}")
    _check_integers(name, lengths)
    if _has_values_to_read(lengths):
        _check_range(name, lengths.tolist(), low, high)


def check_tokens(targets: Tensor, target_lengths: Tensor, vocabulary: int) -> None:
    """Raises ValueError where a target inside its length is no token; what pads the rest may be anything."""
    if not (_has_values_to_read(targets) and _has_values_to_read(target_lengths)):
        return
    inside = torch.arange(targets.shape[1]) < target_lengths[:, None]
    wrong = targets[inside & ((targets < 0) | (targets >= vocabulary))]
    if wrong.numel():
        raise ValueError(f"targets: {int(wrong[0])} is not a token of a vocabulary of {vocabulary}")


def lattice_sizes(logit_len: Tensor, target_len: Tensor, frames: int, width: int) -> list[tuple[int, int]]:
    """Frames and target steps of each utterance as Python numbers; on a GPU this waits for it."""
    sizes = list(zip(logit_len.tolist(), target_len.tolist(), strict=True))
    _check_range("logit_lengths", [size[0] for size in sizes], 1, frames)
    _check_range("target_lengths", [size[1] for size in sizes], 0, width - 1)
    return sizes


def _check_integers(name: str, values: Tensor) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name}: {values.dtype} must be an integer type")


def _check_range(name: str, values: list[int], low: int, high: int) -> None:
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} must lie between {low} and {high}")


def _has_values_to_read(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
