"""The attention kernels against the CPU's tiles, and their dropout against the textbook with the same mask.

B batch, H heads, T queries, S keys, K head width
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_kernels.attention import RelativePosition, attention
from nemo_kernels.attention.key_ranges import KeyRanges
from nemo_kernels.attention.reference import reference_attention
from nemo_kernels.attention.tiled import tiled_backward, tiled_forward
from nemo_kernels.attention.triton import builds, launch

# block of the kernels, B, H, T, S, K, and what is seen; heads of 5 to 44 lie in 16 to 64 channels
CASES = {
    "one frame": (16, 1, 2, 1, 1, 16, {}),
    "less than a block": (32, 2, 1, 9, 9, 5, {"query_len": [9, 4], "key_len": [9, 4]}),
    "a block": (16, 1, 1, 16, 16, 16, {}),
    "blocks and one more": (16, 1, 1, 33, 33, 44, {}),
    "ragged": (32, 3, 1, 37, 37, 8, {"query_len": [37, 20, 1], "key_len": [37, 20, 1]}),
    "window": (16, 1, 2, 41, 41, 8, {"window": (7, 3)}),
    "wide window": (16, 1, 1, 43, 43, 8, {"window": (21, 30)}),
    "causal": (32, 1, 1, 35, 35, 8, {"window": (-1, 0)}),
    "chunks": (16, 2, 1, 29, 29, 8, {"window": (8, 0), "chunk": 4, "query_len": [29, 13], "key_len": [29, 13]}),
    "cache": (16, 1, 1, 5, 42, 8, {}),
    "cache of which items have a part": (
        16, 2, 1, 8, 28, 8,
        {"window": (20, 0), "chunk": 4, "key_start": [0, 12], "key_len": [28, 25], "query_len": [8, 5]},
    ),
    "items without anything": (16, 2, 1, 18, 18, 8, {"query_len": [0, 18], "key_len": [18, 18]}),
}  # fmt: skip


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch):
    """Sets the kernels' block."""

    def set_block(block: int) -> None:
        form_of = builds.form_of
        monkeypatch.setattr(launch, "form_of", lambda *arguments: replace(form_of(*arguments), block=block))

    return set_block


def problem(B: int, H: int, T: int, S: int, K: int, seen: dict[str, object], dtype: torch.dtype = torch.float32):
    """Query, key, value, embedding, u, v; then the ranges of keys."""
    random = torch.Generator().manual_seed(T + S + K)
    shapes = [(B, H, T, K), (B, H, S, K), (B, H, S, K), (H, 2 * S - 1, K), (H, K), (H, K)]
    tensors = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    lengths = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in seen.items()}
    return tensors, KeyRanges.of(T, S, torch.device("cpu"), **lengths)


def close(found: Tensor, wanted: Tensor) -> None:
    """Float32: 1e-5 of the greatest element."""
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_equal_the_tiles(case, blocks_of):
    block, B, H, T, S, K, seen = CASES[case]
    blocks_of(block)
    tensors, ranges = problem(B, H, T, S, K, seen)
    inputs = (*tensors, *ranges.for_each_query(B, T))
    numbers = (RelativePosition(*tensors[3:]).shift(T, S), 0.3, 0.0)
    output, log_sum = launch.launch_forward(*inputs, torch.tensor(1), *numbers)
    expected, expected_sum = tiled_forward(*inputs, *numbers, 1)
    close(output, expected)
    assert output.stride() == expected.stride()
    assert torch.equal(log_sum.isinf(), expected_sum.isinf())
    close(log_sum.where(log_sum.isfinite(), 0.0), expected_sum.where(log_sum.isfinite(), 0.0))
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found = launch.launch_backward(upstream, output, log_sum, *inputs, torch.tensor(1), *numbers)
    wanted = tiled_backward(upstream, expected, expected_sum, *inputs, *numbers, 1)
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs)


def test_what_padding_holds_does_not_reach_the_result(blocks_of):
    blocks_of(16)
    seen = {"query_len": [20, 7], "key_len": [20, 7], "window": (9, 4)}
    tensors, ranges = problem(2, 1, 20, 20, 8, seen)
    numbers = (torch.tensor(1), 19, 0.3, 0.0)
    inputs = (*tensors, *ranges.for_each_query(2, 20))
    output, log_sum = launch.launch_forward(*inputs, *numbers)
    clean = launch.launch_backward(output, output, log_sum, *inputs, *numbers)
    for tensor in tensors[:3]:
        tensor[1, :, 7:] = float("nan")
    upstream = output.clone()
    upstream[1, :, 7:] = float("nan")
    again, _ = launch.launch_forward(*inputs, *numbers)
    assert torch.equal(again, output)
    for found, wanted in zip(launch.launch_backward(upstream, output, log_sum, *inputs, *numbers), clean, strict=True):
        assert torch.equal(found, wanted)
    assert not clean[1][1, :, 7:].any()


def test_dropout_is_the_textbooks_with_the_mask_of_the_positions(monkeypatch, blocks_of):
    monkeypatch.setenv("NEMO_KERNELS_BACKEND", "interpret")
    blocks_of(16)
    B, H, T, S, K, dropout_p = 2, 2, 19, 25, 8, 0.25
    tensors, ranges = problem(B, H, T, S, K, {"window": (12, 3)})
    tensors = [tensor.requires_grad_() for tensor in tensors]
    query, key, value, *position = tensors
    torch.manual_seed(4)
    seed = torch.randint(1 << 31, (), dtype=torch.int64)
    torch.manual_seed(4)
    found = attention(query, key, value, position=RelativePosition(*position), window=(12, 3), dropout_p=dropout_p)
    keep = mask(int(seed), B * H, T, S, 1 - dropout_p).view(B, H, T, S)
    assert keep.float().mean().item() == pytest.approx(1 - dropout_p, abs=0.05)
    wanted = reference_attention(query, key, value, ranges, RelativePosition(*position), keep=keep, dropout_p=dropout_p)
    close(found, wanted)
    upstream = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(wanted, tensors, upstream), strict=True
    ):
        close(ours, theirs)


def test_halves_come_out_as_halves(monkeypatch, blocks_of):
    monkeypatch.setenv("NEMO_KERNELS_BACKEND", "interpret")
    blocks_of(16)
    for dtype, error in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        tensors, ranges = problem(1, 1, 20, 20, 16, {}, dtype)
        found = attention(*tensors[:3], position=RelativePosition(*tensors[3:]))
        wanted = reference_attention(
            *(t.double() for t in tensors[:3]), ranges, RelativePosition(*(t.double() for t in tensors[3:]))
        )
        assert found.dtype == dtype
        assert (found - wanted).abs().max() < error * wanted.abs().max()


def mask(seed: int, heads: int, T: int, S: int, kept_p: float) -> Tensor:
    """(heads, T, S): the kernels' hash of seed, head, query and key, in Python's integers."""
    threshold = round(kept_p * (1 << 24))

    def mixed(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    def kept(head: int, i: int, j: int) -> bool:
        state = mixed((seed + head * 0x9E3779B1) & 0xFFFFFFFF)
        state = mixed(state ^ (i * 0x85EBCA77 & 0xFFFFFFFF))
        return mixed(state ^ (j * 0xC2B2AE3D & 0xFFFFFFFF)) >> 8 < threshold

    return torch.tensor([[[kept(head, i, j) for j in range(S)] for i in range(T)] for head in range(heads)])
