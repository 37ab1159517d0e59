"""One picture of a finished run: the loss by step, and a clip's log-mel spectrogram with its words aligned."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nemo_asr import load_model
from nemo_asr.data.audio import load_audio
from nemo_asr.decoding.forced_alignment import WordSpan, align_words


def read_scalars(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a scalar, of all TensorBoard files below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[int, float] = {}
    for path in sorted(run.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(path))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points.update({event.step: event.value for event in events.Scalars(tag)})
    return sorted(points), [points[step] for step in sorted(points)]


def align(model: Path, manifest: Path) -> tuple[torch.Tensor, list[WordSpan], float]:
    """Log-mel features (F, T) of the manifest's longest clip, its words' times, and the seconds of a frame."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    clip = max(lines, key=lambda line: line["duration"])
    network = load_model(model)
    audio = torch.from_numpy(load_audio(manifest.parent / clip["audio_filepath"], network.sample_rate))[None]
    length = torch.tensor([audio.shape[1]])
    with torch.inference_mode():
        features, _ = network.preprocessor(input_signal=audio, length=length)
        log_probs, encoded_len, _ = network(input_signal=audio, input_signal_length=length)
    words = align_words(log_probs[0, : encoded_len[0]], clip["text"], network.tokenizer, network.frame_clock)
    return features[0], words, network.window_stride_s


def draw(model: Path, manifest: Path, run: Path, picture: Path) -> Path:
    """Writes the picture; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    features, words, frame_s = align(model, manifest)
    figure, (loss_axes, mel_axes) = plt.subplots(2, 1, figsize=(11, 7), layout="constrained")
    loss_axes.plot(*read_scalars(run, "train_loss"))
    loss_axes.set(xlabel="step", ylabel="CTC loss of a batch", yscale="log", title="Training")
    extent = (0, features.shape[1] * frame_s, 0, features.shape[0])
    mel_axes.imshow(features, origin="lower", aspect="auto", extent=extent, cmap="magma")
    mel_axes.set(xlabel="seconds", ylabel="mel bin", title="A training clip, its words where the model hears them")
    mel_axes.set_xlim(extent[:2])
    for index, word in enumerate(words):
        row = index % 3  # neighbours in different rows, so that short words do not cover each other
        mel_axes.axvspan(word.start_s, word.end_s, ymin=0.92 - 0.06 * row, ymax=0.98 - 0.06 * row, color="white")
        middle, height = (word.start_s + word.end_s) / 2, (0.95 - 0.06 * row) * features.shape[0]
        mel_axes.text(middle, height, word.word, ha="center", va="center", fontsize=9, backgroundcolor="white")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture
