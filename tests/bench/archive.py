"""Reading a 460 MB .nemo file (FastConformer-L) with nemo-archive, beside NVIDIA's toolkit where it is installed.

    NEMO_TOOLKIT_PYTHON=/path/to/python hatch run bench archive [--rounds 5]

Three questions: the config, the list of tensors, all weights as torch tensors. NVIDIA's answers are
`restore_from(return_config=True)` and, for both others, `extract_state_dict_from`, which is what it offers. Each is
asked in a process of its own, twice: the first time (which imports what is imported lazily), again, and the whole cold
process. Bytes written are those of the process's write calls while it first answers (Linux: /proc/self/io). Medians of
the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from _large_model import large_model

PEER = "nemo_toolkit"
OURS = {
    "config": ("from nemo_archive import open_archive", "len(open_archive(path).config())"),
    "tensor list": ("from nemo_archive import open_archive", "len(open_archive(path).tensors())"),
    "all weights": (
        "from nemo_archive.torch import load_state_dict",
        "sum(float(tensor.sum()) for tensor in load_state_dict(path).values())",
    ),
}
"""By question: the import, and an expression that needs the answer. The weights are summed, so that all are read."""
_MODELS = "import logging, tempfile; from nemo.collections.asr.models import EncDecCTCModelBPE as Model"
_EXTRACTED = "Model.extract_state_dict_from(path, tempfile.mkdtemp(dir=scratch))"
THEIRS = {
    "config": (_MODELS, "len(Model.restore_from(path, return_config=True))"),
    "tensor list": (_MODELS, f"len({_EXTRACTED})"),
    "all weights": (_MODELS, f"sum(float(tensor.sum()) for tensor in {_EXTRACTED}.values())"),
}
ASK = """
import json, sys, time
path, scratch = sys.argv[1:]
def written():
    with open("/proc/self/io") as io: return int(io.read().split("wchar:")[1].split()[0])
{imports}
before, start = written(), time.perf_counter()
answer = {expression}
first, after = time.perf_counter() - start, written()
start = time.perf_counter()
assert {expression} == answer
print("RESULT" + json.dumps([answer, first, time.perf_counter() - start, after - before]))
"""


class Run(NamedTuple):
    """One process; a median of several in its columns."""

    answer: float
    first_s: float
    again_s: float
    written: float
    whole_s: float


def ask(python: str, imports: str, expression: str, path: Path) -> Run:
    """Asks a question in a new process."""
    with tempfile.TemporaryDirectory() as scratch:
        code = ASK.format(imports=imports, expression=expression)
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        start = time.perf_counter()
        command = [python, "-c", code, str(path), scratch]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        whole = time.perf_counter() - start
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(result.stderr[-3000:])
    answer, first, again, written = json.loads(lines[0].removeprefix("RESULT"))
    return Run(answer, first, again, written, whole - again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    subjects = {"nemo_archive": (sys.executable, OURS)}
    if os.environ.get("NEMO_TOOLKIT_PYTHON"):
        subjects[PEER] = (os.environ["NEMO_TOOLKIT_PYTHON"], THEIRS)
    with tempfile.TemporaryDirectory() as scratch:
        path = large_model(Path(scratch))
        heads = (f"{'first ms':>10}", f"{'again ms':>10}", "whole process s", "bytes written")
        print("  ".join((f"{'question':12}", f"{'answered by':12}", *heads)))
        for question in OURS:
            runs: dict[str, list[Run]] = {name: [] for name in subjects}
            for _ in range(rounds):
                for name, (python, questions) in subjects.items():
                    runs[name].append(ask(python, *questions[question], path))
            report(question, runs)


def report(question: str, runs: dict[str, list[Run]]) -> None:
    """Prints a question's rows; a wrong answer has no speed."""
    answers = {name: rows[0].answer for name, rows in runs.items()}
    if question != "config" and max(answers.values()) - min(answers.values()) > 1e-3 * abs(max(answers.values())):
        raise SystemExit(f"{question}: the answers differ: {answers}")
    median = {name: Run(*map(statistics.median, zip(*rows, strict=True))) for name, rows in runs.items()}
    for name, run in median.items():
        print(
            f"{question:12}  {name:12}  {run.first_s * 1e3:10.2f}  {run.again_s * 1e3:10.2f}  {run.whole_s:15.3f}  "
            f"{run.written:13.0f}"
        )
    if PEER in median:
        ours, theirs = median["nemo_archive"], median[PEER]
        print(
            f"{'':12}  {theirs.first_s / ours.first_s:.1f} times faster first, "
            f"{theirs.again_s / ours.again_s:.1f} again, {theirs.whole_s / ours.whole_s:.0f} as a whole process"
        )


if __name__ == "__main__":
    main()
