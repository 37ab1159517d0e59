"""Sharded checkpoints of torch.distributed inside an archive, listed and read without torch.distributed.

    <folder>/.metadata       a pickle: shape and dtype of every tensor, its pieces, and where each was written
    <folder>/__0_0.distcp    pieces, one after the other, each a checkpoint of its own as torch.save writes it
    <folder>/common.pt       Megatron only: what is not sharded

torch reads `.metadata` with a plain `pickle.load`, which runs what is in it; here only the classes below may stand in
it, and they do nothing. Format: torch/distributed/checkpoint/metadata.py and filesystem.py.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_archive.checkpoint import Checkpoint, Storage, TensorInfo, addressable, read_checkpoint
from nemo_archive.safety import ArchiveError, check_tensor_name
from nemo_archive.sources import Span
from nemo_archive.strided import Layout, copy_elements, in_row_order, row_strides
from nemo_archive.unpickler import ITEM_BYTES, DType, StorageRef, StoredTensor, load_pickle
from nemo_archive.weights import METADATA

if TYPE_CHECKING:
    from nemo_archive.reader import Archive

LARGEST_METADATA = 32 << 20  # bytes; 1 MB describes about 5000 pieces


class _Described:
    """What the pickle says about one object of torch's."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Metadata(_Described): ...


class _Tensor(_Described): ...


class _Bytes(_Described): ...


class _Chunk(_Described): ...


class _Properties(_Described): ...


class _Index(_Described): ...


class _Place(_Described): ...


class _Ignored(_Described):
    def __new__(cls, *_arguments: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None: ...


_OF_METADATA = {
    "Metadata": _Metadata, "TensorStorageMetadata": _Tensor, "BytesStorageMetadata": _Bytes,
    "ChunkStorageMetadata": _Chunk, "TensorProperties": _Properties, "MetadataIndex": _Index,
    "StorageMeta": _Ignored, "_MEM_FORMAT_ENCODING": _Ignored,
}  # fmt: skip
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_ALLOWED: dict[str, type[_Described]] = {
    **{f"torch.distributed.checkpoint.metadata.{name}": kind for name, kind in _OF_METADATA.items()},
    "torch.distributed.checkpoint.filesystem._StorageInfo": _Place,
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata": _Metadata,
    "torch.serialization._get_layout": _Ignored,
    **{f"{module}.{name}": _Ignored for module in ("pathlib", "pathlib._local") for name in _PATHS},
}


class _Piece(NamedTuple):
    """A box of a tensor: its first index and size along each axis, and the bytes that torch.save made of it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    span: Span


def read_distributed(archive: Archive, folder: str) -> Checkpoint:
    """The tensors of a sharded checkpoint, by their full names; only `.metadata` and small values are read.

    What is no tensor stands in `content` as it was saved, if it is of a kind that weights may hold, else as the bytes
    that were saved, unread.

    Raises:
        ArchiveError: if the metadata name anything else, are damaged, or do not fit the files beside them.
    """
    span = archive.span(f"{folder}/{METADATA}")
    if span.size > LARGEST_METADATA:
        raise span.error(f"metadata of {span.size} bytes are refused (at most {LARGEST_METADATA})")
    try:
        metadata = load_pickle(span.read(0, span.size), _ALLOWED)
        described, places = _state_dict(metadata), _places(metadata)
        content: OrderedDict[str, Any] = OrderedDict()
        tensors: dict[str, TensorInfo] = {}
        storages: dict[str, Storage] = {}
        for name, value in described.items():
            check_tensor_name(name)
            if isinstance(value, _Tensor):
                storage, info = _tensor(archive, folder, name, value, places)
                storages[name], tensors[name] = storage, info
                ref = StorageRef(name, info.dtype, info.numel)
                content[name] = StoredTensor(ref, 0, info.shape, info.strides, info.dtype)
            elif isinstance(value, _Bytes):
                content[name] = _value(_piece_span(archive, folder, places, (name, None)), name, tensors, storages)
            else:
                raise ArchiveError(f"{name!r:.100} is neither a tensor nor bytes")
    except ArchiveError as error:
        raise error if error.path else span.error(error.rule) from None
    return Checkpoint(content, tensors, storages, span)


def _state_dict(metadata: Any) -> dict[str, Any]:
    described = metadata.get("state_dict_metadata") if isinstance(metadata, _Metadata) else None
    if not isinstance(described, dict) or not all(type(name) is str for name in described):
        raise ArchiveError("holds no description of a state dict")
    return described


def _places(metadata: _Metadata) -> dict[tuple[str, tuple[int, ...] | None], _Place]:
    """Where each piece was written, by name and first index."""
    stored = metadata.get("storage_data")
    places: dict[tuple[str, tuple[int, ...] | None], _Place] = {}
    starts = set()
    for index, place in stored.items() if isinstance(stored, dict) else ():
        name = index.get("fqn") if isinstance(index, _Index) else None
        if type(name) is not str or not isinstance(place, _Place):
            raise ArchiveError("the list of pieces is damaged")
        start = (place.get("relative_path"), place.get("offset"))
        if type(start[0]) is not str or type(start[1]) is not int or start in starts:
            raise ArchiveError(
                f"{name!r:.100}: a piece has no place of its own"
            )  # else a few bytes could fill a memory
        starts.add(start)
        offset = index.get("offset")
        places[name, None if offset is None else _sizes(offset)] = place
    return places


def _tensor(
    archive: Archive, folder: str, name: str, value: _Tensor, places: dict[tuple[str, tuple[int, ...] | None], _Place]
) -> tuple[Storage, TensorInfo]:
    properties = value.get("properties")
    state = properties.state if isinstance(properties, _Properties) else None
    dtype = state[0] if type(state) is tuple and state else state.get("dtype") if isinstance(state, dict) else None
    chunks = value.get("chunks")
    if type(dtype) is not DType or type(chunks) is not list:
        raise ArchiveError(f"tensor {name!r:.100}: its dtype or its pieces are missing")
    shape = _sizes(value.get("size"))
    pieces = []
    for chunk in chunks:
        offsets, sizes = (_sizes(chunk.get(key) if isinstance(chunk, _Chunk) else None) for key in ("offsets", "sizes"))
        pieces.append(_Piece(offsets, sizes, _piece_span(archive, folder, places, (name, offsets))))
    _check_pieces(name, shape, pieces)
    first = pieces[0].span if pieces else archive.span(f"{folder}/{METADATA}")
    nbytes = prod(shape) * ITEM_BYTES[dtype.name]
    storage = Storage(name, 0, nbytes, first, _Gathering(name, dtype.name, shape, tuple(pieces)))
    return storage, TensorInfo(name, shape, row_strides(shape), dtype.name, name, 0, first.offset)


def _sizes(value: Any) -> tuple[int, ...]:
    if (
        type(value) is not tuple
        or len(value) > 64
        or not all(type(size) is int and 0 <= size < 2**62 for size in value)
    ):
        raise ArchiveError("a shape or an offset is damaged")
    return value


def _check_pieces(name: str, shape: tuple[int, ...], pieces: list[_Piece]) -> None:
    if not addressable(shape):
        raise ArchiveError(f"tensor {name!r:.100}: a shape of {shape!r:.80}")
    for piece in pieces:
        axes = len(piece.offsets) == len(piece.sizes) == len(shape)
        if not axes or any(
            start + size > whole for start, size, whole in zip(piece.offsets, piece.sizes, shape, strict=True)
        ):
            raise ArchiveError(f"tensor {name!r:.100}: a piece lies outside its shape {shape!r:.80}")
    together = sum(prod(piece.sizes) for piece in pieces)
    if together != prod(shape) or len({piece.offsets for piece in pieces}) < len(pieces):
        raise ArchiveError(f"tensor {name!r:.100}: pieces of {together} elements for a shape of {shape!r:.80}")


def _piece_span(archive: Archive, folder: str, places: dict[Any, _Place], key: tuple[str, Any]) -> Span:
    place = places.get(key)
    path, offset, length = (place.get(field) if place else None for field in ("relative_path", "offset", "length"))
    if type(path) is not str or type(offset) is not int or type(length) is not int:
        raise ArchiveError(f"{key[0]!r:.100}: it does not say where a piece was written")
    if place is not None and place.get("transform_descriptors"):
        raise ArchiveError(f"{key[0]!r:.100}: its pieces were transformed (compressed?) on saving")
    whole = archive.span(f"{folder}/{path}")
    if offset < 0 or length < 0 or offset + length > whole.size:
        raise whole.error(f"refers to bytes {offset} to {offset + length} of {whole.size}")
    return Span(whole.source, whole.offset + offset, length, whole.path, whole.member)


def _value(span: Span, name: str, tensors: dict[str, TensorInfo], storages: dict[str, Storage]) -> Any:
    """A value that is no tensor; tensors within it are listed under its name."""
    try:
        inner = read_checkpoint(span)
    except ArchiveError:
        return span.read(0, span.size)
    for key, storage in inner.storages.items():
        storages[f"{name}/{key}"] = storage._replace(key=f"{name}/{key}")
    for part, info in inner.tensors.items():
        full = f"{name}.{part}" if part else name
        tensors[full] = info._replace(name=full, storage=f"{name}/{info.storage}")
    return _renamed(inner.content, name)


def _renamed(value: Any, name: str) -> Any:
    """The same structure, with storages that are named after the value."""
    if isinstance(value, StoredTensor):
        return value._replace(storage=value.storage._replace(key=f"{name}/{value.storage.key}"))
    if isinstance(value, dict):
        return type(value)((key, _renamed(entry, name)) for key, entry in value.items())
    if type(value) in (list, tuple):
        return type(value)(_renamed(entry, name) for entry in value)
    return value


class _Gathering:
    """The pieces of one tensor; each is looked into when the tensor is wanted."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], pieces: tuple[_Piece, ...]) -> None:
        self._name, self._dtype, self._shape, self._pieces = name, dtype, shape, pieces

    def whole(self) -> tuple[Span, int] | None:
        """Where the tensor's bytes stand in one place and in row order, if they do."""
        if len(self._pieces) != 1:
            return None
        storage, layout = self._look_into(self._pieces[0])
        if not in_row_order(self._shape, layout.strides):
            return None
        return storage.span, storage.offset + layout.start * ITEM_BYTES[self._dtype]

    def view(self) -> memoryview:
        """The bytes in row order: of the archive where they stand so, else put together in memory."""
        item, strides = ITEM_BYTES[self._dtype], row_strides(self._shape)
        found = self.whole()
        if found is not None:
            return found[0].view(found[1], prod(self._shape) * item)
        places = [self._look_into(piece) for piece in self._pieces]  # all are sound before any memory is taken
        gathered = memoryview(bytearray(prod(self._shape) * item))
        for piece, (storage, layout) in zip(self._pieces, places, strict=True):
            start = sum(index * stride for index, stride in zip(piece.offsets, strides, strict=True))
            copy_elements(storage.view(), layout, gathered, Layout(start, strides), piece.sizes, item)
        return gathered

    def _look_into(self, piece: _Piece) -> tuple[Storage, Layout]:
        checkpoint = read_checkpoint(piece.span)
        saved = checkpoint.content
        if not isinstance(saved, StoredTensor) or (saved.shape, saved.dtype) != (piece.sizes, self._dtype):
            raise piece.span.error(f"tensor {self._name!r:.100}: a piece is not what the metadata say")
        storage = checkpoint.storages[saved.storage.key]
        if prod(saved.shape) * ITEM_BYTES[saved.dtype] > storage.nbytes:
            raise piece.span.error(f"tensor {self._name!r:.100}: a piece has more elements than bytes for them")
        return storage, Layout(saved.offset, saved.strides)
