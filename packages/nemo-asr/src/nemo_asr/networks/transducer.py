"""Transducer: encoder, prediction network over the tokens so far, and a joint of both (Graves, arXiv 1211.3711).

B batch, L samples, T frames, D width, U target steps, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from nemo_asr.decoding.transducer import TransducerDecoding
from nemo_asr.losses.rnnt import DEFAULT_LOSS, FAMILIES
from nemo_asr.modules.joint import RNNTJoint
from nemo_asr.modules.prediction import PredictionNetwork
from nemo_asr.networks.recognizer import RecognizerNetwork, RecognizerParts, build_recognizer_parts, section_of
from nemo_asr.text import Tokenizer
from nemo_asr.text.build import ArtifactFetch

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Bias
    from nemo_asr.decoding.hypothesis import Hypothesis

TRANSDUCER_MODEL_KEYS = frozenset(
    "joint loss rnnt_reduction compute_eval_loss variational_noise normalize_joint_txu normalize_encoder_norm "
    "normalize_decoder_norm normalize_joint_norm".split()
)
TRANSDUCER_IGNORED_KEYS = frozenset({"ctc_reduction"})
"""A key that NVIDIA's transducer configs carry, of another family."""


class LossSection(NamedTuple):
    """What the `loss` section of a transducer asks for: a loss by NVIDIA's name, and its options."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LossSection:
        """From the `model` section; the options stand under `<loss_name>_kwargs`."""
        from nemo_config import ConfigError

        section = config.get("loss") or {}
        name = section.get("loss_name") or "default"
        if name not in FAMILIES:
            raise ConfigError("model.loss.loss_name", name, f"is none of {', '.join(FAMILIES)}")
        name = DEFAULT_LOSS if name == "default" else name
        return cls(name, section.get(f"{name}_kwargs") or {})

    @property
    def search_options(self) -> dict[str, Any]:
        """What the search must know of the loss: how far a token or a big blank leads."""
        keys = {"tdt": "durations", "multiblank": "big_blank_durations"}
        key = keys.get(FAMILIES[self.name])
        return {key: list(self.options[key])} if key and self.options.get(key) else {}


@dataclass
class TransducerParts:
    """The built children of a transducer."""

    recognizer: RecognizerParts
    decoder: PredictionNetwork
    joint: RNNTJoint
    loss: LossSection


def build_transducer_parts(
    config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool, keys: frozenset[str] = frozenset()
) -> TransducerParts:
    """Builds the children from the `model` section of a config; arguments as `build_recognizer_parts`."""
    parts = build_recognizer_parts(
        config, fetch, strict=strict, keys=TRANSDUCER_MODEL_KEYS | keys, ignored=TRANSDUCER_IGNORED_KEYS
    )
    feat_out: Any = parts.encoder._feat_out
    decoder, joint = build_prediction_and_joint(config, parts.tokenizer, feat_out, strict=strict)
    return TransducerParts(parts, decoder, joint, LossSection.of(config))


def build_prediction_and_joint(
    config: Mapping[str, Any], tokenizer: Tokenizer, encoder_width: int, *, strict: bool
) -> tuple[PredictionNetwork, RNNTJoint]:
    """The prediction network and joint of a `model` section, for a tokenizer and an encoder."""
    from nemo_config import instantiate

    vocabulary = list(tokenizer.vocabulary)
    decoder: PredictionNetwork = instantiate(
        section_of(config, "decoder"), path="model.decoder", strict=strict, vocab_size=len(vocabulary)
    )
    section = section_of(config, "joint")
    sizes = {"encoder_hidden": encoder_width, "pred_hidden": decoder.pred_hidden}
    joint: RNNTJoint = instantiate(
        section,
        path="model.joint",
        strict=strict,
        jointnet={**section_of(section, "jointnet", "model.joint"), **sizes},
        num_classes=len(vocabulary),
        vocabulary=vocabulary,
    )
    return decoder, joint


class TransducerNetwork(RecognizerNetwork):
    """`forward` gives encoder outputs, `transcribe` text.

    Attributes:
        decoder: the prediction network, which files call so.
        decoding: the search that turns encoder outputs into text.
    """

    decoder: PredictionNetwork
    joint: RNNTJoint

    def __init__(self, parts: TransducerParts) -> None:
        super().__init__()
        self.assemble(parts)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> TransducerNetwork:
        """The network of a `model` section; arguments as `build_transducer_parts`."""
        return cls(build_transducer_parts(config, fetch, strict=strict))

    def assemble(self, parts: TransducerParts) -> None:
        """Takes the children; apart from `__init__`, so that a trainable model can be this network as well."""
        self.take(parts.recognizer)
        self.decoder = parts.decoder
        self.joint = parts.joint
        self.loss_section = parts.loss
        self.set_decoding(parts.recognizer.decoding, strict=parts.recognizer.strict)

    def set_decoding(self, section: Mapping[str, Any], *, strict: bool) -> None:
        """Takes a `decoding` section: from now on `self.decoding` turns encoder outputs into text by it."""
        section = {**section, **self.loss_section.search_options}
        self.decoding = TransducerDecoding(section, self.tokenizer, self.decoder, self.joint, strict=strict)

    def forward(
        self,
        input_signal: Tensor | None = None,
        input_signal_length: Tensor | None = None,
        processed_signal: Tensor | None = None,
        processed_signal_length: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder outputs (B, D, T) and their lengths (B,); arguments as `encode`."""
        return self.encode(input_signal, input_signal_length, processed_signal, processed_signal_length)

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
        return self.decoding(encoded, encoded_len, timestamps=timestamps, clock=self.frame_clock, bias=bias)
