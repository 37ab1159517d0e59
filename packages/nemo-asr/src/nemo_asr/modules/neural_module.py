"""What front end, encoders and heads have in common: weights that can be frozen, under NVIDIA's method names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from torch import nn


class NeuralModule(nn.Module):
    """A module for fine-tuning: `model.encoder.freeze()` trains all but the encoder."""

    def freeze(self) -> None:
        """No parameter learns, and the module is in eval mode: its batch norms keep their statistics."""
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Every parameter learns, and the module is in training mode."""
        self.requires_grad_(True)
        self.train()

    @contextmanager
    def as_frozen(self) -> Iterator[Self]:
        """Frozen within the block; afterwards everything is as before."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        training = [module for module in self.modules() if module.training]
        self.freeze()
        try:
            yield self
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True

    @property
    def num_weights(self) -> int:
        """How many values learn."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
