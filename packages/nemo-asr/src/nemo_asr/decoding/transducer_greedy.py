"""Greedy search through a transducer, a batch at a time (label looping, arXiv 2406.06220).

The prediction network moves only for the utterances that just got a token.  Between two tokens its output stays, so the
joint looks several frames ahead at once, up to the first one that is not blank.  With durations (TDT, arXiv 2304.06795)
or big blanks (arXiv 2211.03541) each step says how far it leads, and looks at one frame.

B batch, N utterances still searched, T frames, W frames looked at, D width, H joint width, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from nemo_asr.evaluation_mode import evaluation_mode
from nemo_asr.modules.joint import RNNTJoint
from nemo_asr.modules.prediction import PredictionNetwork, State

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Fusion

StepMeasure: TypeAlias = Callable[[Tensor], Tensor]
"""Confidence (S, 1 or 2) of the joint's scores (S, V + durations) of some steps."""
LOOKAHEAD = 8
"""W: in speech at 80 ms a frame, a token comes every second to fourth frame; a joint over 8 costs a CPU hardly more."""


@dataclass
class TransducerPath:
    """What a search found for one utterance.

    Attributes:
        tokens: their ids.
        frames: the encoder frame of each.
        durations: frames that each leads on (TDT), else empty.
        score: sum of the tokens' scores, blanks left out.
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


class _Step(NamedTuple):
    """One step for N utterances: the frame (N,) and label (N,) chosen, its score (N,), whether it is a token (N,), and
    how many frames it leads on (N,)."""

    frame: Tensor
    label: Tensor
    score: Tensor
    is_token: Tensor
    duration: Tensor


class GreedySearch:
    """Follows the best label at each step.

    Args:
        decoder: the prediction network.
        joint: its scores are over tokens, blank, and `durations` if there are any.
        max_symbols: tokens at one frame, after which the search moves on; None for no limit.
        durations: of a TDT model, in the order of the joint's last outputs.
        big_blank_durations: of a multi-blank model, from the label before blank downwards.
    """

    def __init__(
        self,
        decoder: PredictionNetwork,
        joint: RNNTJoint,
        *,
        max_symbols: int | None = None,
        durations: Sequence[int] = (),
        big_blank_durations: Sequence[int] = (),
    ) -> None:
        self.decoder, self.joint = decoder, joint
        self.max_symbols = max_symbols
        self.durations = tuple(durations)
        self.blank = joint.num_classes_with_blank - 1 - len(durations)
        self.first_blank = self.blank - len(big_blank_durations)
        self.blank_durations = (*reversed(big_blank_durations), 1)  # of the labels from first_blank to blank

    @torch.no_grad()
    def __call__(
        self,
        encoded: Tensor,
        encoded_len: Tensor,
        *,
        keep_steps: bool = False,
        fusion: Fusion | None = None,
        measure: StepMeasure | None = None,
    ) -> list[TransducerPath]:
        """Paths through encoder outputs (B, D, T) with their lengths (B,).

        Args:
            encoded: encoder outputs.
            encoded_len: frames of each.
            keep_steps: paths hold every step, blanks included.
            fusion: models on the same device whose scores decide between tokens, where the network prefers a token to
                blank, as in NVIDIA's toolkit.
            measure: paths hold the confidence of every step.
        """
        with evaluation_mode(self.decoder), evaluation_mode(self.joint):
            f = self.joint.project_encoder(encoded.transpose(1, 2))
            journal = _Journal(keep_steps, measure)
            self._search(f, encoded_len.to(f.device), journal, fusion)
        return journal.paths(encoded_len.tolist())

    def _search(self, f: Tensor, lengths: Tensor, journal: _Journal, fusion: Fusion | None) -> None:
        rows = torch.nonzero(lengths > 0).squeeze(1)
        frame, symbols = torch.zeros_like(rows), torch.zeros_like(rows)
        length = lengths[rows]
        start = torch.full((len(rows), 1), self.decoder.blank_idx, device=f.device)
        g, state = self._predict(start, self.decoder.initialize_state(f[rows]))
        fused = _FusedTokens(fusion, len(rows))
        while len(rows):
            step = self._step(f, g, rows, frame, length, journal, fused)
            emitting = step.is_token & (step.frame < length)
            journal.add_tokens(rows[emitting], step, emitting, timed=bool(self.durations))
            symbols = torch.where(step.frame == frame, symbols, 0) + emitting
            frame = step.frame + step.duration
            symbols = torch.where(step.duration > 0, 0, symbols)
            if self.max_symbols is not None:
                full = symbols >= self.max_symbols
                frame, symbols = frame + full, torch.where(full, 0, symbols)
            g, state = self._advance(g, state, step.label, emitting)
            fused.advance(step.label, emitting)
            alive = frame < length
            if not bool(alive.all()):
                rows, frame, symbols, length = rows[alive], frame[alive], symbols[alive], length[alive]
                g, state = g[alive], self.decoder.select_states(state, alive)
                fused.keep(alive)

    def _predict(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.decoder.predict(tokens, state, add_sos=False)
        return self.joint.project_prednet(output), state

    def _advance(self, g: Tensor, state: State, labels: Tensor, emitting: Tensor) -> tuple[Tensor, State]:
        """Moves the prediction network of those that got a token."""
        found = torch.nonzero(emitting).squeeze(1)
        if len(found) == 0:
            return g, state
        moved, after = self._predict(labels[found, None], self.decoder.select_states(state, found))
        if len(found) == len(g):
            return moved, after
        return g.index_copy(0, found, moved.to(g.dtype)), self.decoder.replace_states(state, found, after)

    def _step(
        self,
        f: Tensor,
        g: Tensor,
        rows: Tensor,
        frame: Tensor,
        length: Tensor,
        journal: _Journal,
        fused: _FusedTokens,
    ) -> _Step:
        """The next token of each utterance, or, where none is near, a step over blanks."""
        leaps = bool(self.durations) or self.first_blank < self.blank
        width = 1 if leaps else min(LOOKAHEAD, int((length - frame).max()))
        window = frame[:, None] + torch.arange(width, device=f.device)
        seen = f[rows[:, None], window.clamp_max(f.shape[1] - 1)]
        scores = self.joint.joint_after_projection(seen, g)[:, :, 0]
        best, labels = fused.best(scores[:, :, : self.blank + 1], self.first_blank)
        is_token = (labels < self.first_blank) & (window < length[:, None])
        found, first = is_token.max(dim=1)
        first = torch.where(found, first, width - 1)
        journal.add_steps(rows, window, labels, scores, self.blank + 1, first, length)
        pick = first[:, None]
        label, score = labels.gather(1, pick)[:, 0], best.gather(1, pick)[:, 0]
        duration = self._durations(scores[:, 0], label, found)
        return _Step(frame + first, label, score, found, duration)

    def _durations(self, scores: Tensor, label: Tensor, is_token: Tensor) -> Tensor:
        """Frames (N,) that labels (N,) lead on; a blank leads on at least one."""
        if self.durations:
            known = torch.tensor(self.durations, device=label.device)
            chosen = known[scores[:, self.blank + 1 :].argmax(dim=1)]
            return torch.where(is_token, chosen, chosen.clamp_min(1))
        known = torch.tensor(self.blank_durations, device=label.device)
        return torch.where(is_token, 0, known[(label - self.first_blank).clamp_min(0)])


class _FusedTokens:
    """The scores that models add to the tokens of N utterances, or none."""

    def __init__(self, fusion: Fusion | None, count: int) -> None:
        self.fusion = fusion
        if fusion is not None:
            self.states = fusion.start(count)
            self.bonus = fusion.scores(self.states)

    def best(self, scores: Tensor, first_blank: int) -> tuple[Tensor, Tensor]:
        """Best score and label (N, W) of scores (N, W, V); where a token is best, the best by the sum."""
        best, labels = scores.max(dim=2)
        if self.fusion is None:
            return best, labels
        summed, tokens = (scores[:, :, :first_blank] + self.bonus[:, None]).max(dim=2)
        is_token = labels < first_blank
        return torch.where(is_token, summed, best), torch.where(is_token, tokens, labels)

    def advance(self, labels: Tensor, emitting: Tensor) -> None:
        """Moves the models of those that got a token."""
        if self.fusion is not None and bool(emitting.any()):
            self.states[emitting] = self.fusion.advance(self.states[emitting], labels[emitting])
            self.bonus[emitting] = self.fusion.scores(self.states[emitting])

    def keep(self, alive: Tensor) -> None:
        """Leaves out the utterances that are done."""
        if self.fusion is not None:
            self.states, self.bonus = self.states[alive], self.bonus[alive]


class _Journal:
    """Collects what a search finds, and sorts it by utterance at the end: one transfer to the CPU for the batch."""

    def __init__(self, keep_steps: bool, measure: StepMeasure | None = None) -> None:
        self.keep_steps, self.measure = keep_steps, measure
        self._tokens: list[tuple[Tensor, ...]] = []
        self._steps: list[tuple[Tensor, ...]] = []

    def add_tokens(self, rows: Tensor, step: _Step, emitting: Tensor, *, timed: bool) -> None:
        durations = step.duration[emitting] if timed else torch.full_like(rows, -1)
        self._tokens.append((rows, step.label[emitting], step.frame[emitting], durations, step.score[emitting]))

    def add_steps(
        self, rows: Tensor, window: Tensor, labels: Tensor, scores: Tensor, outcomes: int, last: Tensor, length: Tensor
    ) -> None:
        """Adds the steps (N, W) up to and with the one at `last` (N,); scores are over `outcomes` and durations."""
        if not self.keep_steps and self.measure is None:
            return
        made = (torch.arange(window.shape[1], device=last.device) <= last[:, None]) & (window < length[:, None])
        wide = rows[:, None].expand_as(window)
        step = [wide[made], window[made], labels[made]]
        if self.measure is not None:
            step.append(self.measure(scores[made]))
        if self.keep_steps:
            step.append(scores[made][:, :outcomes].float().cpu())
        self._steps.append(tuple(step))

    def paths(self, lengths: Sequence[int]) -> list[TransducerPath]:
        """One path for each utterance."""
        found = [TransducerPath(length=int(length)) for length in lengths]
        if self._tokens:
            rows, tokens, frames, durations, scores = (
                torch.cat(column).tolist() for column in zip(*self._tokens, strict=True)
            )
            for row, token, frame, duration, score in zip(rows, tokens, frames, durations, scores, strict=True):
                path = found[row]
                path.tokens.append(token)
                path.frames.append(frame)
                path.score += score
                if duration >= 0:
                    path.durations.append(duration)
        if self._steps:
            row_of, frame_of, label_of, *rest = (torch.cat(column).cpu() for column in zip(*self._steps, strict=True))
            for row, path in enumerate(found):
                own = torch.nonzero(row_of == row).squeeze(1)
                confidence = None if self.measure is None else rest[0][own]
                path.steps = SearchSteps(
                    frame_of[own], label_of[own], rest[-1][own] if self.keep_steps else None, confidence
                )
        return found
