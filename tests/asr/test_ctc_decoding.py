"""Greedy CTC decoding against NVIDIA's stored hypotheses and a collapse by itertools."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.ctc_greedy import greedy_path
from nemo_asr.decoding.hypothesis import TranscribedText
from nemo_asr.text.char import CharTokenizer
from nemo_config import ConfigError


def log_probs_of(paths, classes):
    """Log-probabilities (B, T, V) whose best classes are the given ones."""
    return torch.nn.functional.one_hot(torch.tensor(paths), classes).float().mul(5).log_softmax(-1)


def unpadded(case):
    """Items that NVIDIA's `transcribe` took as they are; it pads shorter ones to a second."""
    return [item for item, length in enumerate(case.io["in_audio_length"]) if length >= 16000]


def test_texts_and_scores_equal_nvidias(ctc_case):
    decoder = CtcDecoding(ctc_case.config["decoding"], ctc_case.tokenizer)
    found = decoder(ctc_case.io["log_probs"], ctc_case.io["encoded_length"])
    expected = ctc_case.meta["transcribe_hypotheses"]
    assert len(unpadded(ctc_case)) >= 2
    for item in unpadded(ctc_case):
        assert found[item].text == expected[item]["text"] == ctc_case.meta["transcribe"][item]
        assert found[item].score == pytest.approx(expected[item]["score"], rel=1e-6)
        assert found[item].timestamp == expected[item]["timestamp"] == []


def test_best_classes_are_enough_for_the_text(ctc_case):
    decoder = CtcDecoding(ctc_case.config["decoding"], ctc_case.tokenizer)
    labels, lengths = ctc_case.io["predictions"], ctc_case.io["encoded_length"]
    found = decoder(labels, lengths)
    texts = [hypothesis.text for hypothesis in decoder(ctc_case.io["log_probs"], lengths)]
    assert [hypothesis.text for hypothesis in found] == texts == decoder.texts(labels, lengths)
    assert {hypothesis.score for hypothesis in found} == {-1.0}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4), st.data())
def test_repeats_collapse_and_blanks_vanish(paths, data):
    lengths = [data.draw(st.integers(0, 9)) for _ in paths]
    expected = [
        [label for label, _ in itertools.groupby(path[:length]) if label != 3]
        for path, length in zip(paths, lengths, strict=True)
    ]
    assert greedy_path(torch.tensor(paths), torch.tensor(lengths), blank=3).tokens() == expected
    assert greedy_path(log_probs_of(paths, 4), torch.tensor(lengths), blank=3).tokens() == expected


def test_hypotheses_hold_classes_tokens_and_length():
    decoder = CtcDecoding(None, CharTokenizer("ab"))
    log_probs = log_probs_of([[0, 0, 2, 0, 1], [2, 1, 1, 0, 0]], 3)
    first, second = decoder(log_probs, torch.tensor([5, 3]))
    assert (first.text, first.tokens, first.length) == ("aab", [0, 0, 1], 5)
    assert (second.text, second.tokens, second.length) == ("b", [1], 3)
    assert second.y_sequence.tolist() == [2, 1, 1]
    best = log_probs[0, 0, 0].item()
    assert [first.score, second.score] == pytest.approx([4 * best, 2 * best])
    assert first.alignments is None


def test_log_probabilities_are_kept_on_request():
    decoder = CtcDecoding({"preserve_alignments": False}, CharTokenizer("ab"))
    log_probs = log_probs_of([[0, 0, 2, 0, 1], [2, 1, 1, 0, 0]], 3)
    for hypothesis, row, length in zip(
        decoder(log_probs, torch.tensor([5, 3]), keep_log_probs=True), log_probs, (5, 3), strict=True
    ):
        assert torch.equal(hypothesis.y_sequence, row[:length])
        assert torch.equal(hypothesis.alignments, row[:length])


def test_alignments_are_log_probabilities_and_classes_where_the_config_says_so():
    decoder = CtcDecoding({"greedy": {"preserve_alignments": True}}, CharTokenizer("ab"))
    log_probs = log_probs_of([[0, 2, 1]], 3)
    (hypothesis,) = decoder(log_probs, torch.tensor([2]))
    assert torch.equal(hypothesis.alignments[0], log_probs[0, :2])
    assert hypothesis.alignments[1].tolist() == [0, 2]


def test_a_space_before_punctuation_is_dropped():
    decoder = CtcDecoding(None, CharTokenizer("ab ,"))
    (text,) = decoder.texts(torch.tensor([[0, 2, 3, 2, 1]]), torch.tensor([5]))
    assert text == "a, b"


def test_a_typed_strategy_that_needs_other_programs_is_an_error_at_once():
    message = r"model\.decoding\.strategy: 'flashlight' is not offered; use greedy, greedy_batch, beam or beam_batch"
    with pytest.raises(ConfigError, match=message):
        CtcDecoding({"strategy": "flashlight"}, CharTokenizer("ab"), strict=True)


def test_a_files_strategy_that_needs_other_programs_is_an_error_when_something_is_decoded():
    decoder = CtcDecoding({"strategy": "pyctcdecode"}, CharTokenizer("ab"))
    with pytest.raises(ConfigError, match="is not offered"):
        decoder.texts(torch.tensor([[0]]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"strategy": "gredy"},
            "model.decoding.strategy: 'gredy' is unknown; use greedy, greedy_batch, beam or beam_batch",
        ),
        ({"ctc_timestamp_type": "words"}, "ctc_timestamp_type: 'words' is none of char, word, segment, all"),
        ({"batch_dim_index": 1}, "batch_dim_index: 1 is not 0"),
        ({"word_separator": "|"}, "nearest valid key: model.decoding.word_seperator"),
    ],
)
def test_what_a_person_mistypes_is_named(section, message):
    with pytest.raises(ConfigError) as error:
        CtcDecoding(section, CharTokenizer("ab"), strict=True)
    assert message in str(error.value)


def test_a_transcript_is_a_string_that_answers_to_text():
    transcript = TranscribedText("hello")
    assert transcript == "hello" == transcript.text
    assert type(transcript.text) is str
