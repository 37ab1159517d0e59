"""Hybrid of transducer and CTC: one encoder, two ways from its frames to text (arXiv 2209.05201).

B batch, T frames, D width, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.networks.ctc import build_ctc_decoder
from nemo_asr.networks.recognizer import section_of
from nemo_asr.networks.transducer import TransducerNetwork, TransducerParts, build_transducer_parts
from nemo_asr.text.build import ArtifactFetch

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Bias
    from nemo_asr.decoding.hypothesis import Hypothesis

DECODERS = ("rnnt", "ctc")


@dataclass
class HybridParts:
    """The built children of a hybrid."""

    transducer: TransducerParts
    ctc_decoder: nn.Module
    ctc_decoding: Mapping[str, Any]


def build_hybrid_parts(config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> HybridParts:
    """Builds the children from the `model` section of a config; arguments as `build_recognizer_parts`."""
    parts = build_transducer_parts(config, fetch, strict=strict, keys=frozenset({"aux_ctc"}))
    section = section_of(config, "aux_ctc")
    head = section_of(section, "decoder", "model.aux_ctc")
    feat_in: Any = parts.recognizer.encoder._feat_out
    ctc_decoder = build_ctc_decoder(
        head, feat_in, parts.recognizer.tokenizer, strict=strict, path="model.aux_ctc.decoder"
    )
    return HybridParts(parts, ctc_decoder, section.get("decoding") or {})


class HybridNetwork(TransducerNetwork):
    """A transducer with a CTC head on the same encoder.

    Attributes:
        cur_decoder: which of the two `transcribe` uses, `rnnt` or `ctc`.
    """

    ctc_decoder: nn.Module

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> HybridNetwork:
        """The network of a `model` section; arguments as `build_hybrid_parts`."""
        parts = build_hybrid_parts(config, fetch, strict=strict)
        network = cls(parts.transducer)
        network.add_ctc(parts)
        return network

    def add_ctc(self, parts: HybridParts) -> None:
        """Takes the CTC head; the transducer is there already."""
        self.ctc_decoder = parts.ctc_decoder
        self.cur_decoder = "rnnt"
        self.set_ctc_decoding(parts.ctc_decoding, strict=parts.transducer.recognizer.strict)

    def set_ctc_decoding(self, section: Mapping[str, Any], *, strict: bool) -> None:
        """Takes the `decoding` section of the CTC head."""
        path = "model.aux_ctc.decoding"
        self.ctc_decoding = CtcDecoding(section, self.tokenizer, strict=strict, path=path)

    def use_decoder(self, name: str) -> None:
        """Chooses the decoder that `transcribe` uses.

        Raises:
            ValueError: it is neither `rnnt` nor `ctc`.
        """
        if name not in DECODERS:
            raise ValueError(f"decoder_type: {name!r} is none of {', '.join(DECODERS)}")
        self.cur_decoder = name

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
        if self.cur_decoder == "rnnt":
            return super().decode(encoded, encoded_len, timestamps=timestamps, keep_log_probs=keep_log_probs, bias=bias)
        log_probs = self.ctc_decoder(encoder_output=encoded)
        return self.ctc_decoding(
            log_probs,
            encoded_len,
            timestamps=timestamps,
            keep_log_probs=keep_log_probs,
            clock=self.frame_clock,
            bias=bias,
        )
