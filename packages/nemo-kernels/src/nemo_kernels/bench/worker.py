"""The process in which one subject is measured: `python -m nemo_kernels.bench.worker CASE`, CASE in JSON.

It fills the inputs, runs the subject once to compare its results with the expected ones and to see its memory, then
once more for every line `run` that it reads, and answers each time with one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO

import torch

from nemo_kernels.bench.catalogue import operation_of, warm_up_shape
from nemo_kernels.bench.measurement import timed, with_memory
from nemo_kernels.bench.problem import Difference, Operation, Problem, Results, Subject, expected_results


@dataclass(frozen=True)
class Case:
    """What one worker measures.

    Attributes:
        operation: rnnt, tdt, attention or log_mel.
        shape: as on the command line, e.g. `B=8,T=200,U=40,V=128`.
        subject: the name in the operation's table, or NAME=MODULE:FUNCTION for one of the user's own.
        expected: file of the float64 results; made by the worker whose subject is "".
        device: cpu or cuda.
        dtype: float32, float64, bfloat16 or float16.
        threads: of torch on a CPU.
    """

    operation: str
    shape: str
    subject: str
    expected: str
    device: str
    dtype: str
    threads: int


def subject_of(operation: Operation, name: str) -> Subject:
    """The subject of that name, or the user's own function.

    Raises:
        ValueError: no subject has that name.
    """
    own_name, given, place = name.partition("=")
    if given:
        return Subject(own_name, partial(_imported, place))
    for subject in operation.subjects:
        if subject.name == name:
            return subject
    raise ValueError(f"subject: {name!r} is none of {', '.join(subject.name for subject in operation.subjects)}")


def _imported(place: str, problem: Problem) -> Results:
    """Runs MODULE:FUNCTION, which this process can import where the parent may not."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)(problem)


def main() -> None:
    """Reads the case from the command line, and commands from the standard input."""
    case = Case(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(case.threads)
    operation = operation_of(case.operation, case.shape)
    problem = operation.make(torch.device(case.device), getattr(torch, case.dtype))
    problem.refill()
    if not case.subject:
        torch.save(expected_results(operation, problem), case.expected)
        _answer(answers, {})
        return
    _serve(case, operation, problem, answers)


def _serve(case: Case, operation: Operation, problem: Problem, answers: IO[str]) -> None:
    device, subject = torch.device(case.device), subject_of(operation, case.subject)

    def run() -> Results:
        return subject.run(problem)

    _warm_up(case, subject)
    problem.refill()
    results: Results = {}
    first_time, extra = with_memory(lambda: timed(lambda: results.update(run()), device), device)
    difference = Difference.between(operation, problem, results, torch.load(case.expected, weights_only=True))
    results.clear()
    _answer(answers, {"extra_bytes": extra, **asdict(difference), "first": first_time._asdict()})
    for line in sys.stdin:
        if line.strip() != "run":
            break
        problem.refill()
        _answer(answers, timed(run, device)._asdict())


def _warm_up(case: Case, subject: Subject) -> None:
    """Loads libraries and starts threads on a small problem, so that the first run's memory is the subject's own."""
    small = operation_of(case.operation, warm_up_shape(case.operation, case.shape))
    problem = small.make(torch.device(case.device), getattr(torch, case.dtype))
    problem.refill()
    subject.run(problem)


def _answer(answers: IO[str], content: dict[str, object]) -> None:
    answers.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
