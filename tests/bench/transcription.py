"""Greedy transcription with a transducer (RNNT) and one with token durations (TDT), beside NVIDIA's toolkit.

    NEMO_TOOLKIT_PYTHON=/path/to/python hatch run bench transcription
    hatch run bench transcription --model mine.nemo --manifest mine.jsonl --batch-size 1 16

The models are small FastConformers with a CTC head beside the transducer, which learns faster so, trained on the
bundled training clips for four minutes each, or kept from an earlier run.  Each toolkit restores them in a process of
its own, transcribes a few clips to warm up, and then all clips of the manifest with `model.transcribe(paths,
batch_size=...)`; the toolkits take turns, and medians of the rounds are printed.  The texts of the toolkits are
compared, and those of ours at one batch size with those at the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from _subject import OURS, PEER, Subject, subjects
from _trained_model import SPEECH, trained_model

CONFIGS = ("fastconformer_hybrid_transducer_ctc_bpe", "fastconformer_hybrid_tdt_ctc_bpe")
OVERRIDES = ("model.aux_ctc.ctc_loss_weight=0.5", "model.optim.lr=0.3", "model.optim.sched.warmup_steps=100")
TRANSCRIBE = """
import json, logging, sys, time, warnings
warnings.filterwarnings("ignore")
{imports}
model = restore(sys.argv[1])
paths, batch_size = json.load(open(sys.argv[2])), int(sys.argv[3])
model.transcribe(paths[:batch_size], batch_size=batch_size, verbose=False)
start = time.perf_counter()
found = model.transcribe(paths, batch_size=batch_size, verbose=False)
seconds = time.perf_counter() - start
print("RESULT" + json.dumps(dict(seconds=seconds, texts=[getattr(text, "text", text) for text in found])))
"""
IMPORTS = {
    OURS: "from nemo_asr import load_model as restore",
    PEER: "from nemo.collections.asr.models import ASRModel\n"
    "from nemo.utils import logging as nemo_logging\nnemo_logging.setLevel(logging.ERROR)\n"
    "def restore(path): return ASRModel.restore_from(path, map_location='cpu').eval()",
}


def read_clips(manifest: Path) -> tuple[list[str], list[str], float]:
    """Paths, texts, and seconds of audio of a manifest."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    paths = [str((manifest.parent / row["audio_filepath"]).resolve()) for row in rows]
    return paths, [row.get("text", "") for row in rows], sum(row["duration"] for row in rows)


def compare(who: list[Subject], model: Path, clips: Path, batch_size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By toolkit the median of seconds, and the texts."""
    runs: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in who}
    for _ in range(rounds):
        for subject in who:
            code = TRANSCRIBE.replace("{imports}", IMPORTS[PEER if subject.is_peer else OURS])
            runs[subject.name].append(subject.measure(code, model, clips, batch_size))
    return {
        name: {"seconds": statistics.median(run["seconds"] for run in own), "texts": own[0]["texts"]}
        for name, own in runs.items()
    }


def report(model: Path, manifest: Path, scratch: Path, batch_sizes: list[int], rounds: int) -> None:
    from nemo_asr.metrics import word_error_rate

    paths, said, audio_s = read_clips(manifest)
    clips = scratch / "clips.json"
    clips.write_text(json.dumps(paths))
    who = subjects(scratch)
    found = {size: compare(who, model, clips, size, rounds) for size in batch_sizes}
    texts = found[batch_sizes[0]][OURS]["texts"]
    print(f"\n{model.name}: {len(paths)} clips, {audio_s:.0f} s, word errors {word_error_rate(texts, said):.1%}")
    for size, row in found.items():
        line = f"  batches of {size:3}: ours {row[OURS]['seconds']:7.2f} s"
        if PEER in row:
            equal = sum(one == other for one, other in zip(row[OURS]["texts"], row[PEER]["texts"], strict=True))
            ratio = row[PEER]["seconds"] / row[OURS]["seconds"]
            line += f", theirs {row[PEER]['seconds']:7.2f} s: {ratio:.2f} times; {equal} of {len(paths)} texts equal"
        print(line)
    for size in batch_sizes[1:]:
        equal = sum(one == other for one, other in zip(texts, found[size][OURS]["texts"], strict=True))
        print(f"  ours in batches of {size} and of {batch_sizes[0]}: {equal} of {len(paths)} texts equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, default=Path("nemo_experiments/transcription"), help="where models are kept"
    )
    parser.add_argument("--model", type=Path, nargs="+", help="files to compare with, instead of training some")
    parser.add_argument("--manifest", type=Path, default=SPEECH / "train.jsonl")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 4, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    folder = arguments.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    models = arguments.model or [trained_model(folder, config, arguments.epochs, *OVERRIDES) for config in CONFIGS]
    for model in models:
        report(model, arguments.manifest, folder, arguments.batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
