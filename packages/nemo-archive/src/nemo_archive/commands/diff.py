"""`nemo-archive diff`: what differs between two archives in config, artifacts, other members and tensors."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from nemo_archive.artifacts import CONFIG
from nemo_archive.commands.flat_config import Change, changes, same
from nemo_archive.commands.output import counted, print_json, print_table, shortened
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.checkpoint import TensorInfo
    from nemo_archive.commands.tensor_differences import Difference

EXAMPLE = "nemo-archive diff before.nemo after.nemo --atol 1e-6"
_ABSENT = "-"
_PIECE = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", help="a .nemo file, or a folder into which one was unpacked")
    parser.add_argument("b", help="another")
    parser.add_argument(
        "--atol",
        type=float,
        default=0.0,
        metavar="X",
        help="tensors whose elements differ by at most X count as equal (default: 0)",
    )
    parser.add_argument("--only", choices=("config", "members", "tensors"), help="compare nothing else")
    parser.description = (
        f"{parser.description} Artifacts are compared by content, not by the digits in their names, and weights "
        "whatever their format. Nothing is printed where nothing differs. The largest absolute difference needs numpy."
    )


def run(arguments: Namespace) -> int:
    if not arguments.atol >= 0:
        raise ArchiveError(f"--atol: {arguments.atol} is no distance")
    only = arguments.only
    with open_archive(arguments.a) as a, open_archive(arguments.b) as b:
        config = config_changes(a, b) if only in (None, "config") else []
        members = member_changes(a, b) if only in (None, "members") else []
        tensors = _tensor_differences(a, b, arguments.atol) if only in (None, "tensors") else []
    if arguments.json:
        _print_json(arguments, config, members, tensors)
    else:
        _print_keys("config key", config, arguments)
        _print_keys("member", members, arguments)
        _print_tensors(tensors, arguments)
    return int(bool(config or members or tensors))


def config_changes(a: Archive, b: Archive) -> list[Change]:
    """Keys of the config that differ; where both name an artifact, its content decides."""
    ours, theirs = a.references(), b.references()

    def is_equal(key: str, one: Any, other: Any) -> bool:
        left, right = ours.get(key), theirs.get(key)
        if left in a.members and right in b.members and left is not None and right is not None:
            return _same_content(a, left, b, right)
        return same(one, other)

    return changes(a.config(), b.config(), is_equal)


def member_changes(a: Archive, b: Archive) -> list[Change]:
    """Members that are neither config nor weights nor artifacts of the config: which differ, or are in one alone."""
    ours, theirs = _others(a), _others(b)
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            found.append(Change("removed" if right is None else "added", name, left, right))
        elif not _same_content(a, name, b, name):
            found.append(Change("changed", name, left, right))
    return found


def _others(archive: Archive) -> dict[str, str]:
    used = {CONFIG, *archive.references().values(), *archive.checkpoints()}
    folders = tuple(f"{name}/" for name in archive.checkpoints() if name not in archive.members)
    return {
        name: f"{member.size:,} bytes"
        for name, member in archive.members.items()
        if name not in used and not (folders and name.startswith(folders))
    }


def _same_content(a: Archive, left: str, b: Archive, right: str) -> bool:
    one, other = a.span(left), b.span(right)
    if one.size != other.size:
        return False
    steps = range(0, one.size, _PIECE)
    return all(one.read(i, min(_PIECE, one.size - i)) == other.read(i, min(_PIECE, one.size - i)) for i in steps)


def _tensor_differences(a: Archive, b: Archive, tolerance: float) -> list[Difference]:
    from nemo_archive.commands.tensor_differences import tensor_differences

    return tensor_differences(a, b, tolerance=tolerance)


def _print_json(arguments: Namespace, config: list[Change], members: list[Change], tensors: list[Difference]) -> None:
    print_json(
        {
            "a": arguments.a,
            "b": arguments.b,
            "equal": not (config or members or tensors),
            "config": [{"kind": c.kind, "key": c.key, "a": c.before, "b": c.after} for c in config],
            "members": [{"kind": c.kind, "name": c.key, "a": c.before, "b": c.after} for c in members],
            "tensors": [
                {"name": d.name, "kind": d.kind, "a": _plain(d.a), "b": _plain(d.b), "max_abs_difference": d.largest}
                for d in tensors
            ],
        }
    )


def _plain(info: TensorInfo | None) -> dict[str, Any] | None:
    return None if info is None else {"shape": list(info.shape), "dtype": info.dtype}


def _print_keys(title: str, found: list[Change], arguments: Namespace) -> None:
    if not found:
        return
    rows = [
        (
            change.key,
            _ABSENT if change.kind == "added" else shortened(change.before, 48),
            _ABSENT if change.kind == "removed" else shortened(change.after, 48),
        )
        for change in found
    ]
    print_table((title, arguments.a, arguments.b), rows)
    print(f"{counted(len(found), title)} differ{'s' * (len(found) == 1)}\n")


def _print_tensors(found: list[Difference], arguments: Namespace) -> None:
    if not found:
        return
    rows = [(d.name, _shown(d.a), _shown(d.b), "" if d.largest is None else f"{d.largest:.4g}") for d in found]
    print_table(("tensor", arguments.a, arguments.b, "max |a-b|"), rows, right={3})
    print(f"{counted(len(found), 'tensor')} differ{'s' * (len(found) == 1)}")
    if any(d.kind == "values" and d.largest is None for d in found):
        print("by how much: needs numpy, pip install 'nemo-archive[numpy]'")


def _shown(info: TensorInfo | None) -> str:
    return _ABSENT if info is None else f"{'x'.join(map(str, info.shape)) or 'scalar'} {info.dtype}"
