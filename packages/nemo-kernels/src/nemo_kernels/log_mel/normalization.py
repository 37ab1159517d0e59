"""Normalisation of features over the valid frames of each utterance.  B batch, F mel bins, T frames"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Normalization = str | Mapping[str, Sequence[float]] | None
STD_GUARD = 1e-5  # added to every standard deviation, so that silence does not divide by zero


def normalize_features(features: Tensor, valid: Tensor, mode: Normalization) -> Tensor:
    """Features (B, F, T) with mean 0 and standard deviation 1 over the frames where valid (B, 1, T).

    `mode` is "per_feature" (every mel bin by itself), "all_features" (one mean and deviation for the
    utterance), {"fixed_mean": F numbers, "fixed_std": F numbers}, or None, which changes nothing. Deviations
    are the unbiased ones plus 1e-5; of a single frame the deviation counts as 0.

    Raises:
        ValueError: another mode.
    """
    if mode is None:
        return features
    if isinstance(mode, Mapping):
        return (features - _column(mode, "fixed_mean", features)) / _column(mode, "fixed_std", features)
    if mode == "per_feature":
        return _standardize(features, valid, dims=(2,), count=valid.sum(dim=2, keepdim=True))
    if mode == "all_features":
        count = valid.sum(dim=2, keepdim=True) * features.shape[1]
        return _standardize(features, valid, dims=(1, 2), count=count)
    raise ValueError(f"normalize: {mode!r} must be 'per_feature', 'all_features', fixed numbers or null")


def _standardize(features: Tensor, valid: Tensor, *, dims: tuple[int, ...], count: Tensor) -> Tensor:
    mean = features.masked_fill(~valid, 0).sum(dim=dims, keepdim=True) / count.clamp(min=1)
    centred = (features - mean).masked_fill(~valid, 0)
    # the norm, unlike a square root, has a finite gradient where all is silent
    length = torch.linalg.vector_norm(centred, dim=dims, keepdim=True)
    freedom = (count - 1).clamp(min=1).to(features.dtype)
    return centred / (length / freedom.sqrt() + STD_GUARD)


def _column(mode: Mapping[str, Sequence[float]], key: str, features: Tensor) -> Tensor:
    """One number a mel bin, or one row of them an utterance, as (1 or B, F, 1)."""
    if key not in mode:
        raise ValueError(f"normalize: {key} is missing; fixed_mean and fixed_std go together")
    numbers = torch.as_tensor(mode[key], dtype=features.dtype, device=features.device)
    return numbers.reshape(-1, features.shape[1], 1)
