"""What the joint network does to encoder + predictor: an activation, and dropout whose mask is never stored.

Whether an element is dropped is read from Philox4x32-10 (Salmon et al. 2011) with the seed as key and the element's
place in the whole batch as counter: (channel / 4, target position, frame, utterance), one word for each of four
channels. So the backward pass, and any tiling, finds the same mask.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """relu, tanh or sigmoid of float32."""
    if ACTIVATION == "relu":
        y = tl.maximum(x, 0.0)
    elif ACTIVATION == "tanh":
        y = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    else:
        y = tl.sigmoid(x)
    return y


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """Derivative of the activation at x."""
    if ACTIVATION == "relu":
        d = tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "tanh":
        s = tl.sigmoid(2.0 * x)
        d = 4.0 * s * (1.0 - s)
    else:
        s = tl.sigmoid(x)
        d = s * (1.0 - s)
    return d


@triton.jit
def kept(seed, u, t, b, first_channel, threshold, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Which of the elements ROWS x CHANNELS from first_channel on (a multiple of 4) dropout keeps; u, t, b are (ROWS,).

    threshold is the dropped share of the 2**32 values of a word.
    """
    group = first_channel // 4 + tl.arange(0, CHANNELS // 4)
    zero = tl.zeros((ROWS, CHANNELS // 4), tl.int32)
    w0, w1, w2, w3 = tl.philox(
        seed, zero + group[None, :], zero + u[:, None].to(tl.int32), zero + t[:, None].to(tl.int32),
        zero + b[:, None].to(tl.int32),
    )  # fmt: skip
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, CHANNELS))
    return words.to(tl.uint32, bitcast=True).to(tl.int64) >= threshold
