"""Runs the subjects of one operation and shape, each in its own process, turn by turn.

All processes stay alive with their inputs while they take turns, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nemo_kernels.bench.catalogue import operation_of
from nemo_kernels.bench.measurement import Time
from nemo_kernels.bench.problem import Subject
from nemo_kernels.bench.process import WorkerProcess
from nemo_kernels.bench.worker import Case, subject_of


@dataclass
class Row:
    """What became of one subject.

    Attributes:
        subject: its name.
        state: `measured`, `WRONG` (no time is kept), `failed`, or `absent`.
        note: what is wrong, why it failed, or what to install.
        wall_s: median over the rounds.
        cpu_s: least over the rounds.
        extra_bytes: highest memory beyond the inputs; None where the system does not tell.
        output_error: greatest difference of the output from float64.
        gradient_error: greatest difference of the gradients, None where there are none.
        work: the line of the roofline that bounds it.
    """

    subject: str
    state: str = "measured"
    note: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    extra_bytes: float | None = None
    output_error: float | None = None
    gradient_error: float | None = None
    work: str = ""


@dataclass(frozen=True)
class Session:
    """One table: an operation at a shape, and how it is to be measured.

    Attributes:
        operation: rnnt, tdt, attention or log_mel.
        shape: as on the command line.
        device: cpu or cuda.
        dtype: float32, float64, bfloat16 or float16.
        threads: of torch on a CPU.
        rounds: turns of each subject.
        only: subjects to measure, all of them if empty.
        own: subjects of the user's, NAME=MODULE:FUNCTION.
    """

    operation: str
    shape: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    rounds: int = 7
    only: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    def measure(self, progress: Callable[[str], None]) -> list[Row]:
        """A row for each subject, in the order of the operation's table.

        Raises:
            RuntimeError: if the float64 results cannot be made.
            ValueError: if there is no subject of a name that is asked for.
        """
        operation = operation_of(self.operation, self.shape)
        names = [subject_of(operation, name).name for name in self.only] or [s.name for s in operation.subjects]
        with tempfile.TemporaryDirectory(prefix="nemo-kernels-") as folder, ExitStack() as stack:
            expected = Path(folder) / "expected.pt"
            progress("float64 results")
            self._make_expected(expected)
            turns = []
            for name in (*names, *self.own):
                progress(name)
                turns.append(self._started(name, expected, stack))
            for number in range(self.rounds):
                progress(f"round {number + 1} of {self.rounds}")
                for turn in turns:
                    turn.take()
            return [turn.concluded() for turn in turns]

    def _case(self, subject: str, expected: Path) -> Case:
        return Case(self.operation, self.shape, subject, str(expected), self.device, self.dtype, self.threads)

    def _make_expected(self, path: Path) -> None:
        with WorkerProcess(self._case("", path)) as process:
            if process.answer() is None:
                raise RuntimeError(f"{self.operation} {self.shape}: no float64 results: {process.last_words()}")

    def _started(self, name: str, expected: Path, stack: ExitStack) -> _Turns:
        subject = subject_of(operation_of(self.operation, self.shape), name)
        python = os.environ.get(subject.foreign, "") if subject.foreign else sys.executable
        if not python:
            return _Turns(subject, None, f"{subject.foreign} names no Python that has it")
        if not subject.foreign and subject.module and find_spec(subject.module) is None:
            return _Turns(subject, None, f"pip install {subject.module}")
        return _Turns(subject, stack.enter_context(WorkerProcess(self._case(name, expected), python)))


class _Turns:
    """A subject's process, and the row that it fills."""

    def __init__(self, subject: Subject, process: WorkerProcess | None, missing: str = "") -> None:
        self._slow, self._process = subject.slow, process
        self._row = Row(subject.name, work=subject.work)
        self._times: list[Time] = []
        if process is None:
            self._row.state, self._row.note = "absent", missing
            return
        answer = process.answer()
        if answer is None:
            self._fail(process)
            return
        self._row.extra_bytes = answer["extra_bytes"]
        self._row.output_error, self._row.gradient_error = answer["output"], answer["gradient"]
        if self._slow:
            self._times.append(Time(**answer["first"]))
        if answer["wrong"]:
            self._row.state, self._row.note = "WRONG", answer["wrong"]

    def _fail(self, process: WorkerProcess) -> None:
        self._row.state, self._row.note = "failed", process.last_words()

    def take(self) -> None:
        """One run, unless the subject is out of the race, or slow: then its first run is what counts."""
        if self._process is None or self._row.state != "measured" or self._slow:
            return
        answer = self._process.ask("run")
        if answer is None:
            self._fail(self._process)
        else:
            self._times.append(Time(**answer))

    def concluded(self) -> Row:
        if self._row.state == "measured" and self._times:
            self._row.wall_s = statistics.median(time.wall_s for time in self._times)
            self._row.cpu_s = min(time.cpu_s for time in self._times)
        return self._row
