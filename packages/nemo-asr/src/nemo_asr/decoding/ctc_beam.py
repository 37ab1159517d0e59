"""CTC prefix beam search (Hannun et al., arXiv 1408.2873), on tensors of utterances x prefixes.

A prefix keeps two probabilities, of its alignments that end in blank and of those that end in its last token:

    blank'(y) = p(blank) (blank(y) + token(y))
    token'(y) = p(last of y) token(y)  +  p(last of y) (blank(z) + token(z))      z: y without its last token;
                                                                                  only blank(z) if z ends in the same

A beam of one prefix follows the best alignment instead of the sum of them, and so is greedy search.

B batch, K prefixes of an utterance, T frames, M fused models, V tokens without blank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_asr.decoding.beam import EMPTY, Step, extend_fingerprint, read_back
from nemo_asr.decoding.fusion import Fusion


class PrefixPath(NamedTuple):
    """A token sequence and its log-probability, with what language model, phrases and token bonus add."""

    tokens: list[int]
    score: float


@dataclass
class _Prefixes:
    """Log-probabilities of alignments that end in blank and in the last token, last token, fingerprints with and
    without it, all (B, K); states of the fused models (B, K, M)."""

    blank: Tensor
    token: Tensor
    last: Tensor
    fingerprint: Tensor
    shorter: Tensor
    fused: Tensor | None


@dataclass(frozen=True)
class CtcBeamSearch:
    """Finds the K best token sequences.

    Attributes:
        beam_size: K.
        token_bonus: added to the score for each token.
        threshold: prefixes whose score is so much below the best one's are dropped.
    """

    beam_size: int
    token_bonus: float = 0.0
    threshold: float = math.inf

    @torch.no_grad()
    def __call__(
        self, log_probs: Tensor, log_probs_len: Tensor, fusion: Fusion | None = None
    ) -> list[list[PrefixPath]]:
        """Sequences for each utterance, the best first.

        Args:
            log_probs: (B, T, V + 1), blank last.
            log_probs_len: frames of each (B,).
            fusion: models on the same device whose scores are added.
        """
        B, T, _ = log_probs.shape
        length = log_probs_len.to(log_probs.device)
        prefixes, steps = self._start(B, log_probs.device, fusion), []
        for t in range(min(T, int(length.max())) if B else 0):
            running = (t < length)[:, None]
            prefixes, step = self._step(prefixes, log_probs[:, t].float(), running, fusion)
            steps.append(step._replace(frame=torch.full_like(step.parent, t)))
        score = self._add(prefixes.blank, prefixes.token)
        if fusion is not None and prefixes.fused is not None:
            score = score + fusion.final(prefixes.fused.flatten(0, 1), sentence=True).view_as(score)
        ends = score.argsort(dim=1, descending=True, stable=True)
        found = zip(read_back(steps, ends), score.gather(1, ends).tolist(), strict=True)
        return [
            [PrefixPath(path.tokens, value) for path, value in zip(paths, values, strict=True) if value > -math.inf]
            for paths, values in found
        ]

    @property
    def _add(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.maximum if self.beam_size == 1 else torch.logaddexp

    def _start(self, B: int, device: torch.device, fusion: Fusion | None) -> _Prefixes:
        never = torch.full((B, self.beam_size), -torch.inf, device=device)
        zeros = torch.zeros((B, self.beam_size), dtype=torch.long, device=device)
        blank = never.clone()
        blank[:, 0] = 0.0
        fused = None if fusion is None else fusion.start(B * self.beam_size).view(B, self.beam_size, -1)
        return _Prefixes(blank, never, zeros - 1, zeros + EMPTY, zeros - 1, fused)

    def _step(
        self, prefixes: _Prefixes, log_probs: Tensor, running: Tensor, fusion: Fusion | None
    ) -> tuple[_Prefixes, Step]:
        """One frame (B, V + 1); utterances that are not running stay as they are."""
        B, K = prefixes.blank.shape
        V = log_probs.shape[1] - 1
        total = self._add(prefixes.blank, prefixes.token)
        longer = self._extensions(prefixes, total, log_probs, fusion)
        repeated = log_probs.gather(1, prefixes.last.clamp_min(0))
        blank, token = total + log_probs[:, V:], prefixes.token + repeated
        self._join(prefixes, total, token, longer)
        longer = longer.masked_fill(~running[:, :, None], -torch.inf)
        blank = torch.where(running, blank, prefixes.blank)
        token = torch.where(running, token, prefixes.token)
        candidates = torch.cat([self._add(blank, token), longer.view(B, -1)], dim=1)
        score, pick = candidates.topk(K, dim=1)
        dropped = (score < score[:, :1] - self.threshold) | (score == -torch.inf)
        kept = pick < K
        parent = torch.where(kept, pick, (pick - K) // V)
        chosen = torch.where(kept, -1, (pick - K) % V)
        before = prefixes.fingerprint.gather(1, parent)
        after = _Prefixes(
            blank=torch.where(kept & ~dropped, blank.gather(1, parent), -torch.inf),
            token=torch.where(kept, token.gather(1, parent), score).masked_fill(dropped, -torch.inf),
            last=torch.where(kept, prefixes.last.gather(1, parent), chosen),
            fingerprint=torch.where(kept, before, extend_fingerprint(before, chosen)),
            shorter=torch.where(kept, prefixes.shorter.gather(1, parent), before),
            fused=_advance(prefixes.fused, parent, chosen, fusion),
        )
        return after, Step(parent, chosen, parent, torch.zeros_like(parent))

    def _extensions(self, prefixes: _Prefixes, total: Tensor, log_probs: Tensor, fusion: Fusion | None) -> Tensor:
        """Scores (B, K, V) of the prefixes with one more token; the same token again needs a blank before it."""
        B, K = total.shape
        V = log_probs.shape[1] - 1
        again = prefixes.last[:, :, None] == torch.arange(V, device=total.device)
        longer = torch.where(again, prefixes.blank[:, :, None], total[:, :, None]) + log_probs[:, None, :V]
        if fusion is not None and prefixes.fused is not None:
            longer = longer + fusion.scores(prefixes.fused.flatten(0, 1)).view(B, K, V)
        return longer + self.token_bonus

    def _join(self, prefixes: _Prefixes, total: Tensor, token: Tensor, longer: Tensor) -> None:
        """Moves into `token` what the shorter prefixes' extensions `longer` give to prefixes that are there already."""
        alive = total > -torch.inf
        same = prefixes.shorter[:, :, None] == prefixes.fingerprint[:, None, :]
        row, long, short = torch.nonzero(same & alive[:, :, None] & alive[:, None, :], as_tuple=True)
        last = prefixes.last[row, long]
        token[row, long] = self._add(token[row, long], longer[row, short, last])
        longer[row, short, last] = -torch.inf


def _advance(states: Tensor | None, parent: Tensor, chosen: Tensor, fusion: Fusion | None) -> Tensor | None:
    """States (B, K, M) of the chosen prefixes."""
    if states is None or fusion is None:
        return None
    states = states.gather(1, parent[:, :, None].expand(-1, -1, states.shape[2]))
    extended = chosen >= 0
    states[extended] = fusion.advance(states[extended], chosen[extended])
    return states
