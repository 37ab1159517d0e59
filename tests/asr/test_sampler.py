"""Batches: every utterance once, within the budget, the same number in every epoch and on every process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from nemo_asr.data.sampler import (
    BatchBudget,
    UtteranceBatchSampler,
    binned_buckets,
    even_buckets,
    single_bucket,
)

DURATIONS = np.random.default_rng(0).uniform(0.5, 15.0, 203)


def drawn(sampler: UtteranceBatchSampler, epoch: int = 0) -> list[list[int]]:
    return [batch.indices for batch in sampler.batches(epoch)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_without_shuffling_the_utterances_come_in_order():
    sampler = UtteranceBatchSampler(single_bucket(10, 4))
    assert drawn(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert drawn(UtteranceBatchSampler(single_bucket(10, 4), drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_shuffling_follows_from_seed_and_epoch_alone():
    one, same, other = (UtteranceBatchSampler(single_bucket(50, 8), shuffle=True, seed=s) for s in (1, 1, 2))
    assert drawn(one, 3) == drawn(same, 3)
    assert drawn(one, 3) != drawn(one, 4)
    assert drawn(one, 3) != drawn(other, 3)
    assert sorted(flat(drawn(one, 3))) == list(range(50))


def test_iterating_goes_on_to_the_next_epoch_and_set_epoch_goes_back():
    sampler = UtteranceBatchSampler(single_bucket(50, 8), shuffle=True)
    first, second = list(sampler), list(sampler)
    assert [batch.epoch for batch in (first[0], second[0])] == [0, 1]
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_resuming_draws_what_was_left_of_the_epoch():
    sampler = UtteranceBatchSampler(single_bucket(50, 8), shuffle=True)
    whole = list(sampler)
    fresh = UtteranceBatchSampler(single_bucket(50, 8), shuffle=True)
    fresh.resume_at(0, 3)
    fresh.set_epoch(0)
    assert list(fresh) == whole[3:]
    assert [batch.epoch for batch in fresh] == [1] * 7


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.floats(0.1, 30.0), min_size=1, max_size=80),
    seconds=st.floats(5.0, 60.0),
    size=st.none() | st.integers(1, 12),
    num_buckets=st.integers(1, 20),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_no_batch_exceeds_its_budget_and_each_process_gets_as_many(
    durations, seconds, size, num_buckets, world_size, shuffle
):
    lengths = np.array(durations)
    buckets = even_buckets(lengths, BatchBudget(size, seconds), num_buckets)
    processes = [
        UtteranceBatchSampler(buckets, shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for epoch in (0, 1):
        batches = [drawn(process, epoch) for process in processes]
        assert {len(of_one) for of_one in batches} == {len(processes[0])}
        assert set(flat(flat(batches))) == set(range(len(durations)))
        for batch in flat(batches):
            assert len(batch) == len(set(batch))
            assert len(batch) * lengths[batch].max() <= seconds + 1e-6 or len(batch) == 1
            assert size is None or len(batch) <= size
    alone = UtteranceBatchSampler(buckets, shuffle=shuffle, rank=0, world_size=1)
    assert sorted(flat(drawn(alone))) == list(range(len(durations)))


def test_buckets_pad_far_less_than_chance():
    budget = BatchBudget(None, 60.0)

    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * DURATIONS[batch].max() for batch in batches)
        return 1.0 - DURATIONS.sum() / padded

    by_length = drawn(UtteranceBatchSampler(even_buckets(DURATIONS, budget, 30), shuffle=True))
    by_chance = drawn(UtteranceBatchSampler(single_bucket(len(DURATIONS), 8), shuffle=True))
    assert padding(by_length) < 0.12 < 0.4 < padding(by_chance)
    full = [60.0 // DURATIONS[batch].max() for batch in by_length]
    assert len(by_length) <= 1.2 * DURATIONS.sum() / 60.0 + 1, full


def test_all_batches_of_a_size_are_full_but_one():
    buckets = even_buckets(DURATIONS, BatchBudget(8), 30)
    sizes = sorted(len(batch) for batch in drawn(UtteranceBatchSampler(buckets, shuffle=True)))
    assert sizes == [203 % 8] + [8] * (203 // 8)


def test_quadratic_duration_makes_batches_of_long_utterances_smaller():
    budget = BatchBudget(None, 60.0, 15.0)
    assert BatchBudget(None, 60.0).utterances(15.0) == 4
    assert budget.utterances(15.0) == 2
    assert budget.utterances(1.0) == 56


def test_given_bins_divide_by_their_upper_ends():
    durations = np.array([0.5, 1.0, 1.5, 2.0, 9.0])
    buckets = binned_buckets(durations, BatchBudget(None, 8.0), [1.0, 2.0])
    assert [bucket.indices.tolist() for bucket in buckets] == [[0, 1], [2, 3], [4]]
    assert [bucket.batch_size for bucket in buckets] == [8, 4, 1]
    for bins in ([1.0, 2.0], [1.0, 2.0, 20.0]):
        sized = binned_buckets(durations, None, bins, [7, 5, 3])
        assert [bucket.batch_size for bucket in sized] == [7, 5, 3]
    with pytest.raises(ValueError, match=r"bucket_duration_bins: .* must ascend"):
        binned_buckets(durations, None, [2.0, 1.0], [1, 2, 3])
    with pytest.raises(ValueError, match="bucket_batch_size: 2 sizes for 4 buckets"):
        binned_buckets(durations, None, [1.0, 2.0, 3.0], [1, 2])


def test_processes_share_the_batches_and_repeat_the_first_where_they_do_not_come_out_even():
    samplers = [UtteranceBatchSampler(single_bucket(10, 4), rank=rank, world_size=2) for rank in (0, 1)]
    assert [drawn(s) for s in samplers] == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7], [0, 1, 2, 3]]]
    dropping = [UtteranceBatchSampler(single_bucket(12, 4), drop_last=True, rank=r, world_size=2) for r in (0, 1)]
    assert [drawn(s) for s in dropping] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]


def test_a_loader_and_a_trainer_take_it_as_a_sampler_for_several_processes():
    sampler = UtteranceBatchSampler(single_bucket(10, 4))
    loader = DataLoader(range(10), batch_size=None, sampler=sampler, collate_fn=None)
    assert isinstance(loader.sampler, DistributedSampler)
    assert len(loader) == 3


def test_an_empty_set_has_no_batches():
    for buckets in (single_bucket(0, 4), even_buckets(np.zeros(0), BatchBudget(4), 3)):
        sampler = UtteranceBatchSampler(buckets)
        assert (len(sampler), list(sampler)) == (0, [])


def test_a_budget_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="batch_size: None must be given, or batch_duration"):
        BatchBudget()
