"""Restoring FastConformer-L (115 M parameters, 460 MB), beside NVIDIA's toolkit where it is installed.

    NEMO_TOOLKIT_PYTHON=/path/to/python hatch run bench restore

Each subject is a process of its own: three restores one after the other (the first and the later ones are told
apart), its highest resident memory, then one restore with the transcription of five seconds of noise. The file
has random weights. The toolkits take turns, and the medians of the rounds are printed.
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

MODEL = "fastconformer_l.nemo"
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


def make_model(path: Path, tokenizer_folder: Path) -> None:
    """Saves a FastConformer-L with random weights and a small tokenizer."""
    from hydra import compose, initialize_config_dir

    from nemo_asr.commands.train import CONFIGS
    from nemo_asr.models import EncDecCTCModelBPE

    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("fastconformer_ctc_bpe", overrides=[f"model.tokenizer.dir={tokenizer_folder}"])
    model = EncDecCTCModelBPE(cfg=config.model)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    model.save_to(str(path))


def make_tokenizer(folder: Path) -> None:
    manifest = Path(__file__).parents[1] / "data" / "speech" / "train.jsonl"
    command = [
        sys.executable,
        "-m",
        "nemo_asr",
        "tokenizer",
        "--manifest",
        str(manifest),
        "--out",
        str(folder),
    ]
    subprocess.run([*command, "--vocab-size", "128"], check=True, capture_output=True)


def measure(python: str, imports: str, path: Path) -> dict[str, float]:
    code = MEASURE.format(imports=imports)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, env=environment)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(result.stderr[-3000:])
    return json.loads(lines[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_tokenizer(arguments.make / "tokenizer")
        make_model(arguments.make / MODEL, arguments.make / "tokenizer")
        return
    rounds = arguments.rounds
    subjects = {"nemo_asr.models": (sys.executable, OURS), "nemo_asr.load_model": (sys.executable, NETWORK)}
    if os.environ.get("NEMO_TOOLKIT_PYTHON"):
        subjects["nemo_toolkit"] = (os.environ["NEMO_TOOLKIT_PYTHON"], THEIRS)
    with tempfile.TemporaryDirectory() as scratch:
        # A process of its own: a child's highest resident memory begins with its parent's.
        subprocess.run([sys.executable, __file__, "--make", scratch], check=True)
        path = Path(scratch) / MODEL
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name, (python, imports) in subjects.items():
                runs[name].append(measure(python, imports, path))
    columns = ("first", "later", "both", "imported_mb", "peak_mb", "end_mb")
    median = {n: {c: statistics.median(r[c] for r in rows) for c in columns} for n, rows in runs.items()}
    print(f"{'':22}first s  later s  +transcribe s  after import MB  peak MB  peak after 5 MB")
    for name, row in median.items():
        print(
            f"{name:22}{row['first']:7.3f}  {row['later']:7.3f}  {row['both']:13.3f}  {row['imported_mb']:15.0f}  "
            f"{row['peak_mb']:7.0f}  {row['end_mb']:15.0f}"
        )
    for name in list(subjects)[:2] if "nemo_toolkit" in median else []:
        theirs, ours = median["nemo_toolkit"], median[name]
        print(
            f"{name}: {theirs['first'] / ours['first']:.1f} times faster first, "
            f"{theirs['later'] / ours['later']:.1f} after, {theirs['both'] / ours['both']:.1f} with a transcription; "
            f"{ours['peak_mb'] / theirs['peak_mb']:.2f} of the peak memory"
        )


if __name__ == "__main__":
    main()
