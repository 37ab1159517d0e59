"""CTC recogniser: log-mel front end, encoder, and a linear head over tokens and blank (Graves et al. 2006).

B batch, L samples, F mel bins, T frames, D width, V vocabulary with blank (the last class).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.networks.recognizer import RecognizerNetwork, RecognizerParts, build_recognizer_parts, section_of
from nemo_asr.text import Tokenizer
from nemo_asr.text.build import ArtifactFetch

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Bias
    from nemo_asr.decoding.hypothesis import Hypothesis

CTC_MODEL_KEYS = frozenset({"ctc_reduction"})
CTC_IGNORED_KEYS = frozenset({"variational_noise", "compute_eval_loss", "rnnt_reduction"})
"""Keys that NVIDIA's CTC configs carry, of other families."""


@dataclass
class CtcParts:
    """The built children of a CTC network."""

    recognizer: RecognizerParts
    decoder: nn.Module


def build_ctc_parts(config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> CtcParts:
    """Builds the children from the `model` section of a config; arguments as `build_recognizer_parts`."""
    parts = build_recognizer_parts(config, fetch, strict=strict, keys=CTC_MODEL_KEYS, ignored=CTC_IGNORED_KEYS)
    head = section_of(config, "decoder")
    feat_in: Any = head.get("feat_in") or parts.encoder._feat_out
    return CtcParts(parts, build_ctc_decoder(head, feat_in, parts.tokenizer, strict=strict))


def build_ctc_decoder(
    section: Mapping[str, Any], feat_in: int, tokenizer: Tokenizer, *, strict: bool, path: str = "model.decoder"
) -> nn.Module:
    """The head that a section describes, for encoder outputs of width `feat_in` and a tokenizer's pieces."""
    from nemo_config import instantiate

    vocabulary = list(tokenizer.vocabulary)
    sizes: dict[str, Any] = {"feat_in": feat_in, "num_classes": len(vocabulary), "vocabulary": vocabulary}
    decoder: nn.Module = instantiate(section, path=path, strict=strict, **sizes)
    return decoder


class CtcNetwork(RecognizerNetwork):
    """`forward` gives log-probabilities, `transcribe` text."""

    decoder: nn.Module

    def __init__(self, parts: CtcParts) -> None:
        super().__init__()
        self.assemble(parts)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> CtcNetwork:
        """The network of a `model` section; arguments as `build_ctc_parts`."""
        return cls(build_ctc_parts(config, fetch, strict=strict))

    def assemble(self, parts: CtcParts) -> None:
        """Takes the children; apart from `__init__`, so that a trainable model can be this network as well."""
        self.take(parts.recognizer)
        self.decoder = parts.decoder
        self.set_decoding(parts.recognizer.decoding, strict=parts.recognizer.strict)

    def set_decoding(self, section: Mapping[str, Any], *, strict: bool) -> None:
        """Takes a `decoding` section: from now on `self.decoding` turns log-probabilities into text by it."""
        self.decoding = CtcDecoding(section, self.tokenizer, strict=strict)

    def forward(
        self,
        input_signal: Tensor | None = None,
        input_signal_length: Tensor | None = None,
        processed_signal: Tensor | None = None,
        processed_signal_length: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities from audio, or from features; arguments as `encode`.

        Returns:
            log-probabilities (B, T, V), their lengths (B,), and the best class of each frame (B, T).
        """
        encoded, encoded_len = self.encode(input_signal, input_signal_length, processed_signal, processed_signal_length)
        log_probs = self.decoder(encoder_output=encoded)
        return log_probs, encoded_len, torch.argmax(log_probs, dim=-1)

    def decode(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        *,
        timestamps: bool | None,
        keep_log_probs: bool,
        bias: Bias | None = None,
    ) -> list[Hypothesis]:
        """Hypotheses of encoder outputs (B, D, T) with their lengths (B,)."""
        log_probs = self.decoder(encoder_output=encoded)
        return self.decoding(
            log_probs,
            encoded_len,
            timestamps=timestamps,
            keep_log_probs=keep_log_probs,
            clock=self.frame_clock,
            bias=bias,
        )
