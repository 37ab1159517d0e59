"""Utterances in tar shards, as NVIDIA's converter (and webdataset) writes them: an iterable data set.

    audio_0.tar, audio_1.tar, …            members: the audio files, under one flat name each
    tarred_audio_manifest.json             audio_filepath: the member's name; shard_id: the number of its tar

Several segments of one file share its member: the manifest calls the later ones `name-sub1.wav`, `name-sub2.wav` or
repeats the name, and tells them apart by `offset`. Buckets are several manifests, each with tars of its own.
"""

from __future__ import annotations

import logging
import math
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from nemo_asr.data.manifest import ManifestEntry, ManifestError
from nemo_asr.data.sampler import process_rank
from nemo_asr.data.utterance import Sample, SignalReader, TokenTable, TranscriptEncoder, collate, make_sample

logger = logging.getLogger(__name__)

_SUB = re.compile(r"-sub\d+$")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class TarBucket:
    """Shards with the manifest of what is in them, and how many utterances of them make a batch."""

    tars: Sequence[str]
    entries: Sequence[ManifestEntry]
    batch_size: int


class TarredAudioTextDataset(IterableDataset[tuple[Tensor, ...]]):
    """Batches from tar shards, read from front to back; a loader takes it with batch_size=None.

    A shard is read by one worker of one process (`scatter`) or by one worker of every process (`replicate`). Every
    process gives the same number of batches: with several processes each goes on with its own shards again, or stops
    early, where they do not hold the same number of utterances.

    Args:
        buckets: the shards; one bucket is the plain case.
        reader: loads the audio.
        encoder: turns transcripts into ids.
        shuffle_n: so many utterances are held back and drawn from at random; 0 keeps the order of the shards.
        bucketing_strategy: `fixed_order` of the buckets, or one at random for each epoch, for all processes the same
            (`synced_randomized`) or for each another (`fully_randomized`).
        shard_strategy: `scatter` or `replicate`.
        drop_last: leaves out batches that are not full.
        seed: of order and augmentation.
        return_sample_id: batches carry the utterances' numbers.

    Raises:
        ManifestError: a transcript that cannot be encoded.
        ValueError: fewer shards than processes for `scatter`.
    """

    def __init__(
        self,
        buckets: Sequence[TarBucket],
        reader: SignalReader,
        encoder: TranscriptEncoder,
        *,
        shuffle_n: int = 0,
        bucketing_strategy: str = "synced_randomized",
        shard_strategy: str = "scatter",
        drop_last: bool = False,
        seed: int = 0,
        return_sample_id: bool = False,
    ) -> None:
        self.buckets = list(buckets)
        self.reader = reader
        self.pad_id = encoder.pad_id
        self.shuffle_n = shuffle_n
        self.bucketing_strategy = bucketing_strategy
        self.shard_strategy = shard_strategy
        self.drop_last = drop_last
        self.seed = seed
        self.return_sample_id = return_sample_id
        self.epoch = 0
        self._tokens = [TokenTable(encoder.encode(entry) for entry in bucket.entries) for bucket in self.buckets]
        self._members = [_index_by_member(bucket.entries) for bucket in self.buckets]

    def __len__(self) -> int:
        """Batches of an epoch on each process, with one worker; more workers add at most one batch each."""
        _, world_size = process_rank()
        divisor = world_size if self.shard_strategy == "scatter" else 1
        return sum(_batches(len(b.entries) // divisor, b.batch_size, self._drops(divisor)) for b in self.buckets)

    def utterances(self) -> int:
        """Utterances in all buckets."""
        return sum(len(bucket.entries) for bucket in self.buckets)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws; iterating goes on to the next one by itself."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rank, world_size = process_rank()
        worker = get_worker_info()
        worker_id, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # A worker is a fresh copy in each epoch and cannot count them; the seed that the loader gives it tells them
        # apart, and is the same for all workers but for their number.
        fresh = self.epoch + (0 if worker is None else worker.seed - worker.id)
        self.epoch += 1
        for place in self._bucket_order(rank, fresh):
            rng = np.random.default_rng([self.seed, fresh % 2**63, rank, worker_id, place])
            yield from self._bucket_batches(place, (rank, world_size), (worker_id, workers), rng)

    def _bucket_order(self, rank: int, epoch: int) -> list[int]:
        if self.bucketing_strategy == "fixed_order" or len(self.buckets) == 1:
            return list(range(len(self.buckets)))
        own = rank + 1 if self.bucketing_strategy == "fully_randomized" else 0
        return [int(i) for i in np.random.default_rng([self.seed, epoch % 2**63, own]).permutation(len(self.buckets))]

    def _bucket_batches(
        self, place: int, process: tuple[int, int], worker: tuple[int, int], rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, ...]]:
        bucket = self.buckets[place]
        tars = shards_of(bucket.tars, self.shard_strategy, *process)[worker[0] :: worker[1]]
        if not tars:
            return
        quota = self._quota(bucket, process[1], worker)
        if quota == 0:
            return
        batch: list[Sample] = []
        given = 0
        for sample in self._samples(place, tars, rng, again=quota is not None):
            batch.append(sample)
            if len(batch) == bucket.batch_size:
                yield collate(batch, self.pad_id)
                batch, given = [], given + 1
                if given == quota:
                    return
        if batch and not self._drops(process[1]):
            yield collate(batch, self.pad_id)

    def _quota(self, bucket: TarBucket, world_size: int, worker: tuple[int, int]) -> int | None:
        """Batches that this worker gives, where processes have to agree on their number; None is all there are."""
        if world_size == 1 or self.shard_strategy == "replicate":
            return None
        batches = len(bucket.entries) // world_size // bucket.batch_size
        working = min(worker[1], len(bucket.tars) // world_size)
        return batches // working + (worker[0] < batches % working)

    def _drops(self, processes: int) -> bool:
        return self.drop_last or (processes > 1 and self.shard_strategy == "scatter")

    def _samples(self, place: int, tars: Sequence[str], rng: np.random.Generator, *, again: bool) -> Iterator[Sample]:
        """The samples of some shards, once through, or again and again."""
        while True:
            found = False
            for sample in _shuffled(self._once(place, tars, rng), self.shuffle_n, rng):
                found = True
                yield sample
            if not found and (again or len(tars) == len(self.buckets[place].tars)):
                raise ManifestError(f"{self._manifest_name(place)}: no utterance of it is in {', '.join(tars)}")
            if not again:
                return

    def _once(self, place: int, tars: Sequence[str], rng: np.random.Generator) -> Iterator[Sample]:
        for tar in [tars[i] for i in rng.permutation(len(tars))] if self.shuffle_n else tars:
            for number, data in self._utterances(place, tar):
                yield self._sample(place, number, data, rng)

    def _utterances(self, place: int, tar: str) -> Iterator[tuple[int, bytes]]:
        """Number and audio of each utterance of a shard that the manifest (after its limits) knows."""
        entries, members = self.buckets[place].entries, self._members[place]
        for name, data in read_members(tar):
            numbers = members.get(PurePosixPath(name).stem, ())
            for number in _of_shard(numbers, entries, tar):
                yield number, data

    def _sample(self, place: int, number: int, data: bytes, rng: np.random.Generator) -> Sample:
        signal = self.reader.read(self.buckets[place].entries[number], rng, data)
        tokens = self._tokens[place][number]
        before = sum(len(bucket.entries) for bucket in self.buckets[:place])
        return make_sample(signal, tokens, before + number if self.return_sample_id else None)

    def _manifest_name(self, place: int) -> str:
        entries = self.buckets[place].entries
        return entries[0].manifest if entries else "an empty manifest"


def shards_of(tars: Sequence[str], strategy: str, rank: int, world_size: int) -> list[str]:
    """The tars that a process reads.

    Raises:
        ValueError: fewer tars than processes for `scatter`.
    """
    if strategy == "replicate" or world_size == 1:
        return list(tars)
    each, rest = divmod(len(tars), world_size)
    if each == 0:
        raise ValueError(f"tarred_audio_filepaths: {len(tars)} shards are too few for {world_size} processes")
    if rest and rank == 0:
        logger.warning("%d shards do not divide among %d processes: %d are not read", len(tars), world_size, rest)
    return list(tars[rank * each : (rank + 1) * each])


def read_members(tar: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a tar (plain or compressed), in one pass.

    Raises:
        ManifestError: the tar is missing or broken.
    """
    try:
        with tarfile.open(Path(tar).expanduser(), "r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ManifestError(f"{tar}: cannot be read: {error}") from None


def _index_by_member(entries: Sequence[ManifestEntry]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        stem = PurePosixPath(entry.audio_filepath).stem
        numbers[_SUB.sub("", stem) if _is_sub(entry) else stem].append(number)
    return dict(numbers)


def _is_sub(entry: ManifestEntry) -> bool:
    return _SUB.search(PurePosixPath(entry.audio_filepath).stem) is not None


def _of_shard(numbers: Sequence[int], entries: Sequence[ManifestEntry], tar: str) -> Sequence[int]:
    """Where one name stands in several shards, the entries of this one, by the number in the tar's name."""
    shards = {entries[number].extra.get("shard_id") for number in numbers}
    if len(shards) < 2:
        return numbers
    in_name = _NUMBER.findall(PurePosixPath(tar).name)
    own = int(in_name[-1]) if in_name else None
    return [number for number in numbers if entries[number].extra.get("shard_id") == own]


def _shuffled(samples: Iterator[Sample], held: int, rng: np.random.Generator) -> Iterator[Sample]:
    """Holds back `held` samples and gives a random one for each that comes in."""
    buffer: list[Sample] = []
    for sample in samples:
        if len(buffer) < held:
            buffer.append(sample)
            continue
        if not held:
            yield sample
            continue
        place = int(rng.integers(held))
        buffer[place], sample = sample, buffer[place]
        yield sample
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


def _batches(utterances: int, batch_size: int, drop_last: bool) -> int:
    return utterances // batch_size if drop_last else math.ceil(utterances / batch_size)
