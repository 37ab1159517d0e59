"""Boosted phrases: scores against a naive walk over strings, what a text earns, and configs."""

from __future__ import annotations

import math
import random

import pytest
import torch

from nemo_asr.decoding import fusion as fusion_module
from nemo_asr.decoding.boosting import Phrase, build_boosting_tree, tree_automaton
from nemo_asr.decoding.fusion import Bias, FusionSource
from nemo_asr.decoding.fusion_config import BoostingTreeConfig, PhraseItem
from nemo_asr.decoding.ngram import train
from nemo_asr.text.aggregate import AggregateTokenizer
from nemo_asr.text.char import CharTokenizer
from nemo_config import ConfigError, read_section

LETTERS = "abcdef"
TOKENIZER = CharTokenizer([*LETTERS, " "])


def tree(phrases, **options):
    items = [
        Phrase(tuple(LETTERS.index(letter) for letter in phrase), tuple(range(1, len(phrase) + 1)))
        for phrase in phrases
    ]
    return tree_automaton(items, len(LETTERS), **options)


def naive(phrases, text):
    """Score of each letter; a phrase's letter number n is worth n."""
    worth = lambda prefix: sum(range(1, len(prefix) + 1))  # noqa: E731
    beginnings = {phrase[:length] for phrase in phrases for length in range(len(phrase) + 1)}

    def kept(prefix):
        return max((worth(phrase) for phrase in phrases if phrase in prefix), default=0)

    state, scores = "", []
    for letter in text:
        score = 0
        while state and state + letter not in beginnings:
            shorter = next(state[cut:] for cut in range(1, len(state) + 1) if state[cut:] in beginnings)
            score += (worth(shorter) - kept(shorter)) - (worth(state) - kept(state))
            state = shorter
        if state + letter in beginnings:
            state += letter
            score += len(state)
        scores.append(score)
    return scores, kept(state) - worth(state)


def walk(automaton, text):
    state, scores = automaton.start_states(1), []
    for letter in text:
        token = torch.tensor([LETTERS.index(letter)])
        scores.append(automaton.scores(state)[0, token].item())
        state = automaton.advance(state, token)
    return scores, automaton.final[state].item()


PHRASES = [["abc"], ["abc", "bcd", "b"], ["aab", "ab", "abcdef"], ["aaaa", "aa"], ["fed", "edc", "dcbaf", "c"]]


@pytest.mark.parametrize("phrases", PHRASES)
def test_scores_equal_a_naive_walk(phrases):
    random.seed(0)
    automaton = tree(phrases)
    for _ in range(100):
        text = "".join(random.choices(LETTERS[:4] if random.random() < 0.7 else LETTERS, k=12))
        assert walk(automaton, text) == naive(phrases, text), text


@pytest.mark.parametrize("phrases", PHRASES)
def test_texts_without_a_whole_phrase_earn_nothing(phrases):
    random.seed(1)
    automaton = tree(phrases)
    for _ in range(200):
        text = "".join(random.choices(LETTERS, k=8))
        scores, final = walk(automaton, text)
        if not any(phrase in text for phrase in phrases):
            assert sum(scores) + final == 0, text
        else:
            assert sum(scores) + final > 0, text


def test_a_whole_phrase_keeps_its_score():
    automaton = tree(["abc"])
    scores, final = walk(automaton, "ddabcdd")
    assert scores == [0, 0, 1, 2, 3, 0, 0] and final == 0
    assert walk(automaton, "ddabd")[0] == [0, 0, 1, 2, -3], "what was lent is paid back"


def test_a_phrase_within_one_that_fails_is_found():
    automaton = tree(["abcf", "bc"])
    scores, final = walk(automaton, "abcd")
    assert sum(scores) + final == 1 + 2


def test_states_are_independent_of_each_other():
    automaton = tree(PHRASES[1])
    states = torch.arange(len(automaton.final))
    together = automaton.scores(states)
    for state in states:
        torch.testing.assert_close(automaton.scores(state[None])[0], together[state])
    tokens = torch.arange(len(states)) % len(LETTERS)
    alone = [automaton.advance(state[None], token[None]) for state, token in zip(states, tokens, strict=True)]
    assert torch.cat(alone).tolist() == automaton.advance(states, tokens).tolist()


def test_scores_of_tokens_follow_nvidias_formula():
    config = BoostingTreeConfig(key_phrases_list=["abc"], context_score=1.5, depth_scaling=2.0, unk_score=-0.25)
    scores, _ = walk(build_boosting_tree(config, TOKENIZER, "boosting_tree"), "abcd")
    expected = [1.5, 3.0 + math.log(2), 3.0 + math.log(3), -0.25]
    assert scores == pytest.approx(expected)
    config = BoostingTreeConfig(key_phrases_list=["abc"], score_per_phrase=6.0)
    assert walk(build_boosting_tree(config, TOKENIZER, ""), "a")[0] == [2.0]
    config = BoostingTreeConfig(key_phrases_list=["abc"], uniform_weights=True)
    scores, _ = walk(build_boosting_tree(config, TOKENIZER, ""), "abcd")
    assert scores == pytest.approx([1, 1, 4, -3]), "the end earns the phrase once more, and leaving it pays back"


def test_phrases_have_weights_of_their_own(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("ab\nfe\t3\n\n", encoding="utf-8")
    items = [PhraseItem("ab"), PhraseItem("fe", weight=3.0)]
    for config in (
        BoostingTreeConfig(key_phrases_file=str(file)),
        BoostingTreeConfig(key_phrase_items_list=items),
        BoostingTreeConfig(key_phrases_list=["ab"], key_phrase_items_list=items[1:]),
    ):
        automaton = build_boosting_tree(config, TOKENIZER, "")
        assert walk(automaton, "a")[0] == [1.0] and walk(automaton, "f")[0] == [3.0]


def test_phrases_of_several_languages():
    both = AggregateTokenizer({"en": CharTokenizer("ab"), "de": CharTokenizer("ab")})
    section = {"key_phrase_items_list": [{"phrase": "a", "lang": "de"}, {"phrase": "b"}]}
    automaton = build_boosting_tree(read_section(BoostingTreeConfig, section, "boosting_tree"), both, "")
    assert automaton.root_weight.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_call_brings_its_own_phrases_and_weights():
    class Keys:
        ngram_lm_model = None
        ngram_lm_alpha = 0.0
        boosting_tree = BoostingTreeConfig(key_phrases_list=["ab"], context_score=2.0)
        boosting_tree_alpha = 0.5

    source, cpu = FusionSource(Keys(), TOKENIZER, "decoding.greedy"), torch.device("cpu")

    def first_letters(bias):
        fusion = source(bias, cpu)
        return None if fusion is None else fusion.scores(fusion.start(1))[0].tolist()

    assert first_letters(None) == [1.0, 0, 0, 0, 0, 0, 0]
    assert first_letters(Bias(phrases=["cd", "d"])) == [0, 0, 1.0, 1.0, 0, 0, 0]
    assert first_letters(Bias(phrases={"cd": 8.0, "d": 4.0}, boosting_tree_alpha=0.25)) == [0, 0, 2.0, 1.0, 0, 0, 0]
    assert first_letters(Bias(boosting_tree_alpha=3.0)) == [6.0, 0, 0, 0, 0, 0, 0]
    assert first_letters(Bias(phrases=[])) is None
    assert first_letters(Bias(boosting_tree_alpha=0.0)) is None


def test_a_language_model_is_read_once_and_copied_once_to_each_device(tmp_path, monkeypatch):
    class Keys:
        ngram_lm_model = str(tmp_path / "lm.arpa")
        ngram_lm_alpha = 0.5
        boosting_tree = None
        boosting_tree_alpha = 0.0

    train(["ab", "abc"], TOKENIZER, Keys.ngram_lm_model, order=2)
    reads, load = [], fusion_module.load_ngram
    monkeypatch.setattr(fusion_module, "load_ngram", lambda *given: reads.append(given) or load(*given))
    source = FusionSource(Keys(), TOKENIZER, "decoding.greedy")
    for device in map(torch.device, ("meta", "cpu")):
        first, second = (source(None, device).models[0].automaton for _ in range(2))
        assert first is second
        assert first.root_weight.device == device
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model_path": "tree.nemo"}, "tree.model_path: 'tree.nemo' a built tree is not read; give the phrases"),
        ({"key_phrases_list": ["a?"]}, "tree: phrase: 'a?' cannot be boosted: ? stands outside the vocabulary"),
        ({"key_phrases_file": "no.txt"}, "tree.key_phrases_file: 'no.txt' there is no such file"),
        ({"key_phrases_file": "no.txt", "key_phrases_list": ["a"]}, "stands beside a list of phrases"),
        ({"key_phrases_list": ["a"], "use_bpe_dropout": True}, "tree.use_bpe_dropout: True sampled spellings"),
    ],
)
def test_what_cannot_be_boosted_is_named(section, message):
    config = read_section(BoostingTreeConfig, section, "tree")
    with pytest.raises(ConfigError) as error:
        build_boosting_tree(config, TOKENIZER, "tree")
    assert message in str(error.value)
