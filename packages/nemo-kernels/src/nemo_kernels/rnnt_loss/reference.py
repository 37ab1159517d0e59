"""The transducer loss as the textbook has it (Graves 2012, arXiv 1211.3711): float64, a cell at a time, by autograd.

    p(k | t, u) = softmax of the logits in cell (t, u)
    alpha(0, 0) = 1
    alpha(t, u) = alpha(t-1, u) p(blank | t-1, u) + alpha(t, u-1) p(y_u | t, u-1)
    loss = -log( alpha(T-1, U) p(blank | T-1, U) )

all in logarithms. Slow, and plain: what the fast versions are measured against.
B batch, T frames, U target steps, V vocabulary with blank
"""

from __future__ import annotations

import torch
from torch import Tensor


def rnnt_loss_reference(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    fastemit_lambda: float = 0.0,
) -> Tensor:
    """Losses (B,) in float64 of logits (B, T, U + 1, V); their gradients are FastEmit's where lambda is not zero."""
    losses = []
    for b, (frames, steps) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist(), strict=True)):
        log_p = logits[b, :frames, : steps + 1].double().log_softmax(-1)
        tokens = targets[b, :steps].long()
        lp_label = log_p[:, :steps].gather(-1, tokens[None, :, None].expand(frames, -1, 1))[..., 0]
        losses.append(lattice_loss(log_p[..., blank], _emphasised(lp_label, fastemit_lambda)))
    plain = torch.stack(losses)
    return plain + (fastemit_lambda * plain).detach()


def lattice_loss(lp_blank: Tensor, lp_label: Tensor) -> Tensor:
    """Loss of one utterance from the scores of its moves, lp_blank (T, U + 1) and lp_label (T, U)."""
    frames, width = lp_blank.shape
    alpha: dict[tuple[int, int], Tensor] = {(0, 0): lp_blank.new_zeros(())}
    for t in range(frames):
        for u in range(width):
            arrivals = []
            if t > 0:
                arrivals.append(alpha[t - 1, u] + lp_blank[t - 1, u])
            if u > 0:
                arrivals.append(alpha[t, u - 1] + lp_label[t, u - 1])
            if arrivals:
                alpha[t, u] = torch.logsumexp(torch.stack(arrivals), 0)
    return -(alpha[frames - 1, width - 1] + lp_blank[frames - 1, width - 1])


def rnnt_gradient_reference(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
) -> Tensor:
    """The derivative of each loss by the logits, (B, T, U + 1, V) in float64, clamped where clamp > 0."""
    leaf = logits.detach().double().requires_grad_()
    losses = rnnt_loss_reference(leaf, targets, logit_lengths, target_lengths, blank, fastemit_lambda)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient.clamp(-clamp, clamp) if clamp > 0 else gradient


def rnnt_loss_by_enumeration(logits: Tensor, targets: Tensor, blank: int = -1) -> Tensor:
    """Loss of one whole utterance (T, U + 1, V) as a sum over its alignments, one by one; a scalar in float64."""
    log_p = logits.double().log_softmax(-1)
    return -torch.logsumexp(torch.stack(_alignments(log_p, targets.tolist(), blank, 0, 0)), 0)


def _alignments(log_p: Tensor, tokens: list[int], blank: int, t: int, u: int) -> list[Tensor]:
    """Log probabilities of all ways to go on from cell (t, u) to the end."""
    if t == log_p.shape[0]:
        return [log_p.new_zeros(())] if u == len(tokens) else []
    ways = [log_p[t, u, blank] + rest for rest in _alignments(log_p, tokens, blank, t + 1, u)]
    if u < len(tokens):
        ways += [log_p[t, u, tokens[u]] + rest for rest in _alignments(log_p, tokens, blank, t, u + 1)]
    return ways


def _emphasised(lp_label: Tensor, fastemit_lambda: float) -> Tensor:
    """The same scores, with a gradient 1 + lambda times as large: that is all that FastEmit does."""
    scores = lp_label.clone()
    if scores.requires_grad:
        scores.register_hook(lambda gradient: (1.0 + fastemit_lambda) * gradient)  # type: ignore[no-untyped-call]
    return scores
