"""The RNNT kernels against the CPU's operations and the reference, in float64.

B batch, T frames, W target positions, V vocabulary
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_kernels.rnnt_loss import rnnt_loss
from nemo_kernels.rnnt_loss import triton as kernels
from nemo_kernels.rnnt_loss.forward_backward import forward_backward
from nemo_kernels.rnnt_loss.reference import rnnt_gradient_reference
from nemo_kernels.rnnt_loss.triton import wavefront
from nemo_kernels.rnnt_loss.triton.builds import Form

SHAPES = [
    (1, 1, 1, 2),  # one cell
    (3, 5, 1, 17),  # no labels at all
    (2, 1, 6, 33),  # one frame
    (2, 7, 5, 29),
    (3, 7, 11, 67),
    (2, 5, 19, 5),  # more labels than frames
    (3, 4, 4, 1031),  # the vocabulary takes two tiles
    (1, 11, 3, 256),
    (5, 3, 7, 101),
]
HALF = 2**-7


def a_batch(B: int, T: int, W: int, V: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Logits with NaN outside the ragged lattices, targets with nonsense after their ends, lengths, blank."""
    random = torch.Generator().manual_seed(B + T + W + V)
    logits = torch.randn(B, T, W, V, generator=random) * 3
    blank = (V - 1) * (T % 2)
    targets = torch.randint(1, V, (B, W - 1), generator=random) - int(blank > 0)
    logit_len = torch.randint(1, T + 1, (B,), generator=random)
    target_len = torch.randint(0, W, (B,), generator=random)
    logit_len[0], target_len[-1] = T, W - 1
    logits[~cells_of(logits, logit_len, target_len)] = float("nan")
    targets[torch.arange(W - 1) >= target_len[:, None]] = -7
    return logits, targets, logit_len, target_len, blank


def cells_of(planes: Tensor, logit_len: Tensor, target_len: Tensor) -> Tensor:
    """Which cells (B, T, W) are inside the lattices."""
    T, W = planes.shape[1:3]
    return (torch.arange(T)[:, None] < logit_len[:, None, None]) & (torch.arange(W) <= target_len[:, None, None])


def expected_scores(logits: Tensor, targets: Tensor, target_len: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """lse, lp_blank, lp_label by torch's log-softmax; anything outside the lattices."""
    logits = logits.double()
    lse = logits.logsumexp(-1)
    column = torch.nn.functional.pad(targets, (0, 1)).masked_fill(torch.arange(lse.shape[2]) >= target_len[:, None], 0)
    labels = logits.gather(-1, column[:, None, :, None].expand(*lse.shape, 1))[..., 0]
    return lse, logits[..., blank] - lse, labels - lse


def assert_equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores(shape, dtype):
    logits, targets, logit_len, target_len, blank = a_batch(*shape)
    logits = logits.to(dtype)
    lse, lp_blank, lp_label = kernels.scores(logits, targets, logit_len, target_len, blank)
    expected = expected_scores(logits, targets, target_len, blank)
    inside = cells_of(lse, logit_len, target_len)
    labelled = inside & (torch.arange(shape[2]) < target_len[:, None, None])
    for plane, wanted, where in zip((lse, lp_blank, lp_label), expected, (inside, inside, labelled), strict=True):
        assert_equal(plane[where], wanted[where], 1e-5)
        assert (plane[~where] == 0).all()


@pytest.mark.parametrize(("shape", "lanes"), [*((s, None) for s in SHAPES), (SHAPES[3], 2), (SHAPES[5], 4)])
def test_lattice(shape, lanes, monkeypatch):
    if lanes:
        monkeypatch.setattr(wavefront, "wavefront_form", lambda _: Form({"LANES": lanes}))
    logits, targets, logit_len, target_len, blank = a_batch(*shape)
    _, lp_blank, lp_label = expected_scores(logits, targets, target_len, blank)
    found = kernels.lattice(lp_blank.float(), lp_label.float(), logit_len, target_len)
    for plane, wanted in zip(found, forward_backward(lp_blank, lp_label, logit_len, target_len), strict=True):
        assert_equal(plane, wanted, 1e-5)


def test_occupancies_are_as_exact_where_the_loss_is_thousands():
    lp_blank, lp_label = -torch.rand(2, 1, 30, 9, generator=torch.Generator().manual_seed(1)).mul(160)
    lengths = torch.tensor([30]), torch.tensor([8])
    loss, *occupancies = kernels.lattice(lp_blank, lp_label, *lengths)
    assert loss > 1000
    for plane, wanted in zip(
        occupancies, forward_backward(lp_blank.double(), lp_label.double(), *lengths)[1:], strict=True
    ):
        assert_equal(plane, wanted, 2e-6)


def test_an_impossible_utterance_has_an_infinite_loss_and_no_gradient():
    logits, targets, logit_len, target_len, blank = a_batch(2, 4, 3, 9)
    logit_len[:], target_len[:] = 4, 2
    logits, targets = torch.randn(2, 4, 3, 9), torch.tensor([[1, 2], [3, 4]])
    logits[0, ..., 2] = float("-inf")
    lse, lp_blank, lp_label = kernels.scores(logits, targets, logit_len, target_len, blank)
    loss, *occupancies = kernels.lattice(lp_blank, lp_label, logit_len, target_len)
    assert loss.isinf().tolist() == [True, False]
    arguments = (lse, *occupancies, targets, logit_len, target_len, torch.ones(2), blank, -1.0, 0.0)
    gradient = kernels.gradient(logits, *arguments, torch.empty_like(logits))
    assert (gradient[0] == 0).all()
    assert gradient[1].isfinite().all()
    assert gradient[1].abs().sum() > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "emphasis", "clamp", "tolerance"),
    [(torch.float32, 0.0, -1.0, 1e-5), (torch.float32, 0.3, 0.05, 1e-5), (torch.bfloat16, 0.3, -1.0, HALF)],
)
def test_gradient_in_place_too(shape, dtype, emphasis, clamp, tolerance):
    logits, targets, logit_len, target_len, blank = a_batch(*shape)
    logits = logits.to(dtype)
    lengths = (logit_len, target_len)
    inside = cells_of(logits[..., 0], *lengths)[..., None]
    factors = torch.linspace(0.5, -2, shape[0])
    expected = rnnt_gradient_reference(logits.nan_to_num(), targets, *lengths, blank, clamp, emphasis)
    expected *= factors[:, None, None, None]

    lse, lp_blank, lp_label = expected_scores(logits.nan_to_num(), targets, target_len, blank)
    occupancies = [plane.float() for plane in forward_backward(lp_blank, lp_label, *lengths)[1:]]
    lse = lse.float()
    rest = (targets, *lengths, factors, blank, clamp, emphasis)
    out = kernels.gradient(logits, lse, *occupancies, *rest, torch.empty_like(logits))
    assert_equal(out, expected, tolerance)
    assert (out.masked_select(~inside) == 0).all()
    assert kernels.gradient(logits, lse, *occupancies, *rest, logits) is logits
    assert torch.equal(logits, out)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_public_loss_runs_the_kernels_and_equals_the_cpus(inplace, monkeypatch):
    logits, targets, logit_len, target_len, _ = a_batch(3, 7, 5, 19)
    targets = targets.abs() % 18
    results = []
    for backend in ("torch", "interpret"):
        monkeypatch.setenv("NEMO_KERNELS_BACKEND", backend)
        leaf = logits.clone().requires_grad_()
        loss = rnnt_loss(
            leaf * 1, targets, logit_len, target_len, fastemit_lambda=0.1, reduction="sum", inplace=inplace
        )
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
