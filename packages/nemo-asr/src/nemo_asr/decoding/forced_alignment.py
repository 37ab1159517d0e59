"""Where known words were said: the best CTC path through a given text (Viterbi; Kürzinger et al., arXiv 2007.09127).

The trellis of U targets has S = 2U + 1 states, blank between and around the targets. Per frame a path stays, goes to
the next state, or skips a blank between two different targets:

    best[t, s] = log p[t, label(s)] + max(best[t-1, s], best[t-1, s-1], best[t-1, s-2] if the skip is allowed)

B batch, T frames, U target steps, S states, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemo_asr.decoding.timestamps import FrameClock
    from nemo_asr.text import Tokenizer


@dataclass(frozen=True)
class TokenSpan:
    """A token's frames, `end` excluded; `score` is its mean log-probability in them."""

    token: int
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class WordSpan:
    """A word's time in seconds; `score` is the mean log-probability of its tokens' frames."""

    word: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class CtcAlignment:
    """The best path of one utterance.

    Attributes:
        labels: class of each frame (T,), blank included.
        scores: its log-probability (T,).
        spans: one for each target token, in order.
    """

    labels: Tensor
    scores: Tensor
    spans: list[TokenSpan]

    @property
    def score(self) -> float:
        """Log-probability of the path."""
        return float(self.scores.sum())


@torch.no_grad()
def ctc_forced_align(
    log_probs: Tensor, targets: Tensor, log_probs_len: Tensor, target_len: Tensor, blank: int
) -> list[CtcAlignment]:
    """Aligns each utterance of a batch with its target.

    Args:
        log_probs: (B, T, V).
        targets: token ids without blank (B, U), padded with anything.
        log_probs_len: frames of each (B,).
        target_len: tokens of each (B,).
        blank: id of blank.

    Raises:
        ValueError: a target holds blank or an id out of range, or no path with a probability above 0 spells it.
    """
    targets, target_len = targets.to(log_probs.device).long(), target_len.to(log_probs.device).long()
    log_probs_len = log_probs_len.to(log_probs.device).long()
    targets = _clean_targets(targets, target_len, log_probs.shape[2], blank)
    _check_lengths(targets, log_probs_len, target_len)
    states = _state_labels(targets, blank)
    steps, final = _search(log_probs, states, log_probs_len, target_len, blank)
    path = _trace_back(steps, final, log_probs_len)
    labels = states.gather(1, path)
    scores = log_probs.gather(2, labels.unsqueeze(2)).squeeze(2)
    rows = zip(path.cpu(), labels.cpu(), scores.cpu(), log_probs_len.tolist(), strict=True)
    return [_alignment(row[:n], label[:n].clone(), score[:n].clone()) for row, label, score, n in rows]


def _clean_targets(targets: Tensor, target_len: Tensor, classes: int, blank: int) -> Tensor:
    """Targets with blank in place of the padding, after a check of what is no padding."""
    inside = torch.arange(targets.shape[1], device=targets.device) < target_len.unsqueeze(1)
    wrong = inside & ((targets < 0) | (targets >= classes) | (targets == blank))
    if bool(wrong.any()):
        item, step = wrong.nonzero()[0].tolist()
        found = int(targets[item, step])
        raise ValueError(f"targets[{item}, {step}]: {found} is no token; blank is {blank} of {classes} classes")
    return targets.masked_fill(~inside, blank)


def _check_lengths(targets: Tensor, log_probs_len: Tensor, target_len: Tensor) -> None:
    """A path needs a frame for each token, and one for the blank between two equal ones."""
    inside = torch.arange(targets.shape[1], device=targets.device)[1:] < target_len.unsqueeze(1)
    repeats = ((targets[:, 1:] == targets[:, :-1]) & inside).sum(dim=1)
    for item, (frames, needed) in enumerate(zip(log_probs_len.tolist(), (target_len + repeats).tolist(), strict=True)):
        if frames < max(needed, 1):
            raise ValueError(f"item {item}: {frames} frames are too few for its target, which needs {max(needed, 1)}")


def _state_labels(targets: Tensor, blank: int) -> Tensor:
    """Labels of the states (B, S): blank, target, blank, target, ..., blank."""
    states = targets.new_full((targets.shape[0], 2 * targets.shape[1] + 1), blank)
    states[:, 1::2] = targets
    return states


def _search(
    log_probs: Tensor, states: Tensor, log_probs_len: Tensor, target_len: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Forward pass: how many states each best path advanced at each frame (T, B, S), and the final states (B,)."""
    B, T, _ = log_probs.shape
    S = states.shape[1]
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    skip_cost = torch.zeros(states.shape, dtype=log_probs.dtype, device=states.device)
    skip_cost.masked_fill_(~may_skip, -torch.inf)
    steps = torch.zeros((T, B, S), dtype=torch.int8, device=states.device)
    # Two columns in front, where nothing ever is: what would come from before the first state.
    best = torch.full((B, S + 2), -torch.inf, dtype=log_probs.dtype, device=states.device)
    best[:, 2:4] = log_probs[:, 0].gather(1, states[:, :2])
    for t in range(1, T):
        stay, advance, skip = best[:, 2:], best[:, 1:-1], best[:, :-2] + skip_cost
        steps[t] = advance > stay
        arrival = torch.maximum(stay, advance)
        steps[t].masked_fill_(skip > arrival, 2)
        arrival = torch.maximum(arrival, skip).add_(log_probs[:, t].gather(1, states))
        running = (t < log_probs_len).unsqueeze(1)
        best[:, 2:] = torch.where(running, arrival, stay)
    return steps, _final_states(best[:, 2:], target_len)


def _final_states(best: Tensor, target_len: Tensor) -> Tensor:
    """The better of the last token and the blank after it, (B,)."""
    last_blank = 2 * target_len
    ends = torch.stack((last_blank, (last_blank - 1).clamp(min=0)), dim=1)
    values, choice = best.gather(1, ends).max(dim=1)
    impossible = values == -torch.inf
    if bool(impossible.any()):
        item = int(impossible.nonzero()[0])
        raise ValueError(f"item {item}: every path that spells its target has probability 0")
    return ends.gather(1, choice.unsqueeze(1)).squeeze(1)


def _trace_back(steps: Tensor, final: Tensor, log_probs_len: Tensor) -> Tensor:
    """States of the best paths (B, T); past an utterance's end its final state."""
    path = final.unsqueeze(1).repeat(1, steps.shape[0])
    state = final
    for t in range(steps.shape[0] - 1, 0, -1):
        step = steps[t].gather(1, state.unsqueeze(1)).squeeze(1).long()
        state = torch.where(t < log_probs_len, state - step, state)
        path[:, t - 1] = state
    return path


def _alignment(path: Tensor, labels: Tensor, scores: Tensor) -> CtcAlignment:
    """Token spans of one path: every visit of an odd state is one target."""
    visited, counts = torch.unique_consecutive(path, return_counts=True)
    spans = []
    start = 0
    for state, count in zip(visited.tolist(), counts.tolist(), strict=True):
        if state % 2:
            score = float(scores[start : start + count].mean())
            spans.append(TokenSpan(int(labels[start]), start, start + count, score))
        start += count
    return CtcAlignment(labels, scores, spans)


def align_words(log_probs: Tensor, text: str, tokenizer: Tokenizer, clock: FrameClock) -> list[WordSpan]:
    """When each word of `text` was said in one utterance.

    Args:
        log_probs: (T, V), blank last.
        text: what was said, in the tokenizer's alphabet.
        tokenizer: of the network that gave `log_probs`.
        clock: length of a frame.

    Raises:
        ValueError: the text does not fit the audio; see `ctc_forced_align`.
    """
    ids = tokenizer.encode(text)
    targets = torch.tensor([ids], dtype=torch.long).reshape(1, len(ids))
    lengths = torch.tensor([log_probs.shape[0]]), torch.tensor([len(ids)])
    (alignment,) = ctc_forced_align(log_probs.unsqueeze(0), targets, *lengths, blank=tokenizer.vocab_size)
    return [_word_span(group, tokenizer, clock) for group in _words(alignment.spans, tokenizer)]


def _words(spans: Sequence[TokenSpan], tokenizer: Tokenizer) -> list[list[TokenSpan]]:
    """Groups tokens into words: at a token that carries the mark of a word's beginning, or after a space."""
    groups: list[list[TokenSpan]] = [[]]
    for span, piece in zip(spans, tokenizer.tokens([span.token for span in spans]), strict=True):
        if piece.startswith(("▁", " ")) and groups[-1]:
            groups.append([])
        if piece.strip("▁ "):
            groups[-1].append(span)
    return [group for group in groups if group]


def _word_span(group: Sequence[TokenSpan], tokenizer: Tokenizer, clock: FrameClock) -> WordSpan:
    frames = sum(span.end - span.start for span in group)
    score = sum(span.score * (span.end - span.start) for span in group) / frames
    return WordSpan(
        word=tokenizer.decode([span.token for span in group]).strip(),
        start_s=clock.seconds(group[0].start),
        end_s=clock.seconds(group[-1].end),
        score=score,
    )
