"""CTC loss against NVIDIA's stored values, torch's reductions, and a count of all paths."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr.losses import CTCLoss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("quartznet_ctc_char", "fastconformer_ctc_bpe", "conformer_ctc_bpe")


def golden_loss(case, reduction):
    arrays = np.load(GOLDEN / case / "io.npz")
    log_probs = torch.from_numpy(arrays["log_probs"])
    loss = CTCLoss(num_classes=log_probs.shape[2] - 1, zero_infinity=True, reduction=reduction)
    value = loss(
        log_probs=log_probs,
        targets=torch.from_numpy(arrays["in_targets"]),
        input_lengths=torch.from_numpy(arrays["encoded_length"]),
        target_lengths=torch.from_numpy(arrays["in_target_length"]),
    )
    return value, arrays


@pytest.mark.parametrize("case", CASES)
def test_losses_per_item_equal_nvidias(case):
    value, arrays = golden_loss(case, "none")
    np.testing.assert_allclose(value.numpy(), arrays["ctc_loss_none"], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_reduction_of_each_config_equals_nvidias(case):
    reduction = "mean_volume" if case == "fastconformer_ctc_bpe" else "mean_batch"
    value, arrays = golden_loss(case, reduction)
    np.testing.assert_allclose(value.item(), arrays[f"ctc_loss_{reduction}"].item(), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sum_and_mean_are_torchs(reduction):
    value, arrays = golden_loss("conformer_ctc_bpe", reduction)
    losses, lengths = torch.from_numpy(arrays["ctc_loss_none"]), torch.from_numpy(arrays["in_target_length"])
    expected = losses.sum() if reduction == "sum" else (losses / lengths).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_minus_log_of_the_sum_over_all_paths():
    T, V, blank, target = 5, 3, 2, [0, 0]
    log_probs = torch.randn(1, T, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    probability = 0.0
    for path in itertools.product(range(V), repeat=T):
        if [key for key, _ in itertools.groupby(path) if key != blank] == target:
            probability += float(log_probs[0, torch.arange(T), list(path)].sum().exp())
    loss = CTCLoss(num_classes=blank, reduction="none")
    value = loss(log_probs, torch.tensor([target]), torch.tensor([T]), torch.tensor([2]))
    assert value.item() == pytest.approx(-np.log(probability), rel=1e-12)


def test_a_target_longer_than_its_audio_costs_nothing_with_zero_infinity():
    log_probs = torch.randn(1, 2, 4).log_softmax(-1).requires_grad_()
    sizes = (torch.tensor([[0, 1, 2]]), torch.tensor([2]), torch.tensor([3]))
    assert CTCLoss(3, zero_infinity=False, reduction="none")(log_probs, *sizes).item() == float("inf")
    loss = CTCLoss(3, zero_infinity=True, reduction="none")(log_probs, *sizes)
    loss.sum().backward()
    assert loss.item() == 0
    assert not log_probs.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    log_probs = torch.randn(2, 9, 5).log_softmax(-1).to(dtype)
    sizes = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([9, 8]), torch.tensor([2, 2]))
    loss = CTCLoss(4, reduction="none")
    torch.testing.assert_close(loss(log_probs, *sizes), loss(log_probs.float(), *sizes), rtol=0, atol=0)


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduction: 'average' is none of none, sum"):
        CTCLoss(3, reduction="average")
