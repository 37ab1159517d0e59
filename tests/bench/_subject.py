"""A subject of a benchmark: code that runs in a process of its own, in this environment or in that of NVIDIA's toolkit,
and says what it measured in one line.

torch's CUDA build takes 400 MB more than the CPU build to import.  So memory is compared a second time with our
packages inside of the toolkit's own environment: the same torch, the same Lightning.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = Path(__file__).parents[2] / "packages"
OURS, PEER, OURS_THERE = "nemo-asr", "nemo_toolkit", "nemo-asr in its env"


class Subject(NamedTuple):
    """Whose code runs, and where."""

    name: str
    python: str
    is_peer: bool = False
    packages: str | None = None

    def measure(self, code: str, *arguments: object, threads: int = 2) -> dict[str, Any]:
        """What the code, run with these arguments, prints after the word RESULT, which is JSON."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if self.packages:
            environment["PYTHONPATH"] = self.packages
        command = [self.python, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
        if not lines:
            raise SystemExit(f"{self.name}: {result.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
        return found


def subjects(scratch: Path, *, in_their_environment: bool = False) -> list[Subject]:
    """Ours, and the toolkit where NEMO_TOOLKIT_PYTHON names its interpreter; on request ours in that environment."""
    found = [Subject(OURS, sys.executable)]
    theirs = os.environ.get("NEMO_TOOLKIT_PYTHON")
    if not theirs:
        print("NEMO_TOOLKIT_PYTHON names no interpreter with NVIDIA's toolkit: ours alone", file=sys.stderr)
        return found
    if in_their_environment:
        found.append(Subject(OURS_THERE, theirs, packages=str(copy_of_packages(scratch / "packages"))))
    return [*found, Subject(PEER, theirs, is_peer=True)]


def copy_of_packages(folder: Path) -> Path:
    """Installs what nemo-asr consists of into a folder, without anything that it depends on."""
    names = ("config", "archive", "kernels", "expmgr", "asr")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(folder),
    ]
    subprocess.run([*command, *(str(PACKAGES / f"nemo-{name}") for name in names)], check=True)
    return folder
