"""`transcribe` on a network that reads audio exactly: every block of samples spells one letter by its level."""

import io
import json
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from nemo_asr import load_model
from nemo_asr.data.audio import AudioError
from nemo_asr.data.manifest import ManifestError
from nemo_asr.decoding.ctc import CtcDecoding
from nemo_asr.decoding.timestamps import FrameClock
from nemo_asr.evaluation_mode import evaluation_mode
from nemo_asr.text.char import CharTokenizer
from nemo_asr.transcription import TranscribeConfig, transcribe

RATE, BLOCK = 16000, 160
LABELS = "abcdefghijklmnopqrstuvwxyz '"
BLANK = len(LABELS)


class Blocks(nn.Module):
    """Mean level of each block as the one feature (B, 1, T); remembers the shapes it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input_signal, length, pad_to=None):
        self.seen.append((tuple(input_signal.shape), pad_to, torch.is_inference_mode_enabled()))
        frames = input_signal.shape[1] // BLOCK
        features = input_signal[:, : frames * BLOCK].unflatten(1, (frames, BLOCK)).mean(-1).unsqueeze(1)
        return features, torch.div(length, BLOCK, rounding_mode="floor")


class Spoiling(nn.Module):
    """Right in eval mode, wrong in training mode; batch norm would show a step in training mode as well."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, audio_signal, length):
        encoded = audio_signal * self.scale + (0.5 if self.training else 0.0)
        self.norm(encoded)
        return encoded, length


class LevelReader(nn.Module):
    sample_rate = RATE

    def __init__(self, decoding=None):
        super().__init__()
        self.preprocessor = Blocks()
        self.encoder = Spoiling()
        self.tokenizer = CharTokenizer(LABELS)
        self.decoding = CtcDecoding(decoding, self.tokenizer)

    def decode(self, encoded, encoded_len, *, timestamps, keep_log_probs):
        level = (encoded[:, 0] * 64).round().long()
        classes = torch.where(level == 0, BLANK, level - 1).clamp(0, BLANK)
        log_probs = nn.functional.one_hot(classes, BLANK + 1).float().mul(9).log_softmax(-1)
        clock = FrameClock(0.01, 1)
        return self.decoding(log_probs, encoded_len, timestamps=timestamps, keep_log_probs=keep_log_probs, clock=clock)


@pytest.fixture
def network():
    return LevelReader().eval()


def speech(text, repeat=1):
    """Audio that spells a text; a block of silence parts the letters."""
    levels = [value for letter in text for value in [(LABELS.index(letter) + 1) / 64, 0.0] for _ in range(repeat)]
    return np.repeat(np.float32(levels), BLOCK)


TEXTS = ["one", "a longer text", "two", "the longest of all the texts", "x"]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        soundfile.write(path, speech(text), RATE, subtype="FLOAT")
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_texts_stand_in_the_order_of_the_input(network, files, batch_size, num_workers):
    assert transcribe(network, files, batch_size=batch_size, num_workers=num_workers) == TEXTS


def test_batches_hold_recordings_of_similar_length(network, files):
    transcribe(network, files, batch_size=2)
    expected = sorted((2 * BLOCK * len(text) for text in TEXTS), reverse=True)
    shapes = [shape for shape, _, _ in network.preprocessor.seen]
    assert shapes == [(2, expected[0]), (2, expected[2]), (1, expected[4])]


def test_features_are_not_padded_and_nothing_records_gradients(network, files):
    transcribe(network, files[0])
    assert network.preprocessor.seen == [((1, 2 * BLOCK * 3), 0, True)]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_every_form_of_audio_gives_the_same_text(network, files):
    data = files[1].read_bytes()
    samples = speech(TEXTS[1])
    forms = [str(files[1]), files[1], data, io.BytesIO(data), samples, torch.from_numpy(samples), samples.astype(float)]
    assert transcribe(network, forms, batch_size=3) == [TEXTS[1]] * len(forms)
    for form in (*forms[:3], samples):
        assert transcribe(network, form) == [TEXTS[1]]
    with files[1].open("rb") as file:
        assert transcribe(network, file) == [TEXTS[1]]


def test_integers_are_scaled_by_their_range(network):
    assert transcribe(network, np.int16(speech("scaled") * 32768)) == ["scaled"]


def test_read_only_arrays_are_fine_and_stay_as_they_are(network, recwarn):
    samples = speech("kept")
    samples.flags.writeable = False
    before = samples.copy()
    assert transcribe(network, [samples], pad_min_duration=0) == ["kept"]
    assert np.array_equal(samples, before)
    assert not recwarn.list


def test_arrays_are_resampled_from_the_rate_given(network):
    assert transcribe(network, speech("slow", repeat=20)[::2].copy(), sample_rate=RATE // 2) == ["slow"]


def test_short_arrays_get_silence_at_both_ends_and_files_none(network, files):
    transcribe(network, speech("x"))
    transcribe(network, speech("x"), pad_min_duration=0)
    transcribe(network, files[4])
    assert [shape for shape, _, _ in network.preprocessor.seen] == [(1, RATE), (1, 2 * BLOCK), (1, 2 * BLOCK)]
    (hypothesis,) = transcribe(network, speech("x"), timestamps=True)
    assert hypothesis.timestamp["timestep"] == [49]


def test_a_manifest_gives_texts_in_its_order_and_takes_pieces_of_files(network, tmp_path):
    soundfile.write(tmp_path / "long.flac", speech("onetwo", repeat=10), RATE)
    entries = [
        {"audio_filepath": "long.flac", "offset": 0.6, "duration": 0.6},
        {"audio_filepath": "long.flac", "duration": 0.6},
        {"audio_filepath": "long.flac"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert transcribe(network, str(manifest)) == ["two", "one", "onetwo"]
    assert transcribe(network, [manifest]) == ["two", "one", "onetwo"]


def test_a_data_loader_is_taken_as_it_is(network):
    batch = nn.utils.rnn.pad_sequence([torch.from_numpy(speech(text)) for text in TEXTS[:2]], batch_first=True)
    lengths = torch.tensor([2 * BLOCK * len(text) for text in TEXTS[:2]])
    loader = torch.utils.data.DataLoader([(batch, lengths, None, None)], batch_size=None, collate_fn=lambda x: x)
    assert transcribe(network, loader) == TEXTS[:2]


def test_nothing_to_transcribe_gives_nothing(network):
    assert transcribe(network, []) == []


def test_results_answer_to_text_in_every_form(network, files):
    for options in ({}, {"return_hypotheses": True}, {"timestamps": True}):
        assert [result.text for result in transcribe(network, files, **options)] == TEXTS


def test_hypotheses_carry_log_probabilities(network, files):
    first, second = transcribe(network, files[:2], return_hypotheses=True)
    assert first.y_sequence.shape == (2 * len(TEXTS[0]), BLANK + 1)
    assert second.alignments.exp().sum(-1).allclose(torch.ones(2 * len(TEXTS[1])))
    assert first.timestamp == []


def test_log_probabilities_can_be_left_out_of_hypotheses_to_save_memory(network, files):
    kept, lean = (transcribe(network, files[:1], timestamps=True, keep_log_probs=keep)[0] for keep in (None, False))
    assert (kept.y_sequence.ndim, lean.y_sequence.ndim, lean.alignments) == (2, 1, None)
    assert lean.timestamp == kept.timestamp


def test_timestamps_are_in_seconds_of_the_recording(network, files):
    (hypothesis,) = transcribe(network, files[1], timestamps=True)
    words = [(word["word"], word["start"], word["end"]) for word in hypothesis.timestamp["word"]]
    assert [word for word, _, _ in words] == ["a", "longer", "text"]
    assert words[1][1:] == pytest.approx((0.02, 0.14))


def test_the_config_can_ask_for_timestamps_and_the_call_can_decline(files):
    network = LevelReader({"compute_timestamps": True}).eval()
    assert transcribe(network, files[:1], return_hypotheses=True)[0].timestamp["word"][0]["word"] == "one"
    assert transcribe(network, files[:1], return_hypotheses=True, timestamps=False)[0].timestamp == []


def test_a_config_object_replaces_the_options(network, files):
    options = TranscribeConfig(batch_size=1, return_hypotheses=True)
    results = transcribe(network, files, batch_size=5, override_config=options)
    assert [result.text for result in results] == TEXTS
    assert {shape[0] for shape, _, _ in network.preprocessor.seen} == {1}


def stereo(path):
    soundfile.write(path, np.stack([speech("left"), speech("rite")], axis=1), RATE, subtype="FLOAT")


@pytest.mark.parametrize(("selector", "text"), [(0, "left"), (1, "rite")])
def test_a_channel_is_taken_of_several(network, tmp_path, selector, text):
    stereo(tmp_path / "two.wav")
    assert transcribe(network, tmp_path / "two.wav", channel_selector=selector) == [text]
    array = np.stack([speech("left"), speech("rite")])
    assert transcribe(network, array, channel_selector=selector) == [text]


def bad_item(kind, folder):
    path = folder / f"{kind}.wav"
    if kind == "empty":
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "stereo":
        stereo(path)
    elif kind == "text":
        path.write_text("this is no audio")
    return path


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing", FileNotFoundError, "missing.wav: there is no such audio file"),
        ("empty", AudioError, "empty.wav: holds no audio"),
        (
            "stereo",
            AudioError,
            "stereo.wav: has 2 channels; channel_selector: give a channel from 0 to 1, or 'average'",
        ),
        ("text", AudioError, "text.wav: is no audio that libsndfile reads"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_before_anything_is_computed(
    network, files, tmp_path, kind, error, message
):
    with pytest.raises(error) as raised:
        transcribe(network, [*files, bad_item(kind, tmp_path)], batch_size=1)
    assert message in str(raised.value)
    assert network.preprocessor.seen == []


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (np.zeros(0, np.float32), AudioError, "audio[1]: holds no audio"),
        (np.zeros((2, 900), np.float32), AudioError, "audio[1]: has 2 channels; channel_selector"),
        (np.zeros((2, 9, 900), np.float32), AudioError, "audio[1]: has the shape (2, 9, 900)"),
        (np.full(900, np.nan, np.float32), AudioError, "audio[1]: holds samples that are not finite"),
        (speech("loud") * 32768, AudioError, "audio[1]: float samples reach"),
        (np.zeros(900, np.complex64), AudioError, "audio[1]: complex64 is no type of audio"),
        (b"RIFF of nothing", AudioError, "audio[1]: is no audio that libsndfile reads"),
        (17, TypeError, "audio[1]: int is no audio; give a path, bytes, a binary file, an array or a tensor"),
    ],
)
def test_audio_in_memory_that_cannot_be_used_is_named_by_its_place(network, item, error, message):
    with pytest.raises(error) as raised:
        transcribe(network, [speech("fine"), item])
    assert message in str(raised.value)
    assert network.preprocessor.seen == []


def test_a_manifests_bad_line_is_named(network, tmp_path):
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"audio_filepath": "gone.wav", "duration": 1}\n')
    with pytest.raises(ManifestError, match=r"manifest\.json:1: audio_filepath: gone\.wav is not a file"):
        transcribe(network, manifest)
    stereo(tmp_path / "two.wav")
    manifest.write_text('{"audio_filepath": "two.wav", "duration": 1}\n')
    with pytest.raises(AudioError, match=r"manifest\.json:1: .*two\.wav: has 2 channels"):
        transcribe(network, manifest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"augmentor": {"noise": {}}}, "augmentor: transcribe takes audio as it is"),
        ({"partial_hypothesis": [None]}, "partial_hypothesis: is for streaming"),
    ],
)
def test_what_is_not_supported_is_an_error_only_when_set(network, files, options, message):
    assert transcribe(network, files[:1], augmentor=None, partial_hypothesis=None, use_lhotse=False) == TEXTS[:1]
    with pytest.raises(ValueError, match=message):
        transcribe(network, files, **options)


def in_threads(function, count):
    results, threads = [None] * count, []
    for number in range(count):
        thread = threading.Thread(target=lambda number=number: results.__setitem__(number, function(number)))
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_get_what_a_single_caller_gets(network, files):
    def call(number):
        return transcribe(network, files[number % 3 :], batch_size=1 + number % 3, num_workers=number % 2)

    assert in_threads(call, 12) == [TEXTS[number % 3 :] for number in range(12)]


class Untouchable(LevelReader):
    """Fails when an attribute is set or a mode switched."""

    frozen = False

    def __setattr__(self, name, value):
        assert not self.frozen, name
        super().__setattr__(name, value)

    def train(self, mode=True):
        assert not self.frozen
        return super().train(mode)

    def requires_grad_(self, requires_grad=True):
        raise AssertionError("requires_grad_")


def test_a_network_in_eval_mode_is_not_touched(files):
    network = Untouchable().eval()
    Untouchable.frozen = True
    try:
        assert transcribe(network, files) == TEXTS
    finally:
        Untouchable.frozen = False
    assert network.encoder.scale.requires_grad
    assert network.encoder.norm.num_batches_tracked == 0


def test_training_mode_comes_back_to_each_module_as_it_was(files):
    network = LevelReader().train()
    network.encoder.norm.eval()
    assert transcribe(network, files) == TEXTS
    flags = {name: module.training for name, module in network.named_modules()}
    assert flags == {"": True, "preprocessor": True, "encoder": True, "encoder.norm": False}
    assert network.encoder.norm.num_batches_tracked == 0


def test_training_mode_comes_back_after_an_error(tmp_path):
    network = LevelReader().train()
    network.decode = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        transcribe(network, speech("x"))
    assert network.training
    assert network.encoder.training


def test_threads_on_a_network_in_training_mode_never_see_it_half_switched(files):
    network = LevelReader().train()
    assert in_threads(lambda number: transcribe(network, files, batch_size=1), 8) == [TEXTS] * 8
    assert all(module.training for module in network.modules())


def test_the_last_of_nested_calls_restores_the_mode():
    network = LevelReader().train()
    with evaluation_mode(network):
        with evaluation_mode(network):
            assert not network.encoder.training
        assert not network.encoder.training
    assert network.encoder.training


def test_a_single_module_in_training_mode_is_reason_enough_to_switch():
    network = LevelReader().eval()
    network.encoder.norm.train()
    with evaluation_mode(network):
        assert not network.encoder.norm.training
    assert network.encoder.norm.training
    assert not network.training


def test_nothing_is_printed_where_there_is_no_terminal(network, files, capfd):
    transcribe(network, files, verbose=True)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_progress_bar_from_each_of_several_threads(network, files, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    results = in_threads(lambda number: transcribe(network, files, batch_size=1), 3)
    assert results == [TEXTS] * 3
    assert "Transcribing" in sys.stderr.getvalue()
    sys.stderr.truncate(0)
    assert transcribe(network, files, verbose=False) == TEXTS
    assert sys.stderr.getvalue().strip("\0") == ""


@pytest.mark.parametrize("case", ["quartznet_ctc_char", "fastconformer_ctc_bpe", "conformer_ctc_bpe"])
def test_threads_on_a_real_network_get_what_a_single_caller_gets(golden, case):
    lengths = np.random.default_rng(0).integers(6000, 60000, 8)
    audio = [np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32) for length in lengths]
    path = golden(case).path
    expected = [load_model(path).transcribe(item)[0] for item in audio]
    network = load_model(path)  # a new one, whose caches are filled by several threads at once
    assert in_threads(lambda number: network.transcribe(audio[number])[0], len(audio)) == expected
