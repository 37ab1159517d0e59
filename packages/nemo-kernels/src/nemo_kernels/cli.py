"""The command `nemo-kernels`: `doctor` and `bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nemo_kernels import doctor
from nemo_kernels.bench.command import add_arguments, run

_DOCTOR = "Says which implementation of every operation would run here, on each device, and why. Runs none of them."
_BENCH = """Measures an operation, forward and backward, beside other implementations of it: time, memory beyond the
inputs, and the greatest difference from float64. Each subject has its own process, and they take turns. A subject whose
result is wrong gets no time, and the exit status is 1. Then: what the kernels compile to for three GPUs, and the least
time that those GPUs could need. On a CUDA device the same is measured there, and compared with that least time. Where
NEMO_TOOLKIT_PYTHON names a Python that has NVIDIA's toolkit, `log_mel` is measured beside NVIDIA's front end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and gives its exit status: 0, 1 for a bad finding, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="nemo-kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    examine = commands.add_parser("doctor", help="what would run here, and why", description=_DOCTOR)
    examine.add_argument("--json", action="store_true", help="one JSON document")
    bench = commands.add_parser("bench", help="time, memory and errors of an operation", description=_BENCH)
    add_arguments(bench)
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        return _doctor(as_json=given.json)
    try:
        return run(given)
    except ValueError as error:
        bench.error(str(error))


def _doctor(*, as_json: bool) -> int:
    diagnosis = doctor.diagnose()
    print(doctor.as_json(diagnosis) if as_json else doctor.as_text(diagnosis))
    return 1 if diagnosis.problem else 0
