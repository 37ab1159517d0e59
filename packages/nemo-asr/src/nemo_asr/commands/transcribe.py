"""`nemo-asr transcribe`: text of audio files.

    nemo-asr transcribe model.nemo a.wav b.flac
    nemo-asr transcribe model.nemo --manifest test.json --output predictions.json --timestamps
    nemo-asr transcribe model_path=model.nemo audio_dir=clips audio_type=flac output_filename=out.json batch_size=8

Texts go to standard output, a line each; with `--timestamps` the words follow, with start, end and, where
`ctc_decoding.confidence_cfg.preserve_word_confidence=true` (or `rnnt_decoding...`) asks for it, confidence. An output
file is a manifest with `pred_text`, as NVIDIA's script `transcribe_speech.py` writes it; that script's keys are taken
as `key=value`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nemo_asr.commands.options import TranscriptionConfig
from nemo_asr.decoding.ctc_config import CtcDecodingConfig
from nemo_asr.decoding.transducer_config import TransducerDecodingConfig

if TYPE_CHECKING:
    from nemo_asr.data.audio import ChannelSelector
    from nemo_asr.data.manifest import ManifestEntry
    from nemo_asr.networks import RecognizerNetwork

TIMESTAMP_KINDS = ("char", "word", "segment")
CONFIDENCES = ("token_confidence", "word_confidence")
AMP_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Transcripts:
    """What a run of the model gave: one record a recording, as the output file has them."""

    records: list[dict[str, Any]]
    key: str
    audio_s: float
    seconds: float


def main(arguments: list[str]) -> int:
    """Runs the command with the given arguments (without its name)."""
    from nemo_asr.commands.command_line import run_command

    parser = build_parser("transcribe", __doc__ or "", "AUDIO")
    parser.add_argument("--json", action="store_const", const=True, help="print a JSON object a recording")
    return run_command(parser, TranscriptionConfig, run, arguments, place_words)


def build_parser(command: str, description: str, words: str) -> argparse.ArgumentParser:
    """The flags that `transcribe` and `evaluate` share; their destinations are keys of the config."""
    parser = argparse.ArgumentParser(
        f"nemo-asr {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar=words, help="the model's .nemo file, then audio files; or key=value"
    )
    parser.add_argument("--manifest", dest="dataset_manifest", help="JSON lines with audio_filepath")
    parser.add_argument("--output", dest="output_filename", help="manifest with pred_text to write")
    parser.add_argument("--batch-size", dest="batch_size", type=int, help="recordings computed at a time (32)")
    parser.add_argument("--num-workers", dest="num_workers", type=int, help="threads that load audio ahead (0)")
    parser.add_argument("--timestamps", action="store_const", const=True, help="times of words")
    parser.add_argument("--channel", dest="channel_selector", type=_channel, help="a number from 0, or average")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default a GPU if there is one")
    return parser


def _channel(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def place_words(words: list[str], model_is_named: bool) -> dict[str, Any]:
    """Config values of the arguments without a name: the model's path first, unless it is named, then audio."""
    values: dict[str, Any] = {}
    if words and not model_is_named:
        values["model_path"], *words = words
    if words:
        values["audio"] = words
    return values


def run(config: TranscriptionConfig) -> int:
    """Transcribes what the config names, prints it, and writes it if an output file is named."""
    output = Path(config.output_filename) if config.output_filename else None
    if output is not None and output.exists() and not config.overwrite_transcripts:
        print(f"{output} is there already, and overwrite_transcripts is false: nothing is done.", file=sys.stderr)
        return 0
    transcripts = transcribe_all(config)
    if output is not None:
        write_manifest(output, transcripts.records)
        print(f"written: {output}", file=sys.stderr)
    for record in transcripts.records:
        print(json.dumps(record, ensure_ascii=False) if config.json else _line(record, transcripts))
    _report(config, transcripts)
    return 0


def transcribe_all(config: TranscriptionConfig) -> Transcripts:
    """Runs the model on the config's audio or manifest; records come in the order of the input."""
    sources, records = _sources(config)
    network = load_network(config)
    started = time.perf_counter()
    results = _transcribe(network, sources, config)
    seconds = time.perf_counter() - started
    key = "pred_text"
    if config.append_pred:
        key += "_" + (config.pred_name_postfix or Path(str(config.model_path or config.pretrained_name)).stem)
    for record, result in zip(records, results, strict=True):
        record[key] = result.text
        timestamp = getattr(result, "timestamp", None)
        if isinstance(timestamp, dict):
            record.update({kind: timestamp[kind] for kind in TIMESTAMP_KINDS if kind in timestamp})
        record.update({kind: getattr(result, kind) for kind in CONFIDENCES if getattr(result, kind, None) is not None})
    return Transcripts(records, key, sum(_duration_s(source) for source in sources), seconds)


def load_network(config: TranscriptionConfig) -> RecognizerNetwork:
    """The network that the config names, on its device."""
    from nemo_asr import load_model
    from nemo_config import ConfigError

    if config.model_path:
        path = Path(config.model_path).expanduser()
    elif config.pretrained_name:
        path = _pretrained_file(config.pretrained_name)
    else:
        raise ConfigError("model_path", None, "names no model: give a .nemo file")
    network = load_model(path, device=_device(config))
    _set_decoding(network, config)
    return network


def _set_decoding(network: RecognizerNetwork, config: TranscriptionConfig) -> None:
    """Gives the network the decoder and the decoding options that the config names."""
    from nemo_asr.networks import HybridNetwork, TransducerNetwork
    from nemo_config import ConfigError

    transducer, ctc = asdict(config.rnnt_decoding), asdict(config.ctc_decoding)
    if config.ctc_decoding == CtcDecodingConfig():
        ctc = {}
    if config.rnnt_decoding == TransducerDecodingConfig():
        transducer = {}
    if isinstance(network, HybridNetwork):
        if config.decoder_type:
            network.use_decoder(config.decoder_type)
        if ctc:
            network.set_ctc_decoding(ctc, strict=True)
    elif config.decoder_type:
        raise ConfigError("decoder_type", config.decoder_type, f"is for hybrid models, not a {type(network).__name__}")
    own = transducer if isinstance(network, TransducerNetwork) else ctc
    if own:
        network.set_decoding(own, strict=True)


def _pretrained_file(name: str) -> Path:
    """A file on the disk, or what the Hugging Face repository `organisation/model` holds as `model.nemo`."""
    from nemo_config import ConfigError

    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.count("/") != 1:
        raise ConfigError("pretrained_name", name, "is neither a file nor a repository, which is organisation/model")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ConfigError("pretrained_name", name, "is to be downloaded: pip install 'nemo-asr[hub]'") from None
    return Path(hf_hub_download(name, f"{name.rpartition('/')[2]}.nemo"))


def _device(config: TranscriptionConfig) -> str:
    """The device by `device`, or by NVIDIA's `cuda` (a number; negative for the CPU) and `allow_mps`."""
    import torch

    if config.device:
        return config.device
    if config.cuda is not None:
        return "cpu" if config.cuda < 0 else f"cuda:{config.cuda}"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if config.allow_mps and torch.backends.mps.is_available() else "cpu"


def _sources(config: TranscriptionConfig) -> tuple[Sequence[str | ManifestEntry], list[dict[str, Any]]]:
    """What to transcribe, and the records that the texts are added to."""
    from nemo_asr.data.manifest import ManifestRules, read_manifest
    from nemo_config import ConfigError

    if config.dataset_manifest:
        entries = read_manifest(config.dataset_manifest, ManifestRules(need_text=False))
        return entries, _records(entries, Path(config.output_filename or config.dataset_manifest).parent)
    if config.audio:
        paths = config.audio
    elif config.audio_dir:
        paths = sorted(map(str, Path(config.audio_dir).rglob(f"*.{config.audio_type}")))
        if not paths:
            raise ConfigError("audio_dir", config.audio_dir, f"holds no file *.{config.audio_type}")
    else:
        raise ConfigError("audio_dir", None, "names no audio: give files, audio_dir or dataset_manifest")
    return paths, [{"audio_filepath": path} for path in paths]


def _records(entries: Sequence[ManifestEntry], output_folder: Path) -> list[dict[str, Any]]:
    """The manifests' lines as they are there; relative paths made absolute where the output stands elsewhere."""
    from nemo_asr.data.manifest import read_lines

    lines = {name: dict(read_lines(name)) for name in {entry.manifest for entry in entries}}
    records = []
    for entry in entries:
        record = dict(lines[entry.manifest][entry.line])
        moved = output_folder.resolve() != Path(entry.manifest).parent.resolve()
        if moved or "audio_filepath" not in record:
            record["audio_filepath"] = str(Path(entry.audio_filepath).resolve())
        if entry.text:
            record.setdefault("text", entry.text)
        records.append(record)
    return records


def _transcribe(
    network: RecognizerNetwork, sources: Sequence[str | ManifestEntry], config: TranscriptionConfig
) -> list[Any]:
    """Texts or hypotheses, which all answer to `.text`."""
    import torch

    from nemo_asr.transcription import transcribe
    from nemo_config import ConfigError

    if config.amp_dtype not in AMP_DTYPES:
        raise ConfigError("amp_dtype", config.amp_dtype, f"is none of {', '.join(AMP_DTYPES)}")
    device = next(network.parameters()).device.type
    with torch.autocast(device, getattr(torch, config.amp_dtype), enabled=config.amp):
        results = transcribe(
            network,
            sources,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            channel_selector=cast("ChannelSelector", config.channel_selector),
            timestamps=config.timestamps,
            return_hypotheses=_gives_confidence(network),
            keep_log_probs=False,
        )
    return [result[0] if isinstance(result, list) else result for result in results]


def _gives_confidence(network: RecognizerNetwork) -> bool:
    """Whether the decoding that counts asks for confidences."""
    from nemo_asr.networks import CtcNetwork, HybridNetwork, TransducerNetwork

    if isinstance(network, HybridNetwork) and network.cur_decoder == "ctc":
        return network.ctc_decoding.confidence is not None
    return isinstance(network, (CtcNetwork, TransducerNetwork)) and network.decoding.confidence is not None


def _duration_s(source: str | ManifestEntry) -> float:
    from nemo_asr.data.audio import audio_duration

    return audio_duration(source) if isinstance(source, str) else source.duration_s


def write_manifest(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """JSON lines in UTF-8, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def _line(record: dict[str, Any], transcripts: Transcripts) -> str:
    """A recording's text, after its name where there are several, and before its words where they have times."""
    name = f"{record['audio_filepath']}\t" if len(transcripts.records) > 1 else ""
    return "\n".join([name + record[transcripts.key], *map(_word_line, record.get("word", ()))])


def _word_line(word: dict[str, Any]) -> str:
    """A word after its times, and after its confidence if it has one."""
    confidence = word.get("confidence")
    column = f" {confidence:6.3f}" if confidence is not None else " " * 7 if "confidence" in word else ""
    return f"{word['start']:9.2f} {word['end']:9.2f}{column}  {word['word']}"


def _report(config: TranscriptionConfig, transcripts: Transcripts) -> None:
    """Error rate where the manifest has texts, and the speed on request, to standard error."""
    from nemo_asr.metrics import word_error_rate

    references = [record.get(config.gt_text_attr_name) for record in transcripts.records]
    if config.calculate_wer and None not in references and any(references):
        rate = word_error_rate(
            [record[transcripts.key] for record in transcripts.records], list(map(str, references)), config.use_cer
        )
        print(f"{'CER' if config.use_cer else 'WER'} {rate:.2%}", file=sys.stderr)
    if config.calculate_rtfx:
        speed = transcripts.audio_s / transcripts.seconds
        print(
            f"{transcripts.audio_s:.1f} s in {transcripts.seconds:.1f} s, {speed:.1f} times real time", file=sys.stderr
        )
