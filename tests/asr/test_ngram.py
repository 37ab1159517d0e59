"""N-gram models: ARPA files, their scores against a recursive reference, and training."""

from __future__ import annotations

import gzip
import itertools
import math
import random

import pytest
import torch

from nemo_asr.decoding.ngram import Arpa, estimate, load_ngram, read_arpa, train, write_arpa
from nemo_asr.decoding.ngram.model import automaton_of, encode_token
from nemo_asr.text.char import CharTokenizer

PIECES = ["▁a", "b", "▁c", "d"]
HAND_MADE = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.3
-1.0\t</s>
-0.5\t▁a\t-0.2
-0.7\tb\t-0.4
-2.0\t<unk>

\\2-grams:
-0.1\t<s> ▁a\t-0.25
-0.3\t▁a b\t-0.15
-0.6\tb </s>
-0.9\tb ▁a\t0

\\3-grams:
-0.05\t<s> ▁a b
-0.4\t▁a b ▁a

\\end\\
"""


def reference(arpa: Arpa, context: tuple[str, ...], token: str) -> float:
    """log10 of a token's probability after a context, by the definition of ARPA files."""
    context = context[len(context) - min(len(context), arpa.order - 1) :]
    known = arpa.ngrams[len(context)].get((*context, token))
    if known:
        return known[0]
    if not context:
        return arpa.ngrams[0][("<unk>",)][0]
    backoff = arpa.ngrams[len(context) - 1].get(context, (0.0, 0.0))[1]
    return backoff + reference(arpa, context[1:], token)


def walk(automaton, tokens):
    state = automaton.start_states(1)
    for token in tokens:
        state = automaton.advance(state, torch.tensor([token]))
    return state


def test_hand_computed_scores(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(HAND_MADE, encoding="utf-8")
    automaton = load_ngram(path, PIECES)
    ln10, unknown = math.log(10), math.log(10) * -2.0 - math.log(2)  # two tokens share <unk>
    start = automaton.scores(walk(automaton, []))[0] / 1
    assert start[0].item() == pytest.approx(-0.1 * ln10)
    assert start[1].item() == pytest.approx((-0.3 - 0.7) * ln10)
    assert start[2].item() == pytest.approx(-0.3 * ln10 + unknown)
    after_ab = automaton.scores(walk(automaton, [0, 1]))[0]
    assert after_ab[0].item() == pytest.approx(-0.4 * ln10)
    assert after_ab[1].item() == pytest.approx((-0.15 - 0.4 - 0.7) * ln10)
    assert automaton.final[walk(automaton, [0, 1])].item() == pytest.approx((-0.15 - 0.6) * ln10)
    assert automaton.final[walk(automaton, [0])].item() == pytest.approx((-0.25 - 0.2 - 1.0) * ln10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_scores_equal_a_recursive_reference_in_every_context(order):
    random.seed(order)
    vocabulary = [f"t{index}" for index in range(7)]
    sentences = [random.choices(vocabulary[:6], k=random.randint(0, 9)) for _ in range(30)]
    arpa = estimate(sentences, vocabulary[:6], order)
    arpa.ngrams[0]["<unk>",] = (-1.5, 0.0)
    automaton = automaton_of(arpa, vocabulary)
    histories = [history for length in range(4) for history in itertools.product(range(7), repeat=length)]
    states = torch.cat([walk(automaton, history) for history in histories])
    scores, final = automaton.scores(states) / math.log(10), automaton.final[states] / math.log(10)
    for row, history in enumerate(histories):
        context = ("<s>", *(vocabulary[token] for token in history))
        if vocabulary[6] in context:  # the unknown token ends every context
            context = context[len(context) - context[::-1].index(vocabulary[6]) :]
        expected = [reference(arpa, context, token) for token in vocabulary]
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-4), context
        assert final[row].item() == pytest.approx(reference(arpa, context, "</s>"), abs=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_trained_probabilities_sum_to_one_in_every_context(order):
    random.seed(order)
    vocabulary = list("abcdefgh")
    sentences = [random.choices(vocabulary[:6], k=random.randint(1, 12)) for _ in range(200)]
    automaton = automaton_of(estimate(sentences, vocabulary, order), vocabulary)
    states = torch.cat([walk(automaton, history) for history in itertools.product(range(8), repeat=2)])
    total = automaton.scores(states).exp().sum(1) + automaton.final[states].exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


def test_kneser_ney_by_hand():
    """Of "a b", "a b", "c b": unigrams lack counts of 3, so their discounts are 0.5, 1 and 1.5; bigrams have 2 of one
    occurrence, 2 of two and 1 of three, so that Y = 2 / (2 + 4), D1 = 1 - 2 Y 2/2 and D2 = 2 - 3 Y 1/2 = 1.5."""
    arpa = estimate([["a", "b"], ["a", "b"], ["c", "b"]], ["a", "b", "c"], 2)
    unigrams = {ngram[0]: 10 ** value[0] for ngram, value in arpa.ngrams[0].items()}
    # Different tokens before: a 1 (<s>), b 2 (a, c), c 1 (<s>), </s> 1 (b); discounted 0.5 + 1 + 0.5 + 0.5 of 5.
    left = 2.5 / 5
    assert unigrams["b"] == pytest.approx((2 - 1) / 5 + left / 4)
    assert unigrams["a"] == pytest.approx((1 - 0.5) / 5 + left / 4)
    bigram = 10 ** arpa.ngrams[1]["a", "b"][0]
    assert bigram == pytest.approx((2 - 1.5) / 2 + (1.5 / 2) * unigrams["b"])
    assert 10 ** arpa.ngrams[0]["a",][1] == pytest.approx(1.5 / 2)


def test_a_trained_file_uses_nvidias_characters_and_prefers_what_it_saw(tmp_path):
    tokenizer = CharTokenizer(" abcdefghijklmnopqrstuvwxyz'")
    path = tmp_path / "lm.arpa"
    train(["the cat", "the hat"], tokenizer, path, order=3)
    assert (chr(100 + tokenizer.encode("t")[0]),) in read_arpa(path).ngrams[0]
    automaton = load_ngram(path, tokenizer.vocabulary)
    after = automaton.scores(walk(automaton, tokenizer.encode("th")))[0]
    assert tokenizer.decode([int(after.argmax())]) == "e"


def test_a_file_over_characters_may_name_the_space(tmp_path):
    vocabulary = [" ", "a", "b"]
    arpa = estimate([["a", "<space>", "b"]], ["<space>", "a", "b"], 2)
    automaton = automaton_of(arpa, vocabulary)
    assert int(automaton.scores(walk(automaton, [1]))[0].argmax()) == 0


def test_files_are_read_as_they_were_written_gzipped_or_not(tmp_path):
    vocabulary = [encode_token(token) for token in range(100)]  # NEL and no-break space among them
    arpa = estimate([vocabulary[20:60], vocabulary], vocabulary, 2)
    write_arpa(arpa, tmp_path / "lm.arpa")
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
    for path in (tmp_path / "lm.arpa", packed):
        found = read_arpa(path)
        for ours, expected in zip(found.ngrams, arpa.ngrams, strict=True):
            assert ours.keys() == expected.keys()
            assert list(ours.values()) == [pytest.approx(values, abs=1e-5) for values in expected.values()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "it has no"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"mmap lm http://kheafield.com/code", "binary file of KenLM"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tb\n", "it has no \\end\\"),
        (b"\\data\\\nngram 1=2\n\n\\1-grams:\n-1\tb\n\n\\end\\\n", "its header counts [2] n-grams, and [1] follow"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\nx\tb\n\n\\end\\\n", "line 5 is 'x\\tb'"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\thello\n\n\\end\\\n", "'hello' is none of its 4"),
    ],
)
def test_what_is_no_model_over_the_tokens_is_named(tmp_path, content, message):
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_ngram(path, PIECES)
    assert message in str(error.value)
