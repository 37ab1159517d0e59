"""`nemo-archive edit`: changes the config or an artifact; the weights are copied as they are, by the kernel.

The new archive is a new file beside the old, renamed over it when it is complete: whoever has the old one open or
mapped keeps it, and a failure leaves it untouched.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from typing import Any

from nemo_archive.artifacts import CONFIG, PREFIX, Artifact, find_references
from nemo_archive.commands.config import find
from nemo_archive.commands.extract import without_digits
from nemo_archive.commands.flat_config import Change, changes
from nemo_archive.commands.output import print_json, print_table, shortened
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

EXAMPLE = "nemo-archive edit model.nemo decoding.strategy=greedy_batch +note='tuned on my data' ~test_ds"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file")
    parser.add_argument(
        "edits",
        nargs="*",
        metavar="EDIT",
        help="key=value sets a key that is there, +key=value "
        "adds one, ++key=value does either, ~key deletes one; values are YAML: 1e-3, [1, 2], null",
    )
    parser.add_argument("--delete", metavar="KEY", action="append", default=[], help="the same as ~KEY")
    parser.add_argument(
        "--artifact",
        metavar="KEY=FILE",
        action="append",
        default=[],
        help="put a file into the "
        "archive in the place of the artifact that KEY names, e.g. tokenizer.model_path=new.model",
    )
    parser.add_argument("--output", metavar="FILE", help="write here, and leave the archive as it is")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and write nothing")


def run(arguments: Namespace) -> int:
    edits = [*arguments.edits, *(f"~{key}" for key in arguments.delete)]
    if not edits and not arguments.artifact:
        raise ArchiveError("nothing to do: give key=value, ~key or --artifact KEY=FILE", path=arguments.path)
    if os.path.isdir(arguments.path):  # noqa: PTH112
        raise ArchiveError(f"is a folder: edit its {CONFIG} and files themselves", path=arguments.path)
    target = output_of(arguments)
    with open_archive(arguments.path) as archive:
        before = archive.config()
        config, artifacts = edited(archive, edits, arguments.artifact)
        found = changes(before, config)
        if found and not arguments.dry_run:
            rewrite(archive, target, config, artifacts)
        elif not arguments.dry_run and arguments.output:
            rewrite(archive, target, config, [])
    report_changes(found, arguments, target)
    return 0


def output_of(arguments: Namespace) -> str:
    """Where the new archive goes: `--output`, or the archive itself.

    Raises:
        ArchiveError: if that is a URL.
    """
    target: str = arguments.output or arguments.path
    if "://" in target and not arguments.dry_run:
        raise ArchiveError("cannot be written where it is: give --output FILE", path=target)
    return target


def edited(archive: Archive, edits: list[str], replaced: list[str]) -> tuple[dict[str, Any], list[Artifact]]:
    """The config after `key=value`, `+key=value`, `++key=value` and `~key`, and the artifacts that are new in it.

    Raises:
        ArchiveError: if an edit has another form, or a key is missing, or there already where `+` adds it.
        OSError: if an artifact's file cannot be read.
    """
    config = archive.config()
    for edit in edits:
        _apply(config, edit, archive.path)
    artifacts = []
    for replacement in replaced:
        key, equals, file = replacement.partition("=")
        if not equals or not key or not file:
            raise ArchiveError(f"--artifact {replacement}: the form is KEY=FILE", path=archive.path)
        artifact = Artifact.from_file(file)
        artifact = Artifact(without_digits(artifact.name), artifact.data)  # old digits would name other content
        find(config, key, archive.path)
        assign(config, key, artifact.reference)
        artifacts.append(artifact)
    return config, artifacts


def _apply(config: dict[str, Any], edit: str, path: str) -> None:
    if edit.startswith("~"):
        key = edit[1:].partition("=")[0]
        find(config, key, path)
        _delete(config, key)
        return
    key, equals, text = edit.partition("=")
    mode = key[: len(key) - len(key.lstrip("+"))]
    key = key.lstrip("+")
    if not equals or not key or mode not in ("", "+", "++"):
        raise ArchiveError(f"{edit!r}: the forms are key=value, +key=value, ++key=value and ~key", path=path)
    if mode == "":
        try:
            find(config, key, path)
        except ArchiveError as error:
            raise ArchiveError(f"{error.rule}; +{key}=... adds it", path=path, member=CONFIG) from None
    elif mode == "+" and _exists(config, key):
        raise ArchiveError(f"{key} is there already: {key}=... sets it", path=path, member=CONFIG)
    assign(config, key, parse_value(text, edit, path))


def parse_value(text: str, edit: str, path: str) -> Any:
    """A value as the config's YAML has it; nothing is an empty text, as in Hydra, and `#` begins no comment.

    Raises:
        ArchiveError: if it is no YAML, such as `a: b`.
    """
    from nemo_archive.yaml_config import parse_config

    if not text or ("#" in text and text[0] not in "'\"[{"):
        return text
    try:
        parsed = parse_config(b"value: " + text.encode("utf-8", "surrogateescape"))
    except ArchiveError as error:
        raise ArchiveError(f"{edit!r}: {error.rule}", path=path) from None
    if list(parsed) != ["value"]:
        raise ArchiveError(f"{edit!r}: one value is expected", path=path)
    return parsed["value"]


def _exists(config: Any, key: str) -> bool:
    try:
        find(config, key, "")
    except ArchiveError:
        return False
    return True


def _split(config: Any, key: str) -> tuple[Any, str]:
    """The section that holds the last part of a dotted path, made on the way where it is missing, and that part."""
    section, rest = config, key
    while "." in rest:
        head = next((k for k in _keys(section) if rest.startswith(f"{k}.")), None)
        if head is None:
            if any(rest == name for name in _keys(section)):
                break
            head = rest.partition(".")[0]
            if not isinstance(section, dict):
                raise ArchiveError(f"{key}: {head} cannot stand below a value of type {type(section).__name__}")
            section[head] = {}
        rest = rest[len(head) + 1 :]
        section = section[int(head)] if isinstance(section, list) else section[head]
    return section, rest


def _keys(section: Any) -> list[str]:
    if isinstance(section, dict):
        return sorted((key for key in section if isinstance(key, str)), key=len, reverse=True)
    return [str(index) for index in range(len(section))] if isinstance(section, list) else []


def assign(config: Any, key: str, value: Any) -> None:
    section, last = _split(config, key)
    if isinstance(section, list) and last in _keys(section):
        section[int(last)] = value
    elif isinstance(section, dict):
        section[last] = value
    else:
        raise ArchiveError(f"{key}: {last} cannot stand below a value of type {type(section).__name__}")


def _delete(config: Any, key: str) -> None:
    section, last = _split(config, key)
    del section[int(last) if isinstance(section, list) else last]


def rewrite(archive: Archive, target: str, config: dict[str, Any], new: list[Artifact]) -> None:
    """Writes the archive with another config; members that only the old config names are left out.

    Raises:
        ArchiveError: if the config cannot be written, or a new artifact's name is taken by another member.
        OSError: if the file cannot be written; what was there is unchanged.
    """
    from nemo_archive.writer import ArchiveWriter

    names = {artifact.archive_name for artifact in new}
    dropped = _dropped(archive, config)
    with ArchiveWriter(target) as writer:
        writer.add_config(config)
        for artifact in new:
            writer.add_artifact(artifact)
        for name in archive.members:
            if name != CONFIG and name not in dropped and name not in names:
                writer.add_from(archive, name)
        _check_references(config, {*names, *(set(archive.members) - dropped)}, archive)


def _dropped(archive: Archive, config: dict[str, Any]) -> set[str]:
    """Artifacts that the config named and does not name any more; those that a sub-model's config names stay."""
    gone = set(archive.references().values()) - set(find_references(config, archive.members.keys()).values())
    if not gone:
        return gone
    others = [archive.read(name) for name in archive.members if name.endswith((".yaml", ".yml")) and name != CONFIG]
    return {name for name in gone if not any(name.encode() in text for text in others)}


def _check_references(config: dict[str, Any], members: set[str], archive: Archive) -> None:
    """An edit may not make the config name an artifact that the archive lacks."""
    known = set(archive.references().values())
    for path, name in find_references(config, members).items():
        if name not in members and name not in known:
            raise ArchiveError(
                f"{path}: {PREFIX}{name} is not in the archive; --artifact puts it there", path=archive.path
            )


def report_changes(found: list[Change], arguments: Namespace, target: str) -> None:
    """Prints what was, or would be, changed."""
    if arguments.json:
        shown = [{"kind": c.kind, "key": c.key, "before": c.before, "after": c.after} for c in found]
        print_json({"path": arguments.path, "output": None if arguments.dry_run else target, "changes": shown})
        return
    rows = [
        (
            change.key,
            "-" if change.kind == "added" else shortened(change.before),
            "-" if change.kind == "removed" else shortened(change.after),
        )
        for change in found
    ]
    if rows:
        print_table(("config key", "before", "after"), rows)
    else:
        print("nothing changes")
