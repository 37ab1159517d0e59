"""Sharded checkpoints in zarr's format inside an archive, as Megatron-core wrote them until 2024.

    <folder>/<key>/.zarray      JSON: shape, shape of the chunks, dtype, no compressor
    <folder>/<key>/1.0.0        one chunk in row order, named by its place among the chunks; at the edges it is padded
    <folder>/common.pt, <key>._extra_state/shard_0_2.pt     what is not sharded, and no weights

Format: the specification of zarr's storage, version 2.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_archive.checkpoint import Checkpoint, Storage, TensorInfo, addressable
from nemo_archive.safety import check_tensor_name
from nemo_archive.sources import Span
from nemo_archive.strided import Layout, copy_elements, row_strides
from nemo_archive.unpickler import ITEM_BYTES, StorageRef, StoredTensor
from nemo_archive.weights import ZARR

if TYPE_CHECKING:
    from nemo_archive.reader import Archive

LARGEST_DESCRIPTION = 1 << 16  # bytes
_DTYPES = {
    "<f8": "float64", "<f4": "float32", "<f2": "float16", "bfloat16": "bfloat16", "|b1": "bool",
    "<i8": "int64", "<i4": "int32", "<i2": "int16", "|i1": "int8", "|u1": "uint8",
}  # fmt: skip


class _Chunk(NamedTuple):
    """A box of a tensor, without its padding: its first index, its size along each axis, and its file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    span: Span


def read_zarr(archive: Archive, folder: str) -> Checkpoint:
    """The tensors of a zarr checkpoint, by the names of their folders; only the descriptions are read.

    Raises:
        ArchiveError: if a description is damaged, asks for what is not supported, or does not fit the chunks.
    """
    content: OrderedDict[str, Any] = OrderedDict()
    tensors: dict[str, TensorInfo] = {}
    storages: dict[str, Storage] = {}
    ending = f"/{ZARR}"
    found = [name for name in archive.members if name.startswith(f"{folder}/") and name.endswith(ending)]
    for member in found:
        key = member.removeprefix(f"{folder}/").removesuffix(ending)
        check_tensor_name(key)
        shape, chunk_shape, dtype = _description(archive.span(member))
        chunks = _chunks(archive, member.removesuffix(ZARR), shape, chunk_shape, ITEM_BYTES[dtype])
        first = chunks[0].span if chunks else archive.span(member)
        nbytes = prod(shape) * ITEM_BYTES[dtype]
        storages[key] = Storage(key, 0, nbytes, first, _Gathering(shape, chunk_shape, ITEM_BYTES[dtype], chunks))
        tensors[key] = TensorInfo(key, shape, row_strides(shape), dtype, key, 0, first.offset)
        content[key] = StoredTensor(StorageRef(key, dtype, prod(shape)), 0, shape, row_strides(shape), dtype)
    return Checkpoint(content, tensors, storages, archive.span(found[0]))


def _description(span: Span) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Shape, shape of the chunks, and dtype of a tensor."""
    if span.size > LARGEST_DESCRIPTION:
        raise span.error(f"a description of {span.size} bytes is refused (at most {LARGEST_DESCRIPTION})")
    try:
        described = json.loads(span.read(0, span.size))
    except (ValueError, RecursionError):
        raise span.error("is no JSON") from None
    if not isinstance(described, dict) or described.get("zarr_format") != 2:
        raise span.error("is no description of an array in zarr's format 2")
    for key, wanted in (("compressor", None), ("filters", None), ("order", "C")):
        if described.get(key) != wanted:
            raise span.error(f"{key} {described.get(key)!r:.60} is not supported, only {wanted!r} is")
    dtype = described.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise span.error(f"dtype {dtype!r:.60} is not supported")
    shape, chunks = _sizes(span, described.get("shape"), 0), _sizes(span, described.get("chunks"), 1)
    if len(shape) != len(chunks) or not addressable(shape) or not addressable(chunks):
        raise span.error(f"chunks of {chunks!r:.60} for a shape of {shape!r:.60}")
    return shape, chunks, _DTYPES[dtype]


def _sizes(span: Span, value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and least <= size < 2**62 for size in value):
        raise span.error(f"a shape of {value!r:.60}")
    return tuple(value)


def _chunks(
    archive: Archive, prefix: str, shape: tuple[int, ...], chunk_shape: tuple[int, ...], item_bytes: int
) -> list[_Chunk]:
    """The chunks of a tensor, each with its file, whose size is checked."""
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True)]
    if prod(counts) > len(archive.members):
        rule = f"a shape of {shape!r:.60} needs {prod(counts)} chunks, more than there are members"
        raise archive.span(prefix + ZARR).error(rule)
    found = []
    for place in itertools.product(*map(range, counts)):
        span = archive.span(prefix + (".".join(map(str, place)) or "0"))
        if span.size != prod(chunk_shape) * item_bytes:
            raise span.error(f"a chunk of {span.size} bytes where {prod(chunk_shape) * item_bytes} belong")
        offsets = tuple(index * chunk for index, chunk in zip(place, chunk_shape, strict=True))
        sizes = zip(chunk_shape, shape, offsets, strict=True)
        found.append(_Chunk(offsets, tuple(min(chunk, size - start) for chunk, size, start in sizes), span))
    return found


class _Gathering:
    """The chunks of one tensor, put together when it is wanted."""

    def __init__(
        self, shape: tuple[int, ...], chunk_shape: tuple[int, ...], item_bytes: int, chunks: list[_Chunk]
    ) -> None:
        self._shape, self._chunk_shape, self._item_bytes, self._chunks = shape, chunk_shape, item_bytes, chunks

    def whole(self) -> tuple[Span, int] | None:
        """Where the tensor's bytes stand in one place and in row order, if they do."""
        if len(self._chunks) != 1 or self._chunk_shape[1:] != self._shape[1:]:
            return None
        return self._chunks[0].span, 0

    def view(self) -> memoryview:
        """The bytes in row order: of the archive where they stand so, else put together in memory."""
        strides, nbytes = row_strides(self._shape), prod(self._shape) * self._item_bytes
        found = self.whole()
        if found is not None:
            return found[0].view(found[1], nbytes)
        gathered = memoryview(bytearray(nbytes))
        layout = Layout(0, row_strides(self._chunk_shape))
        for offsets, sizes, span in self._chunks:
            start = sum(index * stride for index, stride in zip(offsets, strides, strict=True))
            source = span.view(0, span.size)
            copy_elements(source, layout, gathered, Layout(start, strides), sizes, self._item_bytes)
        return gathered
