"""What a transducer's training step does beside its loss: gradients changed as the config says, the fused joint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nemo_asr.losses.rnnt import RNNTLoss
from nemo_asr.models.gradients import GradientOptions
from nemo_asr.modules import HATJoint, RNNTJoint


@pytest.fixture
def model():
    """Three children whose gradients are all 3."""
    model = nn.ModuleDict({name: nn.Linear(4, 5) for name in ("encoder", "decoder", "joint")})
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    return model


def test_without_options_gradients_stay(model):
    GradientOptions.of({}).apply(model, 10, (7, 5))
    assert all((parameter.grad == 3).all() for parameter in model.parameters())


def test_noise_comes_to_the_prediction_network_from_its_first_step_on(model):
    options = GradientOptions.of({"variational_noise": {"std": 0.5, "start_step": 10}})
    options.apply(model, 9, (7, 5))
    assert (model["decoder"].weight.grad == 3).all()
    torch.manual_seed(0)
    options.apply(model, 10, (7, 5))
    torch.manual_seed(0)
    expected = 3 + 0.5 * torch.randn(5, 4)
    torch.testing.assert_close(model["decoder"].weight.grad, expected)
    assert (model["encoder"].weight.grad == 3).all() and (model["joint"].weight.grad == 3).all()


def test_lengths_divide_the_gradients_of_encoder_and_prediction_network(model):
    GradientOptions.of({"normalize_joint_txu": True}).apply(model, 0, (7, 5))
    means = [float(model[name].weight.grad.mean()) for name in ("encoder", "decoder", "joint")]
    assert means == pytest.approx([3 / 5, 3 / 7, 3])


def test_a_child_named_by_its_key_gets_gradients_of_norm_one(model):
    GradientOptions.of({"normalize_joint_norm": True}).apply(model, 0, (7, 5))
    assert all(float(parameter.grad.norm()) == pytest.approx(1) for parameter in model["joint"].parameters())
    assert (model["encoder"].weight.grad == 3).all()


@pytest.mark.parametrize("kind", [RNNTJoint, HATJoint])
@pytest.mark.parametrize("scores_to_hold", [0, 1 << 30])
def test_a_fused_joint_gives_the_loss_and_the_gradients_of_its_scores(kind, scores_to_hold, monkeypatch):
    torch.manual_seed(0)
    sizes = {"encoder_hidden": 6, "pred_hidden": 5, "joint_hidden": 8, "activation": "tanh"}
    joint = kind(sizes, 7, fuse_loss_wer=True, fused_batch_size=2)
    loss = RNNTLoss(7)
    joint.set_loss(loss)
    lengths = (torch.randint(0, 7, (3, 4)), torch.tensor([9, 6, 8]), torch.tensor([4, 2, 0]))
    encoded, predicted = torch.randn(3, 6, 9), torch.randn(3, 5, 5)
    monkeypatch.setattr(RNNTLoss.of_joint, "__defaults__", (scores_to_hold,))
    fused, wer, *_ = joint(encoded, predicted, lengths[1], lengths[0], lengths[2])
    assert wer is None
    found = torch.autograd.grad(fused, tuple(joint.parameters()))
    joint.fuse_loss_wer = False
    plain = loss(joint(encoded, predicted), *lengths)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for ours, expected in zip(found, torch.autograd.grad(plain, tuple(joint.parameters())), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
