"""What the kernels of attention have in common: rows, scores by key and by distance, dropout.

The products of a block of queries with two neighbouring blocks of the embedding, near (of lower rows) and far, are
scores by distance: element (i, c) of a tile by key is in column c - i + BLOCK - 1 of the two.  Of every row a run of
BLOCK columns is needed, which crosses from near to far: a select makes a row of its needed columns, out of order by a
rotation, and a gather turns the row.

H heads, CHANNELS of a head, a power of two
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def load_rows(pointer, row, there, stride, CHANNELS: tl.constexpr):
    """(BLOCK, CHANNELS), zero where a row is not there."""
    channel = tl.arange(0, CHANNELS)
    return tl.load(pointer + row[:, None] * stride + channel[None, :], mask=there[:, None], other=0.0)


@triton.jit
def store_rows(pointer, row, there, stride, tile, CHANNELS: tl.constexpr):
    channel = tl.arange(0, CHANNELS)
    place = pointer + row[:, None] * stride + channel[None, :]
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=there[:, None])


@triton.jit
def position_block(embedding, first_row, rows, stride, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """(BLOCK, CHANNELS) of the embedding from a row on, zero where there are none."""
    row = first_row + tl.arange(0, BLOCK)
    return load_rows(embedding, row, (row >= 0) & (row < rows), stride, CHANNELS)


@triton.jit
def in_near(BLOCK: tl.constexpr):
    """(BLOCK, BLOCK), whether a column of the select is taken from the near block."""
    i, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return column >= BLOCK - 1 - i


@triton.jit
def by_key(near, far, BLOCK: tl.constexpr):
    """Scores by distance, in two blocks, as scores by key."""
    i, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tl.where(in_near(BLOCK), near, far), (column - i + BLOCK - 1) % BLOCK, 1)


@triton.jit
def by_distance(tile, BLOCK: tl.constexpr):
    """The inverse: a tile by key in the order of the select; `in_near` says which block an element belongs to."""
    i, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tile, (column + i + 1) % BLOCK, 1)


@triton.jit
def along_diagonals(near, far, BLOCK: tl.constexpr):
    """Element (i, x) of the result is element (i, x + i) of two neighbouring tiles by key."""
    i, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.gather(tl.where(column >= i, near, far), (column + i) % BLOCK, 1)


@triton.jit
def mixed(x):
    """A permutation of 32-bit numbers that leaves no trace of their order (a finalizer of multiplications)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def is_kept(seed, batch_and_head, query, key, threshold):
    """Whether dropout keeps the weights of `query` and `key`, of shapes that broadcast: their position decides.

    `threshold` is the probability in steps of 2^-24.
    """
    state = mixed(tl.load(seed).to(tl.uint32) + batch_and_head.to(tl.uint32) * 0x9E3779B1)
    state = mixed(state ^ (query.to(tl.uint32) * 0x85EBCA77))
    state = mixed(state ^ (key.to(tl.uint32) * 0xC2B2AE3D))
    return (state >> 8).to(tl.int32) < threshold
