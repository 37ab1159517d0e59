"""From a config to a transcript: trains a small FastConformer-CTC on bundled speech, and reads its `.nemo` back.

    hatch run quickstart             # trains (under 6 minutes on two idle cores), or goes on where it was stopped
    hatch run quickstart --fresh     # starts over

Three commands of nemo-asr do the work, as they would on your data: `tokenizer`, `train`, and in a fresh process
`evaluate`. The clips are real, but few, and of one speaker: this checks the pipeline, and makes no recogniser.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

SPEECH = Path(__file__).parents[3] / "tests" / "data" / "speech"
SETS = {
    "training clips": "train.jsonl",
    "other recordings of trained sentences": "heldout_repeated.jsonl",
    "new sentences of known words": "heldout_sentences.jsonl",
}


def nemo_asr(*arguments: str) -> None:
    """Runs a command of nemo-asr in a process of its own; where it fails it has said why, and this ends, too."""
    status = subprocess.run([sys.executable, "-m", "nemo_asr", *arguments]).returncode
    if status:
        raise SystemExit(status)


def make_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.model").exists():
        nemo_asr("tokenizer", "--manifest", str(SPEECH / "train.jsonl"), "--out", str(folder), "--vocab-size", "64")


def train(folder: Path, overrides: list[str]) -> Path:
    """Trains, or goes on training; gives the `.nemo` at its end."""
    model = folder / "quickstart" / "checkpoints" / "quickstart.nemo"
    if model.exists():
        print(f"{model} is there already; --fresh trains it anew.")
        return model
    nemo_asr(
        "train",
        "--config-name",
        "quickstart",
        f"exp_manager.exp_dir={folder}",
        f"model.tokenizer.dir={folder / 'tokenizer'}",
        f"model.train_ds.manifest_filepath={SPEECH / 'train.jsonl'}",
        f"model.validation_ds.manifest_filepath={SPEECH / 'heldout_repeated.jsonl'}",
        *overrides,
    )
    return model


def evaluate(model: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Transcribes each set in a fresh process; gives word error rate and real-time factor by set."""
    results = {}
    for title, manifest in SETS.items():
        report = folder / manifest.replace(".jsonl", ".json")
        nemo_asr("evaluate", str(model), "--manifest", str(SPEECH / manifest), "--report", str(report))
        results[title] = json.loads(report.read_text())
    return results


def show_transcripts(results: dict[str, dict], count: int = 4) -> None:
    for title, result in results.items():
        print(f"\n{title}:")
        for item in result["utterances"][:count]:
            print(f"  said   {item['text']}\n  heard  {item['pred_text']}")
    print()
    for title, result in results.items():
        print(
            f"WER {100 * result['wer']:5.1f} %   real-time factor {result['real_time_factor']:.3f}   "
            f"({title}, {len(result['utterances'])} clips)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("nemo_experiments"), help="where everything is written")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left, and start over")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for the training, e.g. trainer.max_epochs=2")
    arguments = parser.parse_args()
    folder = arguments.dir.resolve()
    if arguments.fresh:
        for left in (folder / "quickstart", folder / "tokenizer"):
            shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)

    print("A check of the whole pipeline on five minutes of one speaker; its model is of no other use.", flush=True)
    started = time.monotonic()
    make_tokenizer(folder / "tokenizer")
    model = train(folder, arguments.overrides)
    minutes = (time.monotonic() - started) / 60
    show_transcripts(evaluate(model, folder))

    from training_picture import draw

    picture = draw(model, SPEECH / "train.jsonl", folder / "quickstart", folder / "quickstart.png")
    print(f"\nmodel    {model}\npicture  {picture}\nlogs     tensorboard --logdir {folder / 'quickstart'}")
    print(f"Training took {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
