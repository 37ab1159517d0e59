"""CTC recogniser: log-mel front end, encoder, and a linear head over tokens and blank (Graves et al. 2006).

B batch, L samples, F mel bins, T frames, D width, V vocabulary with blank (the last class).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nemo_asr.decoding.ctc_greedy import CtcGreedyDecoder
from nemo_asr.decoding.timestamps import FrameClock
from nemo_asr.text import Tokenizer
from nemo_asr.text.build import ArtifactFetch, build_tokenizer
from nemo_asr.text.char import CharTokenizer
from nemo_asr.transcription import transcribe

if TYPE_CHECKING:
    from nemo_asr.decoding.hypothesis import Hypothesis

CTC_MODEL_KEYS = frozenset(
    "sample_rate train_ds validation_ds test_ds tokenizer labels preprocessor spec_augment encoder decoder decoding "
    "interctc ctc_reduction log_prediction use_cer skip_nan_grad optim optim_param_groups target nemo_version "
    "model_defaults".split()
)
"""The keys of a CTC model's config that mean something here."""

CTC_IGNORED_KEYS = frozenset(
    "repeat dropout separable kernel_size_factor name variational_noise compute_eval_loss nsys_profile "
    "memory_profile use_loss_scale rnnt_reduction".split()
)
"""Keys that NVIDIA's configs carry: anchors for other sections, or features that are not of these models."""


@dataclass
class CtcParts:
    """The built children of a CTC network."""

    preprocessor: nn.Module
    spec_augmentation: nn.Module | None
    encoder: nn.Module
    decoder: nn.Module
    tokenizer: Tokenizer
    sample_rate: int
    window_stride_s: float
    subsampling_factor: int
    decoding: Mapping[str, Any]
    strict: bool


def build_ctc_tokenizer(config: Mapping[str, Any], fetch: ArtifactFetch) -> Tokenizer:
    """SentencePiece or aggregate where the config has a `tokenizer`, else characters from its labels."""
    if config.get("tokenizer"):
        return build_tokenizer(config["tokenizer"], fetch)
    labels = section_of(config, "decoder").get("vocabulary") or config.get("labels")
    if not labels:
        raise ValueError("model.labels: null names no characters; give labels, or a tokenizer section")
    return CharTokenizer(list(labels))


def build_ctc_parts(config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> CtcParts:
    """Builds the children from the `model` section of a config.

    Args:
        config: the section as a plain mapping, interpolations resolved.
        fetch: gives the artifact for (config path, file or `nemo:` reference).
        strict: unknown keys are errors (a person typed them) or logged once (a file carries them).
    """
    from nemo_config import check_keys, instantiate

    check_keys(config, CTC_MODEL_KEYS, "model", ignored=CTC_IGNORED_KEYS, strict=strict)
    front_end, head = section_of(config, "preprocessor"), section_of(config, "decoder")
    tokenizer = build_ctc_tokenizer(config, fetch)
    preprocessor = instantiate(front_end, path="model.preprocessor", strict=strict)
    encoder = instantiate(section_of(config, "encoder"), path="model.encoder", strict=strict)
    decoder = build_ctc_decoder(head, head.get("feat_in") or encoder._feat_out, tokenizer, strict=strict)
    augment = config.get("spec_augment")
    sample_rate = int(config.get("sample_rate") or front_end.get("sample_rate", 16000))
    return CtcParts(
        preprocessor=preprocessor,
        spec_augmentation=instantiate(augment, path="model.spec_augment", strict=strict) if augment else None,
        encoder=encoder,
        decoder=decoder,
        tokenizer=tokenizer,
        sample_rate=sample_rate,
        window_stride_s=front_end.get("window_stride", 0.01) or front_end["n_window_stride"] / sample_rate,
        subsampling_factor=encoder.subsampling_factor,
        decoding=config.get("decoding") or {},
        strict=strict,
    )


def build_ctc_decoder(section: Mapping[str, Any], feat_in: int, tokenizer: Tokenizer, *, strict: bool) -> nn.Module:
    """The head that a `decoder` section describes, for encoder outputs of width `feat_in` and a tokenizer's pieces."""
    from nemo_config import instantiate

    vocabulary = list(tokenizer.vocabulary)
    sizes: dict[str, Any] = {"feat_in": feat_in, "num_classes": len(vocabulary), "vocabulary": vocabulary}
    decoder: nn.Module = instantiate(section, path="model.decoder", strict=strict, **sizes)
    return decoder


def section_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section that must be there; in files from before 1.0 its keys stand under `params`."""
    from nemo_config import ConfigError

    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"model.{name}", section, "must be a section: a CTC model needs it")
    return {**(section.get("params") or {}), **section}


class CtcNetwork(nn.Module):
    """`forward` gives log-probabilities, `transcribe` text. Parameter names are those of NVIDIA's files."""

    preprocessor: nn.Module
    spec_augmentation: nn.Module | None
    encoder: nn.Module
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
        self.preprocessor = parts.preprocessor
        self.spec_augmentation = parts.spec_augmentation
        self.encoder = parts.encoder
        self.decoder = parts.decoder
        self.tokenizer = parts.tokenizer
        self.sample_rate = parts.sample_rate
        self.window_stride_s = parts.window_stride_s
        self.subsampling_factor = parts.subsampling_factor
        self.set_decoding(parts.decoding, strict=parts.strict)

    def set_decoding(self, section: Mapping[str, Any], *, strict: bool) -> None:
        """Takes a `decoding` section: from now on `self.decoding` turns log-probabilities into text by it."""
        self.decoding = CtcGreedyDecoder(section, self.tokenizer, strict=strict)

    @property
    def frame_clock(self) -> FrameClock:
        """How long an encoder frame lasts."""
        return FrameClock(self.window_stride_s, self.subsampling_factor)

    def features(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and their lengths of audio (B, L); in training mode with masks on them."""
        features, features_len = self.preprocessor(input_signal=input_signal, length=input_signal_length)
        if self.spec_augmentation is not None and self.training:
            features = self.spec_augmentation(input_spec=features, length=features_len)
        return features, features_len

    def forward(
        self,
        input_signal: Tensor | None = None,
        input_signal_length: Tensor | None = None,
        processed_signal: Tensor | None = None,
        processed_signal_length: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities from audio, or from features.

        Args:
            input_signal: audio (B, L) in [-1, 1] at `sample_rate`.
            input_signal_length: samples of each (B,).
            processed_signal: features (B, F, T), instead of audio.
            processed_signal_length: frames of each (B,).

        Returns:
            log-probabilities (B, T, V), their lengths (B,), and the best class of each frame (B, T).
        """
        if (input_signal is None) == (processed_signal is None):
            raise ValueError("give input_signal or processed_signal, and not both")
        if input_signal is not None:
            if input_signal_length is None:
                raise ValueError("input_signal_length: is missing")
            processed_signal, processed_signal_length = self.features(input_signal, input_signal_length)
        elif self.spec_augmentation is not None and self.training:
            processed_signal = self.spec_augmentation(input_spec=processed_signal, length=processed_signal_length)
        encoded, encoded_len = self.encoder(audio_signal=processed_signal, length=processed_signal_length)[:2]
        log_probs = self.decoder(encoder_output=encoded)
        return log_probs, encoded_len, torch.argmax(log_probs, dim=-1)

    def decode(
        self, encoded: Tensor, encoded_len: Tensor, *, timestamps: bool | None, keep_log_probs: bool
    ) -> list[Hypothesis]:
        """Hypotheses of encoder outputs (B, D, T) with their lengths (B,)."""
        log_probs = self.decoder(encoder_output=encoded)
        return self.decoding(
            log_probs, encoded_len, timestamps=timestamps, keep_log_probs=keep_log_probs, clock=self.frame_clock
        )

    def transcribe(self, audio: Any, batch_size: int = 4, **options: Any) -> list[str] | list[Hypothesis]:
        """Text, or hypotheses, of audio; see `nemo_asr.transcription.transcribe`."""
        return transcribe(self, audio, batch_size=batch_size, **options)
