"""Encoder outputs of a transducer to hypotheses: search, text, timestamps, alignments.

B batch, D width, T frames, V vocabulary with blank.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_asr.decoding.ctc_config import GREEDY_STRATEGIES
from nemo_asr.decoding.hypothesis import Hypothesis
from nemo_asr.decoding.spelling import Spelling
from nemo_asr.decoding.timestamps import TIMESTAMP_TYPES, FrameClock, TimestampOptions, transducer_timestamps
from nemo_asr.decoding.transducer_config import TRANSDUCER_BEAM_STRATEGIES, TransducerDecodingConfig
from nemo_asr.decoding.transducer_greedy import GreedySearch, TransducerPath

if TYPE_CHECKING:
    from nemo_asr.modules.joint import RNNTJoint
    from nemo_asr.modules.prediction import PredictionNetwork
    from nemo_asr.text import Tokenizer

logger = logging.getLogger(__name__)


class TransducerDecoding:
    """Turns encoder outputs into text and hypotheses; holds no state, so threads may share it.

    Args:
        section: the `decoding` section of the model's config, with the durations of its loss.
        tokenizer: spells tokens.
        decoder: the prediction network.
        joint: the joint network.
        strict: what is unknown or not here is an error at once (a person typed it); otherwise a file's beam strategy
            is an error only when something is decoded, and a language model, phrases or confidence are left out.
        path: where the section stands, for errors.
    """

    def __init__(
        self,
        section: Mapping[str, Any] | None,
        tokenizer: Tokenizer,
        decoder: PredictionNetwork,
        joint: RNNTJoint,
        *,
        strict: bool = False,
        path: str = "model.decoding",
    ) -> None:
        from nemo_config import read_section

        self.path = path
        self.tokenizer = tokenizer
        self.spelling = Spelling(tokenizer)
        self.config = read_section(TransducerDecodingConfig, section or {}, path, strict=strict)
        self.options = TimestampOptions(
            word_separator=self.config.word_seperator,
            segment_separators=tuple(self.config.segment_seperators or ()),
            segment_gap=self.config.segment_gap_threshold,
            kind=self.config.rnnt_timestamp_type,
        )
        self._check(strict)
        self.search = GreedySearch(
            decoder,
            joint,
            max_symbols=self.config.greedy.symbols_at_a_frame,
            durations=self.config.durations or (),
            big_blank_durations=self.config.big_blank_durations or (),
        )

    def _check(self, strict: bool) -> None:
        if self.options.kind not in TIMESTAMP_TYPES:
            rule = f"is none of {', '.join(TIMESTAMP_TYPES)}"
            raise _config_error(f"{self.path}.rnnt_timestamp_type", self.options.kind, rule)
        for key, value in self.config.missing_features():
            error = _config_error(f"{self.path}.{key}", value, "asks for what this version does not have yet")
            if strict:
                raise error
            logger.warning("%s; it is left out", error)
        if strict:
            self._check_strategy()

    def _check_strategy(self) -> None:
        if self.config.is_greedy:
            return
        beam = self.config.strategy in TRANSDUCER_BEAM_STRATEGIES
        known = "needs beam search, which this version does not have yet" if beam else "is unknown"
        rule = f"{known}; use {' or '.join(GREEDY_STRATEGIES)}"
        raise _config_error(f"{self.path}.strategy", self.config.strategy, rule)

    def __call__(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        *,
        timestamps: bool | None = None,
        clock: FrameClock | None = None,
    ) -> list[Hypothesis]:
        """Decodes a batch.

        Args:
            encoded: encoder outputs (B, D, T).
            encoded_len: frames of each (B,).
            timestamps: adds timestamps; None leaves it to the config.
            clock: length of a frame, for timestamps in seconds.
        """
        self._check_strategy()
        wants_times = self.config.wants_timestamps if timestamps is None else timestamps
        paths = self.search(encoded, encoded_len, keep_steps=self.config.wants_alignments)
        return [self._hypothesis(path, wants_times, clock) for path in paths]

    def texts(self, encoded: Tensor, encoded_len: Tensor) -> list[str]:
        """Only the texts of encoder outputs (B, D, T)."""
        self._check_strategy()
        return [self.spelling.text(path.tokens) for path in self.search(encoded, encoded_len)]

    def _hypothesis(self, path: TransducerPath, wants_times: bool, clock: FrameClock | None) -> Hypothesis:
        hypothesis = Hypothesis(
            path.score,
            torch.tensor(path.tokens, dtype=torch.long),
            self.spelling.text(path.tokens),
            timestamp=list(path.frames),
            length=path.length,
            tokens=path.tokens,
            token_duration=path.durations or None,
        )
        if wants_times:
            hypothesis.timestamp = transducer_timestamps(
                path.tokens, path.frames, path.durations, self.tokenizer, self.spelling.punctuation, self.options, clock
            )
        if path.steps is not None:
            hypothesis.alignments = _alignments(path)
        return hypothesis


def _alignments(path: TransducerPath) -> list[list[tuple[Tensor, Tensor]]]:
    """For each frame the steps made at it, as pairs of scores (V,) and label."""
    frames: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(path.length)]
    if path.steps is not None:
        for frame, label, scores in zip(path.steps.frames.tolist(), path.steps.labels, path.steps.scores, strict=True):
            frames[frame].append((scores, label))
    return [steps for steps in frames if steps]


def _config_error(path: str, value: object, rule: str) -> Exception:
    from nemo_config import ConfigError

    return ConfigError(path, value, rule)
