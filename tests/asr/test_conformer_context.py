"""Attention contexts: each style against its definition frame by frame."""

import random
from collections import Counter

import pytest
import torch

from nemo_asr.modules.conformer.context import AttentionContexts, Window, convolution_padding
from nemo_kernels.attention.key_ranges import KeyRanges

T = 23


def visible(window):
    ranges = KeyRanges.of(T, T, torch.device("cpu"), window=(window.left, window.right), chunk=window.chunk)
    return ranges.seen(T).expand(1, 1, T, T)[0, 0]


def brute_force(sees):
    return torch.tensor([[sees(i, j) for j in range(T)] for i in range(T)])


@pytest.mark.parametrize(("left", "right"), [(3, 2), (0, 0), (-1, 0), (4, -1), (-1, -1), (50, 50)])
def test_a_regular_context_is_a_band(left, right):
    expected = brute_force(lambda i, j: (left < 0 or j >= i - left) and (right < 0 or j <= i + right))
    assert torch.equal(visible(Window.of([left, right], "regular")), expected)


@pytest.mark.parametrize(("left", "right"), [(6, 2), (4, 0), (0, 3), (12, 3), (-1, 4)])
def test_a_chunked_context_is_the_own_chunk_and_whole_chunks_before(left, right):
    size = right + 1

    def sees(i, j):
        return i // size - j // size >= 0 and (left < 0 or i // size - j // size <= left // size)

    assert torch.equal(visible(Window.of([left, right], "chunked_limited")), brute_force(sees))


def test_a_chunked_context_without_limit_on_the_right_is_a_band():
    expected = brute_force(lambda i, j: j >= i - 5)
    assert torch.equal(visible(Window.of([5, -1], "chunked_limited")), expected)


@pytest.mark.parametrize(("left", "chunk", "right"), [(5, 3, 2), (0, 4, 0), (7, 1, 3)])
def test_a_chunk_with_right_context_sees_frames_after_it(left, chunk, right):
    def sees(i, j):
        start = i // chunk * chunk
        return start - left <= j <= start + chunk - 1 + right

    window = Window.of([left, chunk, right], "chunked_limited_with_rc")
    assert torch.equal(visible(window), brute_force(sees))


def test_sizes_are_drawn_as_often_as_configured():
    contexts = AttentionContexts.parse([[4, 1], [6, 2], [8, 0]], [0.5, 0.3, 0.2], "chunked_limited")
    random.seed(0)
    counts = Counter(contexts.draw() for _ in range(4000))
    for size, p in zip(contexts.sizes, contexts.probabilities, strict=True):
        assert counts[size] == pytest.approx(4000 * p, abs=4 * (4000 * p * (1 - p)) ** 0.5)
    assert contexts.default == (4, 1)


def test_without_probabilities_every_size_is_as_likely():
    assert AttentionContexts.parse([[4, 1], [6, 2]], None, "regular").probabilities == (0.5, 0.5)
    assert AttentionContexts.parse(None, None, "regular").sizes == ((-1, -1),)
    assert AttentionContexts.parse([3, 4], None, "regular").sizes == ((3, 4),)


@pytest.mark.parametrize(
    ("sizes", "probabilities", "style", "message"),
    [
        ([5, 1], None, "chunked_limited", r"att_context_size: \[5, 1\]: left must be a multiple of right \+ 1"),
        ([5, -1], None, "chunked_limited", r"att_context_size: \[5, -1\] needs a limited right context"),
        ([5], None, "regular", r"att_context_size: \[5\] is not a pair"),
        ([[4, 1], [6, 2]], [1.0], "regular", "att_context_probs: .* not one value for each of 2 sizes"),
        ([[4, 1], [6, 2]], [0.5, 0.6], "regular", "att_context_probs: .* does not sum to 1"),
        (None, None, "chunked", "att_context_style: chunked is none of regular, chunked_limited"),
    ],
)
def test_a_wrong_context_is_named(sizes, probabilities, style, message):
    with pytest.raises(ValueError, match=message):
        AttentionContexts.parse(sizes, probabilities, style)


def test_a_convolution_is_padded_as_its_context_says():
    assert convolution_padding(None, 9) == (4, 4)
    assert convolution_padding("causal", 9) == (8, 0)
    assert convolution_padding([5, 3], 9) == (5, 3)


@pytest.mark.parametrize(
    ("size", "kernel", "message"),
    [
        (None, 8, "conv_kernel_size: 8 must be odd"),
        ([5, 4], 9, r"conv_context_size: \[5, 4\]"),
        ("left", 9, "conv_context_size: left is neither"),
    ],
)
def test_a_wrong_convolution_context_is_named(size, kernel, message):
    with pytest.raises(ValueError, match=message):
        convolution_padding(size, kernel)
