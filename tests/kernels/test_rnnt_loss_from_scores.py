"""The lattice alone: losses and occupancies from the scores of its moves."""

from __future__ import annotations

import pytest
import torch

from nemo_kernels.lattice import on_diagonals
from nemo_kernels.rnnt_loss import rnnt_loss, rnnt_loss_from_scores, rnnt_occupancies


@pytest.fixture
def draw_scores(draw_batch):
    """Draws lp_blank and lp_label (B, T, U + 1) of a softmax, and ragged lengths, with the batch they come from."""

    def draw(B, T, U, V=7, **options):
        logits, targets, *lengths = draw_batch(B, T, U, V, **options)
        log_p = logits.log_softmax(-1)
        columns = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None].expand(B, T, U + 1, 1)
        return (log_p[..., -1], log_p.gather(-1, columns)[..., 0], *lengths), (logits, targets, *lengths)

    return draw


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "mean_batch", "mean_volume", "mean_target"])
def test_loss_equals_that_of_the_logits(draw_scores, reduction):
    scores, batch = draw_scores(3, 8, 5)
    expected = rnnt_loss(*batch, fastemit_lambda=0.2, reduction=reduction)
    found = rnnt_loss_from_scores(*scores, fastemit_lambda=0.2, reduction=reduction)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 0), (2, 1, 2), (2, 4, 0), (2, 4, 3)])
def test_gradcheck_passes(draw_scores, shape):
    (lp_blank, lp_label, *lengths), _ = draw_scores(*shape)
    planes = (lp_blank.clone().requires_grad_(), lp_label.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: rnnt_loss_from_scores(*x, *lengths, reduction="none"), planes)


def test_fastemit_weighs_the_labels_gradient_alone(draw_scores):
    (lp_blank, lp_label, *lengths), _ = draw_scores(2, 6, 3)
    gradients = []
    for fastemit_lambda in (0.0, 0.5):
        planes = (lp_blank.clone().requires_grad_(), lp_label.clone().requires_grad_())
        loss = rnnt_loss_from_scores(*planes, *lengths, fastemit_lambda=fastemit_lambda)
        gradients.append(torch.autograd.grad(loss, planes))
    torch.testing.assert_close(gradients[1], (gradients[0][0], 1.5 * gradients[0][1]))


def test_occupancies_are_probabilities_of_an_alignment(draw_scores):
    scores, _ = draw_scores(3, 9, 5)
    of_blank, of_label = rnnt_occupancies(*scores)
    for b, (frames, steps) in enumerate(zip(scores[2].tolist(), scores[3].tolist(), strict=True)):
        torch.testing.assert_close(of_label[b].sum(0)[:steps], torch.ones(steps).double())  # each label once
        torch.testing.assert_close(of_blank[b].sum(1)[:frames], torch.ones(frames).double())  # each frame once
        assert (of_blank[b, frames:] == 0).all()
        assert (of_label[b, frames:] == 0).all()
        assert (of_label[b, :, steps:] == 0).all()
        assert (of_blank[b, :, steps + 1 :] == 0).all()
    assert (scores[2] < 9).any()
    assert (scores[3] < 5).any()


def test_occupancies_find_the_only_alignment():
    """Labels in frames 1, 1 and 3 of 4: every other move is impossible."""
    impossible = -torch.inf
    lp_blank, lp_label = torch.full((1, 4, 4), impossible), torch.full((1, 4, 4), impossible)
    for t, u in ((0, 0), (1, 2), (2, 2), (3, 3)):
        lp_blank[0, t, u] = -0.5
    for t, u in ((1, 0), (1, 1), (3, 2)):
        lp_label[0, t, u] = -0.25
    lengths = (torch.tensor([4]), torch.tensor([3]))
    _, of_label = rnnt_occupancies(lp_blank, lp_label, *lengths)
    assert of_label[0].argmax(0)[:3].tolist() == [1, 1, 3]
    assert of_label.sum() == 3
    assert rnnt_loss_from_scores(lp_blank, lp_label, *lengths) == 4 * 0.5 + 3 * 0.25


def test_scores_in_half_precision_and_strided_are_taken(draw_scores):
    (lp_blank, lp_label, *lengths), _ = draw_scores(2, 6, 3)
    planes = [x.bfloat16().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (lp_blank, lp_label)]
    loss = rnnt_loss_from_scores(*planes, *lengths)
    loss.backward()
    exact = rnnt_loss_from_scores(*(x.detach().float() for x in planes), *lengths)
    assert loss.dtype == torch.float32
    assert torch.equal(loss.detach(), exact)
    assert planes[0].grad.dtype == torch.bfloat16


def test_a_diagonal_of_the_lattice_is_a_row_of_the_skewed_form():
    plane = torch.arange(24.0).view(2, 3, 4)
    skewed = torch.full((6, 2, 4), -1.0)
    on_diagonals(skewed, 3).copy_(plane)
    for d in range(6):
        for u in range(4):
            inside = 0 <= d - u < 3
            assert skewed[d, :, u].tolist() == (plane[:, d - u, u].tolist() if inside else [-1.0, -1.0])
    assert torch.equal(on_diagonals(skewed, 3), plane)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 4)}, r"lp_blank: torch.float32 of shape \(2, 4\) must be floating \(B, T, U \+ 1\)"),
        ({1: torch.zeros(2, 4, 2)}, r"lp_label: torch.float32 \(2, 4, 2\) must be as lp_blank"),
        ({1: torch.zeros(2, 4, 3).double()}, "lp_label: torch.float64"),
        ({2: torch.tensor([5, 1])}, "logit_lengths: 5 must lie between 1 and 4"),
        ({3: torch.tensor([3, 1])}, "target_lengths: 3 must lie between 0 and 2"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    arguments = [torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.tensor([4, 3]), torch.tensor([2, 0])]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=message):
        rnnt_loss_from_scores(*arguments)
    with pytest.raises(ValueError, match=message):
        rnnt_occupancies(*arguments)
