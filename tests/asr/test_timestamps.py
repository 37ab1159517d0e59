"""Timestamps against what NVIDIA's toolkit stored, and its rules for separators, punctuation and pauses by hand."""

import pytest
import torch

from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.timestamps import FrameClock, punctuation_of
from nemo_asr.text.char import CharTokenizer

SUBSAMPLING = {"quartznet_ctc_char": 2, "fastconformer_ctc_bpe": 8, "conformer_ctc_bpe": 4}


def test_timestamps_equal_nvidias_exactly(ctc_case):
    decoder = CtcDecoding(ctc_case.config["decoding"], ctc_case.tokenizer)
    clock = FrameClock(ctc_case.config["preprocessor"]["window_stride"], SUBSAMPLING[ctc_case.meta["case"]])
    found = decoder(ctc_case.io["log_probs"], ctc_case.io["encoded_length"], timestamps=True, clock=clock)
    expected = ctc_case.meta["transcribe_timestamps"]
    taken_as_they_are = [item for item, length in enumerate(ctc_case.io["in_audio_length"]) if length >= 16000]
    assert len(taken_as_they_are) >= 2  # shorter ones were padded to a second before they were transcribed
    for item in taken_as_they_are:
        assert found[item].timestamp == expected[item]["timestamp"]


LABELS = "abc .,|"


def timestamps_of(path, clock=None, **section):
    """Timestamps of a path of characters, `_` for blank."""
    decoder = CtcDecoding(section, CharTokenizer(LABELS), strict=True)
    labels = torch.tensor([[LABELS.index(c) if c != "_" else len(LABELS) for c in path]])
    return decoder(labels, torch.tensor([len(path)]), timestamps=True, clock=clock)[0].timestamp


def spans(entries, kind):
    return [(entry[kind], entry["start_offset"], entry["end_offset"]) for entry in entries]


def test_a_token_ends_at_its_first_frame_and_starts_at_the_one_before():
    found = timestamps_of("__aab_b__c")
    assert found["timestep"] == [2, 3, 4, 6, 9]
    assert spans(found["char"], "char") == [("a", 1, 2), ("b", 2, 4), ("b", 4, 6), ("c", 6, 9)]


def test_words_are_parted_by_the_separator():
    assert spans(timestamps_of("ab ca _ b")["word"], "word") == [("ab", 0, 1), ("ca", 2, 4), ("b", 7, 8)]
    assert spans(timestamps_of("ab|c a", word_seperator="|")["word"], "word") == [("ab", 0, 1), ("c a", 2, 5)]


def test_punctuation_takes_no_time_and_joins_the_word_before_it():
    found = timestamps_of("ab__,_ c__.")
    assert spans(found["char"], "char")[2] == (",", 1, 1)
    assert spans(found["word"], "word") == [("ab,", 0, 1), ("c.", 6, 7)]
    assert spans(timestamps_of("ab ,_ c")["word"], "word") == [("ab,", 0, 2), ("c", 5, 6)]


def test_segments_end_after_their_separators():
    found = timestamps_of("a b. c a, b.")
    assert spans(found["segment"], "segment") == [("a b.", 0, 2), ("c a, b.", 4, 10)]
    assert spans(timestamps_of("a b, c", segment_seperators=[","])["segment"], "segment") == [
        ("a b,", 0, 2),
        ("c", 4, 5),
    ]


def test_segments_end_before_long_pauses_where_a_gap_is_given():
    found = timestamps_of("a b      c a", segment_gap_threshold=3)
    assert spans(found["segment"], "segment") == [
        ("a b c a", 0, 11)
    ]  # the space itself is a token that fills the pause
    found = timestamps_of("a| b", word_seperator="|", segment_gap_threshold=1)
    assert spans(found["segment"], "segment") == [("a", 0, 0), (" b", 1, 3)]


def test_only_the_kind_asked_for_is_listed():
    assert set(timestamps_of("a b", ctc_timestamp_type="word")) == {"timestep", "word"}
    assert set(timestamps_of("a b")) == {"timestep", "char", "word", "segment"}


def test_seconds_need_a_clock():
    assert "start" not in timestamps_of("a")["char"][0]
    assert timestamps_of("_a", FrameClock(0.01, 8))["char"][0] == {
        "char": "a", "start_offset": 0, "end_offset": 1, "start": 0.0, "end": 0.08,
    }  # fmt: skip


def test_silence_has_empty_lists():
    assert timestamps_of("____") == {"timestep": [], "char": [], "word": [], "segment": []}


@pytest.mark.parametrize(("section", "expected"), [({}, []), ({"compute_timestamps": True}, [1])])
def test_the_config_can_ask_for_timestamps(section, expected):
    decoder = CtcDecoding(section, CharTokenizer("ab"))
    (hypothesis,) = decoder(torch.tensor([[2, 1]]), torch.tensor([2]))
    assert (hypothesis.timestamp["timestep"] if expected else hypothesis.timestamp) == expected
    (silent,) = decoder(torch.tensor([[2, 1]]), torch.tensor([2]), timestamps=False)
    assert silent.timestamp == []


def test_punctuation_of_special_and_word_initial_pieces_does_not_count():
    assert punctuation_of(["<unk>", "[MASK]", "##.", "▁-", "a", "'", "b?", "$"]) == {"'", "?"}
