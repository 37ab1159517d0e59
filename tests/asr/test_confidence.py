"""Confidences of hypotheses against NVIDIA's stored ones, and who asks for which."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_asr import load_model
from nemo_asr.decoding.confidence import ConfidenceMeasure
from nemo_asr.decoding.confidence_config import ConfidenceMethodConfig
from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.fusion import Bias
from nemo_asr.models import ASRModel
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
    greedy["confidence_method"] = "DEPRECATED"
    found = decoded({**section, "method_cfg": {**method, "temperature": "DEPRECATED"}}, greedy=greedy)
    assert decoded.network.decoding.confidence is None
    assert all(own.frame_confidence is own.token_confidence is own.word_confidence is None for own in found)


def test_who_asks_for_words_gets_tokens_and_frames_and_not_the_other_way_round(decoded):
    for asked, count in (("frame", 1), ("token", 2), ("word", 3)):
        own = decoded({f"preserve_{asked}_confidence": True})[0]
        lists = own.frame_confidence, own.token_confidence, own.word_confidence
        assert [part is not None for part in lists] == [True] * count + [False] * (3 - count)


def test_an_empty_section_asks_for_nothing_and_a_beam_section_for_frames(decoded):
    assert all(own.frame_confidence is None for own in decoded(None))
    for own in decoded(None, strategy="beam", beam={"preserve_frame_confidence": True}):
        assert steps_of(own) and own.token_confidence is None


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


def test_nothing_is_measured_unless_asked_for(decoded, monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(ConfidenceMeasure, "__call__", refuse)
    for strategy in ("greedy_batch", "beam"):
        assert all(own.frame_confidence is None for own in decoded({}, strategy=strategy))
        with pytest.raises(AssertionError, match="measured"):
            decoded(EVERYTHING, strategy=strategy)


def test_phrases_change_the_words_and_not_how_sure_the_network_is_of_a_frame(golden):
    decoded = Decoded(golden, "quartznet_ctc_char")
    plain = decoded(EVERYTHING)
    phrases = Bias(phrases={"the": 30.0, "a": 30.0})
    found = decoded.network.decoding(decoded.outputs, decoded.lengths, bias=phrases)
    assert [own.tokens for own in found] != [own.tokens for own in plain]
    assert [own.frame_confidence for own in found] == [own.frame_confidence for own in plain]
    assert all(len(own.token_confidence) == len(own.tokens) for own in found)


def test_a_models_change_of_decoding_is_obeyed_and_saved(golden, tmp_path):
    case = golden("fastconformer_rnnt_bpe")
    model = ASRModel.restore_from(case.path, map_location="cpu")
    audio = case.io["in_audio"][0][: case.io["in_audio_length"][0]]
    assert model.transcribe([audio], return_hypotheses=True)[0].word_confidence is None
    section = OmegaConf.create({**case.config["decoding"], "confidence_cfg": EVERYTHING})
    model.change_decoding_strategy(section, verbose=False)
    own = model.transcribe([audio], return_hypotheses=True)[0]
    assert len(own.word_confidence) == len(own.words) > 3
    model.save_to(tmp_path / "sure.nemo")
    again = load_model(tmp_path / "sure.nemo").transcribe([audio], return_hypotheses=True)[0]
    close(again.word_confidence, own.word_confidence)


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
