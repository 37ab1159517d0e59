"""Attention against definitions written as loops or full matrices, in float64."""

import math

import pytest
import torch

from nemo_asr.modules.conformer.attention import AttentionMask, attention
from nemo_asr.modules.conformer.context import Window
from nemo_asr.modules.conformer.local_attention import GlobalFrames, global_frame_index, local_attention
from nemo_asr.modules.conformer.positions import (
    LocalRelPositionalEncoding,
    PositionalEncoding,
    RelPositionalEncoding,
    sinusoids,
)
from nemo_kernels.attention import RelativePosition
from nemo_kernels.attention.key_ranges import KeyRanges

B, H, K = 2, 3, 5
UNLIMITED = Window()


def tensors(T, S=None, distances=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    S = S or T
    position = RelativePosition(normal(H, distances or 2 * S - 1, K), normal(H, K), normal(H, K))
    return normal(B, H, T, K), normal(B, H, S, K), normal(B, H, S, K), position


def scores_of(query, key, position, zero_distance):
    """((q + u) k + (q + v) p_(i-j)) / sqrt(K), one query and key at a time; p_0 is in row `zero_distance`."""
    T, S = query.size(2), key.size(2)
    scores = query.new_full((B, H, T, S), -math.inf)
    for i in range(T):
        for j in range(S):
            row = zero_distance - (i + S - T - j)
            if 0 <= row < position.embedding.size(1):
                content = ((query[:, :, i] + position.content_bias) * key[:, :, j]).sum(-1)
                place = ((query[:, :, i] + position.position_bias) * position.embedding[:, row]).sum(-1)
                scores[:, :, i, j] = (content + place) / math.sqrt(K)
    return scores


def mask_of(T, lengths, window=UNLIMITED):
    return AttentionMask(torch.tensor(lengths), T, window)


@pytest.mark.parametrize("window", [Window(), Window(3, 1), Window(4, 0, 2)])
@pytest.mark.parametrize("T", [1, 2, 9])
def test_relative_attention_is_its_definition(T, window):
    query, key, value, position = tensors(T)
    lengths = [T, max(T - 3, 1)]
    ours = attention(query, key, value, mask=mask_of(T, lengths, window), position=position)
    ranges = KeyRanges.of(T, T, query.device, window=(window.left, window.right), chunk=window.chunk)
    seen = ranges.seen(T) & (torch.arange(T) < torch.tensor(lengths)[:, None])[:, None, None, :]
    weights = scores_of(query, key, position, T - 1).masked_fill(~seen, -math.inf).softmax(3)
    for item, frames in enumerate(lengths):
        torch.testing.assert_close(ours[item, :, :frames], (weights @ value)[item, :, :frames])


def test_attention_to_cached_keys_is_its_definition():
    query, key, value, position = tensors(3, S=8)
    mask = AttentionMask(torch.tensor([3, 2]), 3, Window(4, 1), cached=5, cached_len=torch.tensor([5, 1]))
    ours = attention(query, key, value, mask=mask, position=position)
    for item, (past, frames) in enumerate([(5, 3), (1, 2)]):
        for i in range(3):
            seen = [j for j in range(8) if 5 - past <= j < 5 + frames and i + 5 - 4 <= j <= i + 5 + 1]
            if i >= frames:
                assert not ours[item, :, i].any()
                continue
            weights = scores_of(query, key, position, 7)[item, :, i, seen].softmax(1)
            torch.testing.assert_close(ours[item, :, i], (weights.unsqueeze(1) @ value[item][:, seen]).squeeze(1))


@pytest.mark.parametrize("backends", [(), ("MATH",)])
def test_attention_without_positions_is_torch_sdpa(backends):
    query, key, value, _ = tensors(7)
    ours = attention(query, key, value, mask=mask_of(7, [7, 4]), backends=backends)
    seen = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen)
    torch.testing.assert_close(ours[0], expected[0])
    torch.testing.assert_close(ours[1, :, :4], expected[1, :, :4])
    assert not ours[1, :, 4:].any()


@pytest.mark.parametrize(("left", "right"), [(1, 1), (3, 3), (0, 4), (5, 0), (2, 7), (40, 50)])
@pytest.mark.parametrize("T", [1, 5, 37])
def test_local_attention_and_its_gradients_equal_full_attention_within_the_window(T, left, right):
    query, key, value, position = tensors(T, distances=left + right + 1)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, *position[:3])]
    padded = torch.arange(T) >= torch.tensor([[T], [max(T - 9, 1)]])
    ours = local_attention(query, key, value, padded=padded, position=position, left=left, right=right)
    scores = scores_of(query, key, position, left).masked_fill(padded[:, None, None, :], -math.inf)
    scores = torch.where(padded[:, None, :, None], 0.0, scores)
    expected = (scores.softmax(3) @ value).masked_fill(padded[:, None, :, None], 0.0)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((ours * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, expected_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_local_attention_keeps_memory_that_grows_with_the_length_and_not_its_square():
    def kept(T):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, T, 8, generator=generator).requires_grad_() for _ in range(3))
        position = RelativePosition(torch.randn(2, 33, 8), torch.randn(2, 8), torch.randn(2, 8))
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = local_attention(
                query, key, value, padded=torch.zeros(1, T, dtype=torch.bool), position=position, left=16, right=16
            )
        assert result.requires_grad
        return sum(sizes.values())

    assert kept(2048) < 2.1 * kept(1024)
    assert kept(2048) < 2048 * 2048 * 2 * 4


@pytest.mark.parametrize("T", [6, 20])
def test_one_global_frame_sees_all_and_is_seen_by_all(T):
    left, right = 2, 3
    query, key, value, position = tensors(T, distances=left + right + 1)
    g_query, g_key, g_value, _ = tensors(T, seed=5)
    padded = torch.arange(T) >= torch.tensor([[T], [T - 2]])
    ours = local_attention(
        query, key, value, padded=padded, position=position, left=left, right=right,
        global_frames=GlobalFrames(torch.tensor([0]), g_query, g_key, g_value),
    )  # fmt: skip
    window = scores_of(query, key, position, left).masked_fill(padded[:, None, None, :], -math.inf)
    to_global = (g_query * g_key[:, :, :1]).sum(3, keepdim=True) / math.sqrt(K)
    weights = torch.cat([to_global, window], dim=3).softmax(3)
    expected = weights[..., 1:] @ value + weights[..., :1] * value[:, :, :1]
    of_global = (g_query[:, :, :1] @ g_key.transpose(2, 3) / math.sqrt(K)).masked_fill(padded[:, None, None], -math.inf)
    expected[:, :, :1] = of_global.softmax(3) @ g_value
    torch.testing.assert_close(ours, expected.masked_fill(padded[:, None, :, None], 0.0))


def test_global_frames_are_multiples_of_their_spacing_within_the_input():
    assert global_frame_index(20, 3, 4, torch.device("cpu")).tolist() == [0, 4, 8]
    assert global_frame_index(6, 3, 4, torch.device("cpu")).tolist() == [0, 4]


def test_sinusoids_are_their_definition():
    table = sinusoids(torch.tensor([0, 1, -7, 300]), 6).double()
    for row, t in zip(table, [0, 1, -7, 300], strict=True):
        expected = [f(t / 10000 ** (2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), atol=2e-5, rtol=0)


def test_a_relative_table_is_the_middle_of_a_longer_one():
    encoding, x = RelPositionalEncoding(4, 0.0), torch.zeros(1, 5, 4)
    expected = sinusoids(torch.arange(4, -5, -1), 4)
    torch.testing.assert_close(encoding.table(5, x)[0], expected)
    encoding.table(400, x)
    torch.testing.assert_close(encoding.table(5, x)[0], expected)
    assert not encoding.state_dict()


def test_an_absolute_encoding_adds_its_table_after_scaling():
    x = torch.randn(2, 5, 4)
    encoded, _ = PositionalEncoding(4, 0.0, scale=2.0)(x)
    torch.testing.assert_close(encoded, x * 2 + sinusoids(torch.arange(5), 4))


def test_a_table_made_in_inference_mode_serves_training():
    encoding, weight = LocalRelPositionalEncoding(2, 2, 4, 0.0), torch.ones(4, 4, requires_grad=True)
    with torch.inference_mode():
        encoding(torch.zeros(1, 5, 4))
    _, positions = encoding(torch.zeros(1, 5, 4))
    (positions @ weight).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0], positions[0].sum(0))
