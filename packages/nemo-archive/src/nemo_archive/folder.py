"""Where an archive's members lie: all in one tar, or each in a file of the folder into which it was unpacked."""

from __future__ import annotations

import os
from typing import Protocol

from nemo_archive.safety import ArchiveError, describe_special, member_name
from nemo_archive.sources import Source, open_source
from nemo_archive.tar_index import MOST_MEMBERS, Member


class Files(Protocol):
    """Gives the source of a member; Member.offset counts within it."""

    def source_of(self, member: Member) -> Source: ...

    def close(self) -> None: ...


class TarFiles:
    """All members lie in one source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def source_of(self, member: Member) -> Source:
        return self._source

    def close(self) -> None:
        self._source.close()


class FolderFiles:
    """Each member is a file, opened when it is first read."""

    def __init__(self, folder: str, *, mmap: bool) -> None:
        self._folder, self._mmap = folder, mmap
        self._opened: dict[str, Source] = {}

    def source_of(self, member: Member) -> Source:
        source = self._opened.get(member.name)
        if source is None:
            opened = open_source(os.path.join(self._folder, member.name), mmap=self._mmap)  # noqa: PTH118
            source = self._opened.setdefault(member.name, opened)  # another thread may have been faster
            if source is not opened:
                opened.close()
        return source

    def close(self) -> None:
        opened, self._opened = self._opened, {}
        for source in opened.values():
            source.close()


def index_folder(folder: str) -> dict[str, Member]:
    """The files below a folder by name, sorted.

    Raises:
        ArchiveError: if one is neither a plain file nor a folder, or has a name that archives may not hold.
    """
    members: dict[str, Member] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in sorted(os.scandir(os.path.join(folder, below)), key=lambda entry: entry.name):  # noqa: PTH118
            name = member_name(f"{below}/{entry.name}" if below else entry.name, folder)
            if len(members) + len(pending) >= MOST_MEMBERS:
                raise ArchiveError(f"an archive of over {MOST_MEMBERS} members is refused", path=folder)
            if entry.is_symlink():
                raise ArchiveError("symbolic links are refused", path=folder, member=name)
            if entry.is_dir():
                pending.append(name)
            elif entry.is_file():
                status = entry.stat()
                members[name] = Member(name, status.st_size, 0, int(status.st_mtime))
            else:
                kind = describe_special(entry.stat().st_mode)
                raise ArchiveError(f"is {kind}; only files and folders are read", path=folder, member=name)
    return dict(sorted(members.items()))
