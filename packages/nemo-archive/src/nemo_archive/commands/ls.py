"""`nemo-archive ls`: the members, what each is for, and what the weights hold."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from typing import TYPE_CHECKING, Any

from nemo_archive.artifacts import CONFIG
from nemo_archive.commands.output import counted, human_size, print_json, print_table, printable
from nemo_archive.commands.weights import checkpoints, distinct
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint

EXAMPLE = "nemo-archive ls model.nemo"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.description = (
        f"{parser.description} Parameters are the elements of all tensors, tied ones once; a file does not tell "
        "trained parameters from buffers, so both count."
    )


def run(arguments: Namespace) -> int:
    with open_archive(arguments.path) as archive:
        report = describe(archive)
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    return 0


def describe(archive: Archive) -> dict[str, Any]:
    """What `--json` prints: path, target, members with size and use, weights with counts."""
    config = archive.config()
    uses: dict[str, list[str]] = {}
    for config_path, member in archive.references().items():
        uses.setdefault(member, []).append(config_path)
    weights = checkpoints(archive)
    members = [
        {"name": name, "bytes": member.size, "use": _use(name, uses, weights), "config_paths": uses.get(name, [])}
        for name, member in archive.members.items()
    ]
    return {
        "path": archive.path,
        "target": config.get("target"),
        "nemo_version": config.get("nemo_version"),
        "members": members,
        "bytes": sum(member.size for member in archive.members.values()),
        "weights": [_describe_weights(name, held) for name, held in weights.items()],
    }


def _use(name: str, uses: dict[str, list[str]], weights: dict[str, Checkpoint | ArchiveError]) -> str:
    if name == CONFIG:
        return "config"
    if name in weights or any(name.startswith(f"{folder}/") for folder in weights):
        return "weights"
    return "artifact" if name in uses else "other"


def _describe_weights(name: str, held: Checkpoint | ArchiveError) -> dict[str, Any]:
    if isinstance(held, ArchiveError):
        return {"name": name, "error": held.rule}
    elements: Counter[str] = Counter()
    for info in distinct(held):
        elements[info.dtype] += info.numel
    return {
        "name": name,
        "tensors": len(held.tensors),
        "parameters": sum(elements.values()),
        "dtypes": dict(elements.most_common()),
        "bytes": sum(storage.nbytes for storage in held.storages.values()),
    }


def _print(report: dict[str, Any]) -> None:
    if report["target"]:
        version = f" (NeMo {report['nemo_version']})" if report["nemo_version"] else ""
        print(printable(f"{report['target']}{version}\n"))
    rows = [
        (member["name"], f"{member['bytes']:,}", ", ".join(member["config_paths"]) or member["use"])
        for member in report["members"]
    ]
    print_table(("member", "bytes", "use"), rows, right={1})
    print(f"{counted(len(rows), 'member')}, {human_size(report['bytes'])}")
    for weights in report["weights"]:
        print()
        if "error" in weights:
            print(printable(f"{weights['name']}: {weights['error']}"))
            continue
        size = human_size(weights["bytes"])
        held = f"{counted(weights['tensors'], 'tensor')}, {counted(weights['parameters'], 'parameter')}, {size}"
        dtypes = ", ".join(f"{dtype} {count:,}" for dtype, count in weights["dtypes"].items())
        print(printable(f"{weights['name']}: {held} ({dtypes or 'empty'})"))
