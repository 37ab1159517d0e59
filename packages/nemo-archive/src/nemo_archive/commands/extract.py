"""`nemo-archive extract`: members as files; each appears whole or not at all, and none replaces another unasked.

Names were checked when the archive was opened (relative, no `..`). Here, no link on the disk is followed below the
folder, and a file grows under a temporary name.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from fnmatch import fnmatchcase
from pathlib import Path

from nemo_archive.commands.output import human_size, print_json, printable
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError
from nemo_archive.sources import Span

EXAMPLE = "nemo-archive extract model.nemo 'tokenizer*' '*.yaml' --into folder"
_PIECE = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.add_argument(
        "members",
        nargs="*",
        metavar="MEMBER",
        help="only these; * and ? stand for any characters; the digits before an artifact's name may be left out",
    )
    parser.add_argument("--into", metavar="FOLDER", default=".", help="where to; made if it is missing (default: here)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument("--stdout", action="store_true", help="write the one member to the standard output instead")


def run(arguments: Namespace) -> int:
    with open_archive(arguments.path) as archive:
        names = chosen(archive, arguments.members)
        if arguments.stdout:
            if len(names) != 1:
                raise ArchiveError(f"--stdout takes one member, not {len(names)}", path=arguments.path)
            _to_stdout(archive.span(names[0]))
            return 0
        written = extract(archive, names, Path(arguments.into), force=arguments.force)
    if arguments.json:
        print_json({"path": arguments.path, "files": [str(path) for path in written]})
    else:
        for name, path in zip(names, written, strict=True):
            print(printable(f"{path}  {human_size(archive.members[name].size)}"))
    return 0


def chosen(archive: Archive, patterns: list[str]) -> list[str]:
    """The members that patterns name, in file order; all where there is no pattern.

    Raises:
        ArchiveError: if a pattern names none.
    """
    if not patterns:
        return list(archive.members)
    wanted: set[str] = set()
    for pattern in patterns:
        plain = pattern.removeprefix("./")
        found = {
            name for name in archive.members if fnmatchcase(name, plain) or fnmatchcase(without_digits(name), plain)
        }
        if not found:
            raise ArchiveError("is not in the archive", path=archive.path, member=pattern)
        wanted |= found
    return [name for name in archive.members if name in wanted]


def without_digits(name: str) -> str:
    """`<32 hex digits>_tokenizer.model` as `tokenizer.model`; other names as they are."""
    digits, underscore, rest = name[:32], name[32:33], name[33:]
    return rest if underscore == "_" and rest and not digits.strip("0123456789abcdefABCDEF") else name


def extract(archive: Archive, names: list[str], folder: Path, *, force: bool = False) -> list[Path]:
    """Writes members below a folder, which is made if it is missing; returns their paths.

    Raises:
        ArchiveError: if a file exists (unless `force`), or a link or file stands where a folder is needed; nothing has
            been written then.
        OSError: if a file cannot be written.
    """
    targets = [folder.joinpath(*name.split("/")) for name in names]
    for name, target in zip(names, targets, strict=True):
        _check_parents(folder, target, archive.path, name)
        if target.is_dir() and not target.is_symlink():
            raise ArchiveError(f"{target} is a folder", path=archive.path, member=name)
        if not force and os.path.lexists(target):
            raise ArchiveError(f"{target} exists; --force replaces it", path=archive.path, member=name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in zip(names, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_parents(folder, target, archive.path, name)
        _write(archive.span(name), target, force=force)
    return targets


def _check_parents(folder: Path, target: Path, path: str, member: str) -> None:
    """Refuses to write through a link that somebody placed below the folder."""
    parent = target.parent
    while parent != folder:
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            raise ArchiveError(
                f"{parent} is {'a link' if parent.is_symlink() else 'no folder'}", path=path, member=member
            )
        parent = parent.parent


def _write(span: Span, target: Path, *, force: bool) -> None:
    from nemo_archive.writer import copy_span, write_file

    try:
        write_file(target, lambda file: copy_span(span, file), overwrite=force, follow_link=False)
    except FileExistsError:  # it has appeared since the first look
        raise span.error(f"{target} exists; --force replaces it") from None


def _to_stdout(span: Span) -> None:
    sys.stdout.flush()
    out = sys.stdout.buffer
    for start in range(0, span.size, _PIECE):
        out.write(span.view(start, min(_PIECE, span.size - start)))
    out.flush()
