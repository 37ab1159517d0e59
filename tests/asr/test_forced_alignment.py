"""Forced alignment against torchaudio's, and in float64 against a search through every path."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr.decoding.forced_alignment import align_words, ctc_forced_align
from nemo_asr.decoding.timestamps import FrameClock

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("quartznet_ctc_char", "fastconformer_ctc_bpe", "conformer_ctc_bpe")


def random_log_probs(B, T, V, seed=0, dtype=torch.float32):
    return torch.randn(B, T, V, dtype=dtype, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def align_one(log_probs, target, blank):
    lengths = torch.tensor([log_probs.shape[0]]), torch.tensor([len(target)])
    targets = torch.tensor(target, dtype=torch.long).reshape(1, -1)
    return ctc_forced_align(log_probs.unsqueeze(0), targets, *lengths, blank=blank)[0]


def best_path(log_probs, target, blank):
    """The best of all V^T paths that collapse to the target."""
    T, V = log_probs.shape
    paths = (
        path
        for path in itertools.product(range(V), repeat=T)
        if [key for key, _ in itertools.groupby(path) if key != blank] == target
    )
    return max(paths, key=lambda path: float(log_probs[torch.arange(T), list(path)].sum()))


@pytest.mark.parametrize("target", [[], [0], [1, 1], [0, 1, 0], [2, 2, 1], [0, 0, 0]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_path_is_the_best_of_all(target, seed):
    log_probs = random_log_probs(1, 6, 4, seed, torch.float64)[0]
    expected = best_path(log_probs, target, blank=3)
    found = align_one(log_probs, target, blank=3)
    assert tuple(found.labels.tolist()) == expected
    assert found.score == pytest.approx(float(log_probs[torch.arange(6), list(expected)].sum()), rel=1e-12)
    assert [span.token for span in found.spans] == target


@pytest.mark.parametrize(("T", "U", "V"), [(1, 1, 2), (20, 6, 5), (61, 24, 30), (200, 60, 6)])
@pytest.mark.parametrize("blank_first", [True, False])
def test_labels_and_scores_equal_torchaudios(T, U, V, blank_first):
    forced_align = pytest.importorskip("torchaudio.functional").forced_align
    blank = 0 if blank_first else V - 1
    log_probs = random_log_probs(1, T, V, seed=T + U)
    target = torch.randint(1 if blank_first else 0, V if blank_first else V - 1, (1, U))
    labels, scores = forced_align(log_probs, target.int(), blank=blank)
    found = align_one(log_probs[0], target[0].tolist(), blank)
    torch.testing.assert_close(found.labels, labels[0].long(), rtol=0, atol=0)
    torch.testing.assert_close(found.scores, scores[0])


@pytest.mark.parametrize("case", CASES)
def test_token_spans_of_golden_files_equal_torchaudios(case):
    functional = pytest.importorskip("torchaudio.functional")
    arrays = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / case / "io.npz").items()}
    log_probs, frames = arrays["log_probs"], arrays["encoded_length"]
    blank = log_probs.shape[2] - 1
    found = ctc_forced_align(log_probs, arrays["in_targets"], frames, arrays["in_target_length"], blank)
    for item, alignment in enumerate(found):
        target = arrays["in_targets"][item, : arrays["in_target_length"][item]]
        one = log_probs[item : item + 1, : frames[item]]
        labels, scores = functional.forced_align(one, target.unsqueeze(0).int(), blank=blank)
        spans = functional.merge_tokens(labels[0], scores[0], blank=blank)
        ours = [(span.token, span.start, span.end) for span in alignment.spans]
        assert ours == [(span.token, span.start, span.end) for span in spans]
        np.testing.assert_allclose([s.score for s in alignment.spans], [s.score for s in spans], rtol=1e-5)


def test_a_batch_gives_what_each_utterance_gives_alone():
    log_probs = random_log_probs(4, 30, 7, seed=5)
    targets = torch.randint(0, 6, (4, 9), generator=torch.Generator().manual_seed(1))
    frames, lengths = torch.tensor([30, 22, 18, 1]), torch.tensor([9, 7, 1, 0])
    batch = ctc_forced_align(log_probs, targets, frames, lengths, blank=6)
    for item, alignment in enumerate(batch):
        alone = align_one(log_probs[item, : frames[item]], targets[item, : lengths[item]].tolist(), 6)
        assert alignment.labels.tolist() == alone.labels.tolist()
        assert alignment.spans == alone.spans


def test_a_target_that_just_fits_takes_every_frame():
    found = align_one(random_log_probs(1, 5, 4)[0], [1, 1, 2, 0], blank=3)
    assert found.labels.tolist() == [1, 3, 1, 2, 0]
    assert [(span.start, span.end) for span in found.spans] == [(0, 1), (2, 3), (3, 4), (4, 5)]


def test_too_few_frames_are_an_error_that_counts_the_blanks_between_equal_tokens():
    with pytest.raises(ValueError, match="item 0: 4 frames are too few for its target, which needs 5"):
        align_one(random_log_probs(1, 4, 4)[0], [1, 1, 2, 0], blank=3)


def test_a_text_of_probability_zero_is_an_error():
    log_probs = random_log_probs(1, 4, 3)[0]
    log_probs[:, 1] = -math.inf
    with pytest.raises(ValueError, match="item 0: every path that spells its target has probability 0"):
        align_one(log_probs, [0, 1], blank=2)


@pytest.mark.parametrize("wrong", [3, -1, 7])
def test_blank_and_unknown_ids_are_refused_in_targets(wrong):
    with pytest.raises(ValueError, match=rf"targets\[0, 1\]: {wrong} is no token; blank is 3 of 4 classes"):
        align_one(random_log_probs(1, 6, 4)[0], [1, wrong], blank=3)


class Pieces:
    """SentencePiece's spelling, one id a piece."""

    def __init__(self, *pieces):
        self.vocabulary = list(pieces)
        self.vocab_size = len(pieces)

    def tokens(self, ids):
        return [self.vocabulary[id_] for id_ in ids]

    def decode(self, ids):
        return "".join(self.tokens(ids)).replace("▁", " ").lstrip(" ")

    def encode(self, text, lang=None):
        return [self.vocabulary.index(piece) for piece in text.split("|")]


def peaked(labels, V):
    return torch.full((len(labels), V), -9.0).scatter(1, torch.tensor(labels)[:, None], -0.1)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(Pieces("▁he", "y", "▁you"), "▁he|y|▁you"), (Pieces("he", "y", "you", " "), "he|y| |you")],
    ids=["pieces", "characters with a space"],
)
def test_words_begin_with_their_first_token_and_end_with_their_last(tokenizer, text):
    blank = tokenizer.vocab_size
    gap = blank if blank == 3 else 3
    log_probs = peaked([blank, 0, 0, 1, gap, 2, 2, blank], blank + 1)
    words = align_words(log_probs, text, tokenizer, FrameClock(0.01, 4))
    assert [(word.word, word.start_s, word.end_s) for word in words] == [("hey", 0.04, 0.16), ("you", 0.2, 0.28)]
    assert [word.score for word in words] == pytest.approx([-0.1, -0.1])


def test_no_text_has_no_words():
    tokenizer = Pieces("▁a")
    tokenizer.encode = lambda text, lang=None: []
    assert align_words(peaked([1, 1], 2), "", tokenizer, FrameClock(0.01, 4)) == []


def test_a_path_keeps_no_graph():
    log_probs = random_log_probs(1, 8, 4)[0].requires_grad_()
    assert not align_one(log_probs, [0, 1], blank=3).scores.requires_grad
