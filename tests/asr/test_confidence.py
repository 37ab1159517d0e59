"""Confidences against NVIDIA's stored ones, formulas in float64, and what must hold of their number."""

import itertools
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_asr import load_model
from nemo_asr.decoding.confidence import AGGREGATES, ConfidenceMeasure
from nemo_asr.decoding.confidence_config import ConfidenceMethodConfig
from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.spelling import Spelling
from nemo_asr.decoding.word_spans import word_spans
from nemo_asr.text.char import CharTokenizer
from nemo_config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = (
    "quartznet_ctc_char",
    "fastconformer_ctc_bpe",
    "conformer_rnnt_char",
    "fastconformer_rnnt_bpe",
    "fastconformer_hybrid_tdt_ctc_bpe",
)
TRANSDUCERS = STORED[2:]
EVERYTHING = {"preserve_word_confidence": True}
MEASURES = [
    {"name": name, "entropy_type": kind, "entropy_norm": norm}
    for name, kind, norm in [
        ("max_prob", "gibbs", "lin"),
        *itertools.product(["entropy"], ["gibbs", "tsallis", "renyi"], ["lin", "exp"]),
    ]
]


def stored(case):
    with np.load(GOLDEN / "confidence" / f"{case}.npz") as arrays:
        found = {key: arrays[key] for key in arrays.files}
    return json.loads(str(found.pop("description"))), found


class Decoded:
    """A golden case, sharpened as the stored confidences were; decodes all its recordings or one."""

    def __init__(self, golden, case):
        self.golden, self.case = golden(case), case
        self.description, self.stored = stored(case)
        self.network = load_model(GOLDEN / case / "model.nemo")
        self.lengths = self.golden.io["encoded_length"]
        if self.description["kind"] == "ctc":
            self.outputs = (self.description["sharper"] * self.golden.io["log_probs"]).log_softmax(-1)
            return
        self.outputs = self.golden.io["encoded"]
        with torch.no_grad():
            for parameter in self.network.joint.joint_net[-1].parameters():
                parameter.mul_(self.description["sharper"])

    def __call__(self, confidence, item=None, timestamps=None, **section):
        own = {**self.golden.config["decoding"], **section, "confidence_cfg": confidence}
        if self.golden.config.get("model_defaults", {}).get("tdt_durations"):
            own["durations"] = list(self.golden.config["model_defaults"]["tdt_durations"])
        self.network.set_decoding(own, strict=True)
        rows = slice(None) if item is None else slice(item, item + 1)
        return self.network.decoding(
            self.outputs[rows], self.lengths[rows], timestamps=timestamps, clock=self.network.frame_clock
        )


@pytest.fixture(scope="module", params=STORED)
def decoded(request, golden):
    return Decoded(golden, request.param)


@pytest.fixture(scope="module", params=TRANSDUCERS)
def transducer(request, golden):
    return Decoded(golden, request.param)


def steps_of(hypothesis):
    """Confidences of the steps, or frames, one after the other."""
    frames = hypothesis.frame_confidence
    return [step for frame in frames for step in frame] if frames and isinstance(frames[0], list) else frames


def joined(lists):
    return np.array([number for own in lists for number in own])


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-3)


def assert_words_equal(hypotheses, expected, whole):
    """Of characters where spaces stand alone: after two, NVIDIA's toolkit takes the tokens beside those of a word."""
    regular = [whole or own.text == " ".join(own.text.split()) for own in hypotheses]
    assert any(regular)
    counts = [len(own.word_confidence) for own in hypotheses]
    for own, alone, part in zip(hypotheses, regular, np.split(expected, np.cumsum(counts)[:-1]), strict=True):
        assert len(part) == len(own.word_confidence)
        if alone:
            close(own.word_confidence, part)


def test_confidences_of_greedy_search_equal_nvidias(decoded):
    @cache
    def hypotheses(measure, how, blanks):
        method = decoded.description["measures"][measure]
        return decoded({**EVERYTHING, "aggregation": how, "exclude_blank": blanks == "none", "method_cfg": method})

    compared = 0
    for key, expected in decoded.stored.items():
        kind, measure, *rest = key.split("/")
        if kind == "durations":
            continue
        how, blanks = rest or ("min", "none")
        found = hypotheses(measure, how, blanks)
        if kind == "frame":
            close(joined(map(steps_of, found)), expected)
        elif kind == "token":
            close(joined(own.token_confidence for own in found), expected)
        else:
            items = decoded.description["words"][f"{measure}/{how}/{blanks}"]
            assert_words_equal([found[item] for item in items], expected, whole="bpe" in decoded.case)
        compared += len(expected) > 0 and expected.std() > 0.01
    assert compared > 25


def test_durations_are_measured_among_themselves(golden):
    """NVIDIA's toolkit measures them against the vocabulary: its numbers, brought to five outcomes, are equal."""
    decoded = Decoded(golden, "fastconformer_hybrid_tdt_ctc_bpe")
    V, D = 97, 5
    for measure in ("gibbs-lin-1.0", "max_prob-lin-1.0"):
        method = decoded.description["measures"][measure]
        pairs = joined(map(steps_of, decoded({**EVERYTHING, "tdt_include_duration": True, "method_cfg": method})))
        tokens, durations = decoded.stored[f"durations/{measure}"].T.astype(float)
        if method["name"] == "max_prob":
            durations = ((durations * (V - 1) + 1) / V * D - 1) / (D - 1)
        else:
            durations = 1 - (1 - durations) * math.log(V) / math.log(D)
        close(pairs, np.stack([tokens, durations], axis=1))
        assert pairs[:, 1].std() > 0.05


def test_a_tokens_confidence_counts_its_duration_where_asked(golden):
    decoded = Decoded(golden, "fastconformer_hybrid_tdt_ctc_bpe")
    asked = {"preserve_token_confidence": True, "aggregation": "prod"}
    plain, paired = decoded(asked), decoded({**asked, "tdt_include_duration": True})
    for own, both in zip(plain, paired, strict=True):
        pairs = {round(pair[0], 6): pair[1] for pair in steps_of(both)}
        for token, product in zip(own.token_confidence, both.token_confidence, strict=True):
            assert product == pytest.approx(token * pairs[round(token, 6)], rel=1e-5)


@pytest.mark.parametrize("strategy", ["greedy_batch", "beam"])
def test_alone_and_in_a_batch_confidences_are_the_same(decoded, strategy):
    beam = {"beam_size": 3, "return_best_hypothesis": True}
    together = decoded(EVERYTHING, strategy=strategy, beam=beam)
    for item, own in enumerate(together):
        (alone,) = decoded(EVERYTHING, item, strategy=strategy, beam=beam)
        assert own.tokens == alone.tokens
        close(np.array(own.token_confidence), alone.token_confidence)
        close(np.array(own.word_confidence), alone.word_confidence)
        close(np.array(steps_of(own)), steps_of(alone))


@pytest.mark.parametrize("strategy", ["malsd_batch", "tsd", "maes"])
@pytest.mark.parametrize("exclude_blank", [True, False])
def test_a_beam_of_one_has_the_confidences_of_greedy_search(transducer, strategy, exclude_blank):
    asked = {**EVERYTHING, "exclude_blank": exclude_blank, "aggregation": "mean", "tdt_include_duration": True}
    limit = {"max_symbols": 20}  # which none reaches: there greedy search leaves the frame without a blank
    beam = {
        "beam_size": 1, **limit, "tsd_max_sym_exp": 20, "maes_num_steps": 20, "maes_prefix_alpha": 0,
        "maes_expansion_beta": 0, "maes_expansion_gamma": 50.0,
    }  # fmt: skip
    greedy = transducer(asked, greedy=limit)
    found = transducer(asked, strategy=strategy, beam=beam)
    alike = [(one, other) for one, other in zip(greedy, found, strict=True) if one.tokens == other.tokens]
    assert alike
    for one, other in alike:
        close(np.array(other.token_confidence), one.token_confidence)
        close(np.array(other.word_confidence), one.word_confidence)


def test_every_reading_of_a_beam_has_its_confidences(decoded):
    for own in decoded(EVERYTHING, strategy="beam", beam={"beam_size": 3, "return_best_hypothesis": False}):
        assert len(own.n_best) == 3
        for reading in own.n_best:
            assert len(reading.token_confidence) == len(reading.tokens)
            assert len(reading.word_confidence) == len(reading.text.split())
            assert all(0 <= number <= 1 for number in reading.token_confidence)
        assert own.token_confidence == own.n_best[0].token_confidence


def test_confidences_of_a_beam_are_those_of_the_networks_along_its_path(transducer):
    """Each step's distribution, computed token by token with the networks alone."""
    network = transducer.network
    method = ConfidenceMethodConfig(name="max_prob", alpha=1.0)
    asked = {"preserve_token_confidence": True, "method_cfg": {"name": "max_prob", "alpha": 1.0}}
    found = transducer(asked, strategy="malsd_batch", beam={"beam_size": 3, "return_best_hypothesis": False})
    measure, outcomes = ConfidenceMeasure(method), network.decoding.search.blank + 1
    for row, own in enumerate(found):
        for reading in own.n_best:
            history = [network.decoder.blank_idx, *reading.tokens]
            for number, frame in enumerate(reading.timestamp):
                with torch.no_grad():
                    heard = network.joint.project_encoder(transducer.outputs[row : row + 1, :, frame, None].mT)
                    said, _ = network.decoder.predict(torch.tensor([history[: number + 1]]), None, add_sos=False)
                    scores = network.joint.joint_after_projection(heard, network.joint.project_prednet(said[:, -1:]))
                expected = measure(scores[0, 0, 0, :outcomes].log_softmax(0)).item()
                assert reading.token_confidence[number] == pytest.approx(expected, abs=1e-4)


def entropy_by_hand(p, kind, alpha):
    if alpha == 1:
        return -math.fsum(x * math.log(x) for x in p if x)
    if kind == "gibbs":
        return -math.fsum(x**alpha * math.log(x) for x in p if x)
    total = math.fsum(x**alpha for x in p if x)
    return (1 - total) / (alpha - 1) if kind == "tsallis" else math.log(total) / (1 - alpha)


def confidence_by_hand(p, name, entropy_type, entropy_norm, alpha):
    V = len(p)
    if name == "max_prob":
        return (max(p) ** alpha * V**alpha - 1) / (V**alpha - 1)
    H, most = (entropy_by_hand(q, entropy_type, alpha) for q in (p, [1 / V] * V))
    if entropy_norm == "lin":
        return 1 - H / most
    rate = alpha if entropy_type == "gibbs" else 1
    return (math.exp(-rate * H) - math.exp(-rate * most)) / (1 - math.exp(-rate * most))


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@pytest.mark.parametrize(
    ("alpha", "tolerance"), [(0.25, 1e-12), (0.33, 1e-12), (0.97, 1e-11), (1.0, 1e-12), (1.03, 1e-11), (1.12, 1e-12)]
)
def test_measures_are_the_papers_formulas(method, alpha, tolerance):
    torch.manual_seed(0)
    for scale in (0.0, 0.5, 3.0, 12.0):
        p = (scale * torch.randn(6, 29, dtype=torch.float64)).softmax(-1)
        p[0, 3:7] = 0  # impossible tokens
        p[0] /= p[0].sum()
        found = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))(p.log())
        expected = [confidence_by_hand(row, **method, alpha=alpha) for row in p.tolist()]
        np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=tolerance)


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@pytest.mark.parametrize("alpha", [0.2, 0.33, 0.999999, 1.0, 1.000001, 1.1])
def test_measures_keep_their_digits_in_float32(method, alpha):
    torch.manual_seed(0)
    measure = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))
    logits = torch.randn(40, 1025) * torch.linspace(0, 20, 40)[:, None]
    exact = measure(logits.double().log_softmax(-1))
    torch.testing.assert_close(measure(logits.log_softmax(-1)).double(), exact, atol=5e-6, rtol=0)
    assert exact.min() < 0.01 and exact.max() > 0.8


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.22, 1.25), logits=st.lists(st.floats(-200, 200), min_size=29, max_size=29))
def test_a_confidence_is_in_0_to_1_and_the_ends_are_certainty_and_ignorance(method, alpha, logits):
    measure = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))
    certain, ignorant = torch.full((29,), -torch.inf), torch.zeros(29).log_softmax(0)
    certain[4] = 0
    assert measure(certain).item() == pytest.approx(1, abs=1e-5)
    assert measure(ignorant).item() == pytest.approx(0, abs=1e-5)
    assert 0 <= measure(torch.tensor(logits).log_softmax(0)).item() <= 1


def test_aggregates_by_hand():
    numbers = [0.5, 0.2, 0.8]
    assert {name: pytest.approx(own(numbers)) for name, own in AGGREGATES.items()} == {
        "mean": 0.5, "min": 0.2, "max": 0.8, "prod": 0.08
    }  # fmt: skip


LABELS = "abc .,"


def ctc_confidence(path, chances, **section):
    """Of a path of characters, `_` for blank, with the probability of each."""
    V = len(LABELS) + 1
    p = torch.full((len(path), V), 0.0)
    for row, label, chance in zip(p, path, chances, strict=True):
        row[:] = (1 - chance) / (V - 1)
        row[LABELS.index(label) if label != "_" else V - 1] = chance
    section = {"preserve_word_confidence": True, "method_cfg": {"name": "max_prob", "alpha": 1.0}, **section}
    decoder = CtcDecoding({"confidence_cfg": section}, CharTokenizer(LABELS), strict=True)
    return decoder(p.log()[None], torch.tensor([len(path)]), timestamps=True)[0]


def normal(chance):
    return pytest.approx((7 * chance - 1) / 6, abs=1e-5)


def test_of_ctc_a_token_is_what_its_frames_are():
    chances = [0.9, 0.8, 0.6, 0.7, 0.5, 0.95]
    found = ctc_confidence("_aa_b_", chances)
    assert found.frame_confidence == [normal(chance) for chance in chances]
    assert found.token_confidence == [normal(0.6), normal(0.5)]
    assert found.word_confidence == [normal(0.5)]
    with_blanks = ctc_confidence("_aa_b_", chances, exclude_blank=False, aggregation="max")
    assert with_blanks.token_confidence == [normal(0.8), normal(0.95)]


def test_spaces_are_in_no_word_and_marks_in_the_one_that_they_join():
    found = ctc_confidence(" a  b ,c", [0.3, 0.9, 0.3, 0.3, 0.8, 0.3, 0.7, 0.6])
    assert found.text == " a b,c"
    assert found.word_confidence == [normal(0.9), normal(0.6)]
    assert [entry["word"] for entry in found.timestamp["word"]] == ["a", "b,c"]
    assert [entry["confidence"] for entry in found.timestamp["word"]] == found.word_confidence


def test_what_nvidias_files_carry_asks_for_nothing(decoded):
    plain = {"preserve_frame_confidence": False, "preserve_token_confidence": False, "preserve_word_confidence": False}
    method = {"name": "entropy", "entropy_type": "tsallis", "alpha": 0.33, "entropy_norm": "exp"}
    section = {**plain, "exclude_blank": True, "aggregation": "min", "tdt_include_duration": False}
    greedy = {"preserve_frame_confidence": False, "confidence_method_cfg": {**method, "temperature": "DEPRECATED"}}
    found = decoded({**section, "method_cfg": {**method, "temperature": "DEPRECATED"}}, greedy=greedy)
    assert decoded.network.decoding.confidence is None
    assert all(own.frame_confidence is own.token_confidence is own.word_confidence is None for own in found)


def test_who_asks_for_words_gets_tokens_and_frames_and_not_the_other_way_round(decoded):
    for asked, count in (("frame", 1), ("token", 2), ("word", 3)):
        own = decoded({f"preserve_{asked}_confidence": True})[0]
        lists = own.frame_confidence, own.token_confidence, own.word_confidence
        assert [part is not None for part in lists] == [True] * count + [False] * (3 - count)


def test_the_greedy_section_asks_for_frames_with_its_own_method(decoded):
    method = {"name": "max_prob", "temperature": 0.5}
    expected = [steps_of(own) for own in decoded({"preserve_frame_confidence": True, "method_cfg": method})]
    for key in ("confidence_method_cfg", "confidence_method"):
        found = decoded(None, greedy={"preserve_frame_confidence": True, key: method})
        assert [steps_of(own) for own in found] == expected
        assert all(own.token_confidence is None for own in found)
    words_first = decoded(EVERYTHING, greedy={"preserve_frame_confidence": True, "confidence_method_cfg": method})
    assert [steps_of(own) for own in words_first] == [steps_of(own) for own in decoded(EVERYTHING)]


def test_alignments_and_confidences_can_be_had_together(transducer):
    (alone, *_), (both, *_) = transducer(EVERYTHING), transducer(EVERYTHING, preserve_alignments=True)
    assert both.frame_confidence == alone.frame_confidence
    assert [len(steps) for steps in both.alignments] == [len(steps) for steps in both.frame_confidence]


def test_a_hybrid_gives_them_with_either_decoder(golden):
    case = golden("fastconformer_hybrid_tdt_ctc_bpe")
    network = load_model(case.path)
    network.set_decoding({"durations": [0, 1, 2, 3, 4], "confidence_cfg": EVERYTHING}, strict=True)
    network.set_ctc_decoding({"confidence_cfg": EVERYTHING}, strict=True)
    audio = [row[:length] for row, length in zip(case.io["in_audio"], case.io["in_audio_length"], strict=True)]
    for decoder in ("rnnt", "ctc"):
        network.use_decoder(decoder)
        for own in network.transcribe(audio, return_hypotheses=True):
            assert len(own.word_confidence) == len(own.text.split()) > 0
            assert len(own.token_confidence) == len(own.tokens)
            assert isinstance(own.frame_confidence[0], list) == (decoder == "rnnt")


def test_word_entries_have_no_confidence_unless_words_are_asked_for(decoded):
    for own in decoded({"preserve_token_confidence": True}, timestamps=True):
        assert own.word_confidence is None and own.token_confidence is not None
        assert all("confidence" not in entry for entry in own.timestamp["word"])
    for own in decoded(EVERYTHING, timestamps=True):
        assert all(0 <= entry["confidence"] <= 1 for entry in own.timestamp["word"] if entry["word"].strip())


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


@pytest.mark.parametrize(
    ("section", "path", "says"),
    [
        ({"confidence_cfg": {"aggregation": "median"}}, "confidence_cfg.aggregation", "median"),
        ({"confidence_cfg": {"method_cfg": {"name": "max"}}}, "confidence_cfg.method_cfg.name", "max_prob"),
        ({"confidence_cfg": {"method_cfg": {"alpha": 0}}}, "confidence_cfg.method_cfg.alpha", "above 0"),
        ({"confidence_cfg": {"method_cfg": {"entropy_type": "shannon"}}}, "method_cfg.entropy_type", "gibbs"),
        ({"confidence_cfg": {"method_cfg": {"entropy_norm": "log"}}}, "method_cfg.entropy_norm", "lin, exp"),
        ({"confidence_cfg": {"preserve_words": True}}, "confidence_cfg.preserve_words", "preserve_word_confidence"),
        ({"greedy": {"confidence_method_cfg": {"alpha": -1}}}, "greedy.confidence_method_cfg.alpha", "above 0"),
        (
            {"confidence_cfg": {**EVERYTHING, "method_cfg": {"entropy_type": "gibbs", "alpha": 3}}},
            "confidence_cfg.method_cfg.alpha",
            "from 0.344 to 1.910",
        ),
    ],
)
def test_what_is_out_of_range_is_an_error_with_its_path(section, path, says):
    with pytest.raises(ConfigError) as error:
        CtcDecoding(section, CharTokenizer("ab "), strict=True)
    assert path in str(error.value) and says in str(error.value)
