"""The kernels of the fused RNNT loss against torch's autograd in float64. D width of the joint, W target positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_kernels.rnnt_loss import triton as kernels
from nemo_kernels.rnnt_loss.triton import fused_scores, joint_state
from nemo_kernels.rnnt_loss.triton.builds import Form

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
SHAPES = [  # B, T, W, D
    (1, 1, 1, 4),
    (3, 5, 1, 20),
    (2, 1, 6, 33),
    (2, 7, 5, 64),
    (3, 5, 7, 36),
    (2, 3, 19, 8),
    (2, 4, 3, 300),
    (1, 7, 3, 140),
]
HALF = 2**-7


def philox(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Random123, in Python's integers."""
    mask = 0xFFFFFFFF
    key, (c0, c1, c2, c3) = [seed & mask, seed >> 32], counter
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ key[0], second & mask, (first >> 32) ^ c3 ^ key[1], first & mask
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return c0, c1, c2, c3


def keeps(seed: int, dropout_p: float, utterance: int, frame: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Which elements (B, T, W, D) are kept, the first being at an utterance and a frame of a larger batch."""
    B, T, W, D = shape
    words = [
        philox(seed, (group, u, frame + t, utterance + b))[:4]
        for b in range(B) for t in range(T) for u in range(W) for group in range(-(-D // 4))
    ]  # fmt: skip
    return torch.tensor(words).view(B, T, W, -1)[..., :D] >= round(dropout_p * 2**32)


def some_rows(B: int, T: int, W: int, D: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(B + T + W + D)
    encoder, predictor = torch.randn(B, T, D, generator=random), torch.randn(B, W, D, generator=random)
    logit_len = torch.randint(1, T + 1, (B,), generator=random)
    target_len = torch.randint(0, W, (B,), generator=random)
    logit_len[0], target_len[-1] = T, W - 1
    return encoder, predictor, logit_len, target_len


def inside(T: int, W: int, logit_len: Tensor, target_len: Tensor) -> Tensor:
    return (torch.arange(T)[:, None] < logit_len[:, None, None]) & (torch.arange(W) <= target_len[:, None, None])


def joint_state_of(encoder: Tensor, predictor: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](encoder[:, :, None] + predictor[:, None])


def test_the_philox_of_these_tests_gives_the_published_numbers():
    assert philox(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones << 32) + ones, (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize(
    ("shape", "activation"), [*zip(SHAPES, 3 * list(ACTIVATIONS), strict=False), *((SHAPES[1], a) for a in ACTIVATIONS)]
)
def test_join_and_its_gradients(shape, activation):
    encoder, predictor, logit_len, target_len = some_rows(*shape)
    where = inside(shape[1], shape[2], logit_len, target_len)[..., None]
    exact = [encoder.double().requires_grad_(), predictor.double().requires_grad_()]
    expected = joint_state_of(*exact, activation) * where
    hidden = kernels.join(encoder, predictor, logit_len, target_len, activation)
    torch.testing.assert_close(hidden.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert (hidden[~where[..., 0]] == 0).all()

    flow = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected.backward(flow.double())
    flow[~where.expand_as(flow)] = float("nan")
    sums = torch.ones_like(encoder), torch.ones_like(predictor)
    kernels.join_backward(flow, encoder, predictor, logit_len, target_len, activation, *sums)
    for found, leaf in zip(sums, exact, strict=True):
        torch.testing.assert_close(found.double(), leaf.grad + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_join_in_half_precision(dtype):
    encoder, predictor, logit_len, target_len = some_rows(2, 7, 5, 48)
    encoder, predictor = encoder.to(dtype), predictor.to(dtype)
    exact = [encoder.double().requires_grad_(), predictor.double().requires_grad_()]
    expected = joint_state_of(*exact, "tanh") * inside(7, 5, logit_len, target_len)[..., None]
    hidden = kernels.join(encoder, predictor, logit_len, target_len, "tanh")
    assert hidden.dtype == dtype
    torch.testing.assert_close(hidden.double(), expected.detach(), rtol=HALF, atol=HALF)
    flow = torch.randn(2, 7, 5, 48).to(dtype)
    expected.backward(flow.double())
    sums = torch.zeros(2, 7, 48), torch.zeros(2, 5, 48)
    kernels.join_backward(flow, encoder, predictor, logit_len, target_len, "tanh", *sums)
    for found, leaf in zip(sums, exact, strict=True):
        torch.testing.assert_close(found.double(), leaf.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 0x123456789ABCDEF])
@pytest.mark.parametrize("dropout_p", [0.1, 0.5])
def test_dropout_drops_what_philox_says_forwards_and_backwards(seed, dropout_p):
    shape = (2, 3, 4, 36)
    encoder, predictor, *_ = some_rows(*shape)
    lengths = torch.tensor([9, 9]), torch.tensor([3, 3])
    place = {"dropout_p": dropout_p, "seed": seed, "first_utterance": 5, "first_frame": 2}
    keep = keeps(seed, dropout_p, 5, 2, shape)
    exact = [encoder.double().requires_grad_(), predictor.double().requires_grad_()]
    expected = joint_state_of(*exact, "sigmoid") * keep / (1 - dropout_p)
    hidden = kernels.join(encoder, predictor, *lengths, "sigmoid", **place)
    assert torch.equal(hidden != 0, keep)
    torch.testing.assert_close(hidden.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    flow = torch.randn(shape)
    expected.backward(flow.double())
    sums = torch.zeros_like(encoder), torch.zeros_like(predictor)
    kernels.join_backward(flow, encoder, predictor, *lengths, "sigmoid", *sums, **place)
    for found, leaf in zip(sums, exact, strict=True):
        torch.testing.assert_close(found.double(), leaf.grad, rtol=1e-5, atol=1e-5)


def test_any_tiling_of_the_frames_and_channels_gives_the_same_states_and_gradients(monkeypatch):
    encoder, predictor, logit_len, target_len = some_rows(2, 7, 3, 20)
    dropout = {"dropout_p": 0.25, "seed": 3}
    whole = kernels.join(encoder, predictor, logit_len, target_len, "relu", **dropout)
    flow = torch.randn(whole.shape)
    sums = torch.zeros_like(encoder), torch.zeros_like(predictor)
    kernels.join_backward(flow, encoder, predictor, logit_len, target_len, "relu", *sums, **dropout)

    monkeypatch.setattr(
        joint_state, "join_form", lambda *_: Form({"ROWS": 8, "COLUMNS": 16, "ACTIVATION": "relu", "DROPOUT": True})
    )
    tiled = torch.zeros_like(encoder), torch.zeros_like(predictor)
    for utterances, frames in ((slice(0, 1), slice(0, 7)), (slice(1, 2), slice(0, 4)), (slice(1, 2), slice(4, 7))):
        place = {**dropout, "first_utterance": utterances.start, "first_frame": frames.start}
        inputs = (encoder[utterances, frames], predictor[utterances], logit_len[utterances], target_len[utterances])
        assert torch.equal(kernels.join(*inputs, "relu", **place), whole[utterances, frames])
        grads = tiled[0][utterances, frames], tiled[1][utterances]
        kernels.join_backward(flow[utterances, frames].contiguous(), *inputs, "relu", *grads, **place)
    torch.testing.assert_close(tiled, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "V"), zip(SHAPES, [2, 29, 150, 33, 64, 5, 67, 31], strict=True))
def test_joint_scores(shape, V, monkeypatch):
    activation = list(ACTIVATIONS)[V % 3]
    tile = {"FRAMES": 4, "LABELS": 4, "COLUMNS": 32, "CHANNELS": 32, "ACTIVATION": activation}
    form = Form({**tile, "EVEN": shape[-1] % 32 == 0, "UPCAST": False})
    monkeypatch.setattr(fused_scores, "joint_scores_form", lambda *_, **__: form)
    compare_joint_scores(shape, V, activation, torch.float32, 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2 * HALF), (torch.float16, 2e-3)]
)
def test_joint_scores_in_the_form_that_is_shipped(activation, dtype, tolerance):
    compare_joint_scores((2, 9, 3, 64), 150, activation, dtype, tolerance)


def compare_joint_scores(shape: tuple[int, ...], V: int, activation: str, dtype: torch.dtype, tolerance: float) -> None:
    encoder, predictor, logit_len, target_len = some_rows(*shape)
    D, blank = shape[-1], V // 2
    random = torch.Generator().manual_seed(V)
    weight, bias = torch.randn(V, D, generator=random) / D**0.5, torch.randn(V, generator=random)
    targets = torch.randint(0, V, (shape[0], shape[2] - 1), generator=random)
    encoder, predictor, weight, bias = (tensor.to(dtype) for tensor in (encoder, predictor, weight, bias))
    logits = joint_state_of(encoder.double(), predictor.double(), activation) @ weight.double().T + bias.double()
    lse = logits.logsumexp(-1)
    column = torch.nn.functional.pad(targets, (0, 1))[:, None, :, None].expand(*lse.shape, 1)
    expected = lse, logits[..., blank] - lse, logits.gather(-1, column)[..., 0] - lse
    found = kernels.joint_scores(encoder, predictor, weight, bias, targets, logit_len, target_len, blank, activation)
    where = inside(shape[1], shape[2], logit_len, target_len)
    labelled = where & (torch.arange(shape[2]) < target_len[:, None, None])
    for plane, wanted, cells in zip(found, expected, (where, where, labelled), strict=True):
        torch.testing.assert_close(plane[cells].double(), wanted[cells], rtol=tolerance, atol=tolerance)
        assert (plane[~cells] == 0).all()
