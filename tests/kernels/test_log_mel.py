"""log_mel against its textbook version, NVIDIA's stored features, torch and torchaudio."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch

from nemo_kernels import log_mel, mel_filterbank
from nemo_kernels.log_mel import LogMelOptions
from nemo_kernels.log_mel.normalization import normalize_features
from nemo_kernels.log_mel.reference import log_mel_reference
from nemo_kernels.log_mel.window import analysis_window


@pytest.fixture(scope="module")
def short(speech):
    """Half a second of each prompt, of three different lengths, in float64."""
    audio = speech[0][:, 4000:12000].double()
    return audio, torch.tensor([8000, 5123, 700])


@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "n_mels", "low", "high", "norm"),
    [
        (16000, 512, 80, 0.0, None, "slaney"),
        (16000, 512, 64, 0.0, None, "slaney"),
        (22050, 1024, 80, 0.0, 8000.0, "slaney"),
        (8000, 256, 40, 125.0, 3800.0, "slaney"),
        (16000, 400, 23, 20.0, 7600.0, None),
    ],
)
def test_filters_equal_torchaudios_slaney_filters(sample_rate, n_fft, n_mels, low, high, norm):
    functional = pytest.importorskip("torchaudio.functional")
    ours = mel_filterbank(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, low_hz=low, high_hz=high, norm=norm)
    theirs = functional.melscale_fbanks(
        n_fft // 2 + 1, low, high or sample_rate / 2, n_mels, sample_rate, norm=norm, mel_scale="slaney"
    )
    # torchaudio works in float32 throughout, so its filters are off by 1e-5 of the highest
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-5 * float(theirs.max()))


def test_filters_equal_the_ones_in_an_nvidia_file(stored_filterbank):
    ours = mel_filterbank(sample_rate=16000, n_fft=512, n_mels=80)
    torch.testing.assert_close(ours[None], stored_filterbank, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [1, 2.0, float("inf")])
def test_a_numeric_norm_gives_filters_of_norm_one(norm):
    filters = mel_filterbank(sample_rate=16000, n_fft=512, n_mels=20, norm=norm, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(filters, ord=norm, dim=1)
    torch.testing.assert_close(lengths, torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett"])
def test_windows_equal_scipys_symmetric_ones(name):
    windows = pytest.importorskip("scipy.signal.windows")
    ours = analysis_window(name, 401, dtype=torch.float64)
    torch.testing.assert_close(ours, torch.from_numpy(getattr(windows, name)(401, sym=True)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", ["per_feature", "all_features", None])
@pytest.mark.parametrize(("window_size", "hop_size", "n_mels"), [(400, 160, 80), (320, 200, 13), (512, 128, 40)])
def test_float64_equals_the_textbook_version(short, normalize, window_size, hop_size, n_mels):
    options = {"window_size": window_size, "hop_size": hop_size, "n_mels": n_mels, "normalize": normalize}
    ours, ours_len = log_mel(*short, n_fft=512, **options)
    expected, expected_len = log_mel_reference(*short, n_fft=512, **options)
    assert ours.dtype == torch.float64
    assert ours_len.tolist() == expected_len.tolist()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_float32_equals_nvidias_stored_features(speech, stored_features):
    features, feature_len = log_mel(*speech)
    assert feature_len.tolist() == stored_features[1].tolist()
    assert features.shape == stored_features[0].shape
    torch.testing.assert_close(features, stored_features[0], rtol=0, atol=5e-3)


def test_what_lies_in_the_padding_does_not_matter(short):
    audio, audio_len = short
    noisy = audio.clone()
    for row, samples in enumerate(audio_len.tolist()):
        noisy[row, samples:] = 7.0
        audio[row, samples:] = 0.0
    torch.testing.assert_close(log_mel(noisy, audio_len)[0], log_mel(audio, audio_len)[0])


def test_an_utterance_has_the_same_features_alone_and_in_a_batch(short):
    audio, audio_len = short
    together, frames = log_mel(audio, audio_len)
    for row, samples in enumerate(audio_len.tolist()):
        alone, _ = log_mel(audio[row : row + 1, :samples], audio_len[row : row + 1])
        valid = int(frames[row])
        torch.testing.assert_close(alone[0, :, :valid], together[row, :, :valid])


def test_an_empty_utterance_has_no_frames_and_finite_features():
    features, feature_len = log_mel(torch.zeros(2, 1600), torch.tensor([0, 160]), pad_value=0.5)
    assert feature_len.tolist() == [0, 1]
    assert features.isfinite().all()
    assert (features[0] == 0.5).all()


def test_frames_are_padded_to_a_multiple_with_the_pad_value(short):
    plain, frames = log_mel(*short)
    padded, same_frames = log_mel(*short, pad_to=16, pad_value=-3.0)
    assert padded.shape[2] == 64
    assert plain.shape[2] == 51
    assert frames.tolist() == same_frames.tolist()
    assert (padded[:, :, 51:] == -3.0).all()
    assert log_mel(*short, min_frames=70, pad_to=16)[0].shape[2] == 80


def test_exact_padding_gives_one_frame_for_each_hop_and_counts_the_last_as_padding(short):
    audio, _ = short
    features, frames = log_mel(audio[:, :6400], torch.tensor([6400] * 3), exact_pad=True, preemphasis=None)
    assert features.shape[2] == 40
    assert frames.tolist() == [39] * 3


def test_exact_padding_refuses_an_odd_hop(short):
    with pytest.raises(ValueError, match="exact_pad: needs an even hop, and 161 is odd"):
        log_mel(*short, exact_pad=True, hop_size=161)


def test_energies_without_logarithm_follow_parseval(short):
    """With a rectangular window as long as the transform, summed power is n_fft times the energy."""
    audio = short[0][:, :4096]
    full = torch.tensor([4096] * 3)
    everything = torch.ones(1, 257, dtype=torch.float64)
    everything[0, 1:-1] = 2  # each frequency inside stands for its mirror image, too
    energies, _ = log_mel(
        audio, full, window="none", window_size=512, n_fft=512, hop_size=512, filterbank=everything,
        log=False, normalize=None, preemphasis=None,
    )  # fmt: skip
    inner = audio[:, 256:3840].reshape(3, 7, 512).square().sum(dim=2) * 512
    torch.testing.assert_close(energies[:, 0, 1:8], inner)


@pytest.mark.parametrize(
    ("guard", "number"), [("tiny", torch.finfo(torch.float64).tiny), ("eps", 2.0**-52), (1e-5, 1e-5)]
)
def test_the_clamped_guard_is_the_lowest_feature(guard, number):
    silence = torch.zeros(1, 3200, dtype=torch.float64)
    options = {"log_guard_type": "clamp", "log_guard": guard, "normalize": None}
    features, frames = log_mel(silence, torch.tensor([3200]), **options)
    expected = torch.tensor(number, dtype=torch.float64).log()
    torch.testing.assert_close(features[:, :, : int(frames)], expected.expand(1, 80, 20))


def test_magnitudes_are_the_square_root_of_powers(short):
    one = torch.eye(257, dtype=torch.float64)
    options = {"filterbank": one, "log": False, "normalize": None}
    power, _ = log_mel(*short, **options)
    magnitude, _ = log_mel(*short, magnitude_power=1.0, **options)
    torch.testing.assert_close(magnitude.square(), power)


def test_a_band_limit_silences_the_bins_from_it_on(short):
    one = torch.eye(257, dtype=torch.float64)
    limit = torch.tensor([257, 128, 0])
    spectrum, _ = log_mel(*short, filterbank=one, log=False, normalize=None, band_limit=limit)
    plain, _ = log_mel(*short, filterbank=one, log=False, normalize=None)
    assert torch.equal(spectrum[0], plain[0])
    assert torch.equal(spectrum[1, :128], plain[1, :128])
    assert not spectrum[1, 128:].any()
    assert not spectrum[2].any()


def test_dither_is_noise_of_the_given_deviation_from_the_generator():
    silence = torch.zeros(1, 160000, dtype=torch.float64)
    options = {
        "dither": 0.01,
        "window": "none",
        "filterbank": torch.eye(257, dtype=torch.float64),
        "log": False,
    }
    options |= {"normalize": None, "preemphasis": None, "window_size": 512, "hop_size": 512}
    runs = [
        log_mel(silence, torch.tensor([160000]), generator=torch.Generator().manual_seed(5), **options)[0]
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    mean_power = runs[0][0, 1:-1, 1:-2].mean() / 512
    assert float(mean_power) == pytest.approx(1e-4, rel=0.05)


def test_fixed_numbers_normalise_each_bin():
    features = torch.randn(2, 3, 5, dtype=torch.float64)
    valid = torch.ones(2, 1, 5, dtype=torch.bool)
    mode = {"fixed_mean": [1.0, 2.0, 3.0], "fixed_std": [2.0, 4.0, 8.0]}
    ours = normalize_features(features, valid, mode)
    torch.testing.assert_close(ours[1, 2], (features[1, 2] - 3) / 8)


def test_normalised_features_have_mean_zero_and_unbiased_deviation_one(short):
    for mode, dims in (("per_feature", 1), ("all_features", (0, 1))):
        features, frames = log_mel(*short, normalize=mode)
        own = features[0, :, : int(frames[0])]
        assert own.mean(dim=dims).abs().max() < 1e-9
        assert (own.std(dim=dims) - 1).abs().max() < 1e-4


def test_halves_are_computed_in_float32_also_under_autocast(speech):
    audio = speech[0][:, :8000]
    full = torch.tensor([8000] * 3)
    expected, _ = log_mel(audio.bfloat16().float(), full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = log_mel(audio.bfloat16(), full)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_gradients_reach_the_audio():
    audio = torch.randn(1, 700, dtype=torch.float64, requires_grad=True)
    full = torch.tensor([700])
    options = {"window_size": 64, "hop_size": 100, "n_fft": 64, "n_mels": 5, "log_guard": 1e-3}
    assert torch.autograd.gradcheck(lambda x: log_mel(x, full, **options)[0], (audio,), fast_mode=True)


def test_gradients_of_silence_are_finite():
    audio = torch.zeros(1, 3200, dtype=torch.float64, requires_grad=True)
    log_mel(audio, torch.tensor([3200]))[0].square().sum().backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()


def test_pieces_of_a_batch_give_the_features_of_the_whole(short):
    audio, audio_len = (x.repeat(30, *[1] * (x.dim() - 1)) for x in short)
    limit = torch.arange(90) * 3
    features, _ = log_mel(audio, audio_len, band_limit=limit)
    for row in (0, 37, 89):
        alone, _ = log_mel(audio[row : row + 1], audio_len[row : row + 1], band_limit=limit[row : row + 1])
        torch.testing.assert_close(alone, features[row : row + 1])


def test_it_compiles_into_one_graph(short):
    expected, _ = log_mel(*short, n_mels=40, pad_to=16)
    compiled = torch.compile(
        lambda audio, audio_len: log_mel(audio, audio_len, n_mels=40, pad_to=16), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*short)[0], expected)


def test_its_signature_names_the_options_and_their_defaults():
    parameters = inspect.signature(log_mel).parameters
    assert list(parameters)[:2] == ["audio", "audio_len"]
    assert {field.name: field.default for field in fields(LogMelOptions)} == {
        name: parameter.default for name, parameter in list(parameters.items())[2:]
    }
    with pytest.raises(TypeError, match="n_mel"):
        log_mel(torch.zeros(1, 800), torch.tensor([800]), n_mel=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "kaiser"}, "window: 'kaiser' is none of"),
        ({"log_guard_type": "max"}, "log_guard_type: 'max' must be"),
        ({"log_guard": "huge"}, "log_guard: 'huge' must be"),
        ({"normalize": "per_featur"}, "normalize: 'per_featur' must be"),
        ({"mel_norm": "area"}, "mel_norm: 'area' must be"),
        ({"n_fft": 256}, "n_fft: 256 is shorter than the window of 400 samples"),
        ({"low_hz": 9000.0}, "low_hz: 9000.0 must be at least 0 and below high_hz 8000"),
    ],
)
def test_a_wrong_option_is_named(short, options, message):
    with pytest.raises(ValueError, match=message):
        log_mel(*short, **options)
