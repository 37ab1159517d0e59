"""The TDT kernels against the CPU's operations in float64. B batch, T frames, W target positions, V tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_kernels.rnnt_loss.triton.builds import Form
from nemo_kernels.tdt_loss import analytic, tdt_loss, tdt_loss_fused
from nemo_kernels.tdt_loss import triton as kernels
from nemo_kernels.tdt_loss.analytic import Options
from nemo_kernels.tdt_loss.scores import Tokens, score_cells
from nemo_kernels.tdt_loss.triton import softmax, wavefront

CASES = [
    (1, 1, 1, 2, (0, 1)),  # one cell
    (3, 5, 1, 17, (0, 1, 2, 3, 4)),  # no labels at all
    (2, 1, 6, 33, (0, 1, 2)),  # one frame
    (2, 7, 5, 29, (0, 1, 2, 3, 4)),
    (2, 9, 3, 67, (1, 2, 8)),  # no duration of 0
    (2, 4, 9, 5, (2, 0, 1)),  # more labels than frames, durations in another order
    (1, 6, 4, 1031, (0, 1, 2, 3, 4)),  # the tokens take two tiles
    (1, 13, 3, 250, (0, 1, 5)),
    (2, 4, 3, 30, (0, 3)),  # some utterances have no path
]
HALF = 2**-7


def a_batch(B: int, T: int, W: int, V: int, durations: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Logits with NaN outside the ragged lattices, targets with nonsense after their ends, lengths, blank."""
    random = torch.Generator().manual_seed(B + T + W + V)
    logits = torch.randn(B, T, W, V + len(durations), generator=random) * 3
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


def assert_equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def exact_scores(
    logits: Tensor, targets: Tensor, logit_len: Tensor, target_len: Tensor, blank: int, durations: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `kernels.scores` should give for sigma 0, in float64."""
    tokens = Tokens(logits.shape[-1] - len(durations), (blank,))
    sizes = logit_len.tolist(), target_len.tolist()
    cells = score_cells(logits.double(), targets, *sizes, tokens, overwrite=False)
    lp_duration = analytic.score_durations(logits[..., tokens.count :].double(), *sizes)
    return cells.norm, cells.blank[0], cells.label, lp_duration


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores(case, dtype, monkeypatch):
    *_, durations = case
    monkeypatch.setattr(
        softmax, "rows_form", lambda columns: Form({"ROWS": 16, "COLUMNS": 64 if columns < 1000 else 512})
    )
    logits, targets, logit_len, target_len, blank = a_batch(*case)
    logits = logits.to(dtype)
    norm, lp_blank, lp_label, lp_duration = kernels.scores(
        logits, targets, logit_len, target_len, len(durations), blank, 0.25
    )
    expected = exact_scores(logits, targets, logit_len, target_len, blank, durations)
    inside = cells_of(norm, logit_len, target_len)
    labelled = inside & (torch.arange(norm.shape[2]) < target_len[:, None, None])
    assert_equal(norm[inside], expected[0][inside], 1e-5)
    assert_equal(lp_blank[inside], expected[1][inside] - 0.25, 1e-5)
    assert_equal(lp_label[labelled], expected[2][labelled] - 0.25, 1e-5)
    assert_equal(lp_duration[:, inside], expected[3][:, inside], 1e-5)
    for plane, where in ((norm, inside), (lp_blank, inside), (lp_label, labelled), (lp_duration[0], inside)):
        assert (plane[~where] == 0).all()


def solved(case: tuple) -> tuple[tuple[Tensor, ...], analytic.Occupied, tuple[Tensor, Tensor]]:
    """Scores, the lattice solved in float64, and its lengths."""
    *_, durations = case
    logits, targets, logit_len, target_len, blank = a_batch(*case)
    norm, lp_blank, lp_label, lp_duration = exact_scores(logits, targets, logit_len, target_len, blank, durations)
    cells = analytic.CellScores(norm, lp_blank[None], lp_label)
    options = Options(durations, blank, 0.0, 0.0, False)
    expected = analytic.solve(cells, lp_duration, logit_len, target_len, options, torch.float64)
    return (lp_blank, lp_label, lp_duration), expected, (logit_len, target_len)


@pytest.mark.parametrize("case", CASES)
def test_lattice(case):
    scores, expected, lengths = solved(case)
    loss, blank, label, of_durations = kernels.lattice(*(plane.float() for plane in scores), *lengths, case[-1])
    for found, wanted in zip(
        (loss, blank, label, of_durations),
        (expected.losses, expected.blank, expected.label, expected.durations),
        strict=True,
    ):
        assert_equal(found, wanted, 1e-5)
        assert not found.isnan().any()


@pytest.mark.parametrize(("case", "lanes"), [((1, 5, 5, 9, (0, 1, 2)), 2), ((1, 3, 9, 5, (2, 0, 1)), 4)])
def test_strips_of_few_lanes_make_the_same_lattice(case, lanes, monkeypatch):
    monkeypatch.setattr(wavefront, "wavefront_form", lambda *_: Form({"LANES": lanes, "RING": 8}))
    scores, expected, lengths = solved(case)
    found = kernels.lattice(*(plane.float() for plane in scores), *lengths, case[-1])
    for plane, wanted in zip(
        found, (expected.losses, expected.blank, expected.label, expected.durations), strict=True
    ):  # fmt: skip
        assert_equal(plane, wanted, 1e-5)


def test_occupancies_are_as_exact_where_the_loss_is_thousands():
    random = torch.Generator().manual_seed(1)
    lp_blank, lp_label = -torch.rand(2, 1, 14, 5, generator=random).mul(700)
    lp_duration = torch.randn(3, 1, 14, 5, generator=random).log_softmax(0)
    lengths, options = (torch.tensor([14]), torch.tensor([4])), Options((0, 1, 2), 0, 0.0, 0.0, False)
    cells = analytic.CellScores(lp_blank.double(), lp_blank[None].double(), lp_label.double())
    expected = analytic.solve(cells, lp_duration.double(), *lengths, options, torch.float64)
    loss, blank, label, of_durations = kernels.lattice(lp_blank, lp_label, lp_duration, *lengths, (0, 1, 2))
    assert loss > 1000
    assert_equal(blank, expected.blank, 5e-6)
    assert_equal(label, expected.label, 5e-6)
    assert_equal(of_durations, expected.durations, 5e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("emphasis", "clamp", "dtype", "tolerance"),
    [(0.0, -1.0, torch.bfloat16, HALF), (0.3, 0.05, torch.float32, 1e-5)],
)
def test_gradient_in_place_too(case, emphasis, clamp, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(
        softmax, "rows_form", lambda columns: Form({"ROWS": 32, "COLUMNS": 64 if columns < 1000 else 512})
    )
    logits, targets, logit_len, target_len, blank = a_batch(*case)
    logits, D = logits.to(dtype), len(case[-1])
    options = Options(case[-1], blank, 0.0, 0.0, False)
    occupied = analytic.tdt_forward(logits.double(), targets, logit_len, target_len, options)
    factors = torch.linspace(0.5, -2, case[0])
    expected = analytic.tdt_backward(
        logits.double(), targets, logit_len, target_len, occupied, factors.double(), options.tokens(logits.shape[-1]),
        clamp=clamp, fastemit_lambda=emphasis, overwritten=False, out=torch.empty_like(logits, dtype=torch.float64),
    )  # fmt: skip
    planes = [plane.float() for plane in occupied[1:]]
    rest = (factors, blank, clamp, emphasis)
    out = kernels.write_gradient(
        logits, targets, logit_len, target_len, *planes, *rest, torch.empty_like(logits)
    )  # fmt: skip
    assert out.shape[-1] == case[3] + D
    assert_equal(out, expected, tolerance)
    assert (out[~cells_of(out, logit_len, target_len)] == 0).all()
    assert kernels.write_gradient(logits, targets, logit_len, target_len, *planes, *rest, logits) is logits
    assert torch.equal(logits, out)


@pytest.mark.parametrize(("omega", "inplace"), [(0.0, False), (0.0, True), (1.0, True)])
def test_the_public_loss_runs_the_kernels_and_equals_the_cpus(omega, inplace, monkeypatch):
    logits, targets, logit_len, target_len, _ = a_batch(2, 5, 3, 19, (0, 1, 2))
    rule = {"fastemit_lambda": 0.1, "sigma": 0.05, "omega": omega, "reduction": "sum", "blank": 0}
    results = []
    for backend in ("torch", "interpret"):
        monkeypatch.setenv("NEMO_KERNELS_BACKEND", backend)
        leaf = logits.clone().requires_grad_()
        loss = tdt_loss(leaf * 1, targets, logit_len, target_len, (0, 1, 2), inplace=inplace, **rule)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_the_fused_loss_runs_the_kernels_and_equals_the_cpus(monkeypatch):
    random = torch.Generator().manual_seed(2)
    leaves = [torch.randn(shape, generator=random) for shape in ((2, 6, 6), (2, 5, 6), (12, 6), (12,))]
    rest = torch.randint(9, (2, 4), generator=random), torch.tensor([6, 3]), torch.tensor([4, 2])
    results = []
    for backend in ("torch", "interpret"):
        monkeypatch.setenv("NEMO_KERNELS_BACKEND", backend)
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        loss = tdt_loss_fused(*inputs, *rest, (0, 1, 2), sigma=0.05, clamp=0.2, activation="tanh", max_rows=20)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
