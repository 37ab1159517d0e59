"""Log-probabilities of a CTC network to hypotheses: search, text, timestamps.

B batch, T frames, V vocabulary with blank, the last class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_asr.decoding.confidence import Confidence, build_confidence
from nemo_asr.decoding.confidence_config import without_renamed
from nemo_asr.decoding.ctc_beam import CtcBeamSearch, PrefixPath
from nemo_asr.decoding.ctc_config import CTC_BEAM_STRATEGIES, FOREIGN_STRATEGIES, GREEDY_STRATEGIES, CtcDecodingConfig
from nemo_asr.decoding.ctc_greedy import GreedyPath, greedy_path
from nemo_asr.decoding.forced_alignment import ctc_forced_align
from nemo_asr.decoding.fusion import Bias, Fusion, FusionSource
from nemo_asr.decoding.hypothesis import Hypothesis, with_n_best
from nemo_asr.decoding.predictions import TokenDecoding, as_predictions
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


class CtcDecoding(TokenDecoding):
    """Turns log-probabilities into text and hypotheses; holds no state, so threads may share it.

    Args:
        section: the `decoding` section of the model's config, or what is left of it; None for the defaults.
        tokenizer: its `vocab_size` is the id of blank.
        strict: what is unknown or missing is an error at once (a person typed it); otherwise it is one only when
            something is decoded.
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
        from nemo_config import plain, read_section

        self.path = path
        self.tokenizer = tokenizer
        self.blank = self.blank_id = tokenizer.vocab_size
        given = without_renamed(plain(section or {}, path))
        self.config = read_section(CtcDecodingConfig, given, path, strict=strict)
        self.spelling = Spelling(tokenizer)
        self.options = TimestampOptions(
            word_separator=self.config.word_seperator,
            segment_separators=tuple(self.config.segment_seperators or ()),
            segment_gap=self.config.segment_gap_threshold,
            kind=self.config.ctc_timestamp_type,
        )
        section_name = "greedy" if self.config.is_greedy else "beam"
        self.fusion = FusionSource(self.config.fusion_keys, tokenizer, f"{path}.{section_name}")
        beam = self.config.beam
        self.beam_search = CtcBeamSearch(beam.beam_size, beam.beam_beta, beam.beam_threshold)
        self._check_options()
        self.confidence = build_confidence(
            self.config.confidence, self.spelling, (self.blank + 1,), path, strict=strict
        )
        if self.config.strategy == "beam":
            logger.info("%s.strategy: beam searches as beam_batch does", path)
        if strict:
            self._check_strategy()
            self.fusion(None, torch.device("cpu"))

    def _check_options(self) -> None:
        if self.options.kind not in TIMESTAMP_TYPES:
            raise _config_error(
                f"{self.path}.ctc_timestamp_type", self.options.kind, f"is none of {', '.join(TIMESTAMP_TYPES)}"
            )
        if self.config.batch_dim_index != 0:
            raise _config_error(
                f"{self.path}.batch_dim_index", self.config.batch_dim_index, "is not 0, the only order offered"
            )

    def _check_strategy(self) -> None:
        known = (*GREEDY_STRATEGIES, *CTC_BEAM_STRATEGIES)
        if self.config.strategy not in known:
            state = "is not offered" if self.config.strategy in FOREIGN_STRATEGIES else "is unknown"
            rule = f"{state}; use {', '.join(known[:-1])} or {known[-1]}"
            raise _config_error(f"{self.path}.strategy", self.config.strategy, rule)

    def __call__(
        self,
        log_probs: Tensor,
        log_probs_len: Tensor,
        *,
        timestamps: bool | None = None,
        keep_log_probs: bool = False,
        clock: FrameClock | None = None,
        bias: Bias | None = None,
    ) -> list[Hypothesis]:
        """Decodes a batch.

        Args:
            log_probs: (B, T, V), or the best classes (B, T), which are always searched greedily and have no confidence.
            log_probs_len: frames of each (B,).
            timestamps: adds timestamps; None leaves it to the config.
            keep_log_probs: `y_sequence` and `alignments` hold the log-probabilities (T, V) on the CPU.
            clock: length of a frame, for timestamps in seconds.
            bias: language model and phrases of this call; None leaves them to the config.
        """
        self._check_strategy()
        wants_times = self.config.wants_timestamps if timestamps is None else timestamps
        fusion = self.fusion(bias, log_probs.device) if log_probs.ndim == 3 else None
        if log_probs.ndim == 3 and not self.config.is_greedy:
            return self._search_beam(log_probs, log_probs_len, wants_times, keep_log_probs, clock, fusion)
        path = greedy_path(log_probs, log_probs_len, self.blank, fusion)
        hypotheses = self._hypotheses(path, log_probs_len)
        if wants_times:
            self._add_timestamps(hypotheses, path, clock)
        if log_probs.ndim == 3:
            if self.confidence is not None:
                self._add_confidence(hypotheses, self.confidence, self.confidence.measure(log_probs), path)
            self._add_log_probs(hypotheses, log_probs, keep_log_probs)
        return hypotheses

    def _search_beam(
        self,
        log_probs: Tensor,
        log_probs_len: Tensor,
        wants_times: bool,
        keep_log_probs: bool,
        clock: FrameClock | None,
        fusion: Fusion | None,
    ) -> list[Hypothesis]:
        found = self.beam_search(log_probs, log_probs_len, fusion)
        keep = not self.config.beam.return_best_hypothesis
        found = found if keep else [paths[:1] for paths in found]
        counts = torch.tensor([len(paths) for paths in found])
        paths = [path for own in found for path in own]
        rows = torch.repeat_interleave(torch.arange(len(found)), counts).to(log_probs.device)
        lengths = log_probs_len.to(log_probs.device)[rows]
        hypotheses = [
            Hypothesis(path.score, torch.tensor(path.tokens, dtype=torch.long), self.spelling.text(path.tokens))
            for path in paths
        ]
        for hypothesis, path, length in zip(hypotheses, paths, lengths.tolist(), strict=True):
            hypothesis.tokens, hypothesis.length = path.tokens, length
        if wants_times or self.config.wants_alignments or self.confidence is not None:
            labels = self._aligned(log_probs[rows], lengths, paths)
            aligned = greedy_path(labels, lengths, self.blank)
            if wants_times:
                self._add_timestamps(hypotheses, aligned, clock)
            if self.confidence is not None:
                frames = self.confidence.measure(log_probs)[rows]
                self._add_confidence(hypotheses, self.confidence, frames, aligned)
            for hypothesis, row in zip(hypotheses, labels.cpu(), strict=True):
                hypothesis.y_sequence = row[: hypothesis.length].clone()
        self._add_log_probs(hypotheses, log_probs[rows], keep_log_probs)
        grouped = iter(hypotheses)
        return with_n_best([[next(grouped) for _ in own] for own in found], keep=keep)

    def _aligned(self, log_probs: Tensor, lengths: Tensor, paths: list[PrefixPath]) -> Tensor:
        """The best class of each frame (B, T) among the alignments that spell each path."""
        labels = torch.full(log_probs.shape[:2], self.blank, device=log_probs.device)
        heard = [row for row, length in enumerate(lengths.tolist()) if length > 0]
        if heard:
            target_len = torch.tensor([len(paths[row].tokens) for row in heard])
            targets = torch.full((len(heard), max(1, int(target_len.max()))), self.blank)
            for target, row in zip(targets, heard, strict=True):
                target[: len(paths[row].tokens)] = torch.tensor(paths[row].tokens, dtype=torch.long)
            found = ctc_forced_align(log_probs[heard], targets, lengths[heard], target_len, self.blank)
            for row, alignment in zip(heard, found, strict=True):
                labels[row, : len(alignment.labels)] = alignment.labels.to(labels.device)
        return labels

    def ctc_decoder_predictions_tensor(
        self,
        decoder_outputs: Tensor,
        decoder_lengths: Tensor | None = None,
        fold_consecutive: bool = True,
        return_hypotheses: bool = False,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """Decodes a batch, by NVIDIA's name and arguments.

        Args:
            decoder_outputs: log-probabilities (B, T, V), or the best classes (B, T).
            decoder_lengths: frames of each (B,); None where all are T long.
            fold_consecutive: true; a token that stays is one token.
            return_hypotheses: keeps all fields of the hypotheses; otherwise score, classes and text.

        Returns:
            a hypothesis for each item; or, of a beam search that is to give all of them, a list for each.
        """
        if not fold_consecutive:
            raise ValueError("fold_consecutive: false is not offered")
        if decoder_lengths is None:
            decoder_lengths = torch.full(decoder_outputs.shape[:1], decoder_outputs.shape[1])
        with torch.inference_mode():
            hypotheses = self(decoder_outputs, decoder_lengths)
        return as_predictions(hypotheses, keep_fields=return_hypotheses)

    def texts(self, predictions: Tensor, predictions_len: Tensor) -> list[str]:
        """Only the best texts of log-probabilities (B, T, V) or best classes (B, T)."""
        self._check_strategy()
        fusion = self.fusion(None, predictions.device) if predictions.ndim == 3 else None
        if predictions.ndim == 3 and not self.config.is_greedy:
            found = self.beam_search(predictions, predictions_len, fusion)
            return [self.spelling.text(paths[0].tokens) for paths in found]
        return [
            self.spelling.text(ids) for ids in greedy_path(predictions, predictions_len, self.blank, fusion).tokens()
        ]

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
        for hypothesis, onset, frame in zip(hypotheses, *path.frames(), strict=True):
            hypothesis.timestamp = ctc_timestamps(
                hypothesis.tokens, onset, frame, self.tokenizer, self.spelling.punctuation, self.options, clock
            )

    def _add_confidence(
        self, hypotheses: list[Hypothesis], confidence: Confidence, frames: Tensor, path: GreedyPath
    ) -> None:
        """Adds what the config asks for, of the frames' confidences (B, T)."""
        for hypothesis, own, onsets, spoken in zip(hypotheses, frames.tolist(), *path.frames(), strict=True):
            confidence.add_to_ctc(hypothesis, own[: hypothesis.length], onsets, spoken)

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
