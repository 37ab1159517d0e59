"""Log-probabilities of a CTC network to hypotheses: search, text, timestamps.

B batch, T frames, V vocabulary with blank, the last class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_asr.decoding.ctc_config import BEAM_STRATEGIES, GREEDY_STRATEGIES, CtcDecodingConfig
from nemo_asr.decoding.ctc_greedy import GreedyPath, greedy_path, split_rows
from nemo_asr.decoding.hypothesis import Hypothesis
from nemo_asr.decoding.spelling import Spelling
from nemo_asr.decoding.timestamps import (
    TIMESTAMP_TYPES,
    FrameClock,
    TimestampOptions,
    ctc_timestamps,
)

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

logger = logging.getLogger(__name__)


class CtcDecoding:
    """Turns log-probabilities into text and hypotheses; holds no state, so threads may share it.

    Args:
        section: the `decoding` section of the model's config, or what is left of it; None for the defaults.
        tokenizer: its `vocab_size` is the id of blank.
        strict: what is unknown or not here is an error at once (a person typed it); otherwise a file's beam strategy
            is an error only when something is decoded, and a language model, phrases or confidence are left out.
        path: where the section stands, for errors.
    """

    def __init__(
        self,
        section: Mapping[str, Any] | None,
        tokenizer: Tokenizer,
        *,
        strict: bool = False,
        path: str = "model.decoding",
    ) -> None:
        from nemo_config import read_section

        self.path = path
        self.tokenizer = tokenizer
        self.blank = tokenizer.vocab_size
        self.config = read_section(CtcDecodingConfig, section or {}, path, strict=strict)
        self.spelling = Spelling(tokenizer)
        self.options = TimestampOptions(
            word_separator=self.config.word_seperator,
            segment_separators=tuple(self.config.segment_seperators or ()),
            segment_gap=self.config.segment_gap_threshold,
            kind=self.config.ctc_timestamp_type,
        )
        self._check_options()
        self._check_features(strict)
        if strict:
            self._check_strategy()

    def _check_options(self) -> None:
        if self.options.kind not in TIMESTAMP_TYPES:
            raise _config_error(
                f"{self.path}.ctc_timestamp_type", self.options.kind, f"is none of {', '.join(TIMESTAMP_TYPES)}"
            )
        if self.config.batch_dim_index != 0:
            raise _config_error(
                f"{self.path}.batch_dim_index", self.config.batch_dim_index, "is not 0, the only order offered"
            )

    def _check_features(self, strict: bool) -> None:
        for key, value in self.config.missing_features():
            error = _config_error(f"{self.path}.{key}", value, "asks for what this version does not have yet")
            if strict:
                raise error
            logger.warning("%s; it is left out", error)

    def _check_strategy(self) -> None:
        strategy = self.config.strategy
        if strategy in GREEDY_STRATEGIES:
            return
        known = (
            "needs beam search, which this version does not have yet" if strategy in BEAM_STRATEGIES else "is unknown"
        )
        raise _config_error(f"{self.path}.strategy", strategy, f"{known}; use {' or '.join(GREEDY_STRATEGIES)}")

    def __call__(
        self,
        log_probs: Tensor,
        log_probs_len: Tensor,
        *,
        timestamps: bool | None = None,
        keep_log_probs: bool = False,
        clock: FrameClock | None = None,
    ) -> list[Hypothesis]:
        """Decodes a batch.

        Args:
            log_probs: (B, T, V), or the best classes (B, T).
            log_probs_len: frames of each (B,).
            timestamps: adds timestamps; None leaves it to the config.
            keep_log_probs: `y_sequence` and `alignments` hold the log-probabilities (T, V) on the CPU.
            clock: length of a frame, for timestamps in seconds.
        """
        self._check_strategy()
        path = greedy_path(log_probs, log_probs_len, self.blank)
        hypotheses = self._hypotheses(path, log_probs_len)
        if timestamps or (timestamps is None and self.config.wants_timestamps):
            self._add_timestamps(hypotheses, path, clock)
        if log_probs.ndim == 3:
            self._add_log_probs(hypotheses, log_probs, keep_log_probs)
        return hypotheses

    def texts(self, predictions: Tensor, predictions_len: Tensor) -> list[str]:
        """Only the texts of log-probabilities (B, T, V) or best classes (B, T)."""
        self._check_strategy()
        return [self.spelling.text(ids) for ids in greedy_path(predictions, predictions_len, self.blank).tokens()]

    def _hypotheses(self, path: GreedyPath, predictions_len: Tensor) -> list[Hypothesis]:
        if path.scores is None:
            scores = [-1.0] * len(path.labels)
        else:
            scores = torch.where(path.spoken, path.scores, 0.0).sum(dim=1).tolist()
        labels, lengths = path.labels.cpu(), predictions_len.tolist()
        return [
            Hypothesis(score, row[:length].clone(), self.spelling.text(tokens), length=length, tokens=tokens)
            for score, row, length, tokens in zip(scores, labels, lengths, path.tokens(), strict=True)
        ]

    def _add_timestamps(self, hypotheses: list[Hypothesis], path: GreedyPath, clock: FrameClock | None) -> None:
        frames = torch.arange(path.labels.shape[1], device=path.labels.device).expand(path.labels.shape)
        onsets, spoken = split_rows(frames, path.onsets), split_rows(frames, path.spoken)
        for hypothesis, onset, frame in zip(hypotheses, onsets, spoken, strict=True):
            hypothesis.timestamp = ctc_timestamps(
                hypothesis.tokens, onset, frame, self.tokenizer, self.spelling.punctuation, self.options, clock
            )

    def _add_log_probs(self, hypotheses: list[Hypothesis], log_probs: Tensor, keep: bool) -> None:
        if not keep and not self.config.wants_alignments:
            return
        for hypothesis, row in zip(hypotheses, log_probs.cpu(), strict=True):
            own = row[: hypothesis.length].clone()
            if self.config.wants_alignments:
                hypothesis.alignments = (own, hypothesis.y_sequence)
            if keep:
                hypothesis.y_sequence = own
                hypothesis.alignments = own if hypothesis.alignments is None else hypothesis.alignments


def _config_error(path: str, value: object, rule: str) -> Exception:
    from nemo_config import ConfigError

    return ConfigError(path, value, rule)
