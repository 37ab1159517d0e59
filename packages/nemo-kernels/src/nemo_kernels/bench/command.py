"""`nemo-kernels bench`: measures an operation beside its peers, and prints what its kernels would cost on GPUs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from nemo_kernels.bench import report
from nemo_kernels.bench.catalogue import OPERATIONS, complete_shape, operation_of, works_of
from nemo_kernels.bench.machine import NOT_TIMED, machine
from nemo_kernels.bench.session import Row, Session
from nemo_kernels.bench.worker import subject_of
from nemo_kernels.compilation import BuildReport, all_builds, inspect_build
from nemo_kernels.roofline import DEVICES, Precision, Work

DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("operation", choices=list(OPERATIONS))
    parser.add_argument(
        "--shape",
        action="append",
        metavar="B=8,T=200,...",
        help="sizes, what is left out as by default; H= makes rnnt and tdt measure the joint, too; may be repeated. "
        "Letters: " + "; ".join(f"{name} {','.join(entry.letters)}" for name, entry in OPERATIONS.items()),
    )
    parser.add_argument("--rounds", type=int, help="turns of each subject (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the inputs (default float32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a CUDA device by default, where there is one")
    parser.add_argument("--only", action="append", metavar="NAME", help="measure this subject; may be repeated")
    parser.add_argument(
        "--own",
        action="append",
        metavar="NAME=MODULE:FUNCTION",
        default=[],
        help="measure a function of your own, too: it takes a nemo_kernels.bench.problem.Problem and gives its results",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out the table of compiled kernels")
    parser.add_argument("--quick", action="store_true", help="small shapes, two rounds, nothing compiled: a trial")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")


@dataclass
class Document:
    """Everything that a run found out; the text and the JSON show the same."""

    machine: dict[str, Any]
    sessions: list[tuple[Session, list[Row]]]
    works: dict[str, tuple[Work, ...]]
    builds: list[BuildReport]
    not_compiled: str

    @property
    def is_sound(self) -> bool:
        """Whether every subject gave a right result, and every build may be shipped."""
        states = {row.state for _, rows in self.sessions for row in rows}
        return not states & {"WRONG", "failed"} and not any(build.faults for build in self.builds)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints, each table when it is done; 0 if all results were right."""
    entry = OPERATIONS[arguments.operation]
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sessions = _sessions(arguments, device)
    emit = _nothing if arguments.json else _print_block
    document = Document(machine(), [], _works(arguments, device, sessions), [], "not asked for")
    emit(_facts(document))
    for session in sessions:
        rows = session.measure(_progress(session.shape))
        document.sessions.append((session, rows))
        names = operation_of(session.operation, session.shape).beside
        emit(report.timing_table(session, rows, names, document.works[session.shape]))
    if not (arguments.no_compile or arguments.quick):
        document.builds, document.not_compiled = _builds(entry.kernels)
    emit(_compiled(document))
    for shape, works in document.works.items():
        emit(f"Roofline of {shape}, {_precision(arguments, device)} tensors\n{report.roofline_table(works)}")
    if arguments.json:
        print(_as_json(document))
    return 0 if document.is_sound else 1


def _sessions(arguments: argparse.Namespace, device: str) -> list[Session]:
    """One for each shape. What is wrong with a call is found here, before anything is measured."""
    entry = OPERATIONS[arguments.operation]
    given = arguments.shape or (entry.quick if arguments.quick else entry.defaults)
    shapes = [complete_shape(arguments.operation, shape) for shape in given]
    for shape in shapes:
        operation = operation_of(arguments.operation, shape)
        for name in (*(arguments.only or ()), *arguments.own):
            subject_of(operation, name)
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    only, own = tuple(arguments.only or ()), tuple(arguments.own)
    return [
        Session(arguments.operation, shape, device, arguments.dtype, arguments.threads, rounds, only, own)
        for shape in shapes
    ]


def _precision(arguments: argparse.Namespace, device: str) -> Precision:
    """Of the roofline: that of the measured tensors on a GPU; on a CPU what one would train in on a GPU."""
    if arguments.operation == "log_mel" or (device == "cuda" and arguments.dtype in ("float32", "float64")):
        return "float32"
    return "bf16"


def _works(arguments: argparse.Namespace, device: str, sessions: list[Session]) -> dict[str, tuple[Work, ...]]:
    precision = _precision(arguments, device)
    return {session.shape: works_of(arguments.operation, session.shape, precision) for session in sessions}


def _nothing(block: str) -> None:
    """Prints nothing: the document follows."""


def _print_block(block: str) -> None:
    _show("")
    print(block, end="\n\n", flush=True)


def _progress(title: str) -> Callable[[str], None]:
    """Shows what is being done in one line of a terminal, and nothing elsewhere."""
    return lambda step: _show(f"{title}: {step}")


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _builds(folder: str) -> tuple[list[BuildReport], str]:
    """The builds of an operation as they compile, or why there are none."""
    if find_spec("triton") is None:
        return [], "triton is not installed (it comes with torch's CUDA builds on Linux)"
    wanted = [build for build in all_builds() if build.kernel.startswith(f"nemo_kernels.{folder}.")]
    if not wanted:
        return [], "the operation has no kernels of its own"
    show = _progress("compiling")
    reports = []
    for build in wanted:
        show(f"{build.name} for sm_{build.architecture}")
        try:
            reports.append(inspect_build(build))
        except RuntimeError as error:  # kernels under the interpreter, or a compiler's own
            return reports, str(error).splitlines()[0]
    return reports, ""


def _facts(document: Document) -> str:
    facts = document.machine
    line = ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))
    return line if facts["gpus"] else f"{line}\n\n{NOT_TIMED}"


def _compiled(document: Document) -> str:
    lines = ["Compiled kernels" if document.builds else "Compiled kernels: none shown"]
    if document.builds:
        lines.append(report.build_table(document.builds))
    if document.not_compiled:
        lines.append(document.not_compiled)
    return "\n".join(lines)


def _as_json(document: Document) -> str:
    content = {
        "machine": document.machine,
        "note": "" if document.machine["gpus"] else NOT_TIMED,
        "measured": [{**asdict(session), "rows": [asdict(row) for row in rows]} for session, rows in document.sessions],
        "compiled": [{**asdict(build), "faults": build.faults} for build in document.builds],
        "not_compiled": document.not_compiled,
        "roofline": {shape: [_bound(work) for work in works] for shape, works in document.works.items()},
    }
    return json.dumps(content, indent=1)


def _bound(work: Work) -> dict[str, Any]:
    bounds = {device.name: work.bound_ms(device) for device in DEVICES}
    return {**asdict(work), "intensity": work.intensity, "bound_ms": bounds}
