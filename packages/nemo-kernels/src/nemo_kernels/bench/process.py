"""A worker as its parent sees it: a Python that reads lines and answers each with a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import nemo_kernels
from nemo_kernels.bench.worker import Case


class WorkerProcess:
    """Starts a worker on a case, in this Python or another, and ends it on leaving the context."""

    def __init__(self, case: Case, python: str = sys.executable) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-kernels-")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            [python, "-m", "nemo_kernels.bench.worker", json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self._environment(case, foreign=python != sys.executable),
        )

    def _environment(self, case: Case, *, foreign: bool) -> dict[str, str]:
        threads = str(case.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if foreign:  # which is to see this package, and nothing else of ours
            (Path(self._folder.name) / "nemo_kernels").symlink_to(Path(nemo_kernels.__file__).parent)
            environment["PYTHONPATH"] = self._folder.name
        return environment

    def answer(self) -> dict[str, Any] | None:
        """The next line of the worker, or None where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, command: str) -> dict[str, Any] | None:
        """The worker's answer to a command, or None where it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self.answer()

    def last_words(self) -> str:
        """Why an ended worker ended: the last line that it wrote to its error output."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        if status < 0:
            return f"ended by signal {-status}"
        return lines[-1] if lines else f"ended with status {status}"

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()
