"""`transcribe`: text of audio in any form, in batches of similar length, safe to call from several threads.

On a network in eval mode nothing is touched: no attribute, no gradient state, no random number. Keywords are those of
NVIDIA's `transcribe`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_asr.decoding.hypothesis import Hypothesis, TranscribedText
from nemo_asr.evaluation_mode import Switchable, evaluation_mode

if TYPE_CHECKING:
    from nemo_asr.data.audio import ChannelSelector, Samples
    from nemo_asr.decoding.fusion import Bias
    from nemo_asr.recordings import AudioInput, Recording


FRAMES_SEARCHED_TOGETHER = 2048
"""Encoder frames, padding included, of utterances that are searched together: at 80 ms a frame, 16 of ten seconds.
Larger batches are searched as they are."""
Results: TypeAlias = "list[str] | list[Hypothesis] | list[list[str]] | list[list[Hypothesis]]"
"""What `transcribe` gives: a text or hypothesis for each item, or, of a search that gives several, a list of them."""


class Recognizer(Switchable, Protocol):
    """What `transcribe` asks of a network, which is an nn.Module.

    Attributes:
        sample_rate: of the audio it takes, in Hz.
        preprocessor: called with input_signal (B, L), length (B,) and pad_to=0; gives features and their lengths.
        encoder: called with audio_signal (B, F, T) and length (B,); its first two results are handed to `decode`.
    """

    sample_rate: int

    @property
    def preprocessor(self) -> Callable[..., tuple[Tensor, Tensor]]: ...

    @property
    def encoder(self) -> Callable[..., tuple[Tensor, ...]]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def decode(
        self, encoded: Tensor, encoded_len: Tensor, *, timestamps: bool | None, keep_log_probs: bool
    ) -> Sequence[Hypothesis]:
        """Hypotheses of a batch of encoder outputs (B, D, T) with their lengths (B,).

        Args:
            encoded: encoder outputs (B, D, T).
            encoded_len: frames of each (B,).
            timestamps: whether hypotheses carry times; None leaves it to the network's config.
            keep_log_probs: whether they carry log-probabilities.

        A network whose search takes language models and phrases has a further keyword, `bias`.
        """


@dataclass
class TranscribeConfig:
    """The options of `transcribe` as one object, for its `override_config`."""

    use_lhotse: bool = True
    batch_size: int = 4
    return_hypotheses: bool = False
    num_workers: int | None = None
    channel_selector: ChannelSelector = None
    augmentor: Any = None
    timestamps: bool | None = None
    verbose: bool = True
    partial_hypothesis: Any = None
    bias: Bias | None = None
    keep_log_probs: bool | None = None

    def check(self) -> None:
        """Raises ValueError for what cannot be done, TypeError for a batch size that is no number."""
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise TypeError(f"batch_size: {self.batch_size!r} is no number")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size} must be at least 1")
        if self.augmentor is not None:
            raise ValueError("augmentor: transcribe takes audio as it is; augment it before the call")
        if self.partial_hypothesis is not None:
            raise ValueError("partial_hypothesis: is for streaming, which transcribe does not do")


def transcribe(
    network: Recognizer,
    audio: AudioInput | torch.utils.data.DataLoader[Any],
    *,
    batch_size: int = 4,
    return_hypotheses: bool = False,
    timestamps: bool | None = None,
    num_workers: int | None = 0,
    channel_selector: ChannelSelector = None,
    sample_rate: int | None = None,
    pad_min_duration: float = 1.0,
    verbose: bool = True,
    use_lhotse: bool = True,
    augmentor: Any = None,
    partial_hypothesis: Any = None,
    override_config: TranscribeConfig | None = None,
    bias: Bias | None = None,
    keep_log_probs: bool | None = None,
) -> Results:
    """Transcribes audio; results stand in the order of the input.

    Args:
        network: a recogniser; in training mode it is in eval mode for the length of the call.
        audio: one source or a list of them: path, bytes of an audio file, binary file object, array or tensor (floats
            within ±1, or integers, which are scaled by their full range); the path of a manifest (.json, .jsonl); or
            a DataLoader whose batches begin with signals (B, L) and their lengths (B,).
        batch_size: how many are computed at a time.
        return_hypotheses: gives Hypothesis instead of text, with the log-probabilities in `y_sequence`.
        timestamps: gives Hypothesis with the times of tokens, words and segments in `timestamp`.
        num_workers: threads that load audio ahead; with 0 or None it is loaded between the batches.
        channel_selector: channel to take of several, from 0, or 'average'. None refuses audio of several.
        sample_rate: rate of arrays and tensors in Hz; by default they are taken to have the network's.
            Files know theirs.
        pad_min_duration: arrays and tensors shorter than this, in seconds, get silence at both ends, as NVIDIA's
            toolkit 3.0 does it. Their times count from the beginning of the silence; with 0 there is none.
        verbose: shows a progress bar, if there is a terminal to show it on.
        use_lhotse: without meaning here.
        augmentor: not supported; an error unless None.
        partial_hypothesis: not supported; an error unless None.
        override_config: replaces the options that it has.
        bias: language model and phrases of this call, instead of the config's.
        keep_log_probs: whether hypotheses of CTC hold the log-probabilities (T, V); None for yes, as NVIDIA's do. For
            hours of audio they take gigabytes.

    Returns:
        texts, strings which also answer to `.text`; or hypotheses, if these or timestamps were asked for. Where the
        network's config asks for beam search and `return_best_hypothesis: false`, a list for each item, its best first.

    Raises:
        AudioError, ManifestError, FileNotFoundError, TypeError: before anything is computed, naming the item: it is
            missing, empty, no audio, or has several channels while no channel was selected.
    """
    options = override_config or TranscribeConfig(
        batch_size=batch_size,
        return_hypotheses=return_hypotheses,
        num_workers=num_workers,
        channel_selector=channel_selector,
        augmentor=augmentor,
        timestamps=timestamps,
        verbose=verbose,
        partial_hypothesis=partial_hypothesis,
        bias=bias,
        keep_log_probs=keep_log_probs,
    )
    options.check()
    if isinstance(audio, torch.utils.data.DataLoader):
        hypotheses = _transcribe_loader(network, audio, options)
    else:
        hypotheses = _transcribe_sources(network, audio, options, sample_rate, pad_min_duration)
    wants_texts = not (options.return_hypotheses or options.timestamps)
    if any(hypothesis.n_best for hypothesis in hypotheses):
        lists = [hypothesis.n_best or [hypothesis] for hypothesis in hypotheses]
        return [_texts(readings) for readings in lists] if wants_texts else lists
    return _texts(hypotheses) if wants_texts else hypotheses


def _texts(hypotheses: Sequence[Hypothesis]) -> list[str]:
    return [TranscribedText(hypothesis.text) for hypothesis in hypotheses]


def _transcribe_sources(
    network: Recognizer, audio: AudioInput, options: TranscribeConfig, array_rate: int | None, min_array_s: float
) -> list[Hypothesis]:
    from nemo_asr.recordings import AudioRules, gather_recordings

    rate = network.sample_rate
    recordings = gather_recordings(audio, AudioRules(rate, array_rate or rate, options.channel_selector, min_array_s))
    batches = _by_length(recordings, options.batch_size)
    search = _JointSearch(network, options)
    with evaluation_mode(network), _progress(len(recordings), options.verbose) as advance:
        for indices, signals in _load_batches(recordings, batches, options.num_workers or 0):
            search.add(indices, *_encode(network, *_pad_batch(signals)))
            advance(len(indices))
        search.settle()
    return [search.results[index] for index in range(len(recordings))]


def _transcribe_loader(
    network: Recognizer, loader: torch.utils.data.DataLoader[Any], options: TranscribeConfig
) -> list[Hypothesis]:
    results: list[Hypothesis] = []
    with evaluation_mode(network), _progress(len(loader), options.verbose) as advance:
        for signal, signal_len, *_ in loader:
            results.extend(_decode(network, *_encode(network, signal, signal_len), options))
            advance(1)
    return results


def _encode(network: Recognizer, signal: Tensor, signal_len: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder outputs (B, D, T) of signals (B, L), and their lengths (B,)."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        features, features_len = network.preprocessor(
            input_signal=signal.to(device), length=signal_len.to(device), pad_to=0
        )
        encoded, encoded_len = network.encoder(audio_signal=features, length=features_len)[:2]
        return encoded, encoded_len


def _decode(
    network: Recognizer, encoded: Tensor, encoded_len: Tensor, options: TranscribeConfig
) -> Sequence[Hypothesis]:
    biased: dict[str, Any] = {} if options.bias is None else {"bias": options.bias}
    with torch.inference_mode():
        return network.decode(
            encoded, encoded_len, timestamps=options.timestamps, keep_log_probs=_wants_log_probs(options), **biased
        )


class _JointSearch:
    """Decodes the encoder outputs of small batches together: a search takes little longer for several utterances.

    Attributes:
        results: hypotheses by the number of the recording.
    """

    def __init__(self, network: Recognizer, options: TranscribeConfig) -> None:
        self.network, self.options = network, options
        self.results: dict[int, Hypothesis] = {}
        self._held: list[tuple[list[int], Tensor, Tensor]] = []

    def add(self, indices: list[int], encoded: Tensor, encoded_len: Tensor) -> None:
        """Takes outputs (B, D, T) with their lengths (B,) for the recordings `indices`."""
        held = [*self._held, (indices, encoded, encoded_len)]
        if sum(len(own) for own, _, _ in held) * max(part.shape[2] for _, part, _ in held) > FRAMES_SEARCHED_TOGETHER:
            self.settle()
        self._held.append((indices, encoded, encoded_len))

    def settle(self) -> None:
        """Decodes what is held."""
        if not self._held:
            return
        indices, parts, lengths = zip(*self._held, strict=True)
        longest = max(part.shape[2] for part in parts)
        encoded = torch.cat([F.pad(part, (0, longest - part.shape[2])) for part in parts])
        found = _decode(self.network, encoded, torch.cat(lengths), self.options)
        self.results.update(zip((index for own in indices for index in own), found, strict=True))
        self._held = []


def _wants_log_probs(options: TranscribeConfig) -> bool:
    wants_hypotheses = options.return_hypotheses or bool(options.timestamps)
    return wants_hypotheses if options.keep_log_probs is None else options.keep_log_probs


def _by_length(recordings: Sequence[Recording], batch_size: int) -> list[list[int]]:
    """Batches of indices, longest recordings first: little padding, and what does not fit fails at once."""
    order = sorted(range(len(recordings)), key=lambda index: -recordings[index].duration_s)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _load_batches(
    recordings: Sequence[Recording], batches: Sequence[list[int]], num_workers: int
) -> Iterator[tuple[list[int], list[Samples]]]:
    """Batches with their samples; worker threads load one batch ahead, and no more than that."""
    if num_workers < 1:
        for indices in batches:
            yield indices, [recordings[index].load() for index in indices]
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="load-audio") as pool:

        def submit(indices: list[int]) -> list[Future[Samples]]:
            return [pool.submit(recordings[index].load) for index in indices]

        ahead = submit(batches[0]) if batches else []
        for number, indices in enumerate(batches):
            loading = ahead
            ahead = submit(batches[number + 1]) if number + 1 < len(batches) else []
            yield indices, [future.result() for future in loading]


def _pad_batch(signals: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """Signals (B, L) padded with zeros, and their lengths (B,)."""
    lengths = [len(signal) for signal in signals]
    batch = np.zeros((len(signals), max(lengths)), np.float32)
    for row, signal in zip(batch, signals, strict=True):
        row[: len(signal)] = signal
    return torch.from_numpy(batch), torch.tensor(lengths)


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error; elsewhere nothing."""
    if not show or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Transcribing", total=total)
        yield lambda done: progress.advance(task, done)
