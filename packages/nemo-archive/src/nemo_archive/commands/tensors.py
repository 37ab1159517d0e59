"""`nemo-archive tensors`: names, shapes, dtypes and sizes, and with `--stats` what the elements are like."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from nemo_archive.commands.output import counted, human_size, print_json, print_table, printable
from nemo_archive.commands.weights import check_extent, readable_checkpoints, tied_names
from nemo_archive.reader import Archive, open_archive
from nemo_archive.safety import ArchiveError

if TYPE_CHECKING:
    from nemo_archive.checkpoint import Checkpoint

EXAMPLE = "nemo-archive tensors model.nemo 'encoder.layers.0.*' --stats"
STATISTICS = ("min", "max", "mean", "std", "nan", "inf")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="a .nemo file, or a folder into which one was unpacked")
    parser.add_argument("patterns", nargs="*", metavar="NAME", help="only these; * and ? stand for any characters")
    parser.add_argument(
        "--stats",
        action="store_true",
        help="minimum, maximum, mean, standard deviation (of all, "
        "not of a sample) of the finite elements, and how many are NaN or infinite; needs numpy",
    )
    parser.add_argument("--member", help="only this checkpoint, where the archive has several")


def run(arguments: Namespace) -> int:
    with open_archive(arguments.path) as archive:
        checkpoints = _chosen(archive, arguments.member)
        reports = {name: _report(held, arguments.patterns) for name, held in checkpoints.items()}
        if arguments.stats:
            for name, report in reports.items():
                _add_statistics(archive, name, report)
    if arguments.patterns and not any(reports.values()):
        raise ArchiveError(f"no tensor is named {' or '.join(arguments.patterns)}", path=arguments.path)
    if arguments.json:
        print_json({"path": arguments.path, "weights": reports})
    else:
        for number, (name, report) in enumerate(reports.items()):
            if len(reports) > 1:
                print(("\n" if number else "") + printable(f"{name}:"))
            _print(report, stats=arguments.stats)
    return 0


def _chosen(archive: Archive, member: str | None) -> dict[str, Checkpoint]:
    if member is not None:
        return {member: archive.checkpoint(member)}
    found = readable_checkpoints(archive)
    if not found:
        raise ArchiveError("it has no weights", path=archive.path)
    return found


def _report(checkpoint: Checkpoint, patterns: list[str]) -> dict[str, dict[str, Any]]:
    tied = tied_names(checkpoint)
    report = {}
    for name, info in checkpoint.tensors.items():
        if patterns and not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        entry: dict[str, Any] = {"shape": list(info.shape), "dtype": info.dtype, "bytes": info.nbytes}
        if name in tied:
            entry["tied_to"] = tied[name]
        report[name] = entry
    return report


def _add_statistics(archive: Archive, member: str, report: dict[str, dict[str, Any]]) -> None:
    from nemo_archive.commands.statistics import statistics
    from nemo_archive.numpy import load_array

    checkpoint = archive.checkpoint(member)
    for name, entry in report.items():
        check_extent(checkpoint, checkpoint.tensors[name])
        entry |= statistics(load_array(archive, name, member=member))


def _print(report: dict[str, dict[str, Any]], *, stats: bool) -> None:
    header = ["tensor", "shape", "dtype", "bytes"] + (list(STATISTICS) if stats else [])
    rows = []
    for name, entry in report.items():
        shape = "x".join(map(str, entry["shape"])) or "scalar"
        shown = f"{name} = {entry['tied_to']}" if "tied_to" in entry else name
        row = [shown, shape, entry["dtype"], f"{entry['bytes']:,}"]
        rows.append(row + ([_number(entry[key]) for key in STATISTICS] if stats else []))
    print_table(header, rows, right=range(3, len(header)))
    stored = [entry for entry in report.values() if "tied_to" not in entry]
    print(f"{counted(len(report), 'tensor')}, {human_size(sum(entry['bytes'] for entry in stored))}")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
