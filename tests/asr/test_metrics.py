"""Error rates against jiwer."""

import math
import multiprocessing

import jiwer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_asr.metrics import (
    WER,
    EditCounts,
    count_edits,
    word_error_rate,
    word_error_rate_detail,
    word_error_rate_per_utt,
)

TEXTS = st.lists(st.sampled_from("one two three tree free".split()), min_size=1, max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_word_counts_equal_jiwers(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    expected = jiwer.process_words(references, hypotheses)
    counts = sum((count_edits(hyp, ref) for ref, hyp in pairs), EditCounts())
    found = (counts.substitutions, counts.deletions, counts.insertions)
    assert found == (expected.substitutions, expected.deletions, expected.insertions)
    assert word_error_rate(hypotheses, references) == pytest.approx(expected.wer)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_character_counts_equal_jiwers(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    expected = jiwer.process_characters(references, hypotheses)
    rate, length, insertions, deletions, substitutions = word_error_rate_detail(hypotheses, references, use_cer=True)
    assert rate == pytest.approx(expected.cer)
    assert length == sum(map(len, references))
    assert [insertions * length, deletions * length, substitutions * length] == pytest.approx(
        [expected.insertions, expected.deletions, expected.substitutions]
    )


def test_without_any_reference_the_rate_is_infinite():
    assert word_error_rate(["noise"], [""]) == math.inf
    assert word_error_rate([], []) == math.inf
    assert word_error_rate_detail(["noise"], [""])[0] == math.inf


def test_words_where_nothing_was_said_are_insertions():
    assert word_error_rate(["a b", "c"], ["", "c"]) == 2.0
    assert word_error_rate_per_utt(["a b", "c", ""], ["", "c", ""]) == ([math.inf, 0.0, 0.0], 2.0)


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="hypotheses: 1 texts, but references: 2"):
        word_error_rate(["a"], ["a", "b"])


class SpelledDecoding:
    """Best classes are letters of the alphabet; 26 separates words, 27 is blank."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def decode(ids):
            return "".join("abcdefghijklmnopqrstuvwxyz "[i] for i in ids)

    def texts(self, predictions, predictions_len):
        return [self.tokenizer.decode(row[:n]) for row, n in zip(predictions.tolist(), predictions_len, strict=True)]


BATCH = (torch.tensor([[0, 26, 1], [2, 26, 4]]), torch.tensor([3, 1]))
TARGETS = (torch.tensor([[0, 26, 2], [2, 26, 3]]), torch.tensor([3, 3]))


def test_the_metric_adds_up_over_batches_until_it_is_reset():
    metric = WER(SpelledDecoding())
    metric.update(*BATCH, *TARGETS)  # "a b" for "a c", "c" for "c d"
    metric.update(*TARGETS, *TARGETS)
    rate, errors, length = metric.compute()
    assert (rate.item(), errors.item(), length.item()) == (0.25, 2, 8)
    metric.reset()
    assert metric.compute()[2].item() == 0


def test_the_metric_counts_characters_on_request():
    metric = WER(SpelledDecoding(), use_cer=True)
    metric.update(*BATCH, *TARGETS)
    assert [value.item() for value in metric.compute()[1:]] == [3, 6]


def count_in_process(rank, store, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = WER(SpelledDecoding())
    batch = BATCH if rank == 0 else TARGETS
    metric.update(*batch, *TARGETS)
    results.put([value.item() for value in metric.compute()])
    torch.distributed.destroy_process_group()


def test_processes_agree_on_the_sum_of_their_counts(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=count_in_process, args=(r, tmp_path / "store", results)) for r in (0, 1)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[0.25, 2, 8]] * 2
