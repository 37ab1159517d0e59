"""rnnt_loss against losses that NVIDIA's nemo_toolkit computed: of three models, and of its numba implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_kernels.rnnt_loss import rnnt_loss, rnnt_loss_fused

GOLDEN = Path(__file__).parent.parent / "golden" / "rnnt_losses"
MODELS = ["conformer_rnnt_char", "fastconformer_rnnt_bpe", "fastconformer_hybrid_streaming_bpe"]


def arrays_of(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(params=MODELS)
def case(request):
    """Arrays of a model, and its joint's inputs projected to the joint's width."""
    arrays = arrays_of(request.param)
    sides = {"enc": arrays["encoded"].mT, "pred": arrays["decoder_out"].mT}
    projected = [
        torch.nn.functional.linear(states, arrays[f"joint.{side}.weight"], arrays[f"joint.{side}.bias"])
        for side, states in sides.items()
    ]
    return arrays, [*projected, arrays["joint.joint_net.2.weight"], arrays["joint.joint_net.2.bias"]]


def batch_of(arrays):
    return arrays["in_targets"], arrays["encoded_length"], arrays["in_target_length"]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean_batch", "mean_volume"])
def test_losses_of_the_golden_models(case, reduction):
    arrays, (encoder, predictor, weight, bias) = case
    logits = torch.nn.functional.linear((encoder[:, :, None] + predictor[:, None]).relu(), weight, bias)
    corner = arrays["joint_logits_corner"]
    torch.testing.assert_close(logits[:, : corner.shape[1], : corner.shape[2]], corner, rtol=1e-4, atol=1e-4)
    found = rnnt_loss(logits, *batch_of(arrays), reduction=reduction)
    expected = arrays[f"rnnt_loss_{reduction}"]
    torch.testing.assert_close(found, expected.view(found.shape), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean_batch", "mean_volume"])
def test_fused_losses_of_the_golden_models(case, reduction):
    arrays, joint = case
    found = rnnt_loss_fused(*joint, *batch_of(arrays), reduction=reduction, max_rows=100)
    expected = arrays[f"rnnt_loss_{reduction}"]
    torch.testing.assert_close(found, expected.view(found.shape), rtol=1e-5, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_losses_and_gradients_of_the_numba_implementation(number, inplace):
    arrays = arrays_of("nemo_toolkit_numba")
    fastemit_lambda, clamp = arrays["rules"][number].tolist()
    leaf = arrays["logits"].clone().requires_grad_()
    batch = (arrays["targets"], arrays["logit_len"], arrays["target_len"])
    options = {"clamp": clamp, "fastemit_lambda": fastemit_lambda, "reduction": "none", "inplace": inplace}
    losses = rnnt_loss(leaf, *batch, **options)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), arrays[f"losses_{number}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(leaf.grad, arrays[f"gradient_{number}"], rtol=0, atol=1e-5)
    if clamp > 0:
        assert leaf.grad.abs().max() == pytest.approx(clamp)


def test_the_stored_rules_are_the_three_that_are_promised():
    assert arrays_of("nemo_toolkit_numba")["rules"].tolist() == [[0.0, -1.0], [0.3, -1.0], [0.3, 0.05]]
