"""Dropout that keeps a byte per element for its backward, where torch keeps a number of the input's type on a CPU.

On a GPU torch's own keeps a byte, too, and is a single kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """torch's dropout, on a CPU with a mask of bytes; torch's own elsewhere, under torch.compile and the exporters."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or self.inplace or input.device.type != "cpu" or is_traced():
            return super().forward(input)
        # neither product needs its own result to go backward, so the second can be written over the first
        return input.mul(draw_kept(input, self.p)).mul_(rescaling(self.p))


def draw_kept(like: Tensor, dropout_p: float) -> Tensor:
    """1 with probability 1 - dropout_p, otherwise 0, for each element: bytes, which torch multiplies faster than bools.

    The draws are those of torch's dropout.
    """
    return torch.empty_like(like, dtype=torch.uint8).bernoulli_(1.0 - dropout_p)


def rescaling(dropout_p: float) -> float:
    """The factor on what is kept, which leaves the mean as it is; 0 where nothing is."""
    return 0.0 if dropout_p == 1.0 else 1.0 / (1.0 - dropout_p)


def is_traced() -> bool:
    """Whether a compiler or an exporter watches, which knows torch's own operations best."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
