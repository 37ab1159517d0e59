"""The container of torch's checkpoints (since 1.6): a zip file of stored records under one top folder.

    <top>/data.pkl       the pickled structure; each tensor names the record that holds its elements
    <top>/data/<key>     one record per storage, raw, its start padded to 64 bytes
    <top>/byteorder      `little` or `big`; absent in old files, which are little
    <top>/version

Only the central directory and the records' local headers are read. Where the two could be understood in different ways
by different readers (another end record, entries that are not counted, records that overlap) the file is refused.
Format: PKWARE APPNOTE 6.3, with zip64.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nemo_archive.safety import ArchiveError, member_name
from nemo_archive.sources import Span

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SIZES_FOLLOW = 8  # a flag: they stand behind the data, and zeros in the local header
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_COMMENT = 1 << 16
LARGEST_DIRECTORY = 32 << 20  # bytes; a checkpoint of a thousand storages has 0.1 MB


class Record(NamedTuple):
    """Where a record's bytes lie within the checkpoint."""

    offset: int
    size: int


def looks_like_zip(span: Span) -> bool:
    return span.size >= _END.size and span.read(0, 4) == b"PK\x03\x04"


def read_records(span: Span) -> dict[str, Record]:
    """Records by their name below the top folder.

    Raises:
        ArchiveError: if the directory is damaged, or a record is compressed, encrypted, doubled, out of bounds, or
            overlaps another.
    """
    directory_offset, directory_size, count = _find_directory(span)
    directory = span.read(directory_offset, directory_size)
    records: dict[str, Record] = {}
    located: list[tuple[str, int, bytes]] = []  # name, place of the local header, full name
    extents: list[tuple[int, int, str]] = []  # first and last byte, name
    position = 0
    top = None
    for _ in range(count):
        if position + _ENTRY.size > len(directory):
            raise span.error("damaged zip directory")
        fields = _ENTRY.unpack_from(directory, position)
        flags, method, packed, size, name_len, extra_len, comment_len, header = (
            *(fields[index] for index in (3, 4, 8, 9, 10, 11, 12)),
            fields[16],
        )
        start = position + _ENTRY.size
        name_bytes = directory[start : start + name_len]
        extra = directory[start + name_len : start + name_len + extra_len]
        position = start + name_len + extra_len + comment_len
        name = _checked_name(span, name_bytes)
        if fields[0] != b"PK\x01\x02":
            raise span.error("damaged zip directory")
        if flags & 1 or method != 0:
            raise span.error(f"record {name!r:.200} is {'encrypted' if flags & 1 else 'compressed'}; torch only stores")
        size, packed, header = _widen(span, extra, size, packed, header)
        folder, _, short = name.partition("/")
        top = folder if top is None else top
        if folder != top or not short:
            raise span.error(f"record {name!r:.200} lies outside the checkpoint's folder {top!r:.200}")
        if short in records:
            raise span.error(f"record {name!r:.200} stands twice")
        if packed != size:
            raise span.error(f"record {name!r:.200} has two sizes")
        records[short] = Record(header, size)
        located.append((short, header, name_bytes))
    if position != len(directory):
        raise span.error("the zip directory holds more than the records that it counts")
    span.prefetch([(header, _LOCAL.size + len(raw)) for _, header, raw in located])
    for short, header, raw in located:
        size = records[short].size
        records[short] = Record(_data_offset(span, header, raw, size), size)
        extents.append((header, records[short].offset + size, raw.decode("utf-8")))
    _check_overlap(span, extents, directory_offset)
    return records


def _checked_name(span: Span, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
        if member_name(name, "") != name:
            raise ArchiveError("is not in its plain form")
    except UnicodeDecodeError:
        raise span.error(f"a record's name is not UTF-8: {raw[:40]!r}") from None
    except ArchiveError as error:
        raise span.error(f"record {name[:200]!r}: {error.rule}") from None
    return name


def _check_overlap(span: Span, extents: list[tuple[int, int, str]], limit: int) -> None:
    """Records over the same bytes would make a small file a large state dict."""
    reached = 0
    for start, end, name in sorted(extents):
        if start < reached or end > limit:
            raise span.error(f"record {name!r:.200} overlaps {'another' if start < reached else 'the zip directory'}")
        reached = end


def _find_directory(span: Span) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    tail_size = min(span.size, _END.size + _LONGEST_COMMENT)
    end = span.size - _END.size  # torch writes no comment
    if bytes(span.view(end, 4)) != b"PK\x05\x06":
        found = span.read(span.size - tail_size, tail_size).rfind(b"PK\x05\x06")
        if found < 0 or found + _END.size > tail_size:
            raise span.error("truncated checkpoint: the zip directory at its end is missing")
        end = span.size - tail_size + found
    fields = _END.unpack(span.read(end, _END.size))
    if end + _END.size + fields[7] != span.size:
        raise span.error("damaged zip directory: something follows its end")
    if fields[1] not in (0, _FULL16) or fields[2] not in (0, _FULL16):
        raise span.error("a part of a zip file in several volumes is refused")
    count, size, offset = fields[4], fields[5], fields[6]
    if (count == _FULL16 or size == _FULL32 or offset == _FULL32) and end >= _LOCATOR.size:
        locator = _LOCATOR.unpack(span.read(end - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            end64 = _END64.unpack(span.read(locator[2], _END64.size))
            if end64[0] != b"PK\x06\x06":
                raise span.error("damaged zip64 directory")
            count, size, offset = end64[7], end64[8], end64[9]
    if offset + size > span.size or count * _ENTRY.size > size:
        raise span.error("damaged zip directory: it lies outside the checkpoint")
    if size > LARGEST_DIRECTORY:
        raise span.error(f"a zip directory of {size} bytes is refused (at most {LARGEST_DIRECTORY})")
    return offset, size, count


def _widen(span: Span, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Fills 32-bit fields that are all ones from the zip64 extra field, in the order size, packed size, offset."""
    values = [size, packed, header]
    if _FULL32 not in values:
        return size, packed, header
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            packed_numbers = extra[position + 4 : position + 4 + length]
            numbers = [n for (n,) in struct.iter_unpack("<Q", packed_numbers[: len(packed_numbers) // 8 * 8])]
            for index, value in enumerate(values):
                if value == _FULL32 and numbers:
                    values[index] = numbers.pop(0)
            break
        position += 4 + length
    if _FULL32 in values:
        raise span.error("damaged zip directory: a zip64 size is missing")
    return values[0], values[1], values[2]


def _data_offset(span: Span, header: int, name: bytes, size: int) -> int:
    fields = _LOCAL.unpack(span.view(header, _LOCAL.size))
    offset = header + _LOCAL.size + fields[9] + fields[10]
    if fields[0] != b"PK\x03\x04" or span.read(header + _LOCAL.size, fields[9]) != name:
        raise span.error(f"record {name.decode()!r:.200}: its local header does not fit the directory")
    if fields[2] & 1 or fields[3] != 0:
        raise span.error(f"record {name.decode()!r:.200}: its local header says that it is packed")
    if not fields[2] & _SIZES_FOLLOW and (fields[8] not in (size, _FULL32) or fields[7] not in (size, _FULL32)):
        raise span.error(f"record {name.decode()!r:.200}: its local header gives another size than the directory")
    if offset + size > span.size:
        raise span.error(f"record {name.decode()!r:.200} reaches beyond the checkpoint")
    return offset
