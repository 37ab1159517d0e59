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
from nemo_kernels.bench.catalogue import OPERATIONS, operation_of, works_of
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
    """Measures and prints; 0 if all results were right."""
    document = _document(arguments)
    _show("")
    print(_as_json(document) if arguments.json else _as_text(document))
    return 0 if document.is_sound else 1


def _document(arguments: argparse.Namespace) -> Document:
    entry = OPERATIONS[arguments.operation]
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shapes = arguments.shape or (entry.quick if arguments.quick else entry.defaults)
    for shape in shapes:
        operation_of(arguments.operation, shape)
        for name in arguments.only or ():  # what is wrong here is found before anything is measured
            subject_of(operation_of(arguments.operation, shape), name)
    sessions = []
    for shape in shapes:
        session = Session(
            arguments.operation,
            shape,
            device,
            arguments.dtype,
            arguments.threads,
            arguments.rounds or (2 if arguments.quick else 7),
            tuple(arguments.only or ()),
            tuple(arguments.own),
        )
        sessions.append((session, session.measure(_progress(shape))))
    compiles = not (arguments.no_compile or arguments.quick)
    builds, reason = _builds(entry.kernels) if compiles else ([], "not asked for")
    precision: Precision = "float32" if arguments.dtype in ("float32", "float64") and device == "cuda" else "bf16"
    works = {shape: works_of(arguments.operation, shape, precision) for shape in shapes}
    return Document(machine(), sessions, works, builds, reason)


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


def _as_text(document: Document) -> str:
    facts = document.machine
    blocks = [", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))]
    if not facts["gpus"]:
        blocks.append(NOT_TIMED)
    for session, rows in document.sessions:
        operation = operation_of(session.operation, session.shape)
        works = document.works[session.shape]
        blocks.append(report.timing_table(session, rows, operation.beside, works))
    if document.builds:
        blocks.append("Compiled kernels\n" + report.build_table(document.builds))
    if document.not_compiled:
        blocks.append(f"Compiled kernels: none shown, {document.not_compiled}")
    for shape, works in document.works.items():
        blocks.append(f"Roofline of {shape}, {works[-1].precision}\n" + report.roofline_table(works))
    return "\n\n".join(blocks)


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
