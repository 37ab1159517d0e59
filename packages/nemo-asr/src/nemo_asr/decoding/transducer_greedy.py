"""Greedy search through a transducer, a batch at a time (label looping, arXiv 2406.06220).

The prediction network moves only for the utterances that just got a token.  Between two tokens its output stays, so the
joint looks at several frames ahead at once: the search goes over the blanks among them, by one frame, or by as many as
durations (TDT, arXiv 2304.06795) or big blanks (arXiv 2211.03541) say, until it comes to a token or to the last one.

The networks run on whole tensors, where their weights are.  Where each utterance stands is kept in Python: for a few
numbers a tensor's operations cost more, on a CPU in time and on a GPU in launches.

B batch, N utterances still searched, T frames, W frames looked at, D width, H joint width, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_asr.decoding.transducer_path import StepMeasure, StepRecorder, TokenScores, TransducerPath
from nemo_asr.evaluation_mode import evaluation_mode
from nemo_asr.modules.joint import RNNTJoint
from nemo_asr.modules.prediction import PredictionNetwork, State

if TYPE_CHECKING:
    from nemo_asr.decoding.fusion import Fusion

LOOKAHEAD = 8
"""W: in speech at 80 ms a frame, a token comes every second to fourth frame; a joint over 8 costs a CPU hardly more."""


@dataclass(slots=True)
class _Place:
    """Where an utterance stands: its row of the batch, the frame, how many tokens it has there; and what it has."""

    row: int
    path: TransducerPath
    frame: int = 0
    symbols: int = 0

    @property
    def frames_left(self) -> int:
        return self.path.length - self.frame


@dataclass(slots=True)
class _Sight:
    """What the joint says of W frames ahead of N utterances: unnormalised scores (N, W, V + durations) on its device;
    the best label of each, and, of a TDT model, the number of its duration, N lists of W."""

    scores: Tensor
    labels: list[list[int]]
    durations: list[list[int]] | None


class GreedySearch:
    """Follows the best label at each step.

    Args:
        decoder: the prediction network.
        joint: its scores are over tokens, blank, and `durations` if there are any.
        max_symbols: tokens at one frame, at least 1, after which the search moves on; None for no limit, with which a
            network that never says blank is searched without end.
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
        self.blank_leads = (*reversed(big_blank_durations), 1)  # of the labels from first_blank to blank

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
        paths = [TransducerPath(length=length) for length in encoded_len.tolist()]
        recorder = StepRecorder(self.blank + 1, keep_scores=keep_steps, measure=measure)
        scores = TokenScores(self.joint.normalized)
        with evaluation_mode(self.decoder), evaluation_mode(self.joint):
            f = self.joint.project_encoder(encoded.transpose(1, 2))
            self._search(
                f, [_Place(row, path) for row, path in enumerate(paths) if path.length], scores, recorder, fusion
            )
        scores.settle()
        recorder.add_to(paths)
        return paths

    def _search(
        self, f: Tensor, places: list[_Place], scores: TokenScores, recorder: StepRecorder, fusion: Fusion | None
    ) -> None:
        f = F.pad(f, (0, 0, 0, LOOKAHEAD - 1))
        start = torch.full((len(places), 1), self.decoder.blank_idx, device=f.device)
        g, state = self._predict(start, self.decoder.initialize_state(f[: len(places)]))
        fused = _FusedTokens(fusion, len(places))
        while places:
            sight = self._look(f, g, places, fused)
            ways = [self._way(sight, number, place) for number, place in enumerate(places)]
            if recorder.wants_steps:
                self._record(recorder, sight, places, ways)
            found = [n for n, way in enumerate(ways) if sight.labels[n][way[-1]] < self.first_blank]
            if found:
                ends = [ways[n][-1] for n in found]
                tokens = [sight.labels[n][end] for n, end in zip(found, ends, strict=True)]
                emitted = torch.tensor([found, ends, tokens], device=f.device)
                own = sight.scores[emitted[0], emitted[1]]
                scores.add([places[n].path for n in found], emitted[2], own, fused.bonus_of(emitted[0], emitted[2]))
                g, state = self._advance(g, state, emitted[0], emitted[2])
                fused.advance(emitted[0], emitted[2])
            for number, (place, way) in enumerate(zip(places, ways, strict=True)):
                self._move(place, sight, number, way[-1])
            alive = [n for n, place in enumerate(places) if place.frames_left > 0]
            if len(alive) < len(places):
                places = [places[n] for n in alive]
                left = torch.tensor(alive, dtype=torch.long, device=f.device)
                g, state = g[left], self.decoder.select_states(state, left)
                fused.keep(left)

    def _predict(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.decoder.predict(tokens, state, add_sos=False)
        return self.joint.project_prednet(output), state

    def _advance(self, g: Tensor, state: State, rows: Tensor, tokens: Tensor) -> tuple[Tensor, State]:
        """Moves the prediction network of the utterances `rows`, which got these tokens."""
        if len(rows) == len(g):
            return self._predict(tokens[:, None], state)
        moved, after = self._predict(tokens[:, None], self.decoder.select_states(state, rows))
        return g.index_copy(0, rows, moved.to(g.dtype)), self.decoder.replace_states(state, rows, after)

    def _look(self, f: Tensor, g: Tensor, places: list[_Place], fused: _FusedTokens) -> _Sight:
        """Scores at the next frames of f (B, T + W - 1, H); beyond an utterance's end they mean nothing."""
        width = min(LOOKAHEAD, max(place.frames_left for place in places))
        first = torch.tensor([place.row * f.shape[1] + place.frame for place in places], device=f.device)
        seen = f.flatten(0, 1)[first[:, None] + torch.arange(width, device=f.device)]
        scores = self.joint.logits(seen, g)[:, :, 0]
        labels = fused.best(scores[:, :, : self.blank + 1], self.first_blank)
        if not self.durations:
            return _Sight(scores, labels.tolist(), None)
        durations = scores[:, :, self.blank + 1 :].argmax(dim=2)
        return _Sight(scores, *torch.stack([labels, durations]).tolist())

    def _way(self, sight: _Sight, number: int, place: _Place) -> list[int]:
        """The steps that an utterance makes among the frames in sight: blanks, and at the end a token or a blank."""
        labels = sight.labels[number]
        way, limit = [0], min(len(labels), place.frames_left)
        while labels[way[-1]] >= self.first_blank:
            ahead = way[-1] + self._lead(sight, number, way[-1])
            if ahead >= limit:
                break
            way.append(ahead)
        return way

    def _lead(self, sight: _Sight, number: int, step: int) -> int:
        """How many frames the label at a step leads on; a blank leads on at least one."""
        label = sight.labels[number][step]
        if sight.durations is None:
            return self.blank_leads[label - self.first_blank] if label >= self.first_blank else 0
        duration = self.durations[sight.durations[number][step]]
        return max(duration, 1) if label >= self.first_blank else duration

    def _move(self, place: _Place, sight: _Sight, number: int, step: int) -> None:
        """Takes the last step of a way: a token, or the last blank in sight."""
        label, lead = sight.labels[number][step], self._lead(sight, number, step)
        place.frame += step
        place.symbols = place.symbols if step == 0 else 0
        if label < self.first_blank:
            place.path.tokens.append(label)
            place.path.frames.append(place.frame)
            if self.durations:
                place.path.durations.append(lead)
            place.symbols += 1
        place.frame += lead
        if lead > 0:
            place.symbols = 0
        elif place.symbols == self.max_symbols:
            place.frame, place.symbols = place.frame + 1, 0

    def _record(self, recorder: StepRecorder, sight: _Sight, places: list[_Place], ways: list[list[int]]) -> None:
        rows, columns = zip(*((n, step) for n, way in enumerate(ways) for step in way), strict=True)
        place = torch.tensor([rows, columns], device=sight.scores.device)
        steps = [
            (places[n].row, places[n].frame + at, sight.labels[n][at]) for n, at in zip(rows, columns, strict=True)
        ]
        recorder.add(steps, self.joint.normalized(sight.scores[place[0], place[1]]))


class _FusedTokens:
    """The scores that models add to the tokens of N utterances, or none."""

    def __init__(self, fusion: Fusion | None, count: int) -> None:
        self.fusion = fusion
        if fusion is not None:
            self.states = fusion.start(count)
            self.bonus = fusion.scores(self.states)

    def best(self, scores: Tensor, first_blank: int) -> Tensor:
        """Best label (N, W) of scores (N, W, V); where a token is best, the best by the sum."""
        labels = scores.argmax(dim=2)
        if self.fusion is None:
            return labels
        tokens = (scores[:, :, :first_blank] + self.bonus[:, None]).argmax(dim=2)
        return torch.where(labels < first_blank, tokens, labels)

    def bonus_of(self, rows: Tensor, tokens: Tensor) -> Tensor | None:
        """What the models add to tokens (E,) of the utterances `rows` (E,)."""
        return None if self.fusion is None else self.bonus[rows, tokens]

    def advance(self, rows: Tensor, tokens: Tensor) -> None:
        """Moves the models of the utterances `rows` (E,), which got these tokens."""
        if self.fusion is not None:
            self.states[rows] = self.fusion.advance(self.states[rows], tokens)
            self.bonus[rows] = self.fusion.scores(self.states[rows])

    def keep(self, rows: Tensor) -> None:
        """Leaves only these utterances."""
        if self.fusion is not None:
            self.states, self.bonus = self.states[rows], self.bonus[rows]
