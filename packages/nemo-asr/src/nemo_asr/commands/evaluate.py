"""`nemo-asr evaluate`: word and character error rate of a model on a manifest, or of a manifest's `pred_text`.

    nemo-asr evaluate model.nemo --manifest test.json --report report.json --show 5
    nemo-asr evaluate --manifest predictions.json
    nemo-asr evaluate model_path=model.nemo dataset_manifest=test.json use_cer=true tolerance=0.1

The keys of NVIDIA's script `speech_to_text_eval.py` are taken as `key=value`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_asr.commands.options import EvaluationConfig, TextProcessingConfig
from nemo_asr.commands.transcribe import (
    build_parser,
    place_words,
    transcribe_all,
    write_manifest,
)

if TYPE_CHECKING:
    from nemo_asr.metrics import EditCounts


@dataclass(frozen=True)
class Utterance:
    """One line of the manifest with both texts, as they are there and as they are compared."""

    record: dict[str, Any]
    reference: str
    hypothesis: str

    def counts(self, use_cer: bool) -> EditCounts:
        """Edits from the reference to the hypothesis."""
        from nemo_asr.metrics import count_edits

        return count_edits(self.hypothesis, self.reference, use_cer)


def main(arguments: list[str]) -> int:
    """Runs the command with the given arguments (without its name)."""
    from nemo_asr.commands.command_line import run_command

    parser = build_parser("evaluate", __doc__ or "", "MODEL")
    parser.add_argument("--report", help="JSON file to write: rates, counts, speed, and each utterance")
    parser.add_argument("--show", type=int, help="how many utterances to print beside their references")
    return run_command(parser, EvaluationConfig, run, arguments, place_words)


def run(config: EvaluationConfig) -> int:
    """Scores what the config names; the status is 1 where the rate is above the tolerance."""
    records, speed = _records(config)
    process = text_processor(config.text_processing)
    utterances = [
        Utterance(record, process(str(record[config.gt_text_attr_name])), process(str(record["pred_text"])))
        for record in records
    ]
    report = summarize(utterances, config) | speed
    _write(utterances, report, config)
    _print(utterances, report, config.show)
    name = "CER" if config.use_cer else "WER"
    rate = report[name.lower()]
    if config.tolerance is not None and (rate is None or rate > config.tolerance):
        print(f"{name} {_percent(rate)} is above the tolerance {config.tolerance}", file=sys.stderr)
        return 1
    return 0


def _records(config: EvaluationConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The manifest's lines with `pred_text`, and how fast it was made."""
    from nemo_config import ConfigError

    if not config.dataset_manifest:
        raise ConfigError("dataset_manifest", None, "names no manifest with the true texts")
    if config.audio or config.audio_dir:
        raise ConfigError("audio_dir", config.audio_dir or config.audio, "has no true texts: use dataset_manifest")
    scored = config.only_score_manifest or not (config.model_path or config.pretrained_name)
    if scored:
        return read_records(config.dataset_manifest, config.gt_text_attr_name, "pred_text"), {}
    _check_texts(config.dataset_manifest, config.gt_text_attr_name)
    config.append_pred = False
    transcripts = transcribe_all(config)
    speed = {
        "audio_s": round(transcripts.audio_s, 3),
        "seconds": round(transcripts.seconds, 3),
        "real_time_factor": transcripts.seconds / transcripts.audio_s if transcripts.audio_s else None,
    }
    return transcripts.records, speed


def _check_texts(manifest: str, key: str) -> None:
    """Raises ManifestError for a line without the true text, before anything is computed."""
    from nemo_asr.data.manifest import ManifestRules, read_manifest

    if key == "text":  # which a line may also give as normalized_text or text_filepath
        read_manifest(manifest, ManifestRules(need_text=True))
    else:
        read_records(manifest, key)


def read_records(path: str, *keys: str) -> list[dict[str, Any]]:
    """The lines of a manifest as they are; audio is not looked for.

    Raises:
        ManifestError: a line that is no JSON object, or lacks one of the keys.
    """
    from nemo_asr.data.manifest import ManifestError, read_lines

    records = []
    for number, record in read_lines(path):
        missing = [key for key in keys if record.get(key) is None]
        if missing:
            raise ManifestError(f"{path}:{number}: {missing[0]}: missing")
        records.append(record)
    return records


def text_processor(config: TextProcessingConfig) -> Callable[[str], str]:
    """A function that does to a text what the config says, in NVIDIA's order."""
    marks = f"([{re.escape(config.punctuation_marks)}])"

    def process(text: str) -> str:
        if config.separate_punctuation and config.punctuation_marks:
            text = " ".join(re.sub(marks, r" \1 ", text).split())
        if config.do_lowercase:
            text = text.lower()
        if config.rm_punctuation and config.punctuation_marks:
            text = " ".join(re.sub(marks, " ", text).split())
        return text

    return process


def summarize(utterances: list[Utterance], config: EvaluationConfig) -> dict[str, Any]:
    """The report: rates over all utterances, what they count, and the utterances with their own."""
    from nemo_asr.metrics import EditCounts

    words = sum((utterance.counts(use_cer=False) for utterance in utterances), EditCounts())
    characters = sum((utterance.counts(use_cer=True) for utterance in utterances), EditCounts())
    return {
        "model": config.model_path or config.pretrained_name,
        "manifest": config.dataset_manifest,
        "wer": _finite(words.rate),
        "cer": _finite(characters.rate),
        "words": words.reference_length,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "utterances": [_scored(utterance) for utterance in utterances],
    }


def _scored(utterance: Utterance) -> dict[str, Any]:
    rates = {"wer": utterance.counts(use_cer=False).rate, "cer": utterance.counts(use_cer=True).rate}
    return utterance.record | {name: _finite(rate) for name, rate in rates.items()}


def _finite(rate: float) -> float | None:
    """JSON has no infinity: a rate without a reference is null."""
    return rate if rate != float("inf") else None


def _write(utterances: list[Utterance], report: dict[str, Any], config: EvaluationConfig) -> None:
    if config.output_filename:
        scored = report["utterances"] if config.scores_per_sample else [utterance.record for utterance in utterances]
        write_manifest(Path(config.output_filename), scored)
    if config.report:
        path = Path(config.report)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _print(utterances: list[Utterance], report: dict[str, Any], show: int) -> None:
    for utterance in utterances[:show]:
        print(f"said   {utterance.reference}\nheard  {utterance.hypothesis}\n")
    edits = ", ".join(f"{report[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
    print(f"WER {_percent(report['wer'])}   CER {_percent(report['cer'])}   {report['words']} words: {edits}")
    if report.get("real_time_factor") is not None:
        print(
            f"{report['audio_s']:.1f} s of audio in {report['seconds']:.1f} s, "
            f"real-time factor {report['real_time_factor']:.3f}"
        )


def _percent(rate: float | None) -> str:
    return "without a reference" if rate is None else f"{100 * rate:.2f} %"
