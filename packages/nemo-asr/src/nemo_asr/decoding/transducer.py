"""Encoder outputs of a transducer to hypotheses: search, text, timestamps, alignments.

B batch, D width, T frames, V vocabulary with blank.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_asr.decoding.confidence import Confidence, build_confidence
from nemo_asr.decoding.confidence_config import without_renamed
from nemo_asr.decoding.ctc_config import GREEDY_STRATEGIES
from nemo_asr.decoding.fusion import Bias, FusionSource
from nemo_asr.decoding.hypothesis import Hypothesis, with_n_best
from nemo_asr.decoding.predictions import TokenDecoding, as_predictions
from nemo_asr.decoding.spelling import Spelling
from nemo_asr.decoding.timestamps import TIMESTAMP_TYPES, FrameClock, TimestampOptions, transducer_timestamps
from nemo_asr.decoding.transducer_beam import BeamOptions, BeamSearch
from nemo_asr.decoding.transducer_config import (
    ADAPTIVE_STRATEGIES,
    TRANSDUCER_BEAM_STRATEGIES,
    TransducerBeamConfig,
    TransducerDecodingConfig,
)
from nemo_asr.decoding.transducer_greedy import GreedySearch
from nemo_asr.decoding.transducer_path import SearchSteps, StepMeasure, TransducerPath
from nemo_asr.decoding.transducer_scores import measure_paths
from nemo_asr.modules.joint import HATJoint

if TYPE_CHECKING:
    from nemo_asr.modules.joint import RNNTJoint
    from nemo_asr.modules.prediction import PredictionNetwork
    from nemo_asr.text import Tokenizer

logger = logging.getLogger(__name__)


class TransducerDecoding(TokenDecoding):
    """Turns encoder outputs into text and hypotheses; holds no state, so threads may share it.

    Args:
        section: the `decoding` section of the model's config, with the durations of its loss.
        tokenizer: spells tokens.
        decoder: the prediction network.
        joint: the joint network.
        strict: what is unknown or missing is an error at once (a person typed it); otherwise it is one only when
            something is decoded.
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
        from nemo_config import plain, read_section

        self.path = path
        self.tokenizer = tokenizer
        self.spelling = Spelling(tokenizer)
        given = without_renamed(plain(section or {}, path))
        self.config = read_section(TransducerDecodingConfig, given, path, strict=strict)
        self.options = TimestampOptions(
            word_separator=self.config.word_seperator,
            segment_separators=tuple(self.config.segment_seperators or ()),
            segment_gap=self.config.segment_gap_threshold,
            kind=self.config.rnnt_timestamp_type,
        )
        section_name = "greedy" if self.config.is_greedy else "beam"
        self.fusion = FusionSource(self.config.fusion_keys, tokenizer, f"{path}.{section_name}")
        self._check(strict)
        leads: dict[str, Any] = {
            "durations": self.config.durations or (),
            "big_blank_durations": self.config.big_blank_durations or (),
        }
        self.search = GreedySearch(decoder, joint, max_symbols=self.config.greedy.symbols_at_a_frame, **leads)
        self.blank_id = self.search.blank
        options = beam_options(self.config.strategy, self.config.beam, is_hat=isinstance(joint, HATJoint))
        self.beam_search = BeamSearch(decoder, joint, options, **leads)
        self.confidence = self._build_confidence(strict)

    def _build_confidence(self, strict: bool) -> Confidence | None:
        options = self.config.confidence
        outcomes = [self.search.blank + 1]
        if options.durations and len(self.search.durations) > 1:
            outcomes.append(len(self.search.durations))
        return build_confidence(options, self.spelling, outcomes, self.path, strict=strict)

    def _check(self, strict: bool) -> None:
        if self.options.kind not in TIMESTAMP_TYPES:
            rule = f"is none of {', '.join(TIMESTAMP_TYPES)}"
            raise _config_error(f"{self.path}.rnnt_timestamp_type", self.options.kind, rule)
        if self.config.strategy == "beam":
            logger.info("%s.strategy: beam searches as malsd_batch does", self.path)
        if strict:
            self._check_strategy()
            self.fusion(None, torch.device("cpu"))

    def _check_strategy(self) -> None:
        known = (*GREEDY_STRATEGIES, *TRANSDUCER_BEAM_STRATEGIES)
        if self.config.strategy not in known:
            rule = f"is unknown; use {', '.join(known[:-1])} or {known[-1]}"
            raise _config_error(f"{self.path}.strategy", self.config.strategy, rule)
        if not self.config.is_greedy and self.config.wants_alignments:
            raise _config_error(f"{self.path}.preserve_alignments", True, "needs a greedy strategy")

    def __call__(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        *,
        timestamps: bool | None = None,
        clock: FrameClock | None = None,
        bias: Bias | None = None,
    ) -> list[Hypothesis]:
        """Decodes a batch.

        Args:
            encoded: encoder outputs (B, D, T).
            encoded_len: frames of each (B,).
            timestamps: adds timestamps; None leaves it to the config.
            clock: length of a frame, for timestamps in seconds.
            bias: language model and phrases of this call; None leaves them to the config.
        """
        wants_times = self.config.wants_timestamps if timestamps is None else timestamps
        confidence, outcomes = self.confidence, self.search.blank + 1
        measure = None if confidence is None else partial(confidence.of_steps, outcomes=outcomes)
        found = self._paths(encoded, encoded_len, bias, keep_steps=self.config.wants_alignments, measure=measure)
        readings = [[self._hypothesis(path, wants_times, clock) for path in paths] for paths in found]
        return with_n_best(readings, keep=not self.config.is_greedy and not self.config.beam.return_best_hypothesis)

    def rnnt_decoder_predictions_tensor(
        self,
        encoder_output: Tensor,
        encoded_lengths: Tensor,
        return_hypotheses: bool = False,
        partial_hypotheses: None = None,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """Decodes a batch, by NVIDIA's name and arguments.

        Args:
            encoder_output: encoder outputs (B, D, T).
            encoded_lengths: frames of each (B,).
            return_hypotheses: keeps all fields of the hypotheses; otherwise score, tokens and text.
            partial_hypotheses: None; those of a stream are not taken.

        Returns:
            a hypothesis for each item; or, of a beam search that is to give all of them, a list for each.
        """
        if partial_hypotheses is not None:
            raise ValueError("partial_hypotheses: is for streaming, which this does not do")
        with torch.inference_mode():
            hypotheses = self(encoder_output, encoded_lengths)
        return as_predictions(hypotheses, keep_fields=return_hypotheses)

    def texts(self, encoded: Tensor, encoded_len: Tensor) -> list[str]:
        """Only the best texts of encoder outputs (B, D, T)."""
        found = self._paths(encoded, encoded_len, None)
        return [self.spelling.text(paths[0].tokens) for paths in found]

    def _paths(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        bias: Bias | None,
        *,
        keep_steps: bool = False,
        measure: StepMeasure | None = None,
    ) -> list[list[TransducerPath]]:
        """For each utterance its paths, the best first.

        Args:
            encoded, encoded_len, bias: as those of a call.
            keep_steps: paths hold every step.
            measure: paths hold the confidence of every step.
        """
        self._check_strategy()
        fusion = self.fusion(bias, encoded.device)
        if self.config.is_greedy:
            found = self.search(encoded, encoded_len, keep_steps=keep_steps, fusion=fusion, measure=measure)
            return [[path] for path in found]
        beams = self.beam_search(encoded, encoded_len, fusion, keep_steps=measure is not None)
        if measure is None:
            return beams
        beams = [paths[:1] for paths in beams] if self.config.beam.return_best_hypothesis else beams
        measure_paths(
            self.search.decoder, self.search.joint, encoded, beams, measure, first_blank=self.search.first_blank
        )
        return beams

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
        if self.config.wants_alignments:
            hypothesis.alignments = _alignments(path.length, path.steps)
        if self.confidence is not None:
            self._add_confidence(hypothesis, self.confidence, path.steps)
        return hypothesis

    def _add_confidence(self, hypothesis: Hypothesis, confidence: Confidence, steps: SearchSteps | None) -> None:
        if steps is None or steps.confidence is None:  # no frames, so no steps
            columns: tuple[list[Any], ...] = ([], [], [])
        else:
            is_token = steps.labels < self.search.first_blank
            columns = steps.confidence.tolist(), steps.frames.tolist(), is_token.tolist()
        confidence.add_to_transducer(hypothesis, *columns, has_durations=bool(self.search.durations))


def beam_options(strategy: str, config: TransducerBeamConfig, *, is_hat: bool = False) -> BeamOptions:
    """How a strategy searches, with the numbers of the `beam` section; `is_hat` says that the joint is a HATJoint."""
    hat_weight = config.hat_ilm_weight if config.hat_subtract_ilm and is_hat else 0.0
    options = BeamOptions(
        beam_size=config.beam_size,
        max_symbols=config.max_symbols or config.max_symbols_per_step,
        score_norm=config.score_norm,
        temperature=config.softmax_temperature,
        weigh_blank=config.blank_lm_score_mode != "no_score",
        prune_with_fusion=config.pruning_mode != "early",
        token_bonus=config.beam_beta,
        inner_lm_weight=config.ilm_weight or hat_weight,
    )
    if strategy == "tsd":
        return replace(
            options, in_time_order=True, max_symbols=config.tsd_max_sym_exp or config.tsd_max_sym_exp_per_step
        )
    if strategy not in ADAPTIVE_STRATEGIES:
        return options
    return replace(
        options,
        in_time_order=True,
        max_symbols=config.maes_num_steps,
        more_tokens=config.maes_expansion_beta,
        margin=config.maes_expansion_gamma,
        search_prefixes=config.maes_prefix_alpha > 0,
    )


def _alignments(length: int, steps: SearchSteps | None) -> list[list[tuple[Tensor, Tensor]]]:
    """For each frame the steps made at it, as pairs of scores (V,) and label."""
    if steps is None or steps.scores is None:  # no frames, so no steps
        return []
    frames: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(length)]
    for frame, label, own in zip(steps.frames.tolist(), steps.labels, steps.scores, strict=True):
        frames[frame].append((own, label))
    return [made for made in frames if made]


def _config_error(path: str, value: object, rule: str) -> Exception:
    from nemo_config import ConfigError

    return ConfigError(path, value, rule)
