"""One pass over the headers of a tar archive (POSIX ustar and pax, GNU long names): where each member lies.

Own walk instead of `tarfile`: it reads 512 bytes a member, follows no link, and its only exception is ArchiveError.
Layout: header block, data padded to 512 bytes, and so on, then blocks of zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from nemo_archive.safety import ArchiveError, describe_file, member_name
from nemo_archive.sources import Source

BLOCK = 512
_LONGEST_EXTENSION = 1 << 20  # bytes of a pax record or a long name
MOST_MEMBERS = 100_000
_REGULAR = b"0\x007"
_EXTENSIONS = (b"x", b"g", b"L", b"K")
_REFUSED = {
    b"1": "hard links are refused",
    b"2": "symbolic links are refused",
    b"3": "devices are refused",
    b"4": "devices are refused",
    b"6": "FIFOs are refused",
    b"S": "sparse members are refused",
}


class Member(NamedTuple):
    """One file in the archive: its name without `./`, its size, and where its data begin.

    `offset` counts bytes from the start of the (unpacked) tar; 0 for a file of an unpacked folder.
    """

    name: str
    size: int
    offset: int
    mtime: int = 0


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes
    mtime: int


def index_tar(source: Source, path: str) -> dict[str, Member]:
    """Members by normalised name, in file order.

    Raises:
        ArchiveError: if this is no tar, is cut short or damaged, or holds a name or kind of member that is refused.
    """
    members: dict[str, Member] = {}
    folders: set[str] = set()
    overrides: dict[str, str] = {}  # of the next member, from pax records and GNU long names
    offset = 0
    while (header := _read_header(source, offset, path)) is not None:
        offset += BLOCK
        resized = "size" in overrides and header.kind not in _EXTENSIONS
        size = _decimal(overrides["size"], path) if resized else header.size
        if offset + size > source.size:
            raise ArchiveError(
                f"truncated: needs {offset + size} bytes, the file ends after {source.size}",
                path=path,
                member=overrides.get("path", header.name)[:200],
            )
        if header.kind in _EXTENSIONS:
            overrides |= _extension(source, offset, header, path)
        else:
            name = member_name(overrides.get("path", header.name), path)
            if len(members) + len(folders) >= MOST_MEMBERS:
                raise ArchiveError(f"an archive of over {MOST_MEMBERS} members is refused", path=path)
            if header.kind in _REFUSED:
                raise ArchiveError(_REFUSED[header.kind], path=path, member=name)
            if header.kind == b"5" or (header.kind == b"\0" and header.name.endswith("/")):
                folders.add(name)
            elif header.kind in _REGULAR:
                if not name:
                    raise ArchiveError("a file without a name is refused", path=path)
                if name in members or name in folders:
                    raise ArchiveError("duplicate members are refused", path=path, member=name)
                members[name] = Member(name, size, offset, header.mtime)
            else:
                raise ArchiveError(f"members of type {header.kind!r} are refused", path=path, member=name)
            overrides = {}
        offset += -(-size // BLOCK) * BLOCK
    if both := folders & members.keys():
        raise ArchiveError("is a folder and a file", path=path, member=min(both))
    return members


def _read_header(source: Source, offset: int, path: str) -> _Header | None:
    """The header at `offset`; None at the end of the archive."""
    if offset == source.size and offset > 0:  # some writers leave out the closing zeros
        return None
    block = bytes(source.view(offset, max(0, min(BLOCK, source.size - offset))))
    if offset == 0 and (len(block) < BLOCK or not _checksum_fits(block)):
        raise ArchiveError(f"this is {describe_file(block, source.size)}", path=path)
    if not any(block):
        return None
    if len(block) < BLOCK:
        raise ArchiveError("truncated: the file ends inside a header", path=path)
    if not _checksum_fits(block):
        raise ArchiveError(f"damaged: no tar header at byte {offset}", path=path)
    name = _text(block[:100], path)
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500], path)):
        name = f"{prefix}/{name}"
    return _Header(name, _number(block[124:136], path, name), block[156:157], _number(block[136:148], path, name))


def _checksum_fits(block: bytes) -> bool:
    try:
        stored = int(block[148:156].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * 32


def _number(field: bytes, path: str, member: str) -> int:
    """Octal text, or base 256 where the top bit is set (sizes from 8 GiB)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ") or b"0"
    if digits.strip(b"01234567"):
        raise ArchiveError(f"damaged: {field[:20]!r} is no octal number", path=path, member=member)
    return int(digits, 8)


def _decimal(text: str, path: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ArchiveError(f"damaged: a pax record gives the size {text[:20]!r}", path=path)
    return int(text)


def _text(field: bytes, path: str) -> str:
    try:
        return field.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveError(f"a name is not UTF-8: {field[:40]!r}", path=path) from None


def _extension(source: Source, offset: int, header: _Header, path: str) -> dict[str, str]:
    """What a pax record or a GNU long name says about the next member (`path`, `size`)."""
    if header.size > _LONGEST_EXTENSION:
        raise ArchiveError(f"damaged: an extended header of {header.size} bytes", path=path)
    data = bytes(source.view(offset, header.size))
    if header.kind == b"K":  # a long link target; the link itself is refused
        return {}
    if header.kind == b"L":
        return {"path": _text(data, path)}
    records = _pax_records(data, path)
    wanted = {key: _text(records[key.encode()], path) for key in ("path", "size") if key.encode() in records}
    if any(key.startswith(b"GNU.sparse") for key in records):
        raise ArchiveError("sparse members are refused", path=path, member=wanted.get("path", ""))
    if header.kind == b"g" and wanted:
        raise ArchiveError("a global header that renames or resizes members is refused", path=path)
    return wanted


def _pax_records(data: bytes, path: str) -> dict[bytes, bytes]:
    """`<length> <key>=<value>\\n`, where the length counts the whole record.

    Values stay bytes: the extended attributes that macOS adds to a file are no text.
    """
    records = {}
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + 12].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise ArchiveError("damaged: unreadable pax record", path=path)
        records[key] = value
        position += length
    return records
