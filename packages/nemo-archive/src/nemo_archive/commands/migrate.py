"""`nemo-archive migrate`: old keys, class names, artifact names and formats become today's."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import Any, NamedTuple

from nemo_archive.artifacts import CONFIG, PREFIX, Artifact
from nemo_archive.commands.edit import output_of, report_changes
from nemo_archive.commands.extract import without_digits
from nemo_archive.commands.flat_config import changes
from nemo_archive.commands.output import print_json, printable
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

EXAMPLE = "nemo-archive migrate old.nemo --output new.nemo"


class Migration(NamedTuple):
    """What is to be written: the config, new names of members, checkpoints that torch has to write anew; and why."""

    config: dict[str, Any]
    renamed: dict[str, str]
    rewritten: list[str]
    notes: list[str]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file")
    parser.add_argument("--output", metavar="FILE", help="write here, and leave the archive as it is")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and write nothing")
    parser.description = (
        f"{parser.description} Keys: Hydra 0.x's cls and params, tokenizers of type multilingual, moved classes, "
        "renamed options of CTC beam search. Names: artifacts as nemo:<digits>_<name>. Format: gzip archives "
        "become plain, checkpoints of torch before 1.6 become zip (needs torch). Nothing is written where nothing is "
        "old."
    )


def run(arguments: Namespace) -> int:
    if os.path.isdir(arguments.path):  # noqa: PTH112
        raise ArchiveError("is a folder: make it an archive first, with convert", path=arguments.path)
    target = output_of(arguments)
    with open_archive(arguments.path) as archive:
        before = archive.config()
        migration = plan(archive, packed=_is_gzip(arguments.path))
        found = changes(before, migration.config)
        if not arguments.dry_run and (found or migration.notes or arguments.output):
            write(archive, target, migration)
    if arguments.json:
        shown = [{"kind": c.kind, "key": c.key, "before": c.before, "after": c.after} for c in found]
        output = None if arguments.dry_run else target
        print_json({"path": arguments.path, "output": output, "changes": shown, "notes": migration.notes})
        return 0
    if found or not migration.notes:
        report_changes(found, arguments, target)
    for note in migration.notes:
        print(printable(note))
    return 0


def _is_gzip(path: str) -> bool:
    if "://" in path:  # written anew in any case
        return False
    from nemo_archive.sources import open_source

    source = open_source(path, mmap=False)
    try:
        return source.size > 2 and bytes(source.view(0, 2)) == b"\x1f\x8b"
    finally:
        source.close()


def plan(archive: Archive, *, packed: bool) -> Migration:
    """What would change; nothing is written.

    Args:
        archive: the old one.
        packed: whether it is a gzip file.
    """
    from nemo_archive.checkpoint import is_legacy
    from nemo_archive.commands.migrations import migrate_config

    config = archive.config()
    migrate_config(config)
    renamed = _name_artifacts(archive, config)
    notes = [f"{old} is named {new}" for old, new in renamed.items()]
    rewritten = [name for name in archive.checkpoints() if name in archive.members and is_legacy(archive.span(name))]
    notes += [f"{name} becomes a zip checkpoint" for name in rewritten]
    if packed:
        notes.append("the archive becomes a plain tar file, which can be mapped")
    return Migration(config, renamed, rewritten, notes)


def _name_artifacts(archive: Archive, config: dict[str, Any]) -> dict[str, str]:
    """Gives artifacts under plain names their hashed ones, in the config too; returns the new names by the old."""
    from nemo_archive.artifacts import find_references
    from nemo_archive.commands.edit import assign

    renamed: dict[str, str] = {}
    for path, name in find_references(config, archive.members.keys()).items():
        if name not in archive.members:
            continue
        if without_digits(name) == name:
            if name not in renamed:
                renamed[name] = Artifact(name, archive.read(name)).archive_name
            assign(config, path, PREFIX + renamed[name])
        else:
            assign(config, path, PREFIX + name)  # which was a path that ended like this
    return renamed


def write(archive: Archive, target: str, migration: Migration) -> None:
    """Writes the migrated archive; what stays is copied by the kernel.

    Raises:
        ArchiveError: if a checkpoint has to be written anew and torch is missing.
        OSError: if the file cannot be written; what was there is unchanged.
    """
    from nemo_archive.writer import ArchiveWriter

    with ArchiveWriter(target) as writer:
        writer.add_config(migration.config)
        written: set[str] = set()
        for name in archive.members:
            new_name = migration.renamed.get(name, name)
            if name == CONFIG or new_name in written:  # equal artifacts have equal names
                continue
            written.add(new_name)
            if name in migration.rewritten:
                from nemo_archive.commands.torch_weights import checkpoint_writer

                writer.add_stream(name, checkpoint_writer(archive, name))
            else:
                writer.add_from(archive, name, name=new_name)
