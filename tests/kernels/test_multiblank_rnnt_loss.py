"""multiblank_rnnt_loss: every path counted, the textbook, NVIDIA's values, and what torch asks of an operation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_kernels.multiblank_rnnt_loss import loss as implementation
from nemo_kernels.multiblank_rnnt_loss import multiblank_rnnt_loss
from nemo_kernels.multiblank_rnnt_loss.reference import multiblank_rnnt_loss_reference

GOLDEN = Path(__file__).parents[1] / "golden" / "tdt_losses"
RULES = [(0.0, 0.0, -1.0), (0.05, 0.3, -1.0), (0.1, 0.3, 0.05)]  # sigma, lambda, clamp
CASES = [  # B, T, U, V, big blanks, blank
    (1, 1, 0, 3, (2,), -1),
    (2, 1, 3, 5, (2,), -1),
    (2, 6, 0, 4, (2, 4), -1),
    (3, 9, 4, 9, (2, 4, 8), -1),
    (3, 7, 4, 8, (3, 2), 5),
    (2, 5, 9, 6, (7,), 1),
]


def rule_of(sigma, fastemit_lambda, clamp):
    return {"sigma": sigma, "fastemit_lambda": fastemit_lambda, "clamp": clamp}


def by_enumeration(probability, labels, blanks):
    """Minus the log of the sum over all paths: probability (T, U+1, V), blanks {token: duration}."""
    frames = len(probability)

    def paths(t, u, so_far):
        if (t, u) == (frames, len(labels)):
            yield so_far
            return
        if t >= frames:
            return
        for token, duration in blanks.items():
            yield from paths(t + duration, u, so_far * probability[t, u, token])
        if u < len(labels):
            yield from paths(t, u + 1, so_far * probability[t, u, labels[u]])

    return -math.log(sum(float(each) for each in paths(0, 0, 1.0)))


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize(("frames", "labels"), [(1, 1), (3, 0), (4, 2), (5, 3)])
def test_the_loss_is_the_sum_over_all_paths(draw_batch, frames, labels, sigma):
    logits, targets, *lengths = draw_batch(1, frames, labels, 6)
    probability = logits[0].softmax(-1) * math.exp(-sigma)
    expected = by_enumeration(probability, targets[0].tolist(), {5: 1, 4: 2, 3: 4})
    for loss in (multiblank_rnnt_loss, multiblank_rnnt_loss_reference):
        assert float(loss(logits, targets, *lengths, (2, 4), sigma=sigma)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_textbook(draw_batch, case, rule):
    *shape, big, blank = case
    logits, targets, *lengths = draw_batch(*shape, blank=blank)
    expected_at, found_at = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = multiblank_rnnt_loss_reference(expected_at, targets, *lengths, big, blank=blank, **rule_of(*rule))
    found = multiblank_rnnt_loss(
        found_at, targets, *lengths, big, blank=blank, reduction="none", **rule_of(*rule)
    )  # fmt: skip
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_at.grad, expected_at.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("number", range(4))
def test_losses_and_gradients_equal_nvidias_kernels(number):
    with np.load(GOLDEN / "nemo_toolkit.npz") as arrays:
        a = {name: torch.from_numpy(arrays[name]) for name in arrays}
    logits, lengths = a["multiblank_logits"].requires_grad_(), (a["multiblank_logit_len"], a["multiblank_target_len"])
    losses = multiblank_rnnt_loss(
        logits, a["multiblank_targets"], *lengths, a["big_blank_durations"].tolist(), reduction="none",
        **rule_of(*a["rules"][number].tolist()),
    )  # fmt: skip
    losses.sum().backward()
    torch.testing.assert_close(losses, a[f"multiblank_losses_{number}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, a[f"multiblank_gradient_{number}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_types_are_summed_in_float32(draw_batch, dtype):
    logits, targets, *lengths = draw_batch(3, 40, 12, 30, dtype=dtype)
    exact, own = logits.double().requires_grad_(), logits.clone().requires_grad_()
    expected = multiblank_rnnt_loss(exact, targets, *lengths, (2, 4), reduction="none")
    found = multiblank_rnnt_loss(own, targets, *lengths, (2, 4), reduction="none")
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    coarse = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=coarse, atol=2e-6)


def test_the_padding_is_never_read_and_its_gradient_is_zero(draw_batch):
    logits, targets, logit_len, target_len = draw_batch(3, 8, 5, 7)
    logit_len, target_len = torch.tensor([8, 3, 1]), torch.tensor([5, 0, 2])
    inside = (torch.arange(8)[:, None] < logit_len[:, None, None]) & (torch.arange(6) <= target_len[:, None, None])
    dirty = logits.masked_fill(~inside[..., None], float("nan")).requires_grad_()
    clean = logits.clone().requires_grad_()
    odd = targets.masked_fill(torch.arange(5) >= target_len[:, None], -7)
    found = multiblank_rnnt_loss(dirty, odd, logit_len, target_len, (2, 3))
    expected = multiblank_rnnt_loss(clean, targets, logit_len, target_len, (2, 3))
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dirty.grad, clean.grad)
    assert (dirty.grad[~inside] == 0).all()


def test_gradcheck(draw_batch):
    logits, targets, *lengths = draw_batch(2, 4, 2, 5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: multiblank_rnnt_loss(x, targets, *lengths, (2, 3), sigma=0.05, reduction="none"), (logits,)
    )


def test_opcheck(draw_batch):
    logits, targets, *lengths = draw_batch(2, 4, 2, 5, dtype=torch.float32)
    arguments = (logits.requires_grad_(), targets, *lengths, [2, 3], 4, -1.0, 0.1, 0.05)
    torch.library.opcheck(implementation._loss, arguments)
    solved = implementation._loss(logits.detach(), *arguments[1:])[1:]
    torch.library.opcheck(
        implementation._gradient, (logits.detach(), targets, *lengths, *solved, torch.ones(2), 4, -1.0, 0.1)
    )


def test_it_compiles_as_one_graph(draw_batch):
    logits, targets, *lengths = draw_batch(2, 5, 3, 6, dtype=torch.float32)
    results = []
    for run in (multiblank_rnnt_loss, torch.compile(multiblank_rnnt_loss, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        loss = run(leaf, targets, *lengths, (2, 4), sigma=0.05)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"big_blank_durations": (1, 2)}, r"big_blank_durations: \[1, 2\] must be distinct whole numbers from 2 on"),
        ({"blank": 1}, "blank: 1 leaves no room before it for 2 big blanks"),
        ({"blank": 9}, "blank: 9 is not an index into a vocabulary of 6"),
        ({"sigma": -1.0}, "sigma: -1.0 must be at least 0"),
        ({"reduction": "avg"}, "reduction: 'avg' must be one of"),
    ],
)
def test_a_wrong_argument_is_named(draw_batch, changed, message):
    logits, targets, *lengths = draw_batch(2, 5, 3, 6)
    options = {"big_blank_durations": (2, 4)} | changed
    with pytest.raises(ValueError, match=message):
        multiblank_rnnt_loss(logits, targets, *lengths, **options)
