"""rnnt_loss against the textbook in float64, the sum over all alignments, and torchaudio in float32."""

from __future__ import annotations

import warnings

import pytest
import torch

from nemo_kernels.rnnt_loss import rnnt_loss
from nemo_kernels.rnnt_loss import rows as rows_module
from nemo_kernels.rnnt_loss.reference import (
    rnnt_gradient_reference,
    rnnt_loss_by_enumeration,
    rnnt_loss_reference,
)

SHAPES = [(1, 1, 0, 2), (2, 1, 3, 5), (2, 6, 0, 7), (3, 7, 4, 11), (4, 9, 6, 29), (2, 13, 3, 130)]  # B, T, U, V


def loss_and_gradient(logits, *arguments, weights=None, **options):
    leaf = logits.detach().clone().requires_grad_()
    losses = rnnt_loss(leaf, *arguments, reduction="none", **options)
    losses.backward(torch.ones_like(losses) if weights is None else weights)
    return losses.detach(), leaf.grad


@pytest.fixture(autouse=True)
def _new_tensors_hold_nan():
    """torch.empty gives NaN, so that a cell which is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that are never deterministic
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_the_textbook_in_float64(draw_batch, shape, inplace):
    batch = draw_batch(*shape)
    losses, gradient = loss_and_gradient(*batch, inplace=inplace)
    torch.testing.assert_close(losses, rnnt_loss_reference(*batch), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, rnnt_gradient_reference(*batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1, 0, 2), (1, 1, 2, 3), (1, 5, 0, 3), (1, 4, 3, 5), (1, 6, 2, 4)])
def test_loss_equals_the_sum_over_all_alignments(draw_batch, shape):
    logits, targets, *lengths = draw_batch(*shape)
    loss = rnnt_loss(logits, targets, *lengths)
    torch.testing.assert_close(loss, rnnt_loss_by_enumeration(logits[0], targets[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("fastemit_lambda", "clamp"), [(0.3, -1.0), (0.0, 0.02), (0.3, 0.02), (0.3, 0.0)])
def test_fastemit_and_clamp_change_the_gradient_before_it_is_scaled(draw_batch, fastemit_lambda, clamp, inplace):
    batch = draw_batch(3, 8, 5, 17)
    rules = {"fastemit_lambda": fastemit_lambda, "clamp": clamp}
    scale = torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    losses, gradient = loss_and_gradient(*batch, weights=scale, inplace=inplace, **rules)
    plain = rnnt_loss_reference(*batch)
    torch.testing.assert_close(losses, (1 + fastemit_lambda) * plain, rtol=1e-10, atol=1e-10)
    expected = rnnt_gradient_reference(*batch, **rules) * scale[:, None, None, None]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("blank", [0, 3, 10, -1, -11])
def test_any_index_may_be_the_blank(draw_batch, blank):
    batch = draw_batch(2, 6, 4, 11, blank=blank)
    losses, gradient = loss_and_gradient(*batch, blank=blank)
    torch.testing.assert_close(losses, rnnt_loss_reference(*batch, blank=blank), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, rnnt_gradient_reference(*batch, blank=blank), rtol=0, atol=1e-10)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
@pytest.mark.parametrize("shape", [(1, 1, 0, 2), (3, 20, 7, 32), (4, 60, 12, 128), (2, 30, 9, 1025)])
def test_loss_and_gradient_equal_torchaudio_in_float32(draw_batch, shape, clamp, inplace):
    torchaudio = pytest.importorskip("torchaudio")
    logits, targets, *lengths = draw_batch(*shape, dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    arguments = (targets.int(), *(x.int() for x in lengths))
    theirs = torchaudio.functional.rnnt_loss(leaf, *arguments, blank=-1, clamp=clamp, reduction="none")
    theirs.sum().backward()
    losses, gradient = loss_and_gradient(logits, *arguments, clamp=clamp, inplace=inplace)
    torch.testing.assert_close(losses, theirs.detach(), rtol=1e-5, atol=1e-5)
    tolerance = 2e-5 * max(1.0, float(losses.max()) / 50)  # torchaudio's own error, from a lattice in float32
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=tolerance)
    _, exact = loss_and_gradient(logits.double(), *arguments, clamp=clamp)
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=tolerance / 10)


def test_reductions_are_torchaudios_and_nvidias(draw_batch):
    torchaudio = pytest.importorskip("torchaudio")
    batch = draw_batch(3, 8, 5, 9, dtype=torch.float32)
    target_len = batch[3]
    losses = rnnt_loss(*batch, reduction="none")
    arguments = [x.int() for x in batch[1:]]
    for reduction in ("mean", "sum"):
        theirs = torchaudio.functional.rnnt_loss(batch[0], *arguments, reduction=reduction)
        torch.testing.assert_close(rnnt_loss(*batch, reduction=reduction), theirs)
    assert rnnt_loss(*batch) == rnnt_loss(*batch, reduction="mean") == rnnt_loss(*batch, reduction="mean_batch")
    torch.testing.assert_close(rnnt_loss(*batch, reduction="mean_volume"), losses.sum() / target_len.sum())
    torch.testing.assert_close(rnnt_loss(*batch, reduction="mean_target"), (losses / target_len).mean())


@pytest.mark.parametrize("inplace", [False, True])
def test_padding_has_no_influence_and_exactly_zero_gradient(draw_batch, inplace):
    logits, targets, logit_len, target_len = draw_batch(4, 9, 6, 29)
    expected = loss_and_gradient(logits, targets, logit_len, target_len)
    padding = torch.arange(9)[:, None] >= logit_len[:, None, None]
    padding = padding | (torch.arange(7) > target_len[:, None, None])
    logits[padding] = float("nan")
    targets[torch.arange(6) >= target_len[:, None]] = -100
    losses, gradient = loss_and_gradient(logits, targets, logit_len, target_len, inplace=inplace)
    torch.testing.assert_close((losses, gradient), expected, rtol=0, atol=1e-12)
    assert (gradient[padding] == 0).all()
    assert padding.any()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_gradient_sums_to_zero_over_the_vocabulary(draw_batch, inplace):
    batch = draw_batch(2, 30, 9, 65, dtype=torch.float32)
    _, gradient = loss_and_gradient(*batch, fastemit_lambda=0.1, inplace=inplace)
    assert gradient.abs().max() > 0.1
    assert gradient.sum(-1).abs().max() < 1e-5


def test_a_kept_graph_can_be_gone_through_twice(draw_batch):
    logits, *arguments = draw_batch(2, 7, 3, 9)
    leaf = logits.clone().requires_grad_()
    loss = rnnt_loss(leaf, *arguments)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)
    assert torch.equal(leaf.detach(), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_in_place_gradient_lies_in_the_logits_storage(draw_batch, dtype):
    logits, *arguments = draw_batch(2, 7, 3, 9, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    made = leaf * 1.0
    made.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))
    addresses = []
    loss = rnnt_loss(made, *arguments, inplace=True)
    loss.backward(retain_graph=True)
    assert addresses == [made.data_ptr()]
    with pytest.raises(RuntimeError, match="backward runs once"):
        loss.backward()


def test_another_who_saved_the_logits_learns_that_they_were_overwritten(draw_batch):
    logits, *arguments = draw_batch(2, 7, 3, 9)
    made = logits.requires_grad_() * 1.0
    other = made.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (rnnt_loss(made, *arguments, inplace=True) + other).backward()


def test_in_place_leaves_the_logits_alone_where_no_gradient_is_wanted(draw_batch):
    logits, *arguments = draw_batch(2, 7, 3, 9)
    before = logits.clone()
    rnnt_loss(logits, *arguments, inplace=True)
    assert torch.equal(logits, before)


def test_blocks_smaller_than_one_frame_give_the_same(draw_batch, monkeypatch):
    batch = draw_batch(3, 9, 6, 29)
    expected = loss_and_gradient(*batch)
    for elements in (1, 29 * 3, 29 * 10):
        monkeypatch.setattr(rows_module, "CACHED_ELEMENTS", elements)
        for inplace in (False, True):
            torch.testing.assert_close(loss_and_gradient(*batch, inplace=inplace), expected, rtol=0, atol=1e-12)


def test_strided_logits_targets_and_lengths_of_any_integer_type_are_taken(draw_batch):
    logits, targets, logit_len, target_len = draw_batch(2, 8, 5, 12)
    expected = loss_and_gradient(logits, targets, logit_len, target_len)
    turned = logits.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    wide = torch.stack([targets, targets], -1).to(torch.int16)[..., 0]
    leaf = turned.detach().requires_grad_()
    assert not leaf.is_contiguous()
    assert not wide.is_contiguous()
    losses = rnnt_loss(leaf, wide, logit_len.int(), target_len.to(torch.uint8), reduction="none", inplace=True)
    losses.sum().backward()
    torch.testing.assert_close((losses.detach(), leaf.grad), expected, rtol=0, atol=1e-12)
    assert torch.equal(leaf.detach(), logits)


@pytest.mark.parametrize("inplace", [False, True])
def test_logits_of_minus_infinity_are_tokens_without_probability(draw_batch, inplace):
    batch = draw_batch(2, 7, 3, 9)
    batch[0][0, 2, 1, 8] = batch[0][1, 1, 0, 4] = -torch.inf  # a blank, and some token
    batch[0][0, 3, 0, batch[1][0, 0]] = -torch.inf  # the target in one frame
    losses, gradient = loss_and_gradient(*batch, inplace=inplace)
    torch.testing.assert_close(losses, rnnt_loss_reference(*batch), rtol=1e-10, atol=1e-10)
    assert gradient.isfinite().all()
    assert gradient[0, 2, 1, 8] == 0
    batch[0].clamp_(min=-100.0)  # as good as never, and autograd can go through it
    torch.testing.assert_close(gradient, rnnt_gradient_reference(*batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("inplace", [False, True])
def test_without_a_possible_alignment_the_loss_is_infinite_and_its_gradient_zero(draw_batch, inplace):
    batch = draw_batch(2, 5, 3, 6)
    for t in range(5):
        for u in range(3):
            batch[0][0, t, u, batch[1][0, u]] = -torch.inf  # no frame can emit any target of the first
    losses, gradient = loss_and_gradient(*batch, inplace=inplace)
    assert losses[0] == torch.inf
    assert losses[1].isfinite()
    assert (gradient[0] == 0).all()
    torch.testing.assert_close(gradient[1], rnnt_gradient_reference(*(x[1:] for x in batch))[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_nan_inside_the_lengths_is_not_hidden(draw_batch, inplace):
    batch = draw_batch(2, 5, 3, 6)
    batch[0][0, 1, 1, 2] = torch.nan
    losses, _ = loss_and_gradient(*batch, inplace=inplace)
    assert losses[0].isnan()
    assert losses[1].isfinite()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_logits_may_be_far_from_zero(draw_batch, offset, inplace):
    logits, *arguments = draw_batch(2, 9, 4, 33)
    expected = loss_and_gradient(logits, *arguments)
    torch.testing.assert_close(
        loss_and_gradient(logits + offset, *arguments, inplace=inplace), expected, rtol=0, atol=1e-7
    )


def test_float32_keeps_its_precision_over_a_long_lattice(draw_batch):
    logits, *arguments = draw_batch(1, 150, 40, 16, dtype=torch.float32)
    exact = loss_and_gradient(logits.double(), *arguments)
    losses, gradient = loss_and_gradient(logits, *arguments)
    assert exact[0] > 300
    torch.testing.assert_close(losses.double(), exact[0], rtol=3e-7, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=0, atol=2e-5 * float(exact[0]) / 100)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32_and_get_a_gradient_of_their_type(draw_batch, dtype, inplace):
    logits, *arguments = draw_batch(2, 9, 4, 33, dtype=dtype)
    losses, gradient = loss_and_gradient(logits, *arguments, inplace=inplace)
    exact, exact_gradient = loss_and_gradient(logits.float(), *arguments)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses, exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(gradient, exact_gradient.to(dtype))


def test_gradcheck_passes(draw_batch):
    logits, *arguments = draw_batch(2, 4, 2, 4)
    assert torch.autograd.gradcheck(lambda x: rnnt_loss(x, *arguments, reduction="none"), logits.requires_grad_())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4, 3)}, r"logits: torch.float32 of shape \(2, 4, 3\)"),
        ({"logits": torch.zeros(2, 4, 3, 5, dtype=torch.int64)}, "logits: torch.int64"),
        ({"logits": torch.zeros(2, 0, 3, 5)}, r"logits: torch.float32 of shape \(2, 0, 3, 5\)"),
        ({"targets": torch.zeros(2, 3, dtype=torch.int64)}, r"targets: shape \(2, 3\) must be \(B, U\) = \(2, 2\)"),
        ({"targets": torch.zeros(2, 2)}, "targets: torch.float32 must be an integer type"),
        ({"targets": torch.full((2, 2), 5)}, "targets: 5 is not a token of a vocabulary of 5"),
        ({"targets": torch.full((2, 2), -1)}, "targets: -1 is not a token"),
        ({"logit_lengths": torch.tensor([4, 0])}, "logit_lengths: 0 must lie between 1 and 4"),
        ({"logit_lengths": torch.tensor([5, 4])}, "logit_lengths: 5 must lie between 1 and 4"),
        ({"logit_lengths": torch.tensor([4])}, r"logit_lengths: shape \(1,\) must be \(B,\) = \(2,\)"),
        ({"target_lengths": torch.tensor([3, 2])}, "target_lengths: 3 must lie between 0 and 2"),
        ({"target_lengths": torch.tensor([-1, 2])}, "target_lengths: -1 must lie between 0 and 2"),
        ({"target_lengths": torch.tensor([1.0, 2.0])}, "target_lengths: torch.float32 must be an integer type"),
        ({"blank": 5}, "blank: 5 is not an index into a vocabulary of 5"),
        ({"blank": -6}, "blank: -6 is not an index"),
        ({"reduction": "max"}, "reduction: 'max' must be one of none, mean, sum"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_the_rule(change, message):
    arguments = {
        "logits": torch.zeros(2, 4, 3, 5),
        "targets": torch.zeros(2, 2, dtype=torch.int64),
        "logit_lengths": torch.tensor([4, 3]),
        "target_lengths": torch.tensor([2, 1]),
    }
    with pytest.raises(ValueError, match=message):
        rnnt_loss(**{**arguments, **change})
