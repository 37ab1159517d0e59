"""`nemo-archive verify`: checks of one or several archives, for people and for CI."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_archive.commands.output import counted, print_json, printable
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint
    from nemo_archive.commands.hash import HashList

EXAMPLE = "nemo-archive verify model.nemo --targets --sha256 model.sha256"


class Check(NamedTuple):
    """One thing that was looked at: its name, what is wrong (empty where nothing is), and what was seen."""

    name: str
    faults: list[str]
    seen: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="path", help="a .nemo file, or a folder into which one was unpacked"
    )
    parser.add_argument(
        "--sha256",
        metavar="FILE",
        help="a list of the members' checksums, as `nemo-archive hash` and "
        "sha256sum print it; every member must be in it",
    )
    parser.add_argument(
        "--targets",
        action="store_true",
        help="report class names (_target_, target) that are neither "
        "registered by an installed package nor NVIDIA's, torch's or Lightning's",
    )
    parser.add_argument(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        help="with --targets: a class name of your own, or a prefix that ends in a dot; may be repeated",
    )
    parser.description = (
        f"{parser.description} Always checked: that the file is a sound archive without anything that is refused, that "
        "the config is readable and every artifact that it names is there, that the weights are readable and finite."
    )


def run(arguments: Namespace) -> int:
    from nemo_archive.commands.hash import read_list

    listed = read_list(arguments.sha256) if arguments.sha256 else None
    targets = arguments.allow if arguments.targets or arguments.allow else None
    reports = [(path, list(_checks(path, listed, targets))) for path in arguments.paths]
    if arguments.json:
        print_json([_report(path, checks) for path, checks in reports])
    else:
        for path, checks in reports:
            _print(path, checks)
    return int(any(check.faults for _, checks in reports for check in checks))


def _checks(path: str, listed: HashList | None, targets: list[str] | None) -> Iterator[Check]:
    try:
        opened = open_archive(path)
    except ArchiveError as error:
        yield Check("structure", [_fault(error)], "")
        return
    with opened as archive:
        yield Check("structure", [], counted(len(archive.members), "member"))
        try:
            archive.config()
        except ArchiveError as error:
            yield Check("config", [_fault(error)], "")
        else:
            yield _check_artifacts(archive)
            if targets is not None:
                yield _check_targets(archive, targets)
        yield from _check_weights(archive)
        if listed is not None:
            yield _check_hashes(archive, listed)


def _fault(error: ArchiveError) -> str:
    return f"{error.member}: {error.rule}" if error.member else error.rule


def _check_artifacts(archive: Archive) -> Check:
    references = archive.references()
    missing = [
        f"{path}: {name} is not in the archive" for path, name in references.items() if name not in archive.members
    ]
    return Check("artifacts", missing, f"{counted(len(references), 'artifact')} named by the config")


def _check_targets(archive: Archive, allowed: list[str]) -> Check:
    from nemo_archive.commands.targets import unknown_targets

    faults = [f"{path}: {name} {rule}" for path, name, rule in unknown_targets(archive.config(), allowed)]
    return Check("targets", faults, "all class names known")


def _check_weights(archive: Archive) -> Iterator[Check]:
    from nemo_archive.commands.weights import checkpoints

    found = checkpoints(archive)
    if not found:
        yield Check("weights", ["the archive holds no checkpoint"], "")
    for name, held in found.items():
        if isinstance(held, ArchiveError):
            yield Check("weights", [_fault(held)], "")
        else:
            yield _check_finite(name, held)


def _check_finite(name: str, checkpoint: Checkpoint) -> Check:
    from nemo_archive.commands.finite import count_not_finite
    from nemo_archive.commands.weights import distinct, elements

    faults = []
    try:
        for info in distinct(checkpoint):
            count = count_not_finite(elements(checkpoint, info), info.dtype)
            if count:
                faults.append(f"{name}: {info.name}: {count:,} of {info.numel:,} elements are NaN or infinite")
    except ArchiveError as error:
        faults.append(_fault(error))
    return Check("weights", faults, f"{name}: {counted(len(checkpoint.tensors), 'tensor')}, all finite")


def _check_hashes(archive: Archive, listed: HashList) -> Check:
    from nemo_archive.commands.hash import content_hash, member_hashes

    hashes = member_hashes(archive)
    faults = [f"{name}: is listed, but not in the archive" for name in listed.members if name not in hashes]
    for name, digest in hashes.items() if listed.members else ():
        if name not in listed.members:
            faults.append(f"{name}: is not listed")
        elif listed.members[name] != digest:
            faults.append(f"{name}: SHA-256 is {digest}, listed is {listed.members[name]}")
    if listed.content and listed.content != content_hash(archive, hashes):
        faults.append("the content's hash is not the listed one")
    return Check("sha256", faults, f"{counted(len(hashes), 'member')} as listed")


def _report(path: str, checks: list[Check]) -> dict[str, Any]:
    ok = not any(check.faults for check in checks)
    return {
        "path": path,
        "ok": ok,
        "checks": [{"name": c.name, "ok": not c.faults, "faults": c.faults, "seen": c.seen} for c in checks],
    }


def _print(path: str, checks: list[Check]) -> None:
    for check in checks:
        for fault in check.faults:
            print(printable(f"{path}: {check.name}: FAILED: {' '.join(fault.split())}"))
        if not check.faults:
            print(printable(f"{path}: {check.name}: ok ({check.seen})"))
