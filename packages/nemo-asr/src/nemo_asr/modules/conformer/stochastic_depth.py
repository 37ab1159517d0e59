"""Stochastic depth: layers that training leaves out at random (arXiv 1603.09382, for speech 2102.03216)."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_drop_probabilities(layers: int, drop_p: float, mode: str, start_layer: int) -> list[float]:
    """How often each layer is left out.

    Args:
        layers: number of layers.
        drop_p: probability at the last layer, in [0, 1).
        mode: linear (grows to drop_p at the last layer) or uniform.
        start_layer: the layers before this one, and always the first, are never left out.
    """
    if not 0.0 <= drop_p < 1.0:
        raise ValueError(f"stochastic_depth_drop_prob: {drop_p} is not in [0, 1)")
    if mode not in ("linear", "uniform"):
        raise ValueError(f"stochastic_depth_mode: {mode} is neither linear nor uniform")
    if not 1 <= start_layer <= layers:
        raise ValueError(f"stochastic_depth_start_layer: {start_layer} is not in [1, n_layers {layers}]")
    dropped = layers - start_layer
    growing = [drop_p * (index / dropped if mode == "linear" else 1.0) for index in range(1, dropped + 1)]
    return [0.0] * start_layer + growing


def randomly_skipped(x: Tensor, y: Tensor, drop_p: float) -> Tensor:
    """The output y of a layer with input x or, with probability drop_p, x; its expectation is y."""
    if torch.rand(1).item() < drop_p:
        # times zero, so that every parameter has a gradient in every process of a distributed training
        return x + y * 0.0
    return x + (y - x) / (1.0 - drop_p)
