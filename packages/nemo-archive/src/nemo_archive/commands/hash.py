"""`nemo-archive hash`: SHA-256 of each member in sha256sum's format, and one of the content as a whole.

The content's hash is the SHA-256 over the members, sorted by name as bytes, of: the name in UTF-8, a zero byte, the
size in decimal digits, a zero byte, the 32 bytes of the member's own SHA-256. Order, times, owners, `./`, gzip, and
whether the archive is a file or a folder do not count.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import NamedTuple

from nemo_archive.commands.output import print_json
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError
from nemo_archive.sources import Span

EXAMPLE = "nemo-archive hash model.nemo > model.sha256   # nemo-archive verify --sha256 model.sha256 model.nemo"
CONTENT = "# content "
_PIECE = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.description = (
        f"{parser.description} The last line, a comment to sha256sum, is a hash of names and contents alone: order, "
        "times, owners and gzip do not change it, nor does unpacking into a folder."
    )


def run(arguments: Namespace) -> int:
    with open_archive(arguments.path) as archive:
        hashes = member_hashes(archive)
        content = content_hash(archive, hashes)
    if arguments.json:
        print_json({"path": arguments.path, "members": hashes, "content": content})
        return 0
    for name, digest in hashes.items():
        print(f"{digest}  {name}")
    print(f"{CONTENT}{content}")
    return 0


def member_hashes(archive: Archive) -> dict[str, str]:
    """SHA-256 of each member in hex digits, by name in sorted order."""
    return {name: _sha256(archive.span(name)) for name in sorted(archive.members)}


def _sha256(span: Span) -> str:
    from hashlib import sha256

    digest = sha256()
    for start in range(0, span.size, _PIECE):
        digest.update(span.view(start, min(_PIECE, span.size - start)))
    return digest.hexdigest()


def content_hash(archive: Archive, hashes: Mapping[str, str]) -> str:
    """The content's hash in hex digits; `hashes` are those of the members."""
    from hashlib import sha256

    digest = sha256()
    for name in sorted(hashes, key=lambda name: name.encode()):
        digest.update(b"%s\0%d\0" % (name.encode(), archive.members[name].size) + bytes.fromhex(hashes[name]))
    return digest.hexdigest()


class HashList(NamedTuple):
    """What a list in sha256sum's format says: digests by member, and the content's hash ("" where it is absent)."""

    members: dict[str, str]
    content: str


def read_list(path: str) -> HashList:
    """Reads `<64 hex digits>  <name>` lines, with `*` before the name, `./`, and comments as sha256sum has them.

    Raises:
        ArchiveError: if a line is something else, or a name stands twice.
        OSError: if the file cannot be read.
    """
    members: dict[str, str] = {}
    content = ""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if line.startswith(CONTENT):
                content = _digest(line.removeprefix(CONTENT), path, number)
            elif line.strip() and not line.startswith("#"):
                name = line[66:].removeprefix("./")
                if line[64:66] not in ("  ", " *") or not name:
                    raise ArchiveError(f"line {number} is not in sha256sum's format", path=path)
                if name in members:
                    raise ArchiveError(f"line {number}: {name} stands twice", path=path)
                members[name] = _digest(line[:64], path, number)
    if not members and not content:
        raise ArchiveError("it lists nothing", path=path)
    return HashList(members, content)


def _digest(text: str, path: str, number: int) -> str:
    digest = text.strip().lower()
    if len(digest) != 64 or digest.strip("0123456789abcdef"):
        raise ArchiveError(f"line {number}: {text[:70]!r} is no SHA-256", path=path)
    return digest
