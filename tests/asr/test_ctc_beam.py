"""CTC prefix beam search, against sums over every alignment, against greedy search, and against itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nemo_asr import load_model
from nemo_asr.decoding.boosting import Phrase, tree_automaton
from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.ctc_beam import CtcBeamSearch
from nemo_asr.decoding.ctc_greedy import greedy_path
from nemo_asr.decoding.fusion import Bias, FusedModel, Fusion
from nemo_asr.decoding.ngram import estimate
from nemo_asr.decoding.ngram.model import automaton_of
from nemo_asr.text.char import CharTokenizer
from nemo_config import ConfigError


def random_log_probs(lengths, V, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    scores = sharpness * torch.randn(len(lengths), max(lengths), V + 1, generator=generator)
    return scores.log_softmax(2), torch.tensor(lengths)


def every_alignment(log_probs):
    """Log-probability of each token sequence: the sum over all alignments (T, V + 1), one by one."""
    T, V = log_probs.shape[0], log_probs.shape[1] - 1
    totals = {}
    for labels in itertools.product(range(V + 1), repeat=T):
        collapsed = tuple(label for label, _ in itertools.groupby(labels) if label != V)
        totals.setdefault(collapsed, []).append(sum(log_probs[t, label].item() for t, label in enumerate(labels)))
    return {tokens: math.log(sum(map(math.exp, scores))) for tokens, scores in totals.items()}


def fusion(V, weight=0.6):
    vocabulary = [f"t{token}" for token in range(V)]
    language_model = automaton_of(estimate([["t0", "t1"], ["t1", "t1", "t0"]], vocabulary, 2), vocabulary)
    tree = tree_automaton([Phrase((0, 1), (1.0, 2.0))], V)
    return Fusion([FusedModel(language_model, weight, True), FusedModel(tree, 0.4, False)])


def fused_score(models, tokens):
    state, score = models.start(1), 0.0
    for token in tokens:
        score += models.scores(state)[0, token].item()
        state = models.advance(state, torch.tensor([token]))
    return score + models.final(state, sentence=True).item()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_gives_the_sums_over_all_alignments(fused, seed):
    log_probs, lengths = random_log_probs([5, 3, 0], 2, seed)
    models = fusion(2) if fused else None
    found = CtcBeamSearch(beam_size=80, token_bonus=0.3)(log_probs, lengths, models)
    for row, length in enumerate(lengths.tolist()):
        totals = {
            tokens: score + 0.3 * len(tokens) + (fused_score(models, tokens) if models else 0.0)
            for tokens, score in every_alignment(log_probs[row, :length]).items()
        }
        assert {tuple(path.tokens) for path in found[row]} == totals.keys()
        assert [path.score for path in found[row]] == sorted((path.score for path in found[row]), reverse=True)
        for path in found[row]:
            assert path.score == pytest.approx(totals[tuple(path.tokens)], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy_search(seed):
    log_probs, lengths = random_log_probs([40, 23, 1, 0], 5, seed, sharpness=1.0)
    found = CtcBeamSearch(beam_size=1)(log_probs, lengths)
    assert [path.tokens for (path,) in found] == greedy_path(log_probs, lengths, 5).tokens()


def test_more_prefixes_find_what_is_more_probable():
    log_probs, lengths = random_log_probs([30] * 8, 6, sharpness=0.7)
    scores = [[paths[0].score for paths in CtcBeamSearch(size)(log_probs, lengths)] for size in (2, 16, 128)]
    assert sum(scores[0]) < sum(scores[1]) <= sum(scores[2])


def test_results_do_not_depend_on_the_batch():
    log_probs, lengths = random_log_probs([25, 14, 30, 1], 6, 2)
    search, models = CtcBeamSearch(6, token_bonus=0.5, threshold=15.0), fusion(6)
    together = search(log_probs, lengths, models)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = search(log_probs[row : row + 1, :length], lengths[row : row + 1], models)
        assert [path.tokens for path in alone] == [path.tokens for path in together[row]]
        assert [path.score for path in alone] == pytest.approx([path.score for path in together[row]], abs=1e-4)


def test_the_threshold_drops_improbable_prefixes():
    log_probs, lengths = random_log_probs([20], 6, 3, sharpness=4.0)
    (wide,), (narrow,) = CtcBeamSearch(16)(log_probs, lengths), CtcBeamSearch(16, threshold=1.0)(log_probs, lengths)
    assert len(narrow) < len(wide) and narrow[0].tokens == wide[0].tokens
    assert all(path.score >= narrow[0].score - 1.0 for path in narrow)


def test_greedy_search_with_phrases_changes_new_tokens_only():
    log_probs, lengths = random_log_probs([30, 12], 4, 4)
    plain = greedy_path(log_probs, lengths, 4)
    tree = tree_automaton([Phrase((2,), (60.0,))], 4)
    boosted = greedy_path(log_probs, lengths, 4, Fusion([FusedModel(tree, 1.0, False)]))
    assert torch.equal(plain.labels == 4, boosted.labels == 4), "blanks keep their score"
    assert sum(tokens.count(2) for tokens in boosted.tokens()) > sum(tokens.count(2) for tokens in plain.tokens())
    for row, length in enumerate(lengths.tolist()):
        alone = greedy_path(log_probs[row : row + 1, :length], lengths[row : row + 1], 4)
        assert alone.tokens() == plain.tokens()[row : row + 1]


def test_readings_come_with_times_of_their_own():
    tokenizer = CharTokenizer("ab ")
    log_probs = torch.full((1, 6, 4), -8.0)
    for frame, label in enumerate([0, 3, 1, 1, 2, 0]):
        log_probs[0, frame, label] = -0.1
    log_probs[0, 2, 0] = -0.3
    section = {"strategy": "beam_batch", "beam": {"beam_size": 3, "return_best_hypothesis": False, "beam_beta": 0.0}}
    (best,) = CtcDecoding(section, tokenizer, strict=True)(log_probs, torch.tensor([6]), timestamps=True)
    assert best.text == "ab a" and best.n_best[0].text == best.text
    assert len(best.n_best) == 3 and len({reading.text for reading in best.n_best}) == 3
    assert [word["word"] for word in best.timestamp["word"]] == ["ab", "a"]
    greedy = CtcDecoding(None, tokenizer)(log_probs, torch.tensor([6]), timestamps=True)
    assert best.timestamp == greedy[0].timestamp


def test_a_language_model_from_a_file_decides_between_near_equals(tmp_path):
    from nemo_asr.decoding.ngram import train

    tokenizer = CharTokenizer("abc")
    train(["ab", "ab", "ab"], tokenizer, tmp_path / "lm.arpa", order=2)
    log_probs = torch.tensor([[[0.9, 0.04, 0.03, 0.03], [0.01, 0.48, 0.5, 0.01]]]).log()
    for strategy, name in (("greedy_batch", "greedy"), ("beam_batch", "beam")):
        fused = {"ngram_lm_model": str(tmp_path / "lm.arpa"), "ngram_lm_alpha": 1.0}
        decoding = CtcDecoding({"strategy": strategy, name: fused}, tokenizer, strict=True)
        assert decoding.texts(log_probs, torch.tensor([2])) == ["ab"]
        (found,) = decoding(log_probs, torch.tensor([2]), bias=Bias(ngram_lm_alpha=0.0))
        assert found.text == "ac", "a call's weight counts"
        plain = CtcDecoding({"strategy": strategy}, tokenizer)
        (found,) = plain(log_probs, torch.tensor([2]), bias=Bias(phrases=["ab"]))
        assert found.text == "ab"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"strategy": "beam", "beam": {"beam_size": 0}}, "model.decoding.beam.beam_size: 0 must be at least 1"),
        ({"strategy": "beam", "beam": {"beta": 1.0}}, "model.decoding.beam.beta"),
        ({"strategy": "beam", "beam": {"kenlm_path": "no.arpa"}}, "'no.arpa' there is no such file"),
        ({"strategy": "wfst"}, "model.decoding.strategy: 'wfst' is not offered"),
    ],
)
def test_what_a_person_mistypes_is_named(section, message):
    with pytest.raises(ConfigError) as error:
        CtcDecoding(section, CharTokenizer("ab"), strict=True)
    assert message in str(error.value)


def test_a_whole_model_gives_n_best(golden):
    case = golden("fastconformer_ctc_bpe")
    network = load_model(case.path)
    audio = [row[:length] for row, length in zip(case.io["in_audio"], case.io["in_audio_length"], strict=True)]
    network.set_decoding({"strategy": "beam", "beam": {"beam_size": 3, "return_best_hypothesis": False}}, strict=True)
    texts = network.transcribe(audio, verbose=False)
    lists = network.transcribe(audio, return_hypotheses=True, verbose=False)
    assert [[reading.text for reading in readings] for readings in lists] == texts
    network.set_decoding({"strategy": "beam", "beam": {"beam_size": 3}}, strict=True)
    assert network.transcribe(audio, verbose=False) == [readings[0] for readings in texts]
    piece = network.tokenizer.decode([7])
    boosted = network.transcribe(audio, verbose=False, bias=Bias(phrases={piece: 30.0}))
    assert boosted != [readings[0] for readings in texts]
