"""TDT loss as the paper states it (arXiv 2304.06795): one cell of the lattice after the other, under autograd.

The joint gives each cell (t, u) a distribution over tokens and, apart from it, one over durations. From (t, u)
    a blank   with duration d > 0   leads to (t + d, u),
    the label y[u] with duration d  leads to (t + d, u + 1),
and a path ends with the blank that reaches frame T exactly after the last label. A path's probability is the product
of its tokens' and durations' probabilities; the loss is minus the logarithm of the sum over all paths:
    alpha(t, u) = sum_{d>0} alpha(t-d, u) p_blank(t-d, u) p_d(t-d, u)
                + sum_d     alpha(t-d, u-1) p_y[u-1](t-d, u-1) p_d(t-d, u-1)
Slow, in any precision (float64 to compare with), and meant to be read.

B batch, T frames, U target steps, V tokens with blank
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tdt_loss_reference(
    logits: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    durations: Sequence[int],
    *,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    sigma: float = 0.0,
) -> Tensor:
    """Losses (B,) of logits (B, T, U+1, V + number of durations); arguments as in `tdt_loss`.

    `clamp` bounds the gradient of each token's logit where the gradient of each loss is 1, as under a sum.
    """
    tokens, duration_logits = logits[..., : -len(durations)], logits[..., -len(durations) :]
    if clamp > 0 and tokens.requires_grad:
        tokens.register_hook(lambda gradient: gradient.clamp(-clamp, clamp))  # type: ignore[no-untyped-call]
    token_scores = tokens.log_softmax(-1) - sigma
    duration_scores = duration_logits.log_softmax(-1)
    losses = [
        -_log_probability(
            token_scores[b, :frames],
            duration_scores[b, :frames],
            targets[b, :labels].tolist(),
            durations,
            blank % tokens.shape[-1],
            fastemit_lambda,
        )
        for b, (frames, labels) in enumerate(zip(logit_len.tolist(), target_len.tolist(), strict=True))
    ]
    loss = torch.stack(losses)
    return loss + fastemit_lambda * loss.detach()


def _log_probability(
    tokens: Tensor, lengths: Tensor, labels: list[int], durations: Sequence[int], blank: int, fastemit_lambda: float
) -> Tensor:
    """Logarithm of the sum over all paths of one utterance: tokens (T, U+1, V), lengths (T, U+1, durations)."""
    frames, last = tokens.shape[0], len(labels)
    impossible = tokens.new_full((), -torch.inf)
    alpha: dict[tuple[int, int], Tensor] = {(0, 0): tokens.new_zeros(())}

    def arrivals(t: int, u: int) -> list[Tensor]:
        found = []
        for index, duration in enumerate(durations):
            if duration > 0 and (t - duration, u) in alpha:
                cell = (t - duration, u)
                found.append(alpha[cell] + tokens[*cell, blank] + lengths[*cell, index])
            if t < frames and (t - duration, u - 1) in alpha:
                cell = (t - duration, u - 1)
                label = _emphasize(tokens[*cell, labels[u - 1]], fastemit_lambda)
                found.append(alpha[cell] + label + lengths[*cell, index])
        return found

    for t in range(frames):
        for u in range(last + 1):
            if (t, u) != (0, 0) and (scores := arrivals(t, u)):
                alpha[t, u] = torch.logsumexp(torch.stack(scores), dim=0)
    ends = arrivals(frames, last)
    return torch.logsumexp(torch.stack(ends), dim=0) if ends else impossible


def _emphasize(score: Tensor, fastemit_lambda: float) -> Tensor:
    """The same score, its gradient multiplied by 1 + lambda: FastEmit's definition (arXiv 2010.11148)."""
    return score + fastemit_lambda * (score - score.detach())
