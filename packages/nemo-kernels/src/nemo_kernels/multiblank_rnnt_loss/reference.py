"""Multi-blank transducer loss as the paper states it (arXiv 2211.03541): cell after cell, under autograd.

Beside the label and the blank of one frame, each cell (t, u) may emit a big blank, which leads m frames on:
    alpha(t, u) = alpha(t-1, u) p_blank(t-1, u) + sum_m alpha(t-m, u) p_m(t-m, u) + alpha(t, u-1) p_y[u-1](t, u-1)
and a path ends with any blank that reaches frame T exactly after the last label.

B batch, T frames, U target steps, V vocabulary with all blanks
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def multiblank_rnnt_loss_reference(
    logits: Tensor,
    targets: Tensor,
    logit_len: Tensor,
    target_len: Tensor,
    big_blank_durations: Sequence[int],
    *,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    sigma: float = 0.0,
) -> Tensor:
    """Losses (B,) of logits (B, T, U+1, V); arguments as in `multiblank_rnnt_loss`.

    `clamp` bounds the gradient of each logit where the gradient of each loss is 1, as under a sum.
    """
    logits = logits.view_as(logits)
    if clamp > 0 and logits.requires_grad:
        logits.register_hook(lambda gradient: gradient.clamp(-clamp, clamp))  # type: ignore[no-untyped-call]
    scores = logits.log_softmax(-1) - sigma
    blank %= logits.shape[-1]
    blanks = {1: blank} | {duration: blank - 1 - i for i, duration in enumerate(big_blank_durations)}
    losses = [
        -_log_probability(scores[b, :frames], targets[b, :labels].tolist(), blanks, fastemit_lambda)
        for b, (frames, labels) in enumerate(zip(logit_len.tolist(), target_len.tolist(), strict=True))
    ]
    loss = torch.stack(losses)
    return loss + fastemit_lambda * loss.detach()


def _log_probability(scores: Tensor, labels: list[int], blanks: dict[int, int], fastemit_lambda: float) -> Tensor:
    """Logarithm of the sum over all paths of one utterance: scores (T, U+1, V), blanks {duration: token}."""
    frames, last = scores.shape[0], len(labels)
    alpha: dict[tuple[int, int], Tensor] = {(0, 0): scores.new_zeros(())}

    def after_blanks(t: int, u: int) -> list[Tensor]:
        sources = [((t - duration, u), token) for duration, token in blanks.items()]
        return [alpha[cell] + scores[*cell, token] for cell, token in sources if cell in alpha]

    for t in range(frames):
        for u in range(last + 1):
            arrivals = after_blanks(t, u)
            if u > 0:
                label = scores[t, u - 1, labels[u - 1]]
                label = label + fastemit_lambda * (label - label.detach())  # its gradient alone, times 1 + lambda
                arrivals.append(alpha[t, u - 1] + label)
            if arrivals:
                alpha[t, u] = torch.logsumexp(torch.stack(arrivals), dim=0)
    return torch.logsumexp(torch.stack(after_blanks(frames, last)), dim=0)
