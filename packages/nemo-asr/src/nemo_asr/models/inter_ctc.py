"""Intermediate CTC: the same head and loss on inner encoder layers, as a regulariser (arXiv 2102.03216).

loss = (1 - sum of the weights) * loss of the last layer + sum of weight_i * loss of layer_i
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nemo_config import ConfigError, read_section


@dataclass
class InterCtcConfig:
    """The `interctc` section: `loss_weights` of the layers (from 0) of `apply_at_layers`."""

    loss_weights: list[float] = field(default_factory=list)
    apply_at_layers: list[int] = field(default_factory=list)


class InterCtc:
    """Captures the outputs of inner layers while the encoder runs, and adds their losses."""

    def __init__(self, section: Mapping[str, Any] | None) -> None:
        config = read_section(InterCtcConfig, section, "model.interctc")
        self.layers: Sequence[int] = config.apply_at_layers
        self.weights: Sequence[float] = config.loss_weights
        if len(self.layers) != len(self.weights):
            raise ConfigError("model.interctc.apply_at_layers", self.layers, "must be as many as loss_weights")
        if sum(self.weights) >= 1:
            raise ConfigError("model.interctc.loss_weights", self.weights, "must sum to less than 1")

    @contextmanager
    def capture(self, encoder: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Within the block, the encoder's call puts (output (B, D, T), length (B,)) of each layer into the list."""
        captured: list[tuple[Tensor, Tensor]] = []
        if not self.layers:
            yield captured
            return
        encoder.capture_layers = tuple(self.layers)
        encoder.captured = captured
        try:
            yield captured
        finally:
            encoder.capture_layers, encoder.captured = (), None

    def add_losses(
        self,
        loss: Tensor,
        captured: Sequence[tuple[Tensor, Tensor]],
        decoder: nn.Module,
        ctc_loss: nn.Module,
        transcript: Tensor,
        transcript_len: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and each layer's by the name it is logged with in validation."""
        if not self.layers:
            return loss, {}
        metrics = {"val_final_loss": loss.detach()}
        total = (1 - sum(self.weights)) * loss
        for layer, weight, (encoded, length) in zip(self.layers, self.weights, captured, strict=True):
            inner = ctc_loss(
                log_probs=decoder(encoder_output=encoded),
                targets=transcript,
                input_lengths=length,
                target_lengths=transcript_len,
            )
            metrics[f"val_inter_ctc_loss_l{layer}"] = inner.detach()
            total = total + weight * inner
        return total, metrics
