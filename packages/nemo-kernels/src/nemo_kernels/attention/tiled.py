"""Attention with relative positions in torch's own operations, a tile of scores at a time, forward and backward.

Kept for the backward are the inputs, the output O and, for each query, L = log sum_j exp(score(i, j)): the weights are
computed again, W = exp(score - L).  With dropout's mask M (zero, or 1 / (1 - p)), drawn again from the tile's number,

    dV = (W M)^T dO        dS = W (M (dO V^T) - sum(dO O))        d(Q+u) = dS K        dK = dS^T (Q+u)

dS read by distance gives d(Q+v) = dS P and dP = dS^T (Q+v); the biases' gradients are sums over queries.

Shapes: B batch, H heads (h of a tile), T queries (m), S keys (n), K head width, P distances.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_kernels.attention.positions import by_key, rows_with_zeros
from nemo_kernels.attention.tiles import Tile, tiles

# the logarithm of a sum of no weights, such that exp(score - it) is zero
NOTHING_SEEN = math.inf


class TiledGradients(NamedTuple):
    """Gradients of the inputs, each of its input's shape."""

    query: Tensor
    key: Tensor
    value: Tensor
    embedding: Tensor
    content_bias: Tensor
    position_bias: Tensor


class _Memory:
    """Memory that every tile uses again: what is allocated anew has its pages mapped anew, a tenth of the time."""

    def __init__(self, like: Tensor) -> None:
        self._flat = like.new_empty(0)

    def shaped(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if self._flat.numel() < size:
            self._flat = self._flat.new_empty(size)
        return self._flat[:size].view(shape)


class _Dropout:
    """Weights of a tile are dropped by a generator that starts from the tile's number.

    Sixteen random bits decide on a weight, a sixth of the cost of torch's bernoulli_; `kept_p` is the probability in
    steps of 2^-16 that results, and what is kept is divided by exactly that.
    """

    def __init__(self, probability: float, seed: int, like: Tensor) -> None:
        self.active, self.seed = probability > 0.0, seed
        self._threshold = min(max(round((1.0 - probability) * (1 << 16)), 1), (1 << 16) - 1) - (1 << 15)
        self.kept_p = (self._threshold + (1 << 15)) / (1 << 16) if self.active else 1.0
        self._bits = _Memory(like.new_empty(0, dtype=torch.int64))

    def keeps(self, tile: Tile) -> Tensor:
        """(h, m, n), whether each weight is kept."""
        shape = tile.heads.stop - tile.heads.start, tile.n_queries, tile.n_keys
        bits = self._bits.shaped(-(-math.prod(shape) // 4))
        generator = torch.Generator(bits.device).manual_seed(self.seed * 1_000_003 + tile.number)
        bits.random_(-(1 << 63), None, generator=generator)
        return (bits.view(torch.int16)[: math.prod(shape)] < self._threshold).view(shape)


class _Inputs:
    """The inputs in the type to compute in, and the scores of a tile."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embedding: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        ranges: tuple[Tensor, Tensor],
        shift: int,
        scale: float,
    ) -> None:
        dtype = torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype
        query = query.to(dtype)
        self.dtype = dtype
        self.content_query = (query + content_bias.to(dtype).unsqueeze(1)).mul_(scale)
        self.position_query = (query + position_bias.to(dtype).unsqueeze(1)).mul_(scale)
        self.key, self.value = key.to(dtype), value.to(dtype)
        # scores of pairs that are not seen are computed as well, and may need rows that are not there
        queries, keys = query.size(2), key.size(2)
        self.first_row = shift - (queries - 1)
        self.embedding = rows_with_zeros(embedding.to(dtype), self.first_row, queries + keys - 1)
        self.ranges = ranges
        self._memory = _Memory(self.key)

    def rows(self, tile: Tile) -> slice:
        """The rows of the embedding that a tile needs, m + n - 1 of them."""
        queries = self.content_query.size(2)
        first = tile.keys.start - (tile.queries.stop - 1) + queries - 1
        return slice(first, first + tile.n_queries + tile.n_keys - 1)

    def scores(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Scores (h, m, n), and the memory (h, m, m + n - 1) by distance that they are a view of."""
        position_query = self.position_query[tile.item, tile.heads, tile.queries]
        rows = self.embedding[tile.heads, self.rows(tile)]
        by_distance = self._memory.shaped(*position_query.shape[:2], rows.size(1))
        torch.bmm(position_query, rows.mT, out=by_distance)
        scores = by_key(by_distance, tile.n_keys)
        scores.baddbmm_(
            self.content_query[tile.item, tile.heads, tile.queries], self.key[tile.item, tile.heads, tile.keys].mT
        )
        if tile.ragged:
            scores.masked_fill_(self._unseen(tile), -math.inf)
        return scores, by_distance

    def _unseen(self, tile: Tile) -> Tensor:
        key = torch.arange(tile.keys.start, tile.keys.stop, dtype=torch.int32, device=self.key.device)
        first, last = (x[tile.item, tile.queries].unsqueeze(1) for x in self.ranges)
        return (key < first) | (key >= last)


def tiled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    first: Tensor,
    last: Tensor,
    shift: int,
    scale: float,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The output, of the shape of query and in the order (B, T, H, K) in memory, and L (B, H, T)."""
    inputs = _Inputs(query, key, value, embedding, content_bias, position_bias, (first, last), shift, scale)
    output = empty_heads(query)
    log_sum = query.new_full(query.shape[:3], NOTHING_SEEN, dtype=inputs.dtype)
    output.zero_()
    dropout = _Dropout(dropout_p, seed, inputs.key)
    for tile in tiles(first, last, query.size(1), key.size(2)):
        scores, _ = inputs.scores(tile)
        highest = scores.amax(2, keepdim=True)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(2, keepdim=True)
        if dropout.active:
            weights *= dropout.keeps(tile)
        context = weights.bmm(inputs.value[tile.item, tile.heads, tile.keys])
        output[tile.item, tile.heads, tile.queries] = context.div_(total * dropout.kept_p)
        log_sum[tile.item, tile.heads, tile.queries] = highest.add_(total.log_()).squeeze(2)
    return output, log_sum


def tiled_backward(
    grad_output: Tensor,
    output: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    first: Tensor,
    last: Tensor,
    shift: int,
    scale: float,
    dropout_p: float,
    seed: int,
) -> TiledGradients:
    """The gradients of the inputs from that of the output."""
    inputs = _Inputs(query, key, value, embedding, content_bias, position_bias, (first, last), shift, scale)
    backward = _Backward(inputs, grad_output, output, log_sum, _Dropout(dropout_p, seed, inputs.key))
    for tile in tiles(first, last, query.size(1), key.size(2)):
        backward.add(tile)
    sums = backward.sums
    before = max(-inputs.first_row, 0)  # rows of zeros that had been put before the embedding's
    grad_embedding = torch.zeros_like(embedding, dtype=inputs.dtype)
    used = slice(max(inputs.first_row, 0), min(inputs.first_row + sums.embedding.size(1), embedding.size(1)))
    grad_embedding[:, used] = sums.embedding[:, before : before + used.stop - used.start]
    return TiledGradients(
        sums.query.mul_(scale).to(query.dtype),
        sums.key.to(key.dtype),
        sums.value.to(value.dtype),
        grad_embedding.to(embedding.dtype),
        sums.content_bias.mul_(scale).to(content_bias.dtype),
        sums.position_bias.mul_(scale).to(position_bias.dtype),
    )


class _Backward:
    """Sums of what each tile gives to the gradients."""

    def __init__(
        self, inputs: _Inputs, grad_output: Tensor, output: Tensor, log_sum: Tensor, dropout: _Dropout
    ) -> None:
        self.inputs, self.log_sum, self.dropout = inputs, log_sum, dropout
        self._memory = _Memory(inputs.key)
        self.along_output = (grad_output.to(inputs.dtype) * output).sum(3)
        self.grad_output = grad_output.to(inputs.dtype) / dropout.kept_p
        heads, width = inputs.key.size(1), inputs.key.size(3)
        self.sums = TiledGradients(
            empty_heads(inputs.content_query).zero_(),
            empty_heads(inputs.key).zero_(),
            empty_heads(inputs.value).zero_(),
            torch.zeros_like(inputs.embedding),
            inputs.key.new_zeros(heads, width),
            inputs.key.new_zeros(heads, width),
        )

    def add(self, tile: Tile) -> None:
        """Computes a tile's weights again and adds what it gives."""
        item, heads, queries, keys = tile.item, tile.heads, tile.queries, tile.keys
        inputs, sums, rows = self.inputs, self.sums, self.inputs.rows(tile)
        scores, by_distance = inputs.scores(tile)
        weights = scores.sub_(self.log_sum[item, heads, queries].unsqueeze(2)).exp_()
        grad_output = self.grad_output[item, heads, queries]
        grad_weights = self._memory.shaped(*weights.shape)
        torch.bmm(grad_output, inputs.value[item, heads, keys].mT, out=grad_weights)
        dropped = weights
        if self.dropout.active:
            kept = self.dropout.keeps(tile)
            grad_weights *= kept
            dropped = weights * kept
        sums.value[item, heads, keys].baddbmm_(dropped.mT, grad_output)
        weights *= grad_weights.sub_(self.along_output[item, heads, queries].unsqueeze(2))
        _clear_corners(by_distance, tile.n_keys)
        grad_scores, content_query = weights, inputs.content_query[item, heads, queries]
        sums.key[item, heads, keys].baddbmm_(grad_scores.mT, content_query)
        sums.embedding[heads, rows].baddbmm_(by_distance.mT, inputs.position_query[item, heads, queries])
        grad_content = grad_scores.bmm(inputs.key[item, heads, keys])
        grad_position = by_distance.bmm(inputs.embedding[heads, rows])
        sums.content_bias[heads] += grad_content.sum(1)
        sums.position_bias[heads] += grad_position.sum(1)
        sums.query[item, heads, queries] = grad_content.add_(grad_position)


def _clear_corners(by_distance: Tensor, keys: int) -> None:
    """Zeroes what scores (h, m, m + n - 1) by distance hold beside the n keys of each query."""
    rows = by_distance.size(1)
    if rows == 1:
        return
    i, column = torch.arange(rows, device=by_distance.device).unsqueeze(1), torch.arange(rows - 1)
    outside = column.to(by_distance.device) < rows - 1 - i
    by_distance[:, :, : rows - 1].masked_fill_(outside, 0.0)
    by_distance[:, :, keys:].masked_fill_(~outside, 0.0)


def empty_heads(like: Tensor) -> Tensor:
    """(B, H, T, K) in the order (B, T, H, K) in memory, in which heads are joined without a copy."""
    batch, heads, frames, width = like.shape
    return like.new_empty(batch, frames, heads, width).transpose(1, 2)
