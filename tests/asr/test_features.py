"""The front end as a module: NVIDIA's golden features, its buffers, and what its YAML keys switch."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_asr.modules import AudioToMelSpectrogramPreprocessor
from nemo_kernels import log_mel


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 8000, generator=generator) * 0.1, torch.tensor([8000, 6000])


def built(case):
    preprocessor = AudioToMelSpectrogramPreprocessor(**case.section("preprocessor"))
    preprocessor.load_state_dict(case.weights("preprocessor"))
    return preprocessor.eval()


def test_golden_audio_gives_the_golden_features(ctc_case):
    features, frames = built(ctc_case)(input_signal=ctc_case.io["in_audio"], length=ctc_case.io["in_audio_length"])
    assert frames.tolist() == ctc_case.io["processed_signal_length"].tolist()
    assert features.shape == ctc_case.io["processed_signal"].shape
    torch.testing.assert_close(features, ctc_case.io["processed_signal"], rtol=0, atol=5e-3)


def test_computed_buffers_equal_the_stored_ones(ctc_case):
    computed = AudioToMelSpectrogramPreprocessor(**ctc_case.section("preprocessor")).state_dict()
    stored = ctc_case.weights("preprocessor")
    assert list(computed) == list(stored) == ["featurizer.window", "featurizer.fb"]
    for name, buffer in computed.items():
        torch.testing.assert_close(buffer, stored[name], rtol=1e-6, atol=1e-7)


def test_stored_buffers_are_the_ones_used(noise):
    preprocessor = AudioToMelSpectrogramPreprocessor(normalize=None).eval()
    before, frames = preprocessor(*noise)
    state = preprocessor.state_dict()
    preprocessor.load_state_dict({**state, "featurizer.fb": state["featurizer.fb"] * torch.e})
    after, _ = preprocessor(*noise)
    valid = int(frames[1])
    torch.testing.assert_close(after[1, :, :valid], before[1, :, :valid] + 1, rtol=0, atol=5e-2)


def test_files_of_older_releases_load(noise):
    preprocessor = AudioToMelSpectrogramPreprocessor().eval()
    expected, _ = preprocessor(*noise)
    older = {
        "featurizer.stft.forward_basis": torch.zeros(3),
        "featurizer._mel_spec_extractor.mel_scale.fb": torch.zeros(3),
    }
    preprocessor.load_state_dict(older, strict=True)
    assert torch.equal(preprocessor(*noise)[0], expected)
    with pytest.raises(RuntimeError, match="strange"):
        preprocessor.load_state_dict({"featurizer.strange": torch.zeros(3)})


def test_seconds_and_samples_are_two_ways_to_say_the_same(noise):
    seconds = AudioToMelSpectrogramPreprocessor(window_size=0.025, window_stride=0.01).eval()
    samples = AudioToMelSpectrogramPreprocessor(
        window_size=False, window_stride=None, n_window_size=400, n_window_stride=160
    ).eval()
    assert torch.equal(seconds(*noise)[0], samples(*noise)[0])


def test_keys_reach_the_kernel(noise):
    options = {"preemph": None, "features": 30, "lowfreq": 50, "highfreq": 7000, "mag_power": 1.0, "mel_norm": None}
    options |= {"log_zero_guard_type": "clamp", "log_zero_guard_value": 1e-5, "normalize": "all_features"}
    options |= {"pad_to": 8, "pad_value": -2.0, "frame_splicing": 2, "exact_pad": True, "window": "blackman"}
    ours, frames = AudioToMelSpectrogramPreprocessor(**options, n_fft=1024).eval()(*noise)
    expected, expected_frames = log_mel(
        *noise, window_size=320, n_fft=1024, n_mels=30, low_hz=50, high_hz=7000, mel_norm=None, window="blackman",
        preemphasis=None, exact_pad=True, magnitude_power=1.0, log_guard_type="clamp", log_guard=1e-5,
        normalize="all_features", frame_splicing=2, pad_to=8, pad_value=-2.0,
    )  # fmt: skip
    assert torch.equal(ours, expected)
    assert torch.equal(frames, expected_frames)
    assert ours.shape[1] == 60


def test_padding_can_be_chosen_for_a_call(noise):
    preprocessor = AudioToMelSpectrogramPreprocessor().eval()
    assert preprocessor(*noise)[0].shape[2] == 64
    assert preprocessor(*noise, pad_to=0)[0].shape[2] == 51
    assert preprocessor(*noise, pad_to="max")[0].shape[2] == 1670
    preprocessor.featurizer.pad_to = 0
    assert preprocessor(*noise)[0].shape[2] == 51


def test_dither_is_for_training_only(noise):
    preprocessor = AudioToMelSpectrogramPreprocessor(dither=0.1).eval()
    assert torch.equal(preprocessor(*noise)[0], preprocessor(*noise)[0])
    preprocessor.train()
    assert not torch.equal(preprocessor(*noise)[0], preprocessor(*noise)[0])


def test_dither_leaves_the_audio_alone(noise):
    audio, length = noise
    before = audio.clone()
    AudioToMelSpectrogramPreprocessor(dither=0.1).train()(audio, length)
    assert torch.equal(audio, before)


@pytest.mark.parametrize("rng", [None, random.Random(4)])
def test_narrow_band_augmentation_silences_the_upper_bins_of_its_share(rng):
    torch.manual_seed(2)
    audio = torch.randn(400, 1600)
    options = {"normalize": None, "dither": 0.0, "pad_to": 0, "nb_max_freq": 4000, "rng": rng}
    preprocessor = AudioToMelSpectrogramPreprocessor(**options, nb_augmentation_prob=0.25).train()
    features, _ = preprocessor(audio, torch.full((400,), 1600))
    silenced = (features[:, -1, 2:8] < -16).all(dim=1)
    assert 60 <= int(silenced.sum()) <= 140
    assert (features[:, 0, 2:8].mean(dim=1) > -12).all()
    assert not (preprocessor.eval()(audio, torch.full((400,), 1600))[0][:, -1, 2:8] < -16).any()


def test_features_are_computed_in_float32_and_given_in_the_modules_dtype(noise):
    audio, length = noise
    preprocessor = AudioToMelSpectrogramPreprocessor().eval()
    expected, _ = preprocessor(audio, length)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(preprocessor(audio.double(), length)[0], expected)
    assert preprocessor.to(torch.bfloat16)(audio, length)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("normalize", ["NA", "None", None, False])
def test_ways_to_switch_the_normalisation_off(noise, normalize, caplog):
    features, _ = AudioToMelSpectrogramPreprocessor(normalize=normalize).eval()(*noise)
    expected, _ = log_mel(*noise, window_size=320, n_mels=64, normalize=None, pad_to=16)
    assert torch.equal(features, expected)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_window_size": 400}, "n_window_size: 400 is given beside window_size 0.02"),
        ({"window_stride": None}, "window_stride: None and n_window_stride None leave no samples"),
        ({"n_fft": 256}, "n_fft: 256 is shorter than the window of 320 samples"),
        ({"window": "kaiser"}, "window: 'kaiser' is none of"),
        ({"log_zero_guard_type": "max"}, "log_zero_guard_type: 'max' must be"),
        ({"log_zero_guard_value": "huge"}, "log_zero_guard_value: 'huge' must be"),
        ({"pad_to": "16"}, "pad_to: '16' must be a number of frames or 'max'"),
        ({"exact_pad": True, "window_stride": None, "n_window_stride": 161}, "exact_pad: needs an even stride"),
        ({"lowfreq": 9000}, "lowfreq: 9000 must be"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        AudioToMelSpectrogramPreprocessor(**options)
