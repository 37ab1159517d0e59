"""Utterances in files of their own: the map-style data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from nemo_asr.data.manifest import ManifestEntry
from nemo_asr.data.sampler import Batch
from nemo_asr.data.utterance import Sample, SignalReader, TokenTable, TranscriptEncoder, collate, make_sample

Samples: TypeAlias = "list[Sample]"


class AudioTextDataset(Dataset[Sample]):
    """Signal and token ids of each utterance of a manifest.

    Transcripts are encoded, and so checked, at construction; audio is read when it is asked for. Augmentation draws
    from (seed, epoch, utterance), so that a run is the same whatever the number of workers.

    Args:
        entries: the utterances.
        reader: loads the audio.
        encoder: turns transcripts into ids.
        seed: of the augmentation.
        return_sample_id: samples carry the utterance's number.

    Raises:
        ManifestError: a transcript that cannot be encoded.
    """

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        reader: SignalReader,
        encoder: TranscriptEncoder,
        *,
        seed: int = 0,
        return_sample_id: bool = False,
    ) -> None:
        self.entries = list(entries)
        self.reader = reader
        self.pad_id = encoder.pad_id
        self.seed = seed
        self.return_sample_id = return_sample_id
        self._tokens = TokenTable(encoder.encode(entry) for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int | Batch) -> Sample | Samples:  # type: ignore[override]
        """One sample by its number (as in epoch 0), or all samples of a sampler's batch."""
        if isinstance(index, Batch):
            return [self._sample(number, index.epoch) for number in index.indices]
        return self._sample(range(len(self))[index], 0)

    def durations(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Seconds of each utterance (N,), for the sampler."""
        return np.array([entry.duration_s for entry in self.entries], np.float64)

    def collate(self, samples: Sample | Samples) -> tuple[Tensor, ...]:
        """Pads samples to a batch (see `nemo_asr.data.utterance.collate`); a single sample is a batch of one."""
        return collate(samples if isinstance(samples, list) else [samples], self.pad_id)

    def _sample(self, number: int, epoch: int) -> Sample:
        rng = np.random.default_rng([self.seed, epoch, number])
        signal = self.reader.read(self.entries[number], rng)
        return make_sample(signal, self._tokens[number], number if self.return_sample_id else None)
