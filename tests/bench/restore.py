"""Restoring FastConformer-L (115 M parameters, 460 MB), beside NVIDIA's toolkit where it is installed.

    NEMO_TOOLKIT_PYTHON=/path/to/python hatch run bench restore

Each subject is a process of its own: three restores one after the other (the first and the later ones are told
apart), its highest resident memory, then one restore with the transcription of five seconds of noise. The
toolkits take turns, and the medians of the rounds are printed. Then each restores, reads and drops a model 50 times
(NVIDIA's 10 times), and the growth of resident memory per model is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _large_model import large_model

PEER = "nemo_toolkit"
Subjects = dict[str, tuple[str, str]]
"""By name: the interpreter, and the statements that define `restore`."""
OURS = """
from nemo_asr.models import EncDecCTCModelBPE
def restore(): return EncDecCTCModelBPE.restore_from(path)
"""
NETWORK = """
from nemo_asr import load_model
import nemo_asr.networks, torch
def restore(): return load_model(path)
"""
THEIRS = """
import logging, warnings
warnings.filterwarnings("ignore")
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.utils import logging as nemo_logging
nemo_logging.setLevel(logging.ERROR)
def restore(): return EncDecCTCModelBPE.restore_from(path, map_location="cpu")
"""
MEASURE = """
import json, resource, sys, time
path = sys.argv[1]
{imports}
import numpy
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
seconds = []
for _ in range(3):
    start = time.perf_counter(); model = restore(); seconds.append(time.perf_counter() - start)
    if len(seconds) == 1: peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del model
start = time.perf_counter(); model = restore(); model.eval()
audio = numpy.random.default_rng(0).standard_normal(80000).astype("float32") * 0.1
model.transcribe([audio], verbose=False)
both = time.perf_counter() - start
print("RESULT" + json.dumps(dict(first=seconds[0], later=min(seconds[1:]), both=both, imported_mb=loaded,
    peak_mb=peak, end_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
"""


GROWTH = """
import gc, json, sys
path, drops = sys.argv[1], int(sys.argv[2])
{imports}
def resident_mb():
    with open("/proc/self/statm") as statm: return int(statm.read().split()[1]) * 4096 / 1e6
marks = []
for count in range(drops):
    model = restore()
    for parameter in model.parameters(): parameter.detach().sum()  # every page of the weights is read
    del model, parameter
    gc.collect()
    marks.append(resident_mb())
print("RESULT" + json.dumps(dict(early=marks[2], late=marks[-1], each=(marks[-1] - marks[2]) / (drops - 3))))
"""


def measure(code: str, python: str, imports: str, *arguments: object) -> dict[str, float]:
    """What a process that runs the code reports."""
    command = [python, "-c", code.format(imports=imports), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(result.stderr[-3000:])
    return json.loads(lines[0].removeprefix("RESULT"))


def time_restores(path: Path, subjects: Subjects, rounds: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, (python, imports) in subjects.items():
            runs[name].append(measure(MEASURE, python, imports, path))
    columns = ("first", "later", "both", "imported_mb", "peak_mb", "end_mb")
    median = {n: {c: statistics.median(r[c] for r in rows) for c in columns} for n, rows in runs.items()}
    print(f"{'':22}first s  later s  +transcribe s  after import MB  peak MB  peak after 5 MB")
    for name, row in median.items():
        print(
            f"{name:22}{row['first']:7.3f}  {row['later']:7.3f}  {row['both']:13.3f}  {row['imported_mb']:15.0f}  "
            f"{row['peak_mb']:7.0f}  {row['end_mb']:15.0f}"
        )
    for name in [name for name in subjects if name != PEER and PEER in subjects]:
        theirs, ours = median[PEER], median[name]
        print(
            f"{name}: {theirs['first'] / ours['first']:.1f} times faster first, "
            f"{theirs['later'] / ours['later']:.1f} after, {theirs['both'] / ours['both']:.1f} with a transcription; "
            f"{ours['peak_mb'] / theirs['peak_mb']:.2f} of the peak memory"
        )


def weigh_drops(path: Path, subjects: Subjects, drops: int) -> None:
    print(f"\n{'':22}models  resident after 3 MB  after all MB  growth per model MB")
    for name, (python, imports) in subjects.items():
        count = min(drops, 10) if name == PEER else drops
        row = measure(GROWTH, python, imports, path, count)
        print(f"{name:22}{count:6}  {row['early']:19.0f}  {row['late']:12.0f}  {row['each']:19.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drops", type=int, default=50, help="models restored and dropped; 0 for none, at least 4")
    arguments = parser.parse_args()
    subjects: Subjects = {"nemo_asr.models": (sys.executable, OURS), "nemo_asr.load_model": (sys.executable, NETWORK)}
    if os.environ.get("NEMO_TOOLKIT_PYTHON"):
        subjects[PEER] = (os.environ["NEMO_TOOLKIT_PYTHON"], THEIRS)
    with tempfile.TemporaryDirectory() as scratch:
        path = large_model(Path(scratch))
        if arguments.rounds:
            time_restores(path, subjects, arguments.rounds)
        if arguments.drops:
            weigh_drops(path, subjects, arguments.drops)


if __name__ == "__main__":
    main()
