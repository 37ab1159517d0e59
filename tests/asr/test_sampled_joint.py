"""The joint trained on a sample of the vocabulary: NVIDIA's stored step, the reduced and the whole loss, a model."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr.losses.rnnt import RNNTLoss
from nemo_asr.models import ASRModel, EncDecRNNTModel
from nemo_asr.modules import RNNTJoint, SampledRNNTJoint
from nemo_asr.modules.sampled_joint import sample_labels
from nemo_config import ConfigError

STORED = Path(__file__).parents[1] / "golden" / "transducer_modules"
SIZES = {"encoder_hidden": 7, "pred_hidden": 6, "joint_hidden": 9, "activation": "relu", "dropout": 0.0}
V = 11
HELD, TILED = 1 << 30, 0


def sampled(n_samples, **options):
    torch.manual_seed(0)
    joint = SampledRNNTJoint(SIZES, V, n_samples, **options)
    joint.set_loss(RNNTLoss(V))
    return joint


@pytest.fixture
def batch():
    """Encoder and prediction outputs, frames, targets with padding that is no token, and their lengths."""
    torch.manual_seed(1)
    targets = torch.tensor([[3, 1, 7, 2], [9, 3, -1, 99], [0, 2, 9, 0]])
    return {
        "encoded": torch.randn(3, 7, 9),
        "predicted": torch.randn(3, 6, 5),
        "targets": targets,
        "encoded_len": torch.tensor([9, 6, 8]),
        "target_len": torch.tensor([4, 2, 3]),
    }


def loss_of(joint, batch, scores_to_hold=HELD):
    return joint.loss.of_joint(joint, *batch.values(), scores_to_hold=scores_to_hold)


def gradients(loss, joint):
    return dict(zip(joint.state_dict(), torch.autograd.grad(loss, tuple(joint.parameters())), strict=True))


@pytest.mark.parametrize("case", ["sampled_joint", "sampled_joint_all"])
@pytest.mark.parametrize("scores_to_hold", [HELD, TILED])
def test_loss_and_gradients_of_a_step_are_those_of_nvidias_toolkit(case, scores_to_hold, monkeypatch):
    with np.load(STORED / f"{case}.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in file.files if key != "options"}
        options = json.loads(str(file["options"]))
    joint = SampledRNNTJoint(num_classes=V, **options, fuse_loss_wer=True, fused_batch_size=3)
    joint.load_state_dict({name: stored[f"state.{name}"] for name in joint.state_dict()})
    joint.set_loss(RNNTLoss(V))
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: stored["order"])
    monkeypatch.setattr(RNNTLoss.of_joint, "__defaults__", (scores_to_hold,))
    lengths = (stored["encoded_len"], stored["targets"], stored["target_len"])
    loss, *_ = joint.train()(stored["encoded"], stored["predicted"], *lengths)
    torch.testing.assert_close(loss, stored["loss"].reshape(()), atol=1e-5, rtol=1e-6)
    for name, gradient in gradients(loss, joint).items():
        torch.testing.assert_close(gradient, stored[f"gradient.{name}"], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("scores_to_hold", [HELD, TILED])
def test_a_sampled_step_is_a_step_of_the_joint_cut_down_to_the_sample(batch, scores_to_hold, monkeypatch):
    drawn = [5, 9, 10]
    kept = torch.tensor([0, 1, 2, 3, 5, 7, 9, 10, V])
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.tensor([*drawn, 0, 1, 2, 3, 4, 6, 7, 8]))
    joint = sampled(3).train()
    small = RNNTJoint(SIZES, len(kept) - 1)
    weights = joint.state_dict()
    cut = {name: value[kept] if name.startswith("joint_net") else value for name, value in weights.items()}
    small.load_state_dict(cut)
    small.set_loss(RNNTLoss(len(kept) - 1))
    place = {int(label): index for index, label in enumerate(kept)}
    targets = batch["targets"].clone().apply_(lambda token: place.get(token, 0))
    loss, expected = loss_of(joint, batch, scores_to_hold), loss_of(small, {**batch, "targets": targets})
    torch.testing.assert_close(loss, expected)
    found, wanted = gradients(loss, joint), gradients(expected, small)
    for name, gradient in found.items():
        if name.startswith("joint_net"):
            left_out = [label for label in range(V + 1) if label not in place]
            assert left_out == [4, 6, 8] and not gradient[left_out].any()
            gradient = gradient[kept]
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scores_to_hold", [HELD, TILED])
def test_a_sample_of_the_whole_vocabulary_gives_the_whole_loss(batch, scores_to_hold):
    joint, almost = sampled(V).train(), sampled(V - 1).train()
    whole = RNNTJoint(SIZES, V)
    whole.load_state_dict(joint.state_dict())
    whole.set_loss(RNNTLoss(V))
    expected = loss_of(whole, batch)
    torch.testing.assert_close(loss_of(joint, batch, scores_to_hold), expected)
    with pytest.MonkeyPatch.context() as patch:  # all tokens are drawn or targets
        patch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n).flip(0))
        torch.testing.assert_close(loss_of(almost, batch, scores_to_hold), expected)


def test_outside_training_the_loss_is_over_all_tokens(batch):
    joint = sampled(1)
    expected = loss_of(joint.eval(), batch)
    joint.train()
    assert loss_of(joint, batch) < expected - 0.1  # fewer labels share the probability
    with torch.no_grad():
        torch.testing.assert_close(loss_of(joint, batch), expected.detach())


def test_a_sample_holds_the_targets_blank_and_what_was_drawn_evenly():
    targets, lengths = torch.tensor([[4, 4, -1], [6, 77, 77]]), torch.tensor([2, 1])
    torch.manual_seed(0)
    counts = torch.zeros(21)
    for _ in range(2000):
        labels, places = sample_labels(targets, lengths, 20, 5)
        assert labels.tolist() == sorted(set(labels.tolist()))
        assert labels[places].tolist() == [[4, 4, 20], [6, 20, 20]]
        assert 6 <= len(labels) <= 8
        counts[labels] += 1
    assert counts[[4, 6, 20]].tolist() == [2000] * 3
    others = [label for label in range(20) if label not in (4, 6)]
    assert counts[others] == pytest.approx(2000 * 5 / 20, abs=80)  # four standard deviations


def test_the_loss_must_be_an_rnnt_loss():
    loss = RNNTLoss(V, loss_name="tdt", loss_kwargs={"durations": [0, 1]})
    for change in (SampledRNNTJoint.set_loss, partial(SampledRNNTJoint.set_fuse_loss_wer, fuse_loss_wer=True)):
        with pytest.raises(ValueError, match=r"loss\.loss_name: a SampledRNNTJoint needs an RNNT loss, .* is of tdt"):
            change(sampled(3), loss=loss)


def test_a_negative_number_of_samples_is_named():
    with pytest.raises(ValueError, match="n_samples: -1 must be 0 or above"):
        sampled(-1)


@pytest.fixture
def config(golden):
    """NVIDIA's stored config of a transducer on characters, its joint sampled."""
    config = copy.deepcopy(golden("conformer_rnnt_char").config)
    config["compute_eval_loss"] = True
    config["joint"] |= {"_target_": "nemo.collections.asr.modules.SampledRNNTJoint", "n_samples": 2}
    return config


def test_a_model_with_a_sampled_joint_trains_is_saved_and_restored(golden, config, tmp_path):
    case = golden("conformer_rnnt_char")
    model = EncDecRNNTModel(cfg=config)
    model.load_state_dict(case.state_dict)
    io = case.io
    names = ("in_audio", "in_audio_length", "in_targets", "in_target_length")
    batch = [io[name] for name in names]
    loss = model.train().training_step(batch, 0)
    loss.backward()
    learnt = model.joint.joint_net[-1].weight.grad.abs().sum(1) > 0
    assert learnt[-1] and learnt[torch.unique(io["in_targets"][0, : io["in_target_length"][0]])].all()
    assert not learnt.all()
    with torch.no_grad():
        whole = model.eval().validation_pass(batch)["val_loss"]
        model.save_to(str(tmp_path / "sampled.nemo"))
        restored = ASRModel.restore_from(str(tmp_path / "sampled.nemo"))
        assert isinstance(restored.joint, SampledRNNTJoint) and restored.joint.n_samples == 2
        assert restored.cfg.joint["_target_"] == "nemo.collections.asr.modules.SampledRNNTJoint"
        torch.testing.assert_close(restored.eval().validation_pass(batch)["val_loss"], whole)


def test_a_config_without_n_samples_is_told_so(config):
    del config["joint"]["n_samples"]
    with pytest.raises(ConfigError, match=r"model\.joint\.n_samples"):
        EncDecRNNTModel(cfg=config)
