"""Attention within a window of relative positions, in O(T (left + right)) time and memory (after arXiv 2004.05150).

The queries are cut into blocks of b frames; block n needs the keys from n b - left to n b + b - 1 + right, a strided
view of the padded keys.  Query r of a block and key s of its span are left + r - s frames apart, so the scores by
distance, padded to rows of b + left + right + 1, become scores by key by reading the same memory in rows that are
one shorter.

Global frames (NVIDIA's global_tokens) are seen by all and see all, by plain dot products without positions.  Inside
a window they are seen a second time, and so it is in NVIDIA's checkpoints.

Shapes: B batch, H heads, T frames, K head width, N blocks, b block, S span, G global frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_kernels.attention import RelativePosition

# the score of what must not be seen: its weight underflows to zero, and a row of nothing else stays finite
_BLOCKED_SCORE = -10000.0
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, eq=False)
class GlobalFrames:
    """Frames that see all and are seen by all.

    Args:
        index: (G,), which frames.
        query: (B, H, T, K), by which they see.
        key: (B, H, T, K), by which they are seen, and by which they see.
        value: (B, H, T, K), of which they take their sums.
    """

    index: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padded: Tensor,
    position: RelativePosition,
    left: int,
    right: int,
    dropout_p: float = 0.0,
    global_frames: GlobalFrames | None = None,
) -> Tensor:
    """Weighted sums of the values at most `left` frames before and `right` frames after each query.

    Args:
        query: (B, H, T, K); key and value alike.
        key: keys.
        value: values.
        padded: (B, T), true beyond an item's length.
        position: relative positions; its embedding (H, left + right + 1, K) begins with distance `left`.
        left: frames seen before each frame, 0 or more.
        right: frames seen after it, 0 or more.
        dropout_p: probability that a weight is dropped.
        global_frames: frames that see all and are seen by all.

    Returns:
        (B, H, T, K), zero where a query is padded, unless it is a global frame.
    """
    frames, block = query.size(2), _block_size(query.size(2), left, right)
    scores = _block_scores(query, key, position, block, left, right)
    keys_padded = _spans(
        F.pad(padded[:, None, :, None], (0, 0, left, right + -frames % block), value=True), block, left + right
    )
    scores = scores.masked_fill_(keys_padded.transpose(3, 4), _BLOCKED_SCORE)
    if global_frames is not None:
        scores = torch.cat([_scores_of_global_keys(global_frames, block), scores], dim=4)
    weights = F.dropout(scores.softmax(dim=4).to(value.dtype), dropout_p, training=dropout_p > 0)

    values = _spans(F.pad(value, (0, 0, left, right + -frames % block)), block, left + right)
    span = values.size(3)
    context = weights[..., -span:].matmul(values)
    if global_frames is not None:
        seen = value[:, :, global_frames.index].unsqueeze(2)
        context = context + weights[..., :-span].matmul(seen)
    context = context.flatten(2, 3)[:, :, :frames].masked_fill(padded[:, None, :, None], 0.0)
    if global_frames is None:
        return context
    return context.index_copy(2, global_frames.index, _context_of_global_frames(global_frames, padded, dropout_p))


def global_frame_index(frames: int, count: int, spacing: int, device: torch.device) -> Tensor:
    """The first `count` multiples of `spacing` among `frames` frames, (G,)."""
    return torch.arange(0, min(count * spacing, frames), spacing, device=device)


def _block_size(frames: int, left: int, right: int) -> int:
    return max(min(max(left, right, _SMALLEST_BLOCK), frames), 1)


def _blocks(x: Tensor, block: int) -> Tensor:
    """(B, H, T, K) -> (B, H, N, b, K), with frames of zeros at the end."""
    return torch.unflatten(F.pad(x, (0, 0, 0, -x.size(2) % block)), 2, (-1, block))


def _spans(padded_x: Tensor, block: int, context: int) -> Tensor:
    """(B, H, left + N b + right, K) -> (B, H, N, b + context, K): overlapping views, nothing is copied."""
    return padded_x.unfold(2, block + context, block).transpose(3, 4)


def _block_scores(query: Tensor, key: Tensor, position: RelativePosition, block: int, left: int, right: int) -> Tensor:
    """(B, H, N, b, S): scores of each block's queries with the keys of its span."""
    scale = 1.0 / math.sqrt(query.size(3))
    by_distance = (_blocks(query + position.position_bias.unsqueeze(1), block) * scale).matmul(
        position.embedding.unsqueeze(1).transpose(2, 3)
    )
    span = block + left + right
    skewed = F.pad(by_distance, (0, block), value=_BLOCKED_SCORE).flatten(3)[..., : block * span]
    keys = _spans(F.pad(key, (0, 0, left, right + -key.size(2) % block)), block, left + right)
    scores = (_blocks(query + position.content_bias.unsqueeze(1), block) * scale).matmul(keys.transpose(3, 4))
    scores += torch.unflatten(skewed, 3, (block, span))
    return scores


def _scores_of_global_keys(frames: GlobalFrames, block: int) -> Tensor:
    """(B, H, N, b, G): what every query gives to each global frame."""
    scale = 1.0 / math.sqrt(frames.query.size(3))
    scores = (frames.query * scale).matmul(frames.key[:, :, frames.index].transpose(2, 3))
    return _blocks(scores, block)


def _context_of_global_frames(frames: GlobalFrames, padded: Tensor, dropout_p: float) -> Tensor:
    """(B, H, G, K): what the global frames see of all."""
    query = frames.query[:, :, frames.index] / math.sqrt(frames.query.size(3))
    query = _order_of_checkpoints(query)
    scores = query.matmul(frames.key.transpose(2, 3)).masked_fill_(padded[:, None, None, :], _BLOCKED_SCORE)
    weights = F.dropout(scores.softmax(dim=3).to(frames.value.dtype), dropout_p, training=dropout_p > 0)
    return weights.matmul(frames.value)


def _order_of_checkpoints(query: Tensor) -> Tensor:
    """The order in which NVIDIA's toolkit gives the queries (B, H, G, K) to heads and items.

    It reads memory laid out as (G, B, H) as if it were (B, H, G).  With one global frame that is the same; with more
    of them its checkpoints were trained with heads and items exchanged, and need it to give the same output.
    """
    return query.permute(2, 0, 1, 3).reshape(query.shape)
