"""The tables of a benchmark, as text."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_kernels.bench.session import Row, Session
from nemo_kernels.compilation import BuildReport
from nemo_kernels.roofline import DEVICES, Work


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what they hold, the first one aligned to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = []
    for line in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def beside(rows: Sequence[Row], names: Sequence[str]) -> Row | None:
    """The row that ratios are taken to: the first of the names that was measured."""
    measured = {row.subject: row for row in rows if row.state == "measured"}
    return next((measured[name] for name in names if name in measured), None)


def timing_table(session: Session, rows: Sequence[Row], names: Sequence[str], works: Sequence[Work]) -> str:
    """Time, memory, ratios and errors. A row whose result is wrong shows no time."""
    base = beside(rows, names)
    head = ["subject", "wall ms", "CPU ms", "+MB", "times faster", "memory", "output error", "gradient error"]
    bounds = _bounds(session, works)
    if bounds:
        head.append("of bound")
    lines, notes = [], []
    for row in rows:
        line = [
            row.subject,
            row.state if row.wall_s is None else _milliseconds(row.wall_s),
            _milliseconds(row.cpu_s),
            "-" if row.extra_bytes is None else _megabytes(row.extra_bytes),
            _ratio(_seconds(session, base), _seconds(session, row)),
            _ratio(row.extra_bytes, base.extra_bytes if base else None) if row.wall_s is not None else "-",
            _error(row.output_error),
            _error(row.gradient_error),
        ]
        if bounds:
            bound = bounds.get(row.work)
            line.append(f"{100 * bound / row.wall_s:.0f} %" if bound and row.wall_s else "-")
        lines.append(line)
        if row.note:
            notes.append(f"{row.subject}: {row.state}: {row.note}")
    against = f"; ratios to {base.subject}" if base else ""
    title = f"{session.operation} {session.shape} {session.dtype} on {session.device}, {_how(session)}{against}"
    return "\n".join([title, table(head, lines), *notes])


def _how(session: Session) -> str:
    threads = f"{session.threads} thread{'s' if session.threads > 1 else ''}, " if session.device == "cpu" else ""
    return f"{threads}{session.rounds} round{'s' if session.rounds > 1 else ''} in turn"


def _seconds(session: Session, row: Row | None) -> float | None:
    """What ratios are of: CPU time where one thread works, since neighbours hardly change it; else wall time."""
    if row is None:
        return None
    return row.cpu_s if session.device == "cpu" and session.threads == 1 else row.wall_s


def _bounds(session: Session, works: Sequence[Work]) -> dict[str, float]:
    """Seconds of each roofline line on the GPU of the session; none for a CPU or a GPU without a data sheet here."""
    if session.device == "cpu":
        return {}
    import torch

    from nemo_kernels.roofline import device_named

    device = device_named(torch.cuda.get_device_name(session.device))
    return {work.name: work.bound_ms(device) / 1e3 for work in works} if device else {}


def build_table(reports: Sequence[BuildReport]) -> str:
    """Registers and stack of a thread, its spills, shared memory of a program, the instruction for products."""
    head = ("kernel", "GPU", "registers", "stack", "spills", "shared", "occupancy", "matrix", "fault")
    lines = [
        (
            report.build.name,
            f"sm_{report.build.architecture}",
            str(report.registers),
            str(report.stack),
            str(report.local_accesses),
            str(report.shared_memory),
            f"{100 * report.occupancy:.0f} %",
            report.matrix_instruction or "-",
            "; ".join(report.faults) or report.build.exception or "-",
        )
        for report in reports
    ]
    return table(head, lines)


def roofline_table(works: Sequence[Work]) -> str:
    """Bytes, operations, intensity and the bound on each GPU."""
    head = ["way", "MB moved", "GFLOP", "FLOP/byte", "MB held", *(f"{device.name} ms" for device in DEVICES)]
    lines = [
        [
            work.name,
            _megabytes(work.moved),
            f"{work.operations / 1e9:.3g}",
            f"{work.intensity:.1f}",
            _megabytes(work.held),
            *(f"{work.bound_ms(device):.2g} {work.limit(device)[0]}" for device in DEVICES),
        ]
        for work in works
    ]
    return table(head, lines) + "\n(m: bound by memory, a: by arithmetic)"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else _three_digits(1e3 * seconds)


def _megabytes(count: float) -> str:
    return _three_digits(count / 1e6)


def _three_digits(number: float) -> str:
    """At least three digits, and never an exponent for what is large."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _ratio(numerator: float | None, denominator: float | None) -> str:
    return "-" if numerator is None or not denominator else f"{numerator / denominator:.2f}"


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"
