"""What importing costs: CPU seconds of a whole process, each statement in turn, several rounds.

hatch run bench imports [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys

STATEMENTS = {
    "import torch": None,
    "from nemo_asr import load_model; load_model": "import torch",
    "import nemo_asr.networks": "import torch",
    "import torch, lightning.pytorch": None,
    "import nemo_asr.models": "import torch, lightning.pytorch",
    "pass": None,
    "import nemo_config": "pass",
    "import nemo_archive": "pass",
}
"""What is measured, and beside what."""


def cpu_seconds(statement: str) -> float:
    """User and system time of a new interpreter that runs the statement, which must print nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        [sys.executable, "-c", statement],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if output.stdout or output.stderr:
        raise SystemExit(f"{statement} printed {output.stdout + output.stderr!r}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for statement in STATEMENTS:
        cpu_seconds(statement)  # fills the file cache
    seconds = {statement: [] for statement in STATEMENTS}
    for _ in range(rounds):
        for statement in STATEMENTS:
            seconds[statement].append(cpu_seconds(statement))
    median = {statement: statistics.median(values) for statement, values in seconds.items()}
    print(f"{'median CPU s':>12}  {'least':>6}  {'beside':>18}  statement")
    for statement, beside in STATEMENTS.items():
        ratio = ""
        if beside == "pass":
            ratio = f"+{median[statement] - median[beside]:.3f} s"
        elif beside:
            ratio = f"{100 * (median[statement] / median[beside] - 1):+.1f} %"
        print(f"{median[statement]:12.3f}  {min(seconds[statement]):6.3f}  {ratio:>18}  {statement}")


if __name__ == "__main__":
    main()
