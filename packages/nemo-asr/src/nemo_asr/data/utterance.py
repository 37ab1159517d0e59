"""From a manifest's entry to what a model is given: samples and token ids.

Both data sets, of single files and of tar shards, are made of these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nemo_asr.data.audio import AudioError, AudioSource, ChannelSelector, load_audio, trim_silence
from nemo_asr.data.manifest import ManifestEntry, ManifestError
from nemo_asr.text.normalize import normalize_transcript
from nemo_asr.text.tokenizer import Tokenizer, UnknownMode, UnknownTextError

if TYPE_CHECKING:
    from nemo_asr.data.augment import Augmentor

Sample: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor, int]
"""signal (L,), its length, tokens (U,), their number, and the utterance's number if it was asked for."""


@dataclass(frozen=True)
class SignalReader:
    """Loads, trims and perturbs the audio of an utterance."""

    sample_rate: int
    channel_selector: ChannelSelector = None
    trim: bool = False
    augmentor: Augmentor | None = None

    def read(self, entry: ManifestEntry, rng: np.random.Generator, source: AudioSource | None = None) -> Tensor:
        """The signal (L,) of an entry; `source` is its audio where that is no file of its own.

        Raises:
            ManifestError: the audio cannot be used; the message names manifest and line.
        """
        try:
            samples = load_audio(
                entry.audio_filepath if source is None else source,
                self.sample_rate,
                offset_s=entry.offset_s,
                duration_s=entry.duration_s,
                channel_selector=self.channel_selector,
                name=entry.audio_filepath,
            )
        except (AudioError, OSError) as error:
            raise ManifestError(f"{entry.where}: {error}") from None
        if self.trim:
            samples = trim_silence(samples)
        if self.augmentor is not None:
            samples = self.augmentor(samples, self.sample_rate, rng)
        return torch.from_numpy(np.array(samples, np.float32))


@dataclass(frozen=True)
class TranscriptEncoder:
    """Turns transcripts into ids, with the tokenizer's <s> and </s> around them where that is wanted.

    Attributes:
        parser: clean-up of transcripts before they are encoded (`normalize_transcript`); None is no clean-up.
        unknown: what happens to text that the vocabulary lacks.
    """

    tokenizer: Tokenizer
    parser: str | None = None
    unknown: UnknownMode = "error"
    use_start_end_token: bool = True

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id or 0

    def encode(self, entry: ManifestEntry) -> list[int]:
        """The ids of an entry's transcript.

        Raises:
            ManifestError: text outside the vocabulary, or an unknown language, with manifest and line.
        """
        text = entry.text
        try:
            if self.parser is not None:
                text = normalize_transcript(text, self.tokenizer.vocabulary, self.parser)
            ids = self.tokenizer.encode(text, entry.lang, unknown=self.unknown)
        except UnknownTextError as error:
            raise ManifestError(
                f"{entry.where}: {error}; with `unknown_text: replace` it is taken all the same"
            ) from None
        except ValueError as error:
            raise ManifestError(f"{entry.where}: {error}") from None
        if not self.use_start_end_token:
            return ids
        begin, end = self.tokenizer.bos_id, self.tokenizer.eos_id
        # As in NVIDIA's data sets, id 0 is never <s> or </s>: there it is <unk>, or the first character.
        return ([begin] if begin else []) + ids + ([end] if end else [])


class TokenTable:
    """The ids of all transcripts in two arrays, which worker processes share instead of copying.

    Args:
        rows: ids of each transcript.
    """

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        kept = [np.asarray(row, np.int32) for row in rows]
        self._ends = np.cumsum([0, *map(len, kept)])
        self._ids = np.concatenate(kept) if kept else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Tensor:
        """Ids (U,) of a transcript, int64."""
        return torch.from_numpy(self._ids[self._ends[index] : self._ends[index + 1]].astype(np.int64))


def make_sample(signal: Tensor, tokens: Tensor, index: int | None = None) -> Sample:
    """One element of a batch; `index` is added where it is given."""
    lengths = torch.tensor(len(signal)), torch.tensor(len(tokens))
    if index is None:
        return signal, lengths[0], tokens, lengths[1]
    return signal, lengths[0], tokens, lengths[1], index


def collate(samples: Sequence[Sample], pad_id: int = 0) -> tuple[Tensor, ...]:
    """Pads samples to a batch.

    Returns:
        signal (B, L), signal_len (B,), transcript (B, U), transcript_len (B,), and, where the samples carry them,
        their numbers (B,). Signals are padded with 0, transcripts with `pad_id`.
    """
    signals, transcripts = [sample[0] for sample in samples], [sample[2] for sample in samples]
    batch = (
        torch.nn.utils.rnn.pad_sequence(signals, batch_first=True),
        torch.stack([sample[1] for sample in samples]),
        torch.nn.utils.rnn.pad_sequence(transcripts, batch_first=True, padding_value=pad_id),
        torch.stack([sample[3] for sample in samples]),
    )
    if len(samples[0]) == 5:
        return *batch, torch.tensor([sample[-1] for sample in samples], dtype=torch.int32)
    return batch
