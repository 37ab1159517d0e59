"""What every recogniser begins with: log-mel front end, augmentation, encoder, tokenizer.  A family of networks adds
what turns encoder frames into text.

B batch, L samples, F mel bins, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nemo_asr.decoding.timestamps import FrameClock
from nemo_asr.text import Tokenizer
from nemo_asr.text.build import ArtifactFetch, build_tokenizer
from nemo_asr.text.char import CharTokenizer
from nemo_asr.transcription import Results, TranscribeConfig, transcribe

if TYPE_CHECKING:
    from nemo_asr.decoding.hypothesis import Hypothesis

MODEL_KEYS = frozenset(
    "sample_rate train_ds validation_ds test_ds tokenizer labels preprocessor spec_augment encoder decoder decoding "
    "interctc log_prediction use_cer skip_nan_grad optim optim_param_groups target nemo_version model_defaults".split()
)
"""The keys that mean something in every recogniser's config."""

IGNORED_MODEL_KEYS = frozenset(
    "repeat dropout separable kernel_size_factor embedding_dim name nsys_profile memory_profile use_loss_scale".split()
)
"""Keys that NVIDIA's configs carry: anchors for other sections, or tools that are not here."""


@dataclass
class RecognizerParts:
    """The built children that every recogniser has, and its `decoding` section."""

    preprocessor: nn.Module
    spec_augmentation: nn.Module | None
    encoder: nn.Module
    tokenizer: Tokenizer
    sample_rate: int
    window_stride_s: float
    decoding: Mapping[str, Any]
    strict: bool


def build_recognizer_parts(
    config: Mapping[str, Any],
    fetch: ArtifactFetch,
    *,
    strict: bool,
    keys: Collection[str],
    ignored: Collection[str] = (),
) -> RecognizerParts:
    """Builds the children from the `model` section of a config.

    Args:
        config: the section as a plain mapping, interpolations resolved.
        fetch: gives the artifact for (config path, file or `nemo:` reference).
        strict: unknown keys are errors (a person typed them) or logged once (a file carries them).
        keys: those of the family, beside MODEL_KEYS.
        ignored: those that mean nothing in the family, beside IGNORED_MODEL_KEYS.
    """
    from nemo_config import check_keys, instantiate

    check_keys(config, MODEL_KEYS.union(keys), "model", ignored=IGNORED_MODEL_KEYS.union(ignored), strict=strict)
    front_end = section_of(config, "preprocessor")
    augment = config.get("spec_augment")
    sample_rate = int(config.get("sample_rate") or front_end.get("sample_rate", 16000))
    preprocessor = instantiate(front_end, path="model.preprocessor", strict=strict)
    return RecognizerParts(
        preprocessor=preprocessor,
        spec_augmentation=instantiate(augment, path="model.spec_augment", strict=strict) if augment else None,
        encoder=instantiate(section_of(config, "encoder"), path="model.encoder", strict=strict),
        tokenizer=_build_model_tokenizer(config, fetch),
        sample_rate=sample_rate,
        window_stride_s=_window_stride_s(front_end, preprocessor, sample_rate),
        decoding=config.get("decoding") or {},
        strict=strict,
    )


def _window_stride_s(front_end: Mapping[str, Any], preprocessor: nn.Module, sample_rate: int) -> float:
    """Seconds from one feature frame to the next."""
    samples = getattr(preprocessor, "samples_per_frame", None)
    if samples is None:
        stride_s: float = front_end.get("window_stride", 0.01) or front_end["n_window_stride"] / sample_rate
        return stride_s
    return float(samples / sample_rate)


def section_of(config: Mapping[str, Any], name: str, path: str = "model") -> Mapping[str, Any]:
    """A section that must be there; in files from before 1.0 its keys stand under `params`."""
    from nemo_config import ConfigError

    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{path}.{name}", section, "must be a section: such a model needs it")
    return {**(section.get("params") or {}), **section}


def _build_model_tokenizer(config: Mapping[str, Any], fetch: ArtifactFetch) -> Tokenizer:
    """SentencePiece or aggregate where the config has a `tokenizer`, else characters from its labels."""
    if config.get("tokenizer"):
        return build_tokenizer(config["tokenizer"], fetch)
    named = (section_of(config, name).get("vocabulary") for name in ("decoder", "joint") if name in config)
    labels = next((vocabulary for vocabulary in named if vocabulary), None) or config.get("labels")
    if not labels:
        raise ValueError("model.labels: null names no characters; give labels, or a tokenizer section")
    return CharTokenizer(list(labels))


class RecognizerNetwork(nn.Module):
    """Front end and encoder.  Parameter names are those of NVIDIA's files."""

    preprocessor: nn.Module
    spec_augmentation: nn.Module | None
    encoder: nn.Module

    def take(self, parts: RecognizerParts) -> None:
        """Takes the children; apart from `__init__`, so that a trainable model can be this network as well."""
        self.preprocessor = parts.preprocessor
        self.spec_augmentation = parts.spec_augmentation
        self.encoder = parts.encoder
        self.tokenizer = parts.tokenizer
        self.sample_rate = parts.sample_rate
        self.window_stride_s = parts.window_stride_s

    @property
    def frame_clock(self) -> FrameClock:
        """How long an encoder frame lasts."""
        factor: Any = self.encoder.subsampling_factor
        return FrameClock(self.window_stride_s, factor)

    def features(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and their lengths of audio (B, L); in training mode with masks on them."""
        features, features_len = self.preprocessor(input_signal=input_signal, length=input_signal_length)
        return self._augmented(features, features_len), features_len

    def _augmented(self, features: Tensor, features_len: Tensor) -> Tensor:
        if self.spec_augmentation is None or not self.training:
            return features
        masked: Tensor = self.spec_augmentation(input_spec=features, length=features_len)
        return masked

    def encode(
        self,
        input_signal: Tensor | None = None,
        input_signal_length: Tensor | None = None,
        processed_signal: Tensor | None = None,
        processed_signal_length: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder outputs (B, D, T) and their lengths (B,), from audio or from features.

        Args:
            input_signal: audio (B, L) in [-1, 1] at `sample_rate`.
            input_signal_length: samples of each (B,).
            processed_signal: features (B, F, T), instead of audio.
            processed_signal_length: frames of each (B,).
        """
        if (input_signal is None) == (processed_signal is None):
            raise ValueError("give input_signal or processed_signal, and not both")
        if input_signal is not None:
            if input_signal_length is None:
                raise ValueError("input_signal_length: is missing")
            features, features_len = self.features(input_signal, input_signal_length)
        elif processed_signal is not None and processed_signal_length is not None:
            features, features_len = self._augmented(processed_signal, processed_signal_length), processed_signal_length
        else:
            raise ValueError("processed_signal_length: is missing")
        encoded, encoded_len = self.encoder(audio_signal=features, length=features_len)[:2]
        return encoded, encoded_len

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fetch: ArtifactFetch, *, strict: bool) -> RecognizerNetwork:
        """The network of a `model` section; arguments as `build_recognizer_parts`."""
        raise NotImplementedError(f"{cls.__name__} has no from_config")

    def set_decoding(self, section: Mapping[str, Any], *, strict: bool) -> None:
        """Takes a `decoding` section: from now on encoder outputs are turned into text by it."""
        raise NotImplementedError(f"{type(self).__name__} has no set_decoding")

    def decode(
        self, encoded: Tensor, encoded_len: Tensor, *, timestamps: bool | None, keep_log_probs: bool
    ) -> list[Hypothesis]:
        """Hypotheses of encoder outputs (B, D, T) with their lengths (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    @staticmethod
    def get_transcribe_config() -> TranscribeConfig:
        """The options of `transcribe` with their defaults, to be changed and given as its `override_config`."""
        return TranscribeConfig()

    def transcribe(self, audio: Any, batch_size: int = 4, **options: Any) -> Results:
        """Text, or hypotheses, of audio; see `nemo_asr.transcription.transcribe`."""
        return transcribe(self, audio, batch_size=batch_size, **options)
