"""What a search through a transducer found: tokens with their frames, and, where asked for, every step.

E tokens, S steps, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

StepMeasure: TypeAlias = Callable[[Tensor], Tensor]
"""Confidence (S, 1 or 2) of the joint's scores (S, V + durations) of some steps."""
SCORES_HELD = 2**20
"""Numbers that are held until they are normalised together: 4 MB in float32."""


@dataclass
class TransducerPath:
    """What a search found for one utterance.

    Attributes:
        tokens: their ids.
        frames: the encoder frame of each.
        durations: frames that each leads on (TDT), else empty.
        score: of a greedy search the sum of the tokens' scores, blanks left out; of a beam search the log-probability
            of all that led to these tokens, with what fused models add.
        length: frames of the encoder.
        steps: every step of the search, where they or confidences were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    score: float = 0.0
    length: int = 0
    steps: SearchSteps | None = None


class SearchSteps(NamedTuple):
    """The steps of a search through one utterance, blanks included.

    Attributes:
        frames: of each step (S,).
        labels: chosen at each step (S,).
        scores: the joint's scores of all tokens (S, V), on the CPU; None where only confidences were asked for.
        confidence: how sure the network was, (S, 1), or (S, 2) with durations; None where not asked for.
    """

    frames: Tensor
    labels: Tensor
    scores: Tensor | None
    confidence: Tensor | None = None


class TokenScores:
    """Adds the scores of tokens to their paths, many at a time.

    Args:
        normalize: what makes scores of the joint's unnormalised ones.
    """

    def __init__(self, normalize: Callable[[Tensor], Tensor]) -> None:
        self.normalize = normalize
        self._paths: list[TransducerPath] = []
        self._held: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._count = 0

    def add(self, paths: Sequence[TransducerPath], tokens: Tensor, scores: Tensor, bonus: Tensor | None) -> None:
        """Adds a token (E,) for each of the paths: unnormalised scores (E, V + durations), and a bonus (E,) for its
        own."""
        self._paths.extend(paths)
        self._held.append((tokens, scores, bonus))
        self._count += scores.numel()
        if self._count > SCORES_HELD:
            self.settle()

    def settle(self) -> None:
        """Adds what is held to the paths."""
        if not self._held:
            return
        tokens, scores, bonus = zip(*self._held, strict=True)
        own = self.normalize(torch.cat(scores)).gather(1, torch.cat(tokens)[:, None])[:, 0]
        own = own if bonus[0] is None else own + torch.cat(bonus)
        for path, score in zip(self._paths, own.tolist(), strict=True):
            path.score += score
        self._paths, self._held, self._count = [], [], 0


class StepRecorder:
    """Collects every step of a batched search.

    Args:
        outcomes: V, the first scores of a step; those of durations follow.
        keep_scores: paths hold the scores of every step.
        measure: paths hold the confidence of every step.
    """

    def __init__(self, outcomes: int, *, keep_scores: bool, measure: StepMeasure | None) -> None:
        self.outcomes, self.keep_scores, self.measure = outcomes, keep_scores, measure
        self._steps: list[tuple[int, int, int]] = []
        self._kept: list[Tensor] = []
        self._measured: list[Tensor] = []

    @property
    def wants_steps(self) -> bool:
        """Whether they are of use."""
        return self.keep_scores or self.measure is not None

    def add(self, steps: Sequence[tuple[int, int, int]], scores: Tensor) -> None:
        """Adds steps, each the utterance's row, frame and label, with the joint's scores (S, V + durations)."""
        self._steps.extend(steps)
        if self.measure is not None:
            self._measured.append(self.measure(scores))
        if self.keep_scores:
            self._kept.append(scores[:, : self.outcomes].float().cpu())

    def add_to(self, paths: Sequence[TransducerPath]) -> None:
        """Gives each path, by its row, its own steps."""
        if not self._steps:
            return
        row, frame, label = torch.tensor(self._steps).unbind(1)
        confidence = torch.cat(self._measured).cpu() if self._measured else None
        scores = torch.cat(self._kept) if self._kept else None
        for number, path in enumerate(paths):
            own = torch.nonzero(row == number).squeeze(1)
            path.steps = SearchSteps(
                frame[own],
                label[own],
                None if scores is None else scores[own],
                None if confidence is None else confidence[own],
            )
