"""Which tokens make each word: as many groups as the text has words, whatever tokens a network says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_asr.decoding.spelling import Spelling
from nemo_asr.decoding.word_spans import word_spans
from nemo_asr.text.char import CharTokenizer


@pytest.fixture(scope="module")
def sentence_pieces(golden):
    return golden("fastconformer_ctc_bpe").tokenizer


def assert_spans_part_the_words(tokens, tokenizer):
    spelling = Spelling(tokenizer)
    text = spelling.text(tokens)
    spans = word_spans(tokens, text, spelling)
    assert len(spans) == len(text.split())
    assert all(spans)
    places = [place for span in spans for place in span]
    assert places == sorted(set(places))
    said = {place for place, token in enumerate(tokens) if tokenizer.decode([token]).strip()}
    assert said <= set(places)
    for span, word in zip(spans, text.split(), strict=True):
        assert "".join(spelling.text([tokens[place] for place in span]).split()) == word


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_there_are_as_many_word_confidences_as_words_whatever_pieces_follow(sentence_pieces, data):
    special = [i for i, piece in enumerate(sentence_pieces.vocabulary) if piece in ("▁", "<unk>", ",", ".", "'", "?")]
    assert {"▁", "<unk>"} <= {sentence_pieces.vocabulary[i] for i in special}
    choices = st.one_of(st.sampled_from(special), st.integers(0, sentence_pieces.vocab_size - 1))
    assert_spans_part_the_words(data.draw(st.lists(choices, max_size=30)), sentence_pieces)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=30))
def test_there_are_as_many_word_confidences_as_words_whatever_characters_follow(tokens):
    assert_spans_part_the_words(tokens, CharTokenizer("ab .,?'"))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["▁", "a", "b"], [[0, 1, 2]]),
        (["▁", "▁", "a"], [[1, 2]]),
        (["a", "▁", "<unk>", "b"], [[0], [2], [3]]),
        (["▁", "▁the"], [[1]]),
        (["▁the", "▁"], [[0]]),
        ([], []),
    ],
)
def test_a_lone_mark_of_a_word_belongs_to_the_word_that_goes_on_with_it(sentence_pieces, pieces, expected):
    tokens = [sentence_pieces.vocabulary.index(piece) for piece in pieces]
    spelling = Spelling(sentence_pieces)
    assert word_spans(tokens, spelling.text(tokens), spelling) == expected


class Syllables(CharTokenizer):
    """Pieces of several words."""

    def decode(self, ids):
        return "".join(self.tokens(ids))


def test_a_piece_of_two_words_counts_for_both():
    tokenizer = Syllables([" new york", "er", " is"])
    spelling = Spelling(tokenizer)
    assert word_spans([0, 1, 2], " new yorker is", spelling) == [[0], [0, 1], [2]]
