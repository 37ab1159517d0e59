"""Initial weights of convolutional recognisers, by the names of the `init_mode` key."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn


def _tds_bound(weight: Tensor) -> float:
    """2 / sqrt(fan in), of time-depth separable networks (Hannun et al. 2019)."""
    return 2.0 / math.sqrt(weight[0].numel())


_INITIALIZERS: dict[str, Callable[[Tensor], object]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "tds_uniform": lambda weight: nn.init.uniform_(weight, -_tds_bound(weight), _tds_bound(weight)),
    "tds_normal": lambda weight: nn.init.normal_(weight, 0.0, _tds_bound(weight)),
}


def initialize_weights(network: nn.Module, mode: str | None) -> None:
    """Draws the weights of every convolution and linear layer anew; None keeps torch's own.

    Raises:
        ValueError: no such mode.
    """
    if mode is None:
        return
    if mode not in _INITIALIZERS:
        raise ValueError(f"init_mode: {mode!r} is none of {', '.join(_INITIALIZERS)}")
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            _INITIALIZERS[mode](module.weight)
