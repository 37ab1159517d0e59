"""tdt_loss: every path counted, the textbook, NVIDIA's stored values, and what torch asks of an operation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_kernels.rnnt_loss import rnnt_loss
from nemo_kernels.tdt_loss import loss as implementation
from nemo_kernels.tdt_loss import tdt_loss
from nemo_kernels.tdt_loss.reference import tdt_loss_reference

GOLDEN = Path(__file__).parents[1] / "golden" / "tdt_losses"
RULES = [(0.0, 0.0, -1.0), (0.05, 0.0, -1.0), (0.05, 0.3, -1.0), (0.1, 0.3, 0.05)]  # sigma, lambda, clamp
CASES = [  # B, T, U, V, durations, blank
    (1, 1, 0, 2, (0, 1), -1),
    (2, 1, 3, 5, (0, 1, 2), 0),
    (2, 6, 0, 4, (0, 1, 2, 3, 4), -1),
    (3, 7, 4, 6, (0, 1, 2, 3, 4), 2),
    (4, 9, 5, 13, (1, 2), -1),
    (3, 8, 3, 7, (4, 0, 1, 9), -2),
    (2, 5, 9, 3, (0, 1), 0),
]


@pytest.fixture
def draw(draw_batch):
    """As draw_batch, with duration logits after the tokens."""

    def with_durations(B, T, U, V, durations, blank=-1, **options):
        logits, *rest = draw_batch(B, T, U, V, blank=blank, **options)
        generator = torch.Generator().manual_seed(5)
        timing = torch.randn(B, T, U + 1, len(durations), generator=generator, dtype=torch.float64).to(logits.dtype)
        return torch.cat([logits, timing], -1), *rest

    return with_durations


def rule_of(sigma, fastemit_lambda, clamp):
    return {"sigma": sigma, "fastemit_lambda": fastemit_lambda, "clamp": clamp}


def by_enumeration(tokens, timing, labels, durations, blank):
    """Minus the log of the sum over all paths, each path a list of arcs."""
    frames = len(tokens)

    def paths(t, u, probability):
        if (t, u) == (frames, len(labels)):
            yield probability
            return
        if t >= frames:
            return
        for index, duration in enumerate(durations):
            here = probability * timing[t, u, index]
            if duration > 0:
                yield from paths(t + duration, u, here * tokens[t, u, blank])
            if u < len(labels) and t + duration < frames:
                yield from paths(t + duration, u + 1, here * tokens[t, u, labels[u]])

    return -math.log(sum(float(probability) for probability in paths(0, 0, 1.0)))


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("durations", [(0, 1), (0, 1, 2, 4), (1, 3), (2, 0, 1)])
@pytest.mark.parametrize(("frames", "labels"), [(1, 1), (3, 0), (4, 2), (5, 3)])
def test_the_loss_is_the_sum_over_all_paths(draw, frames, labels, durations, sigma):
    if 0 not in durations and (frames < labels or frames == 1):
        pytest.skip("no path")
    logits, targets, *lengths = draw(1, frames, labels, 4, durations)
    tokens, timing = logits[0, ..., :4].softmax(-1), logits[0, ..., 4:].softmax(-1)
    expected = by_enumeration(tokens * math.exp(-sigma), timing, targets[0].tolist(), durations, 3)
    assert float(tdt_loss(logits, targets, *lengths, durations, sigma=sigma)) == pytest.approx(expected, rel=1e-10)
    assert float(tdt_loss_reference(logits, targets, *lengths, durations, sigma=sigma)) == pytest.approx(
        expected, rel=1e-10
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_textbook(draw, case, rule):
    *shape, durations, blank = case
    logits, targets, *lengths = draw(*shape, durations, blank)
    expected_at = logits.clone().requires_grad_()
    expected = tdt_loss_reference(expected_at, targets, *lengths, durations, blank=blank, **rule_of(*rule))
    expected[expected.isfinite()].sum().backward()
    for inplace in (False, True):
        found_at = logits.clone().requires_grad_()
        found = tdt_loss(
            found_at, targets, *lengths, durations, blank=blank, reduction="none", inplace=inplace, **rule_of(*rule)
        )
        found.sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found_at.grad, expected_at.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [False, True])
def test_smaller_types_are_summed_in_float32(draw, dtype, inplace):
    logits, targets, *lengths = draw(3, 40, 12, 30, (0, 1, 2, 3, 4), dtype=dtype)
    exact, own = logits.double().requires_grad_(), logits.clone().requires_grad_()
    expected = tdt_loss(exact, targets, *lengths, (0, 1, 2, 3, 4), sigma=0.05, reduction="none")
    found = tdt_loss(own, targets, *lengths, (0, 1, 2, 3, 4), sigma=0.05, reduction="none", inplace=inplace)
    assert found.dtype == torch.float32
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert own.grad.dtype == dtype
    coarse = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=coarse, atol=2e-6)


def test_the_losses_of_an_nvidia_model_are_the_stored_ones():
    with np.load(GOLDEN / "fastconformer_hybrid_tdt_ctc_bpe.npz") as arrays:
        a = {name: torch.from_numpy(arrays[name]) for name in arrays}
    hidden = torch.relu(a["encoder_out"][:, :, None] + a["predictor_out"][:, None])
    logits = hidden @ a["weight"].T + a["bias"]
    for sigma in (0.0, 0.02):
        losses = tdt_loss(
            logits, a["targets"], a["logit_len"], a["target_len"], (0, 1, 2, 3, 4), sigma=sigma, reduction="none"
        )
        torch.testing.assert_close(losses, a[f"losses_sigma{sigma:g}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("inplace", [False, True])
def test_losses_and_gradients_equal_nvidias_kernels(number, inplace):
    with np.load(GOLDEN / "nemo_toolkit.npz") as arrays:
        a = {name: torch.from_numpy(arrays[name]) for name in arrays}
    logits = a["tdt_logits"].requires_grad_()
    losses = tdt_loss(
        logits, a["tdt_targets"], a["tdt_logit_len"], a["tdt_target_len"], a["durations"].tolist(), reduction="none",
        inplace=inplace, **rule_of(*a["rules"][number].tolist()),
    )  # fmt: skip
    losses.sum().backward()
    torch.testing.assert_close(losses, a[f"tdt_losses_{number}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, a[f"tdt_gradient_{number}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_padding_is_never_read_and_its_gradient_is_zero(draw, inplace):
    logits, targets, logit_len, target_len = draw(4, 9, 6, 7, (0, 1, 2))
    logit_len, target_len = torch.tensor([9, 5, 1, 7]), torch.tensor([6, 0, 3, 2])
    inside = (torch.arange(9)[:, None] < logit_len[:, None, None]) & (torch.arange(7) <= target_len[:, None, None])
    dirty = logits.masked_fill(~inside[..., None], float("nan")).requires_grad_()
    targets = targets.masked_fill(torch.arange(6) >= target_len[:, None], -7)
    clean = logits.clone().requires_grad_()
    found = tdt_loss(dirty, targets, logit_len, target_len, (0, 1, 2), inplace=inplace)
    expected = tdt_loss(clean, targets.clamp(min=0), logit_len, target_len, (0, 1, 2))
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    assert (dirty.grad[~inside] == 0).all()
    torch.testing.assert_close(dirty.grad, clean.grad)


def test_strides_and_lengths_of_any_kind_make_no_difference(draw):
    logits, targets, logit_len, target_len = draw(2, 6, 4, 7, (0, 1, 3))
    plain = logits.clone().requires_grad_()
    odd = logits.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1).requires_grad_()
    expected = tdt_loss(plain, targets, logit_len, target_len, (0, 1, 3))
    spread = torch.stack([targets, targets], -1)[..., 0].int()
    found = tdt_loss(odd, spread, logit_len.to(torch.int32), target_len.to(torch.int16), [0, 1, 3])
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(odd.grad, plain.grad)


@pytest.mark.parametrize("durations", [(0,), (0, 2), (2,)])
def test_without_a_path_the_loss_is_infinite_and_its_gradient_zero(draw, durations):
    logits, targets, logit_len, target_len = draw(2, 5, 2, 6, durations)
    logit_len, target_len = torch.tensor([5, 3]), torch.tensor([2, 1])
    logits.requires_grad_()
    losses = tdt_loss(logits, targets, logit_len, target_len, durations, reduction="none")
    losses.sum().backward()
    assert losses.isposinf().all()
    assert (logits.grad == 0).all()


def test_a_token_that_is_impossible_leaves_finite_gradients(draw):
    logits, targets, *lengths = draw(2, 5, 2, 6, (0, 1, 2))
    targets[0, 0] = 1
    logits[0, ..., 1] = -math.inf
    logits.requires_grad_()
    losses = tdt_loss(logits, targets, *lengths, (0, 1, 2), reduction="none")
    losses.sum().backward()
    assert losses.isinf().tolist() == [True, False]
    assert (logits.grad[0] == 0).all()
    assert logits.grad.isfinite().all()


def test_omega_gives_the_rnnt_loss_of_the_tokens(draw):
    logits, targets, *lengths = draw(3, 7, 4, 6, (0, 1, 2))
    for inplace in (False, True):
        both, tokens = logits.clone().requires_grad_(), logits[..., :6].clone().requires_grad_()
        rule = {"fastemit_lambda": 0.2, "clamp": 0.3}
        found = tdt_loss(both, targets, *lengths, (0, 1, 2), sigma=0.05, omega=1.0, inplace=inplace, **rule)
        expected = rnnt_loss(tokens, targets, *lengths, **rule)
        found.backward()
        expected.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(both.grad[..., :6], tokens.grad)
        assert (both.grad[..., 6:] == 0).all()


def test_omega_is_a_probability_drawn_from_the_generator(draw):
    logits, targets, *lengths = draw(1, 4, 2, 5, (0, 1, 2))
    other, own = (float(tdt_loss(logits, targets, *lengths, (0, 1, 2), omega=omega)) for omega in (1.0, 0.0))
    generator = torch.Generator().manual_seed(3)
    drawn = [float(tdt_loss(logits, targets, *lengths, (0, 1, 2), omega=0.3, generator=generator)) for _ in range(60)]
    assert set(drawn) == {other, own}
    again = torch.rand(60, generator=torch.Generator().manual_seed(3)) < 0.3
    assert [loss == other for loss in drawn] == again.tolist()


def test_reductions(draw):
    logits, targets, *lengths = draw(3, 7, 4, 6, (0, 1, 2))
    losses = tdt_loss(logits, targets, *lengths, (0, 1, 2), reduction="none")
    for reduction, expected in {
        "sum": losses.sum(), "mean": losses.mean(), "mean_volume": losses.sum() / lengths[1].sum(),
    }.items():  # fmt: skip
        torch.testing.assert_close(tdt_loss(logits, targets, *lengths, (0, 1, 2), reduction=reduction), expected)


def test_the_graph_can_be_kept_and_the_one_in_place_cannot(draw):
    logits, targets, *lengths = draw(2, 5, 3, 6, (0, 1, 2))
    kept = logits.clone().requires_grad_()
    loss = tdt_loss(kept, targets, *lengths, (0, 1, 2))
    first, second = (torch.autograd.grad(loss, kept, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    own = logits.clone().requires_grad_()
    loss = tdt_loss(own, targets, *lengths, (0, 1, 2), inplace=True)
    (gradient,) = torch.autograd.grad(loss, own, retain_graph=True)
    assert gradient.data_ptr() == own.data_ptr()
    torch.testing.assert_close(gradient, first)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, own)


def test_who_saved_logits_that_were_given_away_is_told(draw):
    logits, targets, *lengths = draw(2, 5, 3, 6, (0, 1, 2))
    saved = logits.requires_grad_().exp()  # exp keeps its result for its gradient
    loss = tdt_loss(saved, targets, *lengths, (0, 1, 2), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradcheck(draw):
    logits, targets, *lengths = draw(2, 4, 2, 4, (0, 1, 2))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tdt_loss(x, targets, *lengths, (0, 1, 2), sigma=0.05, reduction="none"), (logits,)
    )


@pytest.mark.parametrize("plain", [None, torch.tensor(False), torch.tensor(True)])
def test_opcheck(draw, plain):
    logits, targets, *lengths = draw(2, 4, 2, 4, (0, 1, 2), dtype=torch.float32)
    arguments = (logits.requires_grad_(), targets, *lengths, [0, 1, 2], 3, -1.0, 0.1, 0.05, plain)
    torch.library.opcheck(implementation._loss, arguments)
    solved = implementation._loss(logits.detach(), *arguments[1:])[1:]
    torch.library.opcheck(
        implementation._gradient, (logits.detach(), targets, *lengths, *solved, torch.ones(2), 3, -1.0, 0.1)
    )


def test_it_compiles_as_one_graph(draw):
    logits, targets, *lengths = draw(2, 5, 3, 6, (0, 1, 2), dtype=torch.float32)

    def step(x, inplace):
        return tdt_loss(x * 1.5, targets, *lengths, (0, 1, 2), sigma=0.05, omega=0.2, inplace=inplace)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for run in (step, compiled):
        torch.manual_seed(1)
        leaf = logits.clone().requires_grad_()
        loss = run(leaf, True)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])


def test_autocast_changes_nothing(draw):
    logits, targets, *lengths = draw(2, 5, 3, 6, (0, 1, 2), dtype=torch.bfloat16)
    expected = tdt_loss(logits.float(), targets, *lengths, (0, 1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tdt_loss(logits, targets, *lengths, (0, 1, 2)), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"durations": ()}, r"durations: \[\] must be distinct whole numbers from 0 on, and at least one"),
        ({"durations": (0, 1, 1)}, r"durations: \[0, 1, 1\] must be distinct"),
        ({"durations": (-1, 1, 2)}, r"durations: \[-1, 1, 2\] must be distinct"),
        ({"blank": 6}, "blank: 6 is not an index into a vocabulary of 6"),
        ({"sigma": -0.1}, "sigma: -0.1 must be at least 0"),
        ({"omega": float("nan")}, "omega: nan must be at least 0"),
        ({"reduction": "avg"}, "reduction: 'avg' must be one of none, mean"),
        ({"logits": torch.zeros(2, 5, 4)}, r"logits: torch.float32 of shape \(2, 5, 4\) must be floating"),
        ({"logits": torch.zeros(2, 5, 4, 3)}, r"must be floating \(B, T, U \+ 1, V \+ 3\)"),
        ({"targets": torch.zeros(2, 4, dtype=torch.int64)}, r"targets: shape \(2, 4\) must be"),
        ({"targets": torch.full((2, 3), 6)}, "targets: 6 is not a token of a vocabulary of 6"),
        ({"logit_lengths": torch.tensor([5, 6])}, "logit_lengths: 6 must lie between 1 and 5"),
        ({"logit_lengths": torch.tensor([5, 0])}, "logit_lengths: 0 must lie between 1 and 5"),
        ({"target_lengths": torch.tensor([3, 4])}, "target_lengths: 4 must lie between 0 and 3"),
        ({"target_lengths": torch.tensor([3.0, 2.0])}, "target_lengths: torch.float32 must be an integer type"),
    ],
)
def test_a_wrong_argument_is_named(draw, changed, message):
    logits, targets, *_ = draw(2, 5, 3, 6, (0, 1, 2))
    arguments = {"logits": logits, "targets": targets, "durations": (0, 1, 2)}
    arguments |= {"logit_lengths": torch.tensor([5, 4]), "target_lengths": torch.tensor([3, 2])}
    with pytest.raises(ValueError, match=message):
        tdt_loss(**(arguments | changed))
