"""The safetensors format, read and written without torch, numpy or the `safetensors` package.

    8 bytes            length N of the header, little-endian
    N bytes            JSON: {"<name>": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
                       "__metadata__": {text: text}}, padded with spaces
    the rest           the elements, row by row; the offsets count from here, leave no gap and do not overlap

Format: https://github.com/huggingface/safetensors. Two names cannot share memory in it, and it has no place for what
torch's state dicts say about modules. So that a state dict comes back as it was, tied tensors are stored once, and
`__metadata__` holds JSON texts of our own: `nemo_archive.aliases` ({other name: stored name}), `nemo_archive.names`
(the order, where there are aliases) and `nemo_archive.versions` (`_metadata`). Other readers see the stored names.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

from nemo_archive.checkpoint import Checkpoint, Storage, TensorInfo, addressable
from nemo_archive.safety import ArchiveError, check_tensor_name, describe_file
from nemo_archive.sources import Span
from nemo_archive.strided import Layout, row_order, row_strides
from nemo_archive.unpickler import ITEM_BYTES, StorageRef, StoredTensor

LARGEST_HEADER = 16 << 20  # bytes; a model of a thousand tensors has 0.1 MB
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ALIASES, _NAMES, _VERSIONS = "nemo_archive.aliases", "nemo_archive.names", "nemo_archive.versions"
_FIELDS = {"dtype", "shape", "data_offsets"}
_ALIGNMENT = 64  # of the data, as torch aligns its records


class Payload(NamedTuple):
    """One tensor to be written: `write(file)` appends its elements row by row, when its turn has come."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    write: Callable[[BinaryIO], object]


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def looks_like_safetensors(span: Span) -> bool:
    head = span.read(0, min(9, span.size))
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= span.size - 8


def read_safetensors(span: Span) -> Checkpoint:
    """The tensors and their places; only the header is read.

    Raises:
        ArchiveError: if the header breaks a rule of the format, or does not fit the data.
    """
    header, start = _read_header(span)
    metadata = _metadata(header.pop("__metadata__", {}), span)
    entries = [_entry(name, described, span) for name, described in header.items()]
    _check_coverage(entries, span, start)
    tensors: dict[str, TensorInfo] = {}
    stored: dict[str, StoredTensor] = {}
    storages: dict[str, Storage] = {}
    for entry in entries:
        strides, nbytes = row_strides(entry.shape), entry.end - entry.begin
        storages[entry.name] = Storage(entry.name, start + entry.begin, nbytes, span)
        place = span.offset + start + entry.begin
        tensors[entry.name] = TensorInfo(entry.name, entry.shape, strides, entry.dtype, entry.name, 0, place)
        ref = StorageRef(entry.name, entry.dtype, nbytes // ITEM_BYTES[entry.dtype])
        stored[entry.name] = StoredTensor(ref, 0, entry.shape, strides, entry.dtype)
    aliases = _texts(metadata, _ALIASES, dict, span)
    for alias, name in aliases.items():
        if alias in stored or name not in stored or name in aliases:
            raise span.error(f"{_ALIASES}: {alias!r:.60} cannot stand for {name!r:.60}")
        tensors[alias], stored[alias] = tensors[name]._replace(name=alias), stored[name]
    order = _texts(metadata, _NAMES, list, span) or list(tensors)
    if len(order) != len(tensors) or set(order) != tensors.keys():
        raise span.error(f"{_NAMES} are not those of its tensors")
    content: Any = OrderedDict((name, stored[name]) for name in order)
    if _VERSIONS in metadata:
        content._metadata = _versions(metadata, span)
    return Checkpoint(content, {name: tensors[name] for name in order}, storages, span)


def _read_header(span: Span) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the data begin."""
    size = int.from_bytes(span.read(0, min(8, span.size)), "little")
    if span.size < 10 or not looks_like_safetensors(span):
        head = span.read(0, min(span.size, 512))
        if span.size >= 10 and head[8:9] == b"{" and size <= LARGEST_HEADER:
            raise span.error(f"truncated: a safetensors header of {size} bytes in {span.size}")
        raise span.error(f"is no safetensors file but {describe_file(head, span.size)}")
    if size > LARGEST_HEADER:
        raise span.error(f"a safetensors header of {size} bytes is refused (at most {LARGEST_HEADER})")
    try:
        header = json.loads(span.read(8, size).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise span.error(f"unreadable safetensors header: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise span.error("unreadable safetensors header: no JSON object")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.100} stands twice")
    return unique


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _metadata(value: Any, span: Span) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise span.error("__metadata__ is not a mapping of texts")
    return value


def _entry(name: str, described: Any, span: Span) -> _Entry:
    if not isinstance(described, dict) or not described.keys() >= _FIELDS:
        raise span.error(f"tensor {name!r:.100}: an entry has dtype, shape and data_offsets")
    code, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise span.error(f"tensor {name!r:.100}: dtype {code!r:.40} is unknown")
    if not _sizes(shape) or not addressable(shape):
        raise span.error(f"tensor {name!r:.100}: a shape of {shape!r:.80}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise span.error(f"tensor {name!r:.100}: data_offsets of {offsets!r:.80}")
    entry = _Entry(name, DTYPES[code], tuple(shape), *offsets)
    needed = prod(shape) * ITEM_BYTES[entry.dtype]
    if entry.end - entry.begin != needed:
        raise span.error(f"tensor {name!r:.100}: {entry.end - entry.begin} bytes where {needed} belong")
    try:
        check_tensor_name(name)
    except ArchiveError as error:
        raise span.error(error.rule) from None
    return entry


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_coverage(entries: Iterable[_Entry], span: Span, start: int) -> None:
    """One tensor begins where the one before ends, the first at 0, and the last ends with the file."""
    reached = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != reached:
            what = "overlaps another" if entry.begin < reached else "leaves a gap before it"
            raise span.error(f"tensor {entry.name!r:.100} {what}: it begins at {entry.begin}, not at {reached}")
        reached = entry.end
    if reached != span.size - start:
        what = "truncated" if reached > span.size - start else "data that belong to no tensor"
        raise span.error(f"{what}: its tensors take {reached} bytes, {span.size - start} are there")


def _texts(metadata: Mapping[str, str], key: str, kind: type[Any], span: Span) -> Any:
    """A JSON text of ours: a mapping or list of texts; an empty one where it is absent."""
    if key not in metadata:
        return kind()
    try:
        value = json.loads(metadata[key], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise span.error(f"{key} is unreadable: {str(error)[:100]}") from None
    held = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(text, str) for text in held):
        raise span.error(f"{key} holds something other than texts")
    return value


def _versions(metadata: Mapping[str, str], span: Span) -> OrderedDict[str, dict[str, Any]]:
    try:
        versions = json.loads(metadata[_VERSIONS])
    except (ValueError, RecursionError) as error:
        raise span.error(f"{_VERSIONS} is unreadable: {str(error)[:100]}") from None
    if not isinstance(versions, dict) or not all(isinstance(entry, dict) for entry in versions.values()):
        raise span.error(f"{_VERSIONS} is no mapping of mappings")
    return OrderedDict(versions)


def write_safetensors(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Writes the tensors of a checkpoint, one after the other, without an array library.

    Tensors that look at the same elements are stored once; those that share only a part of a storage become separate,
    and each is stored in row order.

    Raises:
        ArchiveError: if it holds something besides tensors, or a dtype that the format lacks.
    """
    content = checkpoint.content
    payloads: list[Payload] = []
    aliases: dict[str, str] = {}
    stored: dict[tuple[Any, ...], str] = {}
    try:
        _check_flat(content)
        for name, info in checkpoint.tensors.items():
            place = (info.storage, info.offset, info.shape, info.strides, info.dtype)
            if info.numel and place in stored:
                aliases[name] = stored[place]
                continue
            stored[place] = name
            payloads.append(Payload(name, info.dtype, info.shape, _elements(info, checkpoint.storages[info.storage])))
        write_payloads(file, payloads, aliases, list(checkpoint.tensors), getattr(content, "_metadata", None))
    except ArchiveError as error:
        raise error if error.path else checkpoint.span.error(error.rule) from None


def _check_flat(content: Any) -> None:
    if not isinstance(content, dict):
        raise ArchiveError(f"safetensors holds tensors by name, not a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, StoredTensor):
            raise ArchiveError(f"safetensors holds tensors alone; the entry {name!r:.100} is a {type(value).__name__}")


def _elements(info: TensorInfo, storage: Storage) -> Callable[[BinaryIO], object]:
    layout = Layout(info.offset, info.strides)
    return lambda file: file.write(row_order(storage.view(), layout, info.shape, ITEM_BYTES[info.dtype]))


def write_payloads(
    file: BinaryIO,
    payloads: Iterable[Payload],
    aliases: Mapping[str, str],
    names: list[str],
    versions: Mapping[str, Any] | None,
) -> None:
    """Writes tensors: wide elements first, so that all are aligned, then by name. Equal content gives equal bytes.

    Args:
        file: only appended to.
        payloads: the tensors to store, in the order of the header.
        aliases: other names of stored tensors.
        names: all names, in their order.
        versions: `_metadata` of the state dict, if it has one.

    Raises:
        ArchiveError: if a dtype has no code in the format, or `versions` no JSON form.
    """
    payloads = list(payloads)
    metadata = {"format": "pt"}  # what other libraries look for
    if aliases:
        metadata |= {_ALIASES: _json(aliases), _NAMES: _json(names)}
    if versions is not None:
        metadata[_VERSIONS] = _json(versions)
    ordered = sorted(payloads, key=lambda payload: (-ITEM_BYTES[payload.dtype], payload.name))
    places, position = {}, 0
    for payload in ordered:
        size = prod(payload.shape) * ITEM_BYTES[payload.dtype]
        places[payload.name] = [position, position + size]
        position += size
    header: dict[str, Any] = {"__metadata__": metadata}
    for payload in payloads:
        if payload.dtype not in _CODES:
            raise ArchiveError(f"tensor {payload.name!r:.100}: safetensors has no {payload.dtype}")
        shape, place = list(payload.shape), places[payload.name]
        header[payload.name] = {"dtype": _CODES[payload.dtype], "shape": shape, "data_offsets": place}
    text = _json(header).encode("utf-8")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for payload in ordered:
        payload.write(file)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArchiveError(f"the state dict's _metadata has no JSON form: {str(error)[:100]}") from None
