"""Which utterances make a batch: in order, shuffled, or of similar length.

By length, the utterances are sorted and divided into buckets of neighbours; batches are drawn inside a bucket, and
the batches of all buckets are mixed. An epoch's batches follow from (seed, epoch) alone, their number is the same in
every epoch and on every process, and no batch exceeds its budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

BATCHES_IN_A_BUCKET = 4
"""At least so many, where the data set is large enough: with fewer the same utterances would always meet."""


class Batch(NamedTuple):
    """The utterances of a batch, and the epoch they are drawn in."""

    epoch: int
    indices: list[int]


@dataclass(frozen=True)
class BatchBudget:
    """How much a batch may hold: utterances, seconds of audio with their padding, or both.

    Attributes:
        batch_size: utterances.
        batch_duration_s: seconds, counted as the longest utterance times their number.
        quadratic_duration_s: an utterance of d seconds counts as d + d * d / quadratic_duration_s.
    """

    batch_size: int | None = None
    batch_duration_s: float | None = None
    quadratic_duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size is None and self.batch_duration_s is None:
            raise ValueError("batch_size: None must be given, or batch_duration")

    def utterances(self, longest_s: float) -> int:
        """How many utterances of at most `longest_s` seconds fit; at least one."""
        most = self.batch_size or 2**31
        if self.batch_duration_s is None:
            return most
        cost = longest_s + (longest_s**2 / self.quadratic_duration_s if self.quadratic_duration_s else 0.0)
        return max(1, min(most, int(self.batch_duration_s / max(cost, 1e-9) + 1e-9)))


class Bucket(NamedTuple):
    """Utterances of similar length, and how many of them make a batch."""

    indices: NDArray[np.int64]
    batch_size: int


def single_bucket(count: int, batch_size: int) -> list[Bucket]:
    """No division by length."""
    return [Bucket(np.arange(count), batch_size)]


def even_buckets(durations_s: NDArray[np.float64], budget: BatchBudget, num_buckets: int) -> list[Bucket]:
    """Buckets of about the same number of batches, all of them full but one.

    From the longest utterance downwards, a bucket takes a whole number of the batches that its longest utterance
    allows; so nothing but the shortest bucket has a batch that is not full.
    """
    order = np.argsort(-durations_s, kind="stable")
    batches = sum(durations_s) / budget.batch_duration_s if budget.batch_duration_s else 0.0
    batches = max(batches, len(order) / (budget.batch_size or math.inf))
    batches_each = max(BATCHES_IN_A_BUCKET, math.ceil(batches / num_buckets))
    buckets, start = [], 0
    while start < len(order):
        batch_size = budget.utterances(float(durations_s[order[start]]))
        taken = order[start : start + batch_size * batches_each]
        buckets.append(Bucket(np.sort(taken), batch_size))
        start += len(taken)
    return buckets[::-1]


def binned_buckets(
    durations_s: NDArray[np.float64],
    budget: BatchBudget | None,
    bins_s: Sequence[float],
    batch_sizes: Sequence[int] | None = None,
) -> list[Bucket]:
    """Buckets with given limits: `bins_s` are the upper ends of all but the last, or, as many as `batch_sizes`, of all.

    Raises:
        ValueError: limits that do not ascend, or another number of batch sizes than of buckets.
    """
    if any(low >= high for low, high in pairwise(bins_s)):
        raise ValueError(f"bucket_duration_bins: {list(bins_s)} must ascend")
    inner = list(bins_s)[: len(batch_sizes) - 1] if batch_sizes and len(batch_sizes) == len(bins_s) else list(bins_s)
    if batch_sizes is not None and len(batch_sizes) != len(inner) + 1:
        raise ValueError(f"bucket_batch_size: {len(batch_sizes)} sizes for {len(inner) + 1} buckets")
    places = np.searchsorted(np.array(inner), durations_s, side="left")
    buckets = []
    for place in range(len(inner) + 1):
        indices = np.flatnonzero(places == place)
        if len(indices):
            buckets.append(Bucket(indices, _bucket_size(durations_s[indices].max(), budget, batch_sizes, place)))
    return buckets


def _bucket_size(longest_s: float, budget: BatchBudget | None, sizes: Sequence[int] | None, place: int) -> int:
    if sizes is not None:
        return int(sizes[place])
    if budget is None:
        raise ValueError("batch_size: None must be given, or batch_duration")
    return budget.utterances(float(longest_s))


class UtteranceBatchSampler(DistributedSampler[Any]):
    """Draws the batches of an epoch. It yields whole batches, so a loader takes it as `sampler` with batch_size=None.

    It is a DistributedSampler so that a trainer which would add one for several processes sees that there is one.
    Rank and number of processes are asked of torch.distributed when they are needed: loaders are made before it
    starts. Iterating goes on to the next epoch by itself; `set_epoch` chooses one.

    Args:
        buckets: the utterances (see `single_bucket`, `even_buckets`, `binned_buckets`).
        shuffle: new batches each epoch, in a new order; otherwise batches come in the buckets' order.
        seed: of the shuffling.
        drop_last: leaves out batches that are not full, and those that not every process would get.
        rank, world_size: this process and their number; None asks torch.distributed.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        count = sum(len(bucket.indices) for bucket in buckets)
        super().__init__(range(count), 1, 0, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.buckets = list(buckets)
        self._process = (rank, world_size)
        self._skipped = 0

    def __len__(self) -> int:
        """Batches that each process gets in an epoch."""
        _, world_size = self._rank_and_world_size()
        total = sum(self._batches_of(bucket) for bucket in self.buckets)
        return total // world_size if self.drop_last else math.ceil(total / world_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, skipped = self.epoch, self._skipped
        self.epoch, self._skipped = epoch + 1, 0
        yield from self.batches(epoch)[skipped:]

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws."""
        if epoch != self.epoch:
            self._skipped = 0
        self.epoch = epoch

    def resume_at(self, epoch: int, batches: int) -> None:
        """The next iteration draws `epoch` without its first `batches` batches of this process, which are done."""
        self.epoch, self._skipped = epoch, batches

    def batches(self, epoch: int) -> list[Batch]:
        """This process's batches of an epoch."""
        rank, world_size = self._rank_and_world_size()
        everyones = self._draw(epoch)
        needed = len(self) * world_size
        # Where they do not come out even, the first batches are drawn once more.
        repeated = [everyones[place % len(everyones)] for place in range(rank, needed, world_size)] if needed else []
        return [Batch(epoch, indices) for indices in repeated]

    def _draw(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        drawn = []
        for bucket in self.buckets:
            indices = rng.permutation(bucket.indices) if self.shuffle else bucket.indices
            for start in range(0, self._batches_of(bucket) * bucket.batch_size, bucket.batch_size):
                drawn.append(indices[start : start + bucket.batch_size].tolist())
        if not self.shuffle:
            return drawn
        return [drawn[place] for place in rng.permutation(len(drawn))]

    def _batches_of(self, bucket: Bucket) -> int:
        full, rest = divmod(len(bucket.indices), bucket.batch_size)
        return full if self.drop_last or not rest else full + 1

    def _rank_and_world_size(self) -> tuple[int, int]:
        rank, world_size = self._process
        if rank is not None and world_size is not None:
            return rank, world_size
        return process_rank()


def process_rank() -> tuple[int, int]:
    """Rank of this process and number of processes, as torch.distributed has them; (0, 1) where it does not run."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
