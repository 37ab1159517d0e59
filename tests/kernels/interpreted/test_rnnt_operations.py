"""The public RNN-T losses with Triton's kernels underneath, against the same functions with torch's operations."""

from __future__ import annotations

import pytest
import torch

from nemo_kernels.dispatch import VARIABLE
from nemo_kernels.rnnt_loss import rnnt_loss, rnnt_loss_from_scores, rnnt_loss_fused, rnnt_occupancies

B, T, U, V, D = 2, 4, 2, 11, 6
LENGTHS = (torch.tensor([4, 3]), torch.tensor([2, 1]))
TARGETS = torch.tensor([[1, 9], [4, -1]])


@pytest.fixture
def both(monkeypatch):
    """Calls a function with the kernels and without, and gives value and gradients by its inputs of each."""

    def call(function, *inputs):
        results = []
        for backend in ("interpret", "torch"):
            monkeypatch.setenv(VARIABLE, backend)
            torch.manual_seed(0)
            leaves = [x.detach().clone().requires_grad_() for x in inputs]
            value = function(*leaves)
            (value * torch.arange(1.0, value.numel() + 1)).sum().backward()
            results.append((value.detach(), [x.grad for x in leaves]))
        return results

    return call


def logits():
    return 2 * torch.randn(B, T, U + 1, V, generator=torch.Generator().manual_seed(0))


def joint():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((B, T, D), (B, U + 1, D), (V, D), (V,))]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("fastemit_lambda", "clamp"), [(0.0, -1.0), (0.3, 0.05)])
def test_rnnt_loss(both, fastemit_lambda, clamp, inplace):
    options = {"clamp": clamp, "fastemit_lambda": fastemit_lambda, "reduction": "none", "inplace": inplace}
    kernels, plain = both(lambda x: rnnt_loss(x * 1.0, TARGETS, *LENGTHS, **options), logits())
    torch.testing.assert_close(kernels, plain, rtol=1e-5, atol=1e-5)


def test_rnnt_loss_of_strided_logits(both):
    kernels, plain = both(lambda x: rnnt_loss(x.transpose(0, 1), TARGETS, *LENGTHS), logits().transpose(0, 1))
    torch.testing.assert_close(kernels, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("activation", "max_rows"), [("relu", 3), ("tanh", 13), ("sigmoid", None)])
def test_rnnt_loss_fused_in_tiles_coprime_to_the_lattice(both, activation, max_rows):
    options = {"activation": activation, "reduction": "none", "max_rows": max_rows}
    kernels, plain = both(lambda *x: rnnt_loss_fused(*x, TARGETS, *LENGTHS, **options), *joint())
    torch.testing.assert_close(kernels, plain, rtol=1e-5, atol=1e-5)


def test_rnnt_loss_fused_without_bias_and_with_the_gradients_rules(both):
    options = {"clamp": 0.05, "fastemit_lambda": 0.3, "blank": 0}
    kernels, plain = both(lambda *x: rnnt_loss_fused(*x, None, TARGETS, *LENGTHS, **options), *joint()[:3])
    torch.testing.assert_close(kernels, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "with_bias"), [(torch.float16, True), (torch.bfloat16, False)])
def test_rnnt_loss_fused_of_halves_without_a_gradient(monkeypatch, dtype, with_bias):
    inputs = [x.to(dtype) for x in joint()]
    inputs[3] = inputs[3] if with_bias else None
    losses = []
    for backend in ("interpret", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        losses.append(rnnt_loss_fused(*inputs, TARGETS, *LENGTHS, activation="tanh"))
    torch.testing.assert_close(*losses, rtol=2e-3 if dtype == torch.float16 else 2e-2, atol=0)


def test_dropout_of_the_fused_loss_does_not_depend_on_the_tiles(monkeypatch):
    monkeypatch.setenv(VARIABLE, "interpret")
    results = []
    for max_rows in (None, 13):
        torch.manual_seed(0)
        leaves = [x.requires_grad_() for x in joint()]
        loss = rnnt_loss_fused(*leaves, TARGETS, *LENGTHS, dropout_p=0.4, max_rows=max_rows)
        results.append((loss.detach(), torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    monkeypatch.setenv(VARIABLE, "torch")
    assert rnnt_loss_fused(*joint(), TARGETS, *LENGTHS) != results[0][0]


def test_rnnt_loss_from_scores_and_occupancies(both, monkeypatch):
    planes = logits().log_softmax(-1)[..., 0], logits().log_softmax(-1)[..., 1]
    kernels, plain = both(lambda *x: rnnt_loss_from_scores(*x, *LENGTHS, fastemit_lambda=0.2), *planes)
    torch.testing.assert_close(kernels, plain, rtol=1e-5, atol=1e-5)
    occupancies = []
    for backend in ("interpret", "torch"):
        monkeypatch.setenv(VARIABLE, backend)
        occupancies.append(rnnt_occupancies(*planes, *LENGTHS))
    torch.testing.assert_close(*occupancies, rtol=1e-5, atol=1e-6)


def test_float64_keeps_its_precision_by_staying_with_torch(both):
    kernels, plain = both(lambda x: rnnt_loss(x, TARGETS, *LENGTHS, reduction="none"), logits().double())
    torch.testing.assert_close(kernels, plain, rtol=0, atol=0)
