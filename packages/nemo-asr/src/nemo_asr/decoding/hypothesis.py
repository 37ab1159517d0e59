"""What a decoder gives for one utterance. Field names are NVIDIA's, so that scripts which read them keep working."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass
class Hypothesis:
    """One reading of one utterance.

    Attributes:
        score: log-probability; of greedy searches without blanks: of CTC the sum over the other frames, of transducers
            over the tokens; -1.0 where only labels were given.
        y_sequence: of CTC the best class of each frame (T,), or, where the caller asked for hypotheses, the
            log-probabilities (T, V) on the CPU, as NVIDIA's `transcribe` gives them; of transducers the tokens (U,).
        text: what was said.
        timestamp: empty, or of transducers the frame of each token; where asked for, `timestep` (every frame that is
            not blank) and lists `char`, `word` and `segment` of entries with `start_offset` and `end_offset` in
            frames, `start` and `end` in seconds, and of words `confidence` where the config asks for it.
        alignments: where the config says `preserve_alignments`: of CTC the pair of log-probabilities (T, V) and best
            classes (T,), of transducers for each frame the pairs of scores (V,) and label of its steps; of CTC the
            log-probabilities (T, V) alone where the caller asked for hypotheses.
        frame_confidence: where the config asks for it, how sure the network is, from 0 to 1: of CTC a number for each
            frame, of transducers for each frame that was looked at the numbers of its steps, or, with durations
            that count, pairs of token and duration.
        token_confidence: the same, a number for each of `tokens`.
        word_confidence: the same, a number for each of `words`.
        length: frames of the encoder.
        tokens: token ids, repeats and blanks removed.
        token_duration: frames that each token leads on, in models that predict it (TDT).
        n_best: where beam search is told `return_best_hypothesis: false`, this reading and the others, the best
            first; their own `n_best` is None.
    """

    score: float
    y_sequence: Tensor
    text: str = ""
    timestamp: dict[str, list[Any]] | list[int] = field(default_factory=list)
    alignments: Tensor | tuple[Tensor, Tensor] | list[list[tuple[Tensor, Tensor]]] | None = None
    frame_confidence: list[float] | list[list[float | tuple[float, float]]] | None = None
    token_confidence: list[float] | None = None
    word_confidence: list[float] | None = None
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    token_duration: list[int] | None = None
    n_best: list[Hypothesis] | None = None

    @property
    def words(self) -> list[str]:
        """The words of `text`."""
        return self.text.split()


def with_n_best(readings: Sequence[Sequence[Hypothesis]], *, keep: bool) -> list[Hypothesis]:
    """The first reading of each utterance; with `keep` all are in its `n_best`."""
    if not keep:
        return [own[0] for own in readings]
    return [replace(own[0], n_best=list(own)) for own in readings]


class TranscribedText(str):
    """A transcript: a plain string, as in NeMo 1, which answers to `.text` as results do since NeMo 2."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The transcript itself."""
        return str(self)
