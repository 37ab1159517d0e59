"""How sure a network is: a number from 0 to 1 for each step, token and word (Laptev & Ginsburg, arXiv 2212.08703).

Of a distribution p over V outcomes, with the power a (alpha):

    max_prob   (max(p)^a V^a - 1) / (V^a - 1)
    entropy    gibbs    H = -sum p^a ln p
               tsallis  H = (1 - sum p^a) / (a - 1)
               renyi    H = ln(sum p^a) / (1 - a)
      lin      1 - H / H_max
      exp      (e^-cH - e^-cH_max) / (1 - e^-cH_max), c = a for gibbs and 1 for the others

H_max is H of equal probabilities; at a = 1 all three are Shannon's entropy.  A token's number is its own step's, or an
aggregate with the blanks after it; a word's is an aggregate of its tokens'.

B batch, T frames, S steps of a search, V vocabulary with blank.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from nemo_asr.decoding.confidence_config import ConfidenceMethodConfig, ConfidenceOptions
from nemo_asr.decoding.word_spans import word_spans

if TYPE_CHECKING:
    from nemo_asr.decoding.hypothesis import Hypothesis
    from nemo_asr.decoding.spelling import Spelling

logger = logging.getLogger(__name__)
AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "min": min,
    "max": max,
    "prod": math.prod,
}
NEAR_ONE = 0.1
"""How near to 1 a power must be for the sums to be written as what they differ from 1 by."""
StepConfidence: TypeAlias = "float | tuple[float, float]"
"""Of a step; with durations, of its token and of its duration."""


class ConfidenceMeasure:
    """Confidence of distributions; values beyond 0 and 1, which rounding makes, are cut off.

    Args:
        method: which measure.
    """

    def __init__(self, method: ConfidenceMethodConfig) -> None:
        self.method = method
        self.alpha = float(method.alpha)

    def __call__(self, log_p: Tensor) -> Tensor:
        """Confidence (...,) of log-probabilities (..., V), V > 1; in float32, or in float64 where they are."""
        log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
        outcomes = log_p.shape[-1]
        if self.method.name == "max_prob":
            least = -self.alpha * math.log(outcomes)
            found = ((self.alpha * log_p.amax(dim=-1)).exp() - math.exp(least)) / -math.expm1(least)
            return found.clamp(0.0, 1.0)
        entropy, most = self._entropy(log_p), self._largest_entropy(outcomes)
        if self.method.entropy_norm == "lin":
            return (1 - entropy / most).clamp(0.0, 1.0)
        rate = self.alpha if self.method.entropy_type == "gibbs" else 1.0
        return (((-rate * entropy).exp() - math.exp(-rate * most)) / -math.expm1(-rate * most)).clamp(0.0, 1.0)

    def _entropy(self, log_p: Tensor) -> Tensor:
        finite = log_p.clamp_min(torch.finfo(log_p.dtype).min)  # so that 0 ln 0 is 0
        if self.method.entropy_type == "gibbs" or self.alpha == 1:
            return -((self.alpha * finite).exp() * finite).sum(dim=-1)
        if self.method.entropy_type == "renyi" and abs(self.alpha - 1) > NEAR_ONE:
            return (self.alpha * finite).logsumexp(dim=-1) / (1 - self.alpha)
        excess = self._power_sum_minus_one(finite)
        return (excess.log1p() if self.method.entropy_type == "renyi" else excess) / (1 - self.alpha)

    def _power_sum_minus_one(self, log_p: Tensor) -> Tensor:
        """sum p^a - 1 = sum p (p^(a-1) - 1), which keeps its digits also where a is near 1."""
        power = (self.alpha - 1) * log_p
        small = log_p.exp() * power.clamp(-1, 1).expm1()
        return torch.where(power.abs() < 1, small, (self.alpha * log_p).exp() - log_p.exp()).sum(dim=-1)

    def _largest_entropy(self, outcomes: int) -> float:
        log, left = math.log(outcomes), 1 - self.alpha
        if self.method.entropy_type == "gibbs":
            return log * math.exp(left * log)
        if self.method.entropy_type == "renyi" or left == 0:
            return log
        return math.expm1(left * log) / left


def build_confidence(
    options: ConfidenceOptions, spelling: Spelling, outcomes: Sequence[int], path: str, *, strict: bool
) -> Confidence | None:
    """What computes the confidences that are asked for; None where none is.

    Args:
        options: of the `decoding` section.
        spelling: how tokens make words.
        outcomes: of each distribution that is measured.
        path: of the section, for errors.
        strict: an alpha that makes no sense for so many outcomes is an error, and else a line in the log.
    """
    if not options.frames:
        return None
    for count in outcomes:
        rule = options.bad_alpha(count)
        if rule is not None:
            from nemo_config import ConfigError

            error = ConfigError(f"{path}.{options.method_key}.alpha", options.method.alpha, rule)
            if strict:
                raise error
            logger.warning("%s", error)
    return Confidence(options, spelling)


class Confidence:
    """Confidences of hypotheses, as a `decoding` section asks for them.

    Args:
        options: what is asked for.
        spelling: how tokens make words.
    """

    def __init__(self, options: ConfidenceOptions, spelling: Spelling) -> None:
        self.options = options
        self.spelling = spelling
        self.measure = ConfidenceMeasure(options.method)
        self.aggregate = AGGREGATES[options.aggregation]

    def of_steps(self, scores: Tensor, outcomes: int) -> Tensor:
        """Confidence of a transducer's steps.

        Each of the two distributions is normalised by itself, whatever the joint network's scores are: logits or
        log-probabilities.  That of durations is measured among the durations; NVIDIA's toolkit measures it as if it
        had as many outcomes as the vocabulary, so that durations all look certain.

        Args:
            scores: (S, V), or with durations (S, V + durations).
            outcomes: V.

        Returns:
            (S, 1), or where durations count (S, 2).
        """
        parts = [scores[:, :outcomes]]
        if self.options.durations and scores.shape[1] > outcomes + 1:
            parts.append(scores[:, outcomes:])
        return torch.stack([self.measure(part.float().log_softmax(dim=1)) for part in parts], dim=1)

    def add_to_ctc(
        self, hypothesis: Hypothesis, frames: Sequence[float], onsets: Sequence[int], spoken: Sequence[int]
    ) -> None:
        """Adds what is asked for to a hypothesis of CTC.

        Args:
            hypothesis: with tokens and text.
            frames: confidence of each frame.
            onsets: the frame where each token first appears.
            spoken: every frame that is not blank, ascending.
        """
        hypothesis.frame_confidence = list(frames)
        if not self.options.tokens:
            return
        hypothesis.token_confidence = []
        for start, end in zip(onsets, [*onsets[1:], len(frames)], strict=False):
            own = spoken[bisect_left(spoken, start) : bisect_left(spoken, end)]
            dwelt = own if self.options.exclude_blank else range(start, end)
            hypothesis.token_confidence.append(self.aggregate([frames[frame] for frame in dwelt]))
        self._add_words(hypothesis)

    def add_to_transducer(
        self,
        hypothesis: Hypothesis,
        confidences: Sequence[Sequence[float]],
        frames: Sequence[int],
        is_token: Sequence[bool],
        *,
        has_durations: bool,
    ) -> None:
        """Adds what is asked for to a hypothesis of a transducer.

        A token owns the blanks up to the next token.  The one that only ends its own frame does not count, as in
        NVIDIA's toolkit; with durations, where a token seldom has one, it counts.

        Args:
            hypothesis: with tokens and text.
            confidences: of each step, one number or two.
            frames: of each step.
            is_token: whether the step gave a token.
            has_durations: whether the model predicts durations.
        """
        hypothesis.frame_confidence = _by_frame(confidences, frames)
        if not self.options.tokens:
            return
        groups: list[list[float]] = []
        onset = -1
        for own, frame, token in zip(confidences, frames, is_token, strict=True):
            if token:
                groups.append([self.aggregate(own)])
                onset = frame
            elif groups and not self.options.exclude_blank and (has_durations or frame > onset):
                groups[-1].append(self.aggregate(own))
        hypothesis.token_confidence = [self.aggregate(group) for group in groups]
        self._add_words(hypothesis)

    def _add_words(self, hypothesis: Hypothesis) -> None:
        if not self.options.words or hypothesis.token_confidence is None:
            return
        own = hypothesis.token_confidence
        hypothesis.word_confidence = [
            self.aggregate([own[place] for place in places])
            for places in word_spans(hypothesis.tokens, hypothesis.text, self.spelling)
        ]
        if isinstance(hypothesis.timestamp, dict):
            self._add_to_entries(hypothesis.timestamp.get("word", []), hypothesis.word_confidence)

    def _add_to_entries(self, entries: Sequence[dict[str, Any]], words: Sequence[float]) -> None:
        """Gives the entries of `timestamp` a `confidence`: of the words of the text that they hold; None without one.

        Another separator than a space, or a lone mark of a word's beginning, makes entries of several words or none.
        """
        counts = [len(entry["word"].split()) for entry in entries]
        if sum(counts) != len(words):
            return
        place = 0
        for entry, count in zip(entries, counts, strict=True):
            own = words[place : place + count]
            entry["confidence"] = self.aggregate(own) if own else None
            place += count


def _by_frame(confidences: Sequence[Sequence[float]], frames: Sequence[int]) -> list[list[StepConfidence]]:
    """The steps' confidences, those of the same frame together; frames that were leapt over have no list."""
    found: list[list[StepConfidence]] = []
    latest = None
    for own, frame in zip(confidences, frames, strict=True):
        if frame != latest:
            found.append([])
            latest = frame
        found[-1].append(own[0] if len(own) == 1 else (own[0], own[1]))
    return found
