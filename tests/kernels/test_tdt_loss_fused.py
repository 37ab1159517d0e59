"""tdt_loss_fused against torch's own joint followed by tdt_loss, and the memory that it may not take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_kernels.tdt_loss import fused as implementation
from nemo_kernels.tdt_loss import tdt_loss, tdt_loss_fused

GOLDEN = Path(__file__).parents[1] / "golden" / "tdt_losses"
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
DURATIONS = (0, 1, 2, 4)


def draw(B, T, U, V, H, *, dtype=torch.float64, seed=0):
    """Four leaves, then targets and ragged lengths, the first whole."""
    random = torch.Generator().manual_seed(seed)
    width = V + len(DURATIONS)
    leaves = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((B, T, H), (B, U + 1, H))]
    leaves += [torch.randn(width, H, generator=random, dtype=torch.float64) / H**0.5]
    leaves += [torch.randn(width, generator=random, dtype=torch.float64)]
    targets = torch.randint(V - 1, (B, U), generator=random)
    logit_len = torch.randint((T + 1) // 2, T + 1, (B,), generator=random)
    target_len = torch.randint(U // 2, U + 1, (B,), generator=random)
    logit_len[0], target_len[0] = T, U
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], targets, logit_len, target_len


def by_torch(leaves, activation, *arguments, **options):
    encoder, predictor, weight, bias = leaves
    hidden = ACTIVATIONS[activation](encoder[:, :, None] + predictor[:, None])
    return tdt_loss(torch.nn.functional.linear(hidden, weight, bias), *arguments, **options)


def copies(leaves):
    return [leaf.detach().clone().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 0, 2, 3), (3, 7, 4, 9, 6), (2, 11, 5, 13, 8)])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_the_loss_and_all_four_gradients_equal_those_of_torchs_joint(activation, shape, max_rows):
    leaves, *arguments = draw(*shape)
    others = copies(leaves)
    rule = {"sigma": 0.05, "fastemit_lambda": 0.2, "clamp": 0.1, "reduction": "none"}
    found = tdt_loss_fused(*leaves, *arguments, DURATIONS, activation=activation, max_rows=max_rows, **rule)
    expected = by_torch(others, activation, *arguments, DURATIONS, **rule)
    weights = torch.linspace(-1, 2, shape[0], dtype=torch.float64)
    found.backward(weights)
    expected.backward(weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-10)


def test_without_a_bias_and_with_omega():
    leaves, *arguments = draw(2, 5, 3, 7, 4)
    leaves[3] = None
    others = [None if leaf is None else leaf.detach().clone().requires_grad_() for leaf in leaves]
    found = tdt_loss_fused(*leaves, *arguments, DURATIONS, omega=1.0)
    expected = by_torch(others, "relu", *arguments, DURATIONS, omega=1.0)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for leaf, other in zip(leaves[:3], others[:3], strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)


def test_the_losses_of_an_nvidia_model_are_the_stored_ones():
    with np.load(GOLDEN / "fastconformer_hybrid_tdt_ctc_bpe.npz") as arrays:
        a = {name: torch.from_numpy(arrays[name]) for name in arrays}
    inputs = [a[name] for name in "encoder_out predictor_out weight bias targets logit_len target_len".split()]
    for sigma in (0.0, 0.02):
        losses = tdt_loss_fused(*inputs, (0, 1, 2, 3, 4), sigma=sigma, reduction="none")
        torch.testing.assert_close(losses, a[f"losses_sigma{sigma:g}"], rtol=1e-5, atol=0)


def test_dropout_is_the_same_in_tiles_of_any_size_and_its_gradient_is_exact():
    leaves, *arguments = draw(2, 6, 3, 5, 8)

    def loss(*inputs, max_rows=None):
        torch.manual_seed(4)
        return tdt_loss_fused(*inputs, *arguments, DURATIONS, activation="tanh", dropout_p=0.4, max_rows=max_rows)

    assert loss(*leaves) != tdt_loss_fused(*leaves, *arguments, DURATIONS, activation="tanh")
    torch.testing.assert_close(loss(*leaves, max_rows=4), loss(*leaves))
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_halves_under_autocast_follow_float32():
    leaves, *arguments = draw(2, 9, 4, 11, 16, dtype=torch.float32)
    others = copies(leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tdt_loss_fused(*leaves, *arguments, DURATIONS)
    expected = by_torch(others, "relu", *arguments, DURATIONS)
    assert found.dtype == torch.float32
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    for leaf, other in zip(leaves, others, strict=True):
        assert leaf.grad.dtype == torch.float32
        torch.testing.assert_close(leaf.grad, other.grad, rtol=0, atol=2e-2 * float(other.grad.abs().max()))


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_nothing_of_a_quarter_of_the_logits_is_ever_made():
    B, T, U, V, H = 4, 60, 20, 200, 8
    leaves, *arguments = draw(B, T, U, V, H, dtype=torch.float32)
    logits = B * T * (U + 1) * (V + len(DURATIONS))
    with _Largest() as largest:
        joint = implementation.joint_tiles.Joint(*(leaf.detach() for leaf in leaves), "relu", 0.0, 0)
        lattices = implementation.Lattices(*arguments, V - 1)
        options = implementation.Options(DURATIONS, V - 1, 0.0, 0.0, False)
        solved = implementation.joint_tiles.forward(joint, lattices, options, None)
        wanted = implementation.joint_tiles.Wanted(torch.ones(B), -1.0, 0.0)
        implementation.joint_tiles.gradients(joint, lattices, solved, wanted, None)
    assert 0 < largest.elements < logits / 4
    with _Largest() as largest:
        by_torch(leaves, "relu", *arguments, DURATIONS).backward()
    assert largest.elements == logits


def test_opcheck():
    leaves, targets, *lengths = draw(2, 4, 2, 4, 3, dtype=torch.float32)
    rest = [targets, *lengths, torch.zeros((), dtype=torch.int64)]
    options = [3, -1.0, 0.1]
    arguments = (*leaves, *rest, None, list(DURATIONS), *options, 0.05, "relu", 0.0, None)
    torch.library.opcheck(implementation._joint_loss, arguments)
    inputs = [leaf.detach() for leaf in leaves]
    solved = implementation._joint_loss(*inputs, *arguments[4:])[1:]
    torch.library.opcheck(
        implementation._joint_gradients, (torch.ones(2), *inputs, *rest, *solved, *options, "relu", 0.0, None)
    )


def test_it_compiles_as_one_graph():
    leaves, *arguments = draw(2, 5, 3, 6, 4, dtype=torch.float32)
    others = copies(leaves)

    def step(inputs):
        return tdt_loss_fused(*inputs, *arguments, DURATIONS, sigma=0.05)

    expected = step(leaves)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(others)
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected)
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(other.grad, leaf.grad)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, torch.zeros(4, 4), r"weight: shape \(4, 4\) has no rows for tokens beside 4 durations"),
        (1, torch.zeros(2, 4, 5), "predictor_out: shape"),
        (4, torch.full((2, 3), 9), "targets: 9 is not a token of a vocabulary of 6"),
        (7, (0, 1, 0), r"durations: \[0, 1, 0\] must be distinct"),
    ],
)
def test_a_wrong_argument_is_named(place, value, message):
    leaves, *rest = draw(2, 5, 3, 6, 4, dtype=torch.float32)
    arguments = [*leaves, *rest, DURATIONS]
    arguments[place] = value
    if place == 2:
        arguments[3] = None
    with pytest.raises(ValueError, match=message):
        tdt_loss_fused(*arguments)
