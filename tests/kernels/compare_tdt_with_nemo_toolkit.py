"""Compares tdt_loss and multiblank_rnnt_loss with NVIDIA's nemo_toolkit, or stores its values for the tests.

NVIDIA has these losses as CUDA kernels in numba and as PyTorch loops that check them. Neither runs on a CPU as it is:
the kernels are run by numba's CUDA simulator, with torch's part of their launch code left out, and `Tensor.cuda` is
made to do nothing for the loop of TDT.

Run it with a Python that has nemo_toolkit (20 s to import) and whose path finds this package:

    PYTHONPATH=packages/nemo-kernels/src /path/to/its/python tests/kernels/compare_tdt_with_nemo_toolkit.py
    ... compare_tdt_with_nemo_toolkit.py --store tests/golden/tdt_losses/nemo_toolkit.npz

It ends with an error if a loss differs by more than 1e-5, relatively, or a gradient by more than 1e-5.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # read when numba is imported

import numpy as np
import torch

TOLERANCE = 1e-5
DURATIONS, BIG_BLANKS = (0, 1, 2, 4), (2, 4)
RULES = ((0.0, 0.0, -1.0), (0.05, 0.0, -1.0), (0.05, 0.3, -1.0), (0.0, 0.3, 0.05))  # sigma, lambda, clamp
TDT, MULTIBLANK = "tdt", "multiblank"


def batch(kind):
    """Three ragged utterances, one without targets: 8 tokens, the blanks last, then for TDT the durations."""
    generator = torch.Generator().manual_seed(11)
    extra = len(DURATIONS) if kind == TDT else 0
    logits = 2 * torch.randn(3, 7, 4, 8 + extra, generator=generator)
    targets = torch.randint(8 - 1 - len(BIG_BLANKS), (3, 3), generator=generator)
    return logits, targets, torch.tensor([7, 5, 4]), torch.tensor([3, 2, 0])


def kernels(kind, sigma, fastemit_lambda, clamp):
    """Losses and gradient by NVIDIA's CUDA kernels."""
    from nemo.collections.asr.parts.numba.rnnt_loss.utils.cuda_utils import gpu_rnnt_kernel as theirs

    logits, targets, logit_len, target_len = (x.numpy() for x in batch(kind))
    B, T, W, width = logits.shape
    V, D = (width - len(DURATIONS), len(DURATIONS)) if kind == TDT else (width, len(BIG_BLANKS))
    tokens = np.ascontiguousarray(logits[..., :V]).ravel()
    timing = torch.from_numpy(logits[..., V:]).log_softmax(-1).numpy().ravel() if kind == TDT else None
    denom = -torch.from_numpy(logits[..., :V]).logsumexp(-1).numpy().ravel()
    labels = np.concatenate([targets, np.zeros((B, 1), np.int64)], 1)
    acts = (tokens, timing) if kind == TDT else (tokens,)
    frames = np.array(DURATIONS if kind == TDT else BIG_BLANKS)
    shape = (logit_len, target_len, labels, B, T, W, V, V - 1, frames, D)
    alphas, betas, forward, backward = (np.zeros(n, np.float32) for n in (B * T * W, B * T * W, B, B))
    name = "tdt" if kind == TDT else "multiblank"
    getattr(theirs, f"compute_{name}_alphas_kernel")[B, W](*acts, denom, sigma, alphas, forward, *shape)
    getattr(theirs, f"compute_{name}_betas_kernel")[B, W](*acts, denom, sigma, betas, backward, *shape)
    grads = [np.zeros_like(each) for each in acts]
    rest = (*acts, denom, sigma, alphas, betas, forward, *shape, fastemit_lambda, max(clamp, 0.0))
    getattr(theirs, f"compute_{name}_grad_kernel")[B * T * W, max(V, D)](*grads, *rest)
    losses = -torch.from_numpy(forward) * (1 + fastemit_lambda)
    parts = [torch.from_numpy(grads[0]).view(B, T, W, V)]
    if kind == TDT:  # the kernels' gradient is by the log probabilities: log_softmax's own follows
        by_log = torch.from_numpy(grads[1]).view(B, T, W, D)
        probability = torch.from_numpy(timing).view(B, T, W, D).exp()
        parts.append(by_log - probability * by_log.sum(-1, keepdim=True))
    return losses, torch.cat(parts, -1)


def loops(kind, sigma):
    """Losses and gradient by NVIDIA's loops in PyTorch."""
    from nemo.collections.asr.losses.rnnt_pytorch import MultiblankRNNTLossPytorch, TDTLossPytorch

    torch.Tensor.cuda = lambda self: self
    logits, targets, logit_len, target_len = batch(kind)
    logits.requires_grad_()
    if kind == TDT:
        rule = TDTLossPytorch(blank=7, durations=list(DURATIONS), reduction=None, sigma=sigma)
    else:
        rule = MultiblankRNNTLossPytorch(blank=7, big_blank_durations=list(BIG_BLANKS), reduction=None, sigma=sigma)
    losses = rule.forward(acts=logits, labels=targets, act_lens=logit_len, label_lens=target_len)
    losses.sum().backward()
    return losses.detach(), logits.grad


def ours(kind, sigma, fastemit_lambda, clamp):
    from nemo_kernels.multiblank_rnnt_loss import multiblank_rnnt_loss
    from nemo_kernels.tdt_loss import tdt_loss

    logits, targets, logit_len, target_len = batch(kind)
    logits.requires_grad_()
    loss, frames = (tdt_loss, DURATIONS) if kind == TDT else (multiblank_rnnt_loss, BIG_BLANKS)
    rule = {"sigma": sigma, "fastemit_lambda": fastemit_lambda, "clamp": clamp, "reduction": "none"}
    losses = loss(logits, targets, logit_len, target_len, frames, **rule)
    losses.sum().backward()
    return losses.detach(), logits.grad


def store(path):
    arrays = {"rules": np.array(RULES), "durations": np.array(DURATIONS), "big_blank_durations": np.array(BIG_BLANKS)}
    for kind in (TDT, MULTIBLANK):
        names = ("logits", "targets", "logit_len", "target_len")
        arrays |= {f"{kind}_{name}": x.numpy() for name, x in zip(names, batch(kind), strict=True)}
        for number, rule in enumerate(RULES):
            losses, gradient = kernels(kind, *rule)
            arrays |= {f"{kind}_losses_{number}": losses.numpy(), f"{kind}_gradient_{number}": gradient.numpy()}
    np.savez_compressed(path, **arrays)


def compare():
    wrong = 0
    for kind in (TDT, MULTIBLANK):
        for rule in RULES:
            losses, gradient = ours(kind, *rule)
            theirs = {"kernels": kernels(kind, *rule)}
            if rule[1:] == (0.0, -1.0):
                theirs["loops"] = loops(kind, rule[0])
            for name, (their_losses, their_gradient) in theirs.items():
                of_loss = float(((losses - their_losses) / their_losses).abs().max())
                of_gradient = float((gradient - their_gradient).abs().max())
                good = of_loss <= TOLERANCE and of_gradient <= TOLERANCE
                wrong += not good
                print(
                    f"{kind} sigma {rule[0]} lambda {rule[1]} clamp {rule[2]}, NVIDIA's {name}: "
                    f"loss {of_loss:.1e}, gradient {of_gradient:.1e}{'' if good else ' WRONG'}"
                )
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", metavar="PATH", help="write NVIDIA's values to an .npz file instead")
    arguments = parser.parse_args()
    sys.exit(store(arguments.store) if arguments.store else compare())
