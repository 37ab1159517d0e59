"""Beam search through transducers, against sums over every path, against greedy search, and against itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nemo_asr import load_model
from nemo_asr.decoding.boosting import Phrase, tree_automaton
from nemo_asr.decoding.fusion import FusedModel, Fusion
from nemo_asr.decoding.transducer import TransducerDecoding, beam_options
from nemo_asr.decoding.transducer_beam import BeamOptions, BeamSearch
from nemo_asr.decoding.transducer_config import TransducerBeamConfig
from nemo_asr.decoding.transducer_greedy import GreedySearch
from nemo_asr.losses.rnnt import RNNTLoss
from nemo_asr.modules.joint import HATJoint, RNNTJoint
from nemo_asr.modules.prediction import RNNTDecoder, StatelessTransducerDecoder
from nemo_asr.networks import HybridNetwork
from nemo_asr.text.char import CharTokenizer
from nemo_config import ConfigError

WIDTH = 4
KINDS = {
    "rnnt": {},
    "tdt": {"durations": [0, 1, 2]},
    "tdt without duration 0 or 1": {"durations": [2, 3]},
    "multi-blank": {"big_blank_durations": [2]},
}


def networks(vocab_size, leads, *, seed=0, joint=RNNTJoint, stateless=False):
    torch.manual_seed(seed)
    extra = sum(map(len, leads.values()))
    sizes = {"encoder_hidden": WIDTH, "pred_hidden": WIDTH, "joint_hidden": 8, "activation": "tanh"}
    make = StatelessTransducerDecoder if stateless else RNNTDecoder
    pair = make({"pred_hidden": WIDTH}, vocab_size), joint(sizes, vocab_size, extra)
    with torch.no_grad():
        for network in pair:
            for parameter in network.parameters():
                parameter.mul_(3)
    return [network.eval() for network in pair]


def encoded(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(lengths), WIDTH, max(lengths), generator=generator), torch.tensor(lengths)


LONGEST = 3
"""Sequences of up to so many tokens are compared; a limit of more tokens at a frame does not touch them."""
WIDE = BeamOptions(1200, max_symbols=LONGEST + 1, score_norm=False)


class EveryPath:
    """Log-probability of each token sequence: the sum over all of its paths, one by one."""

    def __init__(self, decoder, joint, frames, durations=(), big_blank_durations=(), fuse=None):
        self.decoder, self.joint, self.frames, self.fuse = decoder, joint, frames, fuse
        self.durations = durations
        self.blank = joint.num_classes_with_blank - 1 - len(durations)
        self.blank_leads = {self.blank: 1}
        self.blank_leads |= {self.blank - 1 - place: lead for place, lead in enumerate(big_blank_durations)}
        self.totals = {}
        with torch.no_grad():
            self.visit(0, (), 0.0)

    def visit(self, frame, tokens, score):
        if frame >= self.frames.shape[1]:
            self.totals[tokens] = math.log(math.exp(self.totals.get(tokens, -math.inf)) + math.exp(score))
            return
        prediction, _ = self.decoder.predict(torch.tensor([tokens], dtype=torch.long).reshape(1, -1))
        seen = self.joint.joint(self.frames[None, :, frame : frame + 1].mT, prediction[:, -1:])[0, 0, 0]
        labels = seen[: self.blank + 1].log_softmax(0).tolist()
        leads = seen[self.blank + 1 :].log_softmax(0).tolist() if self.durations else [0.0]
        labels = self.fuse(tokens, labels) if self.fuse else labels
        ways = {lead: labels[label] for label, lead in self.blank_leads.items()}
        if self.durations:
            given = zip(self.durations, leads, strict=True)
            ways = {}
            for lead, value in given:  # a blank of duration 0 counts as one of 1
                ways[max(lead, 1)] = max(ways.get(max(lead, 1), -math.inf), labels[self.blank] + value)
        for lead, value in ways.items():
            self.visit(frame + lead, tokens, score + value)
        for token in range(min(self.blank_leads) if len(tokens) < LONGEST else 0):
            for lead, value in zip(self.durations or [0], leads, strict=True):
                self.visit(frame + lead, (*tokens, token), score + labels[token] + value)

    def best(self, count):
        return sorted(self.totals.items(), key=lambda item: -item[1])[:count]


def assert_best(paths, expected):
    paths = [path for path in paths if len(path.tokens) <= LONGEST]
    assert [tuple(path.tokens) for path in paths[: len(expected)]] == [tokens for tokens, _ in expected]
    for path, (_, total) in zip(paths, expected, strict=False):
        assert path.score == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_time_order", [False, True])
def test_a_wide_beam_gives_the_sums_over_all_paths(kind, in_time_order):
    decoder, joint = networks(2, KINDS[kind], seed=int(in_time_order))
    frames, lengths = encoded([3, 2, 0])
    options = replace(WIDE, in_time_order=in_time_order)
    found = BeamSearch(decoder, joint, options, **KINDS[kind])(frames, lengths)
    for row, length in enumerate(lengths.tolist()):
        truth = EveryPath(decoder, joint, frames[row, :, :length], **KINDS[kind])
        assert_best(found[row], truth.best(15))


def test_a_stateless_network_and_a_hat_joint_are_searched_as_well():
    decoder, joint = networks(2, {}, joint=HATJoint, stateless=True)
    frames, lengths = encoded([3])
    (found,) = BeamSearch(decoder, joint, WIDE)(frames, lengths)
    assert_best(found, EveryPath(decoder, joint, frames[0]).best(15))


@pytest.mark.parametrize("kind", ["rnnt", "tdt"])
def test_a_search_among_prefixes_leaves_the_sums_as_they_are(kind):
    decoder, joint = networks(2, KINDS[kind])
    frames, lengths = encoded([3])
    options = replace(WIDE, in_time_order=True, search_prefixes=True)
    (found,) = BeamSearch(decoder, joint, options, **KINDS[kind])(frames, lengths)
    assert_best(found, EveryPath(decoder, joint, frames[0], **KINDS[kind]).best(15))


@pytest.mark.parametrize("strategy", ["malsd_batch", "alsd", "beam", "tsd", "maes", "maes_batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_of_one_is_greedy_search(strategy, kind):
    decoder, joint = networks(6, KINDS[kind], seed=3)
    frames, lengths = encoded([12, 7, 1, 0])
    section = {"beam_size": 1, "max_symbols": 3, "tsd_max_sym_exp": 3, "maes_num_steps": 3}
    options = beam_options(strategy, TransducerBeamConfig(**section))
    found = BeamSearch(decoder, joint, options, **KINDS[kind])(frames, lengths)
    greedy = GreedySearch(decoder, joint, max_symbols=3, **KINDS[kind])(frames, lengths)
    assert any(path.tokens for path in greedy)
    for (path,), expected in zip(found, greedy, strict=True):
        assert (path.tokens, path.frames, path.durations) == (expected.tokens, expected.frames, expected.durations)


@pytest.mark.parametrize("strategy", ["malsd_batch", "maes"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_batch(strategy, kind):
    decoder, joint = networks(6, KINDS[kind], seed=4)
    frames, lengths = encoded([7, 11, 2])
    options = beam_options(strategy, TransducerBeamConfig(max_symbols=3))
    search = BeamSearch(decoder, joint, options, **KINDS[kind])
    fusion = phrases([1, 2], [4])
    together = search(frames, lengths, fusion)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = search(frames[row : row + 1, :, :length], lengths[row : row + 1], fusion)
        assert [path.tokens for path in alone] == [path.tokens for path in together[row]]
        assert [path.frames for path in alone] == [path.frames for path in together[row]]
        assert [path.score for path in alone] == pytest.approx([path.score for path in together[row]], abs=1e-3)


@pytest.mark.parametrize("section", [{}, {"preserve_alignments": True}, {"strategy": "maes"}], ids=str)
@pytest.mark.parametrize(("batch", "frames"), [(0, 5), (2, 0), (2, 5)])
def test_utterances_without_frames_have_no_text(section, batch, frames):
    wanted = {"confidence_cfg": {"preserve_word_confidence": True}, **section}
    decoding = TransducerDecoding(wanted, CharTokenizer("ab"), *networks(2, {}), strict=True)
    for hypothesis in (found := decoding(torch.zeros(batch, WIDTH, frames), torch.zeros(batch, dtype=torch.long))):
        assert (hypothesis.text, hypothesis.tokens, hypothesis.timestamp) == ("", [], [])
        assert hypothesis.alignments == ([] if "preserve_alignments" in section else None)
        assert hypothesis.frame_confidence == hypothesis.word_confidence == []
    assert len(found) == batch


def phrases(*sequences, vocab_size=6, weight=0.7, as_language_model=False):
    tree = tree_automaton([Phrase(tuple(tokens), (1.0,) * len(tokens)) for tokens in sequences], vocab_size)
    return Fusion([FusedModel(tree, weight, ends_sentences=as_language_model)])


@pytest.mark.parametrize(
    ("weigh_blank", "as_language_model", "bonus", "inner_weight"),
    [
        (False, True, 0.0, 0.0),
        (True, True, 0.0, 0.0),
        (True, False, 0.0, 0.4),
        (True, True, 0.6, 0.0),
        (False, True, 0.6, 0.4),
        (True, True, 0.0, 0.4),
    ],
)
@pytest.mark.parametrize("kind", ["rnnt", "tdt", "multi-blank", "hat"])
def test_fused_scores_are_those_of_every_path(kind, weigh_blank, as_language_model, bonus, inner_weight):
    leads = KINDS.get(kind, {})
    decoder, joint = networks(2, leads, joint=HATJoint if kind == "hat" else RNNTJoint)
    frames, lengths = encoded([3])
    fusion = phrases([0, 1], vocab_size=2, as_language_model=as_language_model)

    def states(tokens):
        state = fusion.start(1)
        for token in tokens:
            state = fusion.advance(state, torch.tensor([token]))
        return state

    def inner_scores(tokens):
        """What the joint says of the tokens when it hears nothing, in float64."""
        prediction, _ = decoder.predict(torch.tensor([tokens], dtype=torch.long).reshape(1, -1))
        hidden = joint.pred.weight.double() @ prediction[0, -1].double() + joint.pred.bias.double()
        hidden = hidden if kind == "hat" else hidden + joint.enc.bias.double()
        scores = joint.joint_net[-1].weight.double() @ hidden.tanh() + joint.joint_net[-1].bias.double()
        shares = scores[:2].exp()
        return (shares / shares.sum()).log().tolist()

    def fuse(tokens, labels):
        added = fusion.scores(states(tokens))[0].tolist()
        silence = math.log(sum(map(math.exp, labels[2:])))
        weighs = weigh_blank and as_language_model
        left = math.log1p(-min(math.exp(silence), 0.99)) * 0.7 if weighs else 0.0
        inner = inner_scores(tokens) if as_language_model else (0.0, 0.0)
        return [labels[v] + added[v] + left + bonus - inner_weight * inner[v] for v in range(2)] + [
            blank + (0.7 * silence if weighs else 0.0) for blank in labels[2:]
        ]

    truth = EveryPath(decoder, joint, frames[0], fuse=fuse, **leads)
    truth.totals = {y: total + fusion.final(states(y), sentence=False).item() for y, total in truth.totals.items()}
    options = replace(WIDE, weigh_blank=weigh_blank, token_bonus=bonus, inner_lm_weight=inner_weight)
    (found,) = BeamSearch(decoder, joint, options, **leads)(frames, lengths, fusion)
    assert_best(found, truth.best(15))


def test_a_token_bonus_needs_no_other_model():
    decoder, joint = networks(2, {})
    frames, lengths = encoded([3])
    truth = EveryPath(decoder, joint, frames[0])
    truth.totals = {tokens: total + 0.6 * len(tokens) for tokens, total in truth.totals.items()}
    (found,) = BeamSearch(decoder, joint, replace(WIDE, token_bonus=0.6))(frames, lengths)
    assert_best(found, truth.best(15))


def test_the_section_gives_the_bonus_and_the_inner_models_weight():
    hat = {"hat_subtract_ilm": True, "hat_ilm_weight": 0.3}
    for joint, section, weight in [
        (RNNTJoint, {"ilm_weight": 0.2}, 0.2),
        (HATJoint, {"ilm_weight": 0.2, **hat}, 0.2),
        (HATJoint, hat, 0.3),
        (RNNTJoint, hat, 0.0),
    ]:
        section = {"strategy": "malsd_batch", "beam": {"beam_beta": 0.5, **section}}
        decoding = TransducerDecoding(section, CharTokenizer("ab"), *networks(2, {}, joint=joint), strict=True)
        assert decoding.beam_search.options.inner_lm_weight == weight
        assert decoding.beam_search.options.token_bonus == 0.5


def test_early_pruning_chooses_tokens_by_the_networks_scores():
    decoder, joint = networks(6, {}, seed=5)
    frames, lengths = encoded([12])
    fusion = phrases([3], weight=50.0)
    late = BeamSearch(decoder, joint, BeamOptions(1, weigh_blank=False))(frames, lengths, fusion)[0][0]
    early = BeamSearch(decoder, joint, BeamOptions(1, weigh_blank=False, prune_with_fusion=False))
    assert set(late.tokens) == {3}, "a huge bonus wins everywhere"
    assert set(early(frames, lengths, fusion)[0][0].tokens) != {3}


def test_the_score_norm_ranks_by_score_over_tokens_and_one():
    decoder, joint = networks(6, {}, seed=6)
    frames, lengths = encoded([20])
    (paths,) = BeamSearch(decoder, joint, BeamOptions(8))(frames, lengths)
    ranks = [path.score / (len(path.tokens) + 1) for path in paths]
    assert ranks == sorted(ranks, reverse=True)
    (plain,) = BeamSearch(decoder, joint, BeamOptions(8, score_norm=False))(frames, lengths)
    scores = [path.score for path in plain]
    assert scores == sorted(scores, reverse=True)
    assert sorted(scores) == pytest.approx(sorted(path.score for path in paths))


def test_the_margin_leaves_out_unlikely_tokens():
    decoder, joint = networks(6, {}, seed=7)
    frames, lengths = encoded([20])
    (found,) = BeamSearch(decoder, joint, BeamOptions(8, margin=1e-4, in_time_order=True))(frames, lengths)
    (greedy,) = GreedySearch(decoder, joint, max_symbols=10)(frames, lengths)
    assert [path.tokens for path in found] == [greedy.tokens]


def test_greedy_search_prefers_boosted_tokens_where_a_token_is_due():
    decoder, joint = networks(6, {}, seed=8)
    frames, lengths = encoded([20, 9])
    search = GreedySearch(decoder, joint, max_symbols=10)
    plain, boosted = search(frames, lengths), search(frames, lengths, fusion=phrases([3], weight=50.0))
    assert any(set(path.tokens) - {3} for path in plain)
    for before, after in zip(plain, boosted, strict=True):
        assert set(after.tokens) <= {3}
        assert before.frames[:1] == after.frames[:1], "blanks keep their score"


def test_greedy_search_with_phrases_does_not_depend_on_the_batch():
    for kind, leads in KINDS.items():
        decoder, joint = networks(6, leads, seed=9)
        frames, lengths = encoded([12, 6, 9])
        search, fusion = GreedySearch(decoder, joint, max_symbols=3, **leads), phrases([1, 2, 3], [4, 4])
        together = search(frames, lengths, fusion=fusion)
        for row, length in enumerate(lengths.tolist()):
            (alone,) = search(frames[row : row + 1, :, :length], lengths[row : row + 1], fusion=fusion)
            assert alone.tokens == together[row].tokens, kind


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"strategy": "beem"}, "strategy: 'beem' is unknown; use greedy, greedy_batch, beam, tsd, alsd"),
        ({"strategy": "maes", "beam": {"beam_sise": 2}}, "nearest valid key: model.decoding.beam.beam_size"),
        ({"strategy": "maes", "beam": {"beam_size": 0}}, "model.decoding.beam.beam_size: 0 must be at least 1"),
        ({"greedy": {"max_symbols": -1}}, "model.decoding.greedy.max_symbols: -1 must be at least 1, or null"),
        ({"greedy": {"max_symbols_per_step": 0}}, "greedy.max_symbols_per_step: 0 must be at least 1, or null"),
        ({"strategy": "alsd", "beam": {"max_symbols_per_step": 0}}, "beam.max_symbols_per_step: 0 must be at least 1"),
        ({"strategy": "tsd", "beam": {"tsd_max_sym_exp": -2}}, "beam.tsd_max_sym_exp: -2 must be at least 1"),
        ({"strategy": "maes", "beam": {"pruning_mode": "l"}}, "beam.pruning_mode: 'l' is none of early, late"),
        ({"strategy": "maes", "beam": {"maes_prefix_alpha": 3}}, "maes_prefix_alpha: 3 must be 0 or 1"),
        ({"strategy": "maes", "beam": {"ilm_weight": -0.1}}, "beam.ilm_weight: -0.1 must not be below 0"),
        ({"strategy": "maes", "preserve_alignments": True}, "preserve_alignments: True needs a greedy strategy"),
        (
            {"strategy": "maes", "beam": {"ngram_lm_model": "no.arpa", "ngram_lm_alpha": 0.2}},
            "model.decoding.beam.ngram_lm_model: 'no.arpa' there is no such file",
        ),
        (
            {"greedy": {"boosting_tree": {"key_phrases_file": "no.txt"}, "boosting_tree_alpha": 1}},
            "model.decoding.greedy.boosting_tree.key_phrases_file: 'no.txt' there is no such file",
        ),
    ],
)
def test_what_a_person_mistypes_is_named(section, message):
    decoder, joint = networks(2, {})
    with pytest.raises(ConfigError) as error:
        TransducerDecoding(section, CharTokenizer("ab"), decoder, joint, strict=True)
    assert message in str(error.value)


def test_a_files_missing_language_model_is_an_error_when_something_is_decoded():
    decoder, joint = networks(2, {})
    section = {"strategy": "malsd_batch", "beam": {"ngram_lm_model": "gone.arpa", "ngram_lm_alpha": 0.2}}
    decoding = TransducerDecoding(section, CharTokenizer("ab"), decoder, joint)
    with pytest.raises(ConfigError, match=r"gone\.arpa"):
        decoding(*encoded([3]))


@pytest.mark.parametrize("name", ["fastconformer_rnnt_bpe", "fastconformer_hybrid_tdt_ctc_bpe"])
@pytest.mark.parametrize("strategy", ["malsd_batch", "maes"])
def test_a_whole_model_gives_n_best_with_times(golden, name, strategy):
    case = golden(name)
    network = load_model(case.path)
    section = {**case.config["decoding"], "strategy": strategy}
    audio = [row[:length] for row, length in zip(case.io["in_audio"], case.io["in_audio_length"], strict=True)]
    network.set_decoding({**section, "beam": {"beam_size": 3, "return_best_hypothesis": False}}, strict=True)
    lists = network.transcribe(audio, timestamps=True, verbose=False)
    network.set_decoding({**section, "beam": {"beam_size": 3}}, strict=True)
    best = network.transcribe(audio, timestamps=True, verbose=False)
    assert len(lists) == len(audio) and isinstance(network, HybridNetwork) == ("hybrid" in name)
    for readings, first in zip(lists, best, strict=True):
        assert 1 <= len(readings) <= 3 and len({tuple(reading.tokens) for reading in readings}) == len(readings)
        assert readings[0].text == first.text and readings[0].timestamp == first.timestamp
        assert first.n_best is None
        for reading in readings:
            assert len(reading.timestamp["timestep"]) == len(reading.tokens)
            assert " ".join(word["word"] for word in reading.timestamp["word"]).split() == reading.text.split()


@pytest.mark.parametrize("strategy", ["malsd_batch", "tsd", "maes"])
def test_scores_are_nearly_the_sum_over_all_paths_that_the_loss_computes(golden, strategy):
    case = golden("fastconformer_rnnt_bpe")
    network = load_model(case.path)
    network.set_decoding({"strategy": strategy, "beam": {"beam_size": 8, "maes_num_steps": 8}}, strict=True)
    encoded, encoded_len = case.io["encoded"], case.io["encoded_length"]
    hypotheses = network.decoding(encoded, encoded_len)
    targets = torch.nn.utils.rnn.pad_sequence([hypothesis.y_sequence for hypothesis in hypotheses], batch_first=True)
    target_len = torch.tensor([len(hypothesis.tokens) for hypothesis in hypotheses])
    with torch.no_grad():
        predicted, _, _ = network.decoder(targets=targets, target_length=target_len)
        scores = network.joint.joint(encoded.mT, predicted.mT)
    losses = RNNTLoss(network.tokenizer.vocab_size, reduction="none")(scores, targets, encoded_len, target_len)
    for hypothesis, total in zip(hypotheses, (-losses).tolist(), strict=True):
        assert total * (1.25 if strategy == "maes" else 1.1) - 0.1 <= hypothesis.score <= total + 1e-3
