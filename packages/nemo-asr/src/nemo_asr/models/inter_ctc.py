"""Intermediate CTC: the same head and loss on inner encoder layers, as a regulariser (arXiv 2102.03216).

loss = (1 - sum of the weights) * loss of the last layer + sum of weight_i * loss of layer_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from nemo_asr.modules.conformer.encoder import Encoded
from nemo_config import ConfigError, read_section

if TYPE_CHECKING:
    from nemo_asr.metrics.wer import WER


@dataclass
class InterCtcConfig:
    """The `interctc` section: `loss_weights` of the layers (from 0) of `apply_at_layers`."""

    loss_weights: list[float] = field(default_factory=list)
    apply_at_layers: list[int] = field(default_factory=list)


@runtime_checkable
class LayeredEncoder(Protocol):
    """An encoder that gives the outputs of its inner layers, too."""

    layers: nn.ModuleList

    def encode(self, audio_signal: Tensor, length: Tensor, *, capture_layers: Sequence[int]) -> Encoded: ...


class InterCtc:
    """Runs an encoder so that it gives the outputs of inner layers, and adds their losses.

    Args:
        section: the `interctc` section.
        encoder: the model's encoder.
        strict: unknown keys are errors.

    Raises:
        ConfigError: weights and layers that do not fit each other, or the encoder.
    """

    def __init__(self, section: Mapping[str, Any] | None, encoder: nn.Module, *, strict: bool) -> None:
        config = read_section(InterCtcConfig, section, "model.interctc", strict=strict)
        self.layers: Sequence[int] = config.apply_at_layers
        self.weights: Sequence[float] = config.loss_weights
        if len(self.layers) != len(self.weights):
            raise ConfigError("model.interctc.apply_at_layers", self.layers, "must be as many as loss_weights")
        if sum(self.weights) >= 1:
            raise ConfigError("model.interctc.loss_weights", self.weights, "must sum to less than 1")
        if self.layers:
            self._check_encoder(encoder)

    def _check_encoder(self, encoder: nn.Module) -> None:
        if not isinstance(encoder, LayeredEncoder):
            rule = f"needs an encoder of layers, which {type(encoder).__name__} is not"
            raise ConfigError("model.interctc.apply_at_layers", self.layers, rule)
        last = len(encoder.layers) - 1
        if not all(0 <= layer <= last for layer in self.layers):
            raise ConfigError("model.interctc.apply_at_layers", self.layers, f"must be layers from 0 to {last}")

    def encode(self, encoder: nn.Module, features: Tensor, features_len: Tensor) -> Encoded:
        """Runs the encoder on features (B, F, T), and captures its layers."""
        assert isinstance(encoder, LayeredEncoder)
        return encoder.encode(features, features_len, capture_layers=self.layers)

    def add_losses(
        self,
        loss: Tensor,
        captured: Mapping[int, tuple[Tensor, Tensor]],
        decoder: nn.Module,
        ctc_loss: nn.Module,
        transcript: Tensor,
        transcript_len: Tensor,
        metric: WER | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and each layer's loss and error counts by the names they are logged with in validation.

        Args:
            loss: of the last layer.
            captured: by layer its output (B, D, T) and lengths (B,).
            decoder: gives log-probabilities for the output of any layer.
            ctc_loss: their loss.
            transcript: token ids (B, U).
            transcript_len: tokens of each (B,).
            metric: counts the errors of each layer; None for losses alone.
        """
        metrics = {"val_final_loss": loss.detach()}
        total = (1 - sum(self.weights)) * loss
        for layer, weight in zip(self.layers, self.weights, strict=True):
            encoded, length = captured[layer]
            log_probs = decoder(encoder_output=encoded)
            inner = ctc_loss(
                log_probs=log_probs, targets=transcript, input_lengths=length, target_lengths=transcript_len
            )
            metrics[f"val_inter_ctc_loss_l{layer}"] = inner.detach()
            total = total + weight * inner
            if metric is not None:
                counts = metric.of_batch(log_probs.detach(), length, transcript, transcript_len)
                name = f"val_inter_wer_l{layer}"
                metrics |= zip((name, f"{name}_num", f"{name}_denom"), counts, strict=True)
        return total, metrics


def step_metrics(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a training step logs of the metrics of validation: without their prefix, and rates without their counts."""
    return {
        name.removeprefix("val_"): value for name, value in metrics.items() if not name.endswith(("_num", "_denom"))
    }
