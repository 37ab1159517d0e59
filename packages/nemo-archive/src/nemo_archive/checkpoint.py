"""A checkpoint inside an archive, read without torch: which tensors it holds and where their bytes lie.

The bounds of every tensor are checked against its storage here, once, so that numpy.py and torch.py may build views
without looking again.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple, Protocol

from nemo_archive.safety import ArchiveError, check_tensor_name, describe_file
from nemo_archive.sources import Span
from nemo_archive.torch_zip import looks_like_zip, read_records
from nemo_archive.unpickler import ITEM_BYTES, StorageRef, StoredTensor, load_pickle

LARGEST_PICKLE = 32 << 20  # bytes; a model of a thousand tensors has 0.2 MB
LARGEST_REPETITION = 64 << 20  # bytes that an expanded tensor (stride 0) may stand for, if its storage has fewer
_DEEPEST = 50
MOST_AXES = 32  # numpy before 2 has no more
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6, after the protocol


class TensorInfo(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        name: its key in the state dict; keys of nested dicts are joined by dots.
        shape: number of entries along each axis.
        strides: distance of neighbours along each axis, in elements.
        dtype: torch's name without `torch.`, e.g. `float32`, `bfloat16`.
        storage: key of the storage; tensors with equal keys share memory.
        offset: its first element within the storage, in elements.
        file_offset: its first byte, counted like Member.offset; in a sharded checkpoint that of its first piece, which
            begins with a header.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    storage: str
    offset: int
    file_offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, without gaps and repetitions that the strides make."""
        return self.numel * ITEM_BYTES[self.dtype]


class Pieces(Protocol):
    """A tensor that was saved on its own, or in several pieces."""

    def whole(self) -> tuple[Span, int] | None:
        """Where its bytes lie in one place and in row order: a span and the offset within it."""

    def view(self) -> memoryview:
        """Its bytes in row order."""


class Storage(NamedTuple):
    """The raw bytes that one or several tensors look at.

    Attributes:
        key: its name within the checkpoint.
        offset: where it begins, counted from the start of `span`.
        nbytes: its size.
        span: the member, or the part of one, that holds it.
        pieces: for a tensor of a sharded checkpoint: where it really lies, which is looked up when it is wanted.
    """

    key: str
    offset: int
    nbytes: int
    span: Span
    pieces: Pieces | None = None

    def place(self) -> tuple[Span, int] | None:
        """The span and the offset within it where the bytes lie; None if they have to be put together."""
        return (self.span, self.offset) if self.pieces is None else self.pieces.whole()

    def view(self) -> memoryview:
        """The bytes: of the archive itself where they lie in one place, else a copy."""
        return self.span.view(self.offset, self.nbytes) if self.pieces is None else self.pieces.view()


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        content: the structure as saved, with StoredTensor in the place of tensors.
        tensors: by name, in file order.
        storages: by key.
        span: the bytes of the checkpoint.
    """

    content: Any
    tensors: dict[str, TensorInfo]
    storages: dict[str, Storage]
    span: Span


def is_legacy(span: Span) -> bool:
    """Whether this is a checkpoint of torch before 1.6: a bare pickle stream, no zip file."""
    return span.read(2, min(len(_LEGACY_MAGIC), max(0, span.size - 2))) == _LEGACY_MAGIC


def read_checkpoint(span: Span, allow: Mapping[str, Callable[..., Any]] | None = None) -> Checkpoint:
    """Reads the structure and the places; not one element.

    Raises:
        ArchiveError: if it is neither a zip checkpoint of torch nor safetensors, damaged, or holds more than weights.
    """
    if not looks_like_zip(span):
        from nemo_archive.safetensors import looks_like_safetensors, read_safetensors

        if span.member.endswith(".safetensors") or looks_like_safetensors(span):
            return read_safetensors(span)
        if is_legacy(span):
            raise span.error("a checkpoint of torch before 1.6: only nemo_archive.torch.load_state_dict can read it")
        head = span.read(0, min(span.size, 512))
        raise span.error(f"is no torch checkpoint but {describe_file(head, span.size)}")
    records = read_records(span)
    if "constants.pkl" in records:
        raise span.error("a TorchScript program, not weights")
    if "data.pkl" not in records:
        raise span.error("no torch checkpoint: the zip file has no data.pkl")
    order = records.get("byteorder")
    if order is not None and span.read(order.offset, min(order.size, 16)) != sys.byteorder.encode():
        raise span.error(f"its byte order is not this machine's ({sys.byteorder})")
    pickle = records["data.pkl"]
    if pickle.size > LARGEST_PICKLE:
        raise span.error(f"a data.pkl of {pickle.size} bytes is refused (at most {LARGEST_PICKLE})")
    try:
        content = load_pickle(span.read(pickle.offset, pickle.size), allow)
        found = _flatten(content, pickle.size)
    except ArchiveError as error:
        raise span.error(error.rule) from None
    storages: dict[str, Storage] = {}
    tensors = {}
    for name, tensor in found.items():
        storage = _storage(span, records, storages, tensor.storage)
        tensors[name] = _checked(span, name, tensor, storage)
    return Checkpoint(content, tensors, storages, span)


def _flatten(content: Any, pickle_size: int) -> dict[str, StoredTensor]:
    """Tensors by dotted name. The size of the pickle bounds the walk: shared containers could make it exponential.

    It leads through the `_metadata` of state dicts, too, which loading copies.
    """
    found: dict[str, StoredTensor] = {}
    values, characters = pickle_size, 8 * pickle_size + 4096
    stack: list[tuple[tuple[Any, ...], Any]] = [((), content)]  # a chain of keys (the ones before, the last), a value
    depths = [0]
    while stack:
        (keys, value), depth = stack.pop(), depths.pop()
        values -= 1
        if values < 0 or depth > _DEEPEST:
            raise ArchiveError("the pickle holds itself, or is nested absurdly deep")
        if isinstance(value, StoredTensor):
            name = _dotted(keys)
            characters -= len(name)
            if name in found:
                raise ArchiveError(f"two tensors are named {name[:100]!r}")
            if characters < 0:
                raise ArchiveError("the names of its tensors are absurdly long")
            check_tensor_name(name)
            found[name] = value
        elif isinstance(value, dict | list | tuple):
            entries = list(value.items() if isinstance(value, dict) else enumerate(value))
            if isinstance(value, OrderedDict) and hasattr(value, "_metadata"):
                entries.append(("_metadata", value._metadata))
            stack.extend(((keys, key), item) for key, item in reversed(entries))
            depths.extend([depth + 1] * len(entries))
    return found


def _dotted(keys: tuple[Any, ...]) -> str:
    parts = []
    while keys:
        keys, key = keys
        parts.append(str(key))
    return ".".join(reversed(parts))


def _storage(span: Span, records: dict[str, Any], known: dict[str, Storage], ref: StorageRef) -> Storage:
    nbytes = ref.numel * ITEM_BYTES[ref.dtype or "uint8"]
    if ref.key in known:
        if known[ref.key].nbytes != nbytes:
            raise span.error(f"storage {ref.key[:60]!r} has two sizes")
        return known[ref.key]
    record = records.get(f"data/{ref.key}")
    if record is None:
        raise span.error(f"storage {ref.key!r:.60} is missing")
    if record.size != nbytes:
        raise span.error(f"storage {ref.key[:60]!r} has {record.size} bytes where {nbytes} belong")
    known[ref.key] = Storage(ref.key, record.offset, nbytes, span)
    return known[ref.key]


def addressable(shape: tuple[int, ...] | list[int]) -> bool:
    """Whether numpy and torch can make a tensor of that shape: they want it small even where one axis is empty."""
    return len(shape) <= MOST_AXES and prod(size for size in shape if size) < 2**58


def _checked(span: Span, name: str, tensor: StoredTensor, storage: Storage) -> TensorInfo:
    item = ITEM_BYTES[tensor.dtype]
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MOST_AXES:
        raise span.error(f"tensor {name!r:.100}: {len(tensor.shape)} axes and {len(tensor.strides)} strides")
    if 0 in tensor.shape:
        reach = 0
    else:
        steps = zip(tensor.shape, tensor.strides, strict=True)
        reach = tensor.offset + 1 + sum((size - 1) * stride for size, stride in steps)
    if reach * item > storage.nbytes or tensor.offset * item > storage.nbytes or prod(tensor.shape) >= 2**62:
        raise span.error(f"tensor {name!r:.100} reaches beyond its storage")
    nbytes = prod(tensor.shape) * item
    if nbytes > storage.nbytes and nbytes > LARGEST_REPETITION:
        raise span.error(f"tensor {name!r:.100} makes {nbytes} bytes of {storage.nbytes} by repeating them")
    if not addressable(tensor.shape) or max(tensor.strides, default=0) * item >= 2**62:
        raise span.error(f"tensor {name!r:.100} has sizes or strides beyond what a machine can address")
    return TensorInfo(
        name,
        tensor.shape,
        tensor.strides,
        tensor.dtype,
        storage.key,
        tensor.offset,
        span.offset + storage.offset + tensor.offset * item,
    )
