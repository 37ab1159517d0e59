"""Compares rnnt_loss with the numba loss of NVIDIA's nemo_toolkit, or stores that loss's values for the tests.

Run it with a Python that has nemo_toolkit, and whose path finds this package; half a minute, most of it imports:

    PYTHONPATH=packages/nemo-kernels/src /path/to/its/python tests/kernels/compare_with_nemo_toolkit.py
    ... compare_with_nemo_toolkit.py --store tests/golden/rnnt_losses/nemo_toolkit_numba.npz

It ends with an error if a loss differs by more than 1e-5, relatively, or a gradient by more than 1e-5.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

RULES = ((0.0, -1.0), (0.3, -1.0), (0.3, 0.05))  # (lambda, clamp)
LOSS_TOLERANCE = GRADIENT_TOLERANCE = 1e-5


def batch():
    """Three ragged utterances, one of them without targets."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(3, 9, 5, 12, generator=generator)
    targets = torch.randint(11, (3, 4), generator=generator)
    return logits, targets, torch.tensor([9, 6, 4]), torch.tensor([4, 3, 0])


def nemo_toolkit_loss(fastemit_lambda, clamp):
    """Losses and gradient by NVIDIA's numba implementation."""
    from nemo.collections.asr.parts.numba.rnnt_loss.rnnt_pytorch import RNNTLossNumba

    logits, targets, logit_len, target_len = batch()
    logits.requires_grad_()
    rule = RNNTLossNumba(blank=11, reduction="none", fastemit_lambda=fastemit_lambda, clamp=clamp)
    losses = rule(logits, targets, logit_len, target_len)
    losses.sum().backward()
    return losses.detach(), logits.grad


def our_loss(fastemit_lambda, clamp):
    from nemo_kernels.rnnt_loss import rnnt_loss

    logits, targets, logit_len, target_len = batch()
    logits.requires_grad_()
    rules = {"blank": 11, "clamp": clamp, "fastemit_lambda": fastemit_lambda, "reduction": "none"}
    losses = rnnt_loss(logits, targets, logit_len, target_len, **rules)
    losses.sum().backward()
    return losses.detach(), logits.grad


def store(path):
    logits, targets, logit_len, target_len = batch()
    arrays = {"logits": logits, "targets": targets, "logit_len": logit_len, "target_len": target_len}
    for number, rule in enumerate(RULES):
        arrays[f"losses_{number}"], arrays[f"gradient_{number}"] = nemo_toolkit_loss(*rule)
    np.savez_compressed(path, rules=np.array(RULES), **{name: array.numpy() for name, array in arrays.items()})


def compare():
    wrong = 0
    for rule in RULES:
        (losses, gradient), (theirs, their_gradient) = our_loss(*rule), nemo_toolkit_loss(*rule)
        of_loss = float(((losses - theirs) / theirs).abs().max())
        of_gradient = float((gradient - their_gradient).abs().max())
        good = of_loss <= LOSS_TOLERANCE and of_gradient <= GRADIENT_TOLERANCE
        wrong += not good
        print(
            f"lambda {rule[0]} clamp {rule[1]}: loss {of_loss:.1e}, gradient {of_gradient:.1e}", "" if good else "WRONG"
        )
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", metavar="PATH", help="write NVIDIA's values to an .npz file instead")
    arguments = parser.parse_args()
    raise SystemExit(store(arguments.store) if arguments.store else compare())
