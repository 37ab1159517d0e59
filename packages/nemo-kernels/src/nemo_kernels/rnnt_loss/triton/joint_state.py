"""Joint states of a tile of the lattice, hidden[b, t, u] = dropout(activation(encoder[b, t] + predictor[b, u])).

The fused loss makes them for a few frames at a time, multiplies by the output weight (a matrix product that is best
left to torch), and comes back with their gradient, which is summed here over u for the encoder and over t for the
predictor. Each sum has one owner, so results repeat bit by bit; nothing is added atomically.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nemo_kernels.rnnt_loss.triton.activation import activate, kept, slope
from nemo_kernels.rnnt_loss.triton.builds import join_backward_form, join_form
from nemo_kernels.rnnt_loss.triton.planes import lengths32


@triton.jit
def join_kernel(
    encoder, predictor, hidden, logit_len, target_len, seed: tl.int64, scale, threshold: tl.int64,
    cells, T, W, width, stride_eb, stride_et, stride_pb, stride_pu, first_utterance, first_frame,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """ROWS cells by COLUMNS channels; zero outside the lattice."""
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    channel = first + tl.arange(0, COLUMNS)
    there = cell < cells
    u = cell % W
    t = (cell // W) % T
    b = (cell // (W * T)).to(tl.int64)
    inside = there & (first_frame + t < tl.load(logit_len + b, mask=there, other=0))
    inside &= u <= tl.load(target_len + b, mask=there, other=-1)
    exists = (channel < width)[None, :]
    wanted = inside[:, None] & exists
    encoded = tl.load(encoder + (b * stride_eb + t * stride_et)[:, None] + channel[None, :], mask=wanted, other=0.0)
    predicted = tl.load(predictor + (b * stride_pb + u * stride_pu)[:, None] + channel[None, :], mask=wanted, other=0.0)
    state = activate(encoded.to(tl.float32) + predicted.to(tl.float32), ACTIVATION)
    if DROPOUT:
        keep = kept(seed, u, first_frame + t, first_utterance + b, first, threshold, ROWS, COLUMNS)
        state = tl.where(keep, state * scale, 0.0)
    state = tl.where(wanted, state, 0.0)
    tl.store(
        hidden + cell[:, None].to(tl.int64) * width + channel[None, :],
        state.to(hidden.dtype.element_ty),
        mask=there[:, None] & exists,
    )


@triton.jit
def join_backward_kernel(
    grad_hidden, encoder, predictor, grad, logit_len, target_len, seed: tl.int64, scale, threshold: tl.int64,
    T, W, width, stride_eb, stride_et, stride_pb, stride_pu, stride_gb, stride_gr, first_utterance, first_frame,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
    OVER_FRAMES: tl.constexpr,
):  # fmt: skip
    """Adds to one row of grad (b, t) the sum over u, or with OVER_FRAMES to (b, u) the sum over t."""
    own = tl.program_id(0)
    first = tl.program_id(1) * CHANNELS
    b = tl.program_id(2).to(tl.int64)
    channel = first + tl.arange(0, CHANNELS)
    exists = channel < width
    frames = tl.minimum(tl.load(logit_len + b) - first_frame, T)
    positions = tl.minimum(tl.load(target_len + b) + 1, W)
    if OVER_FRAMES:
        count = tl.where(own < positions, frames, 0)
    else:
        count = tl.where(own < frames, positions, 0)
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, count, POSITIONS):
        other = start + tl.arange(0, POSITIONS)
        wanted = (other < count)[:, None] & exists[None, :]
        if OVER_FRAMES:
            t = other
            u = tl.zeros_like(other) + own
        else:
            t = tl.zeros_like(other) + own
            u = other
        encoded = tl.load(encoder + b * stride_eb + t[:, None] * stride_et + channel[None, :], mask=wanted, other=0.0)
        predicted = tl.load(
            predictor + b * stride_pb + u[:, None] * stride_pu + channel[None, :], mask=wanted, other=0.0
        )
        cell = (b * T + t) * W + u
        flow = tl.load(grad_hidden + cell[:, None].to(tl.int64) * width + channel[None, :], mask=wanted, other=0.0).to(
            tl.float32
        )
        flow *= slope(encoded.to(tl.float32) + predicted.to(tl.float32), ACTIVATION)
        if DROPOUT:
            utterance = tl.zeros_like(other) + (first_utterance + b).to(tl.int32)
            keep = kept(seed, u, first_frame + t, utterance, first, threshold, POSITIONS, CHANNELS)
            flow = tl.where(keep, flow * scale, 0.0)
        total += tl.sum(tl.where(wanted, flow, 0.0), 0)
    place = grad + b * stride_gb + own * stride_gr + channel
    tl.store(place, tl.load(place, mask=exists, other=0.0) + total, mask=exists)


def join(
    encoder: torch.Tensor,
    predictor: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    activation: str,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    first_utterance: int = 0,
    first_frame: int = 0,
) -> torch.Tensor:
    """Joint states of some frames of some utterances.

    Args:
        encoder: (B, T, D) rows of those frames; any strides but the last.
        predictor: (B, W, D) rows of those utterances.
        logit_len: (B,) whole lengths of those utterances.
        target_len: (B,).
        activation: relu, tanh or sigmoid.
        dropout_p: share of the elements that are zeroed.
        seed: of the dropout, 64 bits.
        first_utterance: place of the first utterance in the batch, for the dropout.
        first_frame: place of the first frame in the utterances.

    Returns:
        (B, T, W, D) of encoder's type, zero outside the lattice.
    """
    encoder, predictor = _rows(encoder), _rows(predictor)
    B, T, width = encoder.shape
    W = predictor.shape[1]
    hidden = torch.empty((B, T, W, width), dtype=encoder.dtype, device=encoder.device)
    form = join_form(encoder.dtype, width, activation, dropout_p)
    grid = (triton.cdiv(B * T * W, form.constants["ROWS"]), triton.cdiv(width, form.constants["COLUMNS"]))
    join_kernel[grid](
        encoder, predictor, hidden, lengths32(logit_len), lengths32(target_len), seed, *_dropout(dropout_p),
        B * T * W, T, W, width, *encoder.stride()[:2], *predictor.stride()[:2], first_utterance, first_frame,
        **form.launch,
    )  # fmt: skip
    return hidden


def join_backward(
    grad_hidden: torch.Tensor,
    encoder: torch.Tensor,
    predictor: torch.Tensor,
    logit_len: torch.Tensor,
    target_len: torch.Tensor,
    activation: str,
    grad_encoder: torch.Tensor,
    grad_predictor: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
    first_utterance: int = 0,
    first_frame: int = 0,
) -> None:
    """Adds the gradients of both inputs of `join` (same arguments) to two float32 tensors.

    Args:
        grad_hidden: (B, T, W, D), contiguous; ignored outside the lattice.
        encoder: as given to `join`.
        predictor: as given to `join`.
        logit_len: as given to `join`.
        target_len: as given to `join`.
        activation: as given to `join`.
        grad_encoder: (B, T, D) float32, added to; any strides but the last.
        grad_predictor: (B, W, D) float32, added to.
        dropout_p: as given to `join`.
        seed: as given to `join`.
        first_utterance: as given to `join`.
        first_frame: as given to `join`.
    """
    encoder, predictor = _rows(encoder), _rows(predictor)
    B, T, width = encoder.shape
    W = predictor.shape[1]
    for over_frames, grad in ((False, grad_encoder), (True, grad_predictor)):
        form = join_backward_form(width, activation, dropout_p, over_frames)
        grid = (grad.shape[1], triton.cdiv(width, form.constants["CHANNELS"]), B)
        join_backward_kernel[grid](
            grad_hidden, encoder, predictor, grad, lengths32(logit_len), lengths32(target_len), seed,
            *_dropout(dropout_p), T, W, width, *encoder.stride()[:2], *predictor.stride()[:2], *grad.stride()[:2],
            first_utterance, first_frame, **form.launch,
        )  # fmt: skip


def _rows(states: torch.Tensor) -> torch.Tensor:
    """The states with neighbouring channels side by side."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _dropout(dropout_p: float) -> tuple[float, int]:
    """Factor of the kept elements, and the dropped share of 2**32."""
    return 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0, round(dropout_p * 2**32)
