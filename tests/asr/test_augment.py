"""Augmentation: what each perturbation does to the signal, by its own definition or a library's."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch

from nemo_asr.data.audio import load_audio
from nemo_asr.data.augment import Augmentor, build_augmentor, perturbation_types, register_perturbation
from nemo_asr.data.augment.waveform import rms_db, time_stretch
from nemo_config import ConfigError

RATE = 8000
CLIP = load_audio(Path(__file__).parent.parent / "data" / "speech" / "en" / "conf-enteringno.flac", RATE)
NOISE_NAMES = {"noise": "manifest_path", "noise_norm": "manifest_path", "impulse": "manifest_path"}


@pytest.fixture
def noise(tmp_path: Path) -> str:
    """A manifest of one second of noise."""
    samples = 0.1 * np.random.default_rng(5).standard_normal(RATE).astype(np.float32)
    return manifest(tmp_path, "noise", samples)


@pytest.fixture
def room(tmp_path: Path) -> str:
    response = np.zeros(400, np.float32)
    response[[30, 80, 200]] = 0.9, -0.4, 0.2
    return manifest(tmp_path, "room", response)


def manifest(folder: Path, name: str, samples: np.ndarray) -> str:
    soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    row = {"audio_filepath": f"{name}.wav", "duration": len(samples) / RATE, "text": "-"}
    (folder / f"{name}.json").write_text(json.dumps(row))
    return str(folder / f"{name}.json")


def apply(name: str, samples: np.ndarray = CLIP, seed: int = 0, **options) -> np.ndarray:
    return build_augmentor({name: {"prob": 1.0, **options}})(samples, RATE, np.random.default_rng(seed))


def test_no_section_is_no_augmentor():
    assert build_augmentor(None) is None
    assert build_augmentor({}) is None


def test_prob_is_how_often_a_perturbation_is_applied():
    augmentor = build_augmentor({"gain": {"prob": 0.3, "min_gain_dbfs": 6, "max_gain_dbfs": 6}})
    one = np.ones(1, np.float32)
    louder = sum(augmentor(one, RATE, np.random.default_rng(seed))[0] > 1 for seed in range(2000))
    assert 0.26 < louder / 2000 < 0.34


def test_perturbations_are_applied_in_their_order():
    silence = {"prob": 1.0, "min_start_silence_secs": 0.1, "max_start_silence_secs": 0.1, "value": 0.5}
    gain = {"prob": 1.0, "min_gain_dbfs": 20, "max_gain_dbfs": 20}
    for section, first in (({"silence": silence, "gain": gain}, 5.0), ({"gain": gain, "silence": silence}, 0.5)):
        assert build_augmentor(section)(CLIP, RATE, np.random.default_rng(0))[0] == pytest.approx(first)


@pytest.mark.parametrize("name", sorted(perturbation_types()))
def test_the_same_seed_gives_the_same_and_nothing_is_written_into_the_input(name, noise, room):
    options = {NOISE_NAMES[name]: room if name == "impulse" else noise} if name in NOISE_NAMES else {}
    if name == "rir_noise_aug":
        options = {"rir_manifest_path": room, "noise_manifest_paths": [noise], "bg_noise_manifest_paths": [noise]}
    if name == "random_segment":
        options = {"duration_sec": 0.5}
    before = CLIP.copy()
    CLIP.flags.writeable = False
    one, again, other = (apply(name, seed=seed, **options) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(CLIP, before)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    if name not in ("impulse", "silence"):  # with one room, and lengths of 0, there is no chance in these
        assert other.shape != one.shape or not np.array_equal(one, other)


def test_speed_resamples_to_rate_times_as_many_samples():
    changed = apply("speed", min_speed_rate=1.1, max_speed_rate=1.1, num_rates=1, sr=16000, resample_type="kaiser_best")
    np.testing.assert_array_equal(changed, soxr.resample(CLIP, RATE, int(RATE * 1.1), quality="HQ"))
    lengths = {len(apply("speed", seed=seed)) for seed in range(40)}
    assert len(lengths) == 5
    assert len({len(apply("speed", seed=seed, num_rates=-1)) for seed in range(40)}) > 30


@pytest.mark.parametrize("rate", [0.8, 0.9, 1.25])
def test_time_stretch_is_torchaudios_phase_vocoder(rate):
    functional = pytest.importorskip("torchaudio.functional")
    window = torch.hann_window(512)
    spectrum = torch.stft(torch.from_numpy(CLIP.copy()), 512, 128, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * 128, 257)[:, None]
    stretched = functional.phase_vocoder(spectrum.to(torch.complex128), rate, advance.double()).to(torch.complex64)
    expected = torch.istft(stretched, 512, 128, window=window, length=round(len(CLIP) / rate)).numpy()
    np.testing.assert_allclose(time_stretch(CLIP, rate), expected, atol=1e-3 * np.abs(expected).max())


def test_time_stretch_changes_the_length_and_keeps_the_pitch():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    for rate in (0.8, 1.25):
        stretched = time_stretch(tone, rate)
        assert len(stretched) == round(RATE / rate)
        frequencies, power = scipy.signal.welch(stretched[800:-800], RATE, nperseg=4096)
        assert frequencies[power.argmax()] == pytest.approx(440, abs=3)
    np.testing.assert_allclose(time_stretch(CLIP, 1.0)[256:-512], CLIP[256:-512], atol=2e-4)


def test_gain_is_in_decibels():
    np.testing.assert_allclose(apply("gain", min_gain_dbfs=20, max_gain_dbfs=20), CLIP * 10, rtol=1e-6)
    changes = [rms_db(apply("gain", seed=seed)) - rms_db(CLIP) for seed in range(200)]
    assert -10 <= min(changes) < -9 < 9 < max(changes) <= 10


def test_shift_moves_and_fills_with_zeros():
    ramp = np.arange(1, 9, dtype=np.float32)
    assert apply("shift", ramp, min_shift_ms=0.25, max_shift_ms=0.25).tolist() == [3, 4, 5, 6, 7, 8, 0, 0]
    assert apply("shift", ramp, min_shift_ms=-0.25, max_shift_ms=-0.25).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert apply("shift", ramp, min_shift_ms=5, max_shift_ms=5).tolist() == ramp.tolist()


def test_silence_is_put_in_front_and_behind():
    padded = apply(
        "silence", min_start_silence_secs=0.5, max_start_silence_secs=0.5, min_end_silence_secs=0.25,
        max_end_silence_secs=0.25,
    )  # fmt: skip
    np.testing.assert_array_equal(padded, np.pad(CLIP, (4000, 2000)))


def test_white_noise_has_a_level_of_its_range():
    added = apply("white_noise", np.zeros(80000, np.float32), min_level=-50, max_level=-49)
    assert rms_db(added) == pytest.approx(-50, abs=0.1)


def test_random_segment_takes_a_piece_that_is_loud_enough():
    piece = apply("random_segment", duration_sec=0.5)
    assert len(piece) == 4000
    starts = np.flatnonzero(piece[0] == CLIP)
    assert any(np.array_equal(CLIP[start : start + 4000], piece) for start in starts)
    assert len(apply("random_segment", duration_sec=10)) == len(CLIP)
    assert len(apply("random_segment", duration_sec=10, pad_to_duration=True)) == 80000
    half = np.concatenate([np.zeros(8000, np.float32), np.ones(8000, np.float32)])
    loud = [rms_db(apply("random_segment", half, seed=s, duration_sec=0.5, min_rms_db=-1)) for s in range(20)]
    assert min(loud) >= -1


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_signal_to_noise_ratio(noise, snr_db):
    speech = CLIP[:RATE]
    added = apply("noise", speech, manifest_path=noise, min_snr_db=snr_db, max_snr_db=snr_db) - speech
    assert rms_db(speech) - rms_db(added) == pytest.approx(snr_db, abs=0.01)
    capped = apply("noise", speech, manifest_path=noise, min_snr_db=-90, max_snr_db=-90, max_gain_db=-6) - speech
    assert rms_db(capped) == pytest.approx(-20 - 6, abs=0.2)


def test_short_noise_lies_somewhere_in_longer_speech(noise):
    starts = set()
    for seed in range(8):
        added = np.flatnonzero(apply("noise", manifest_path=noise, seed=seed) - CLIP)
        assert RATE - 20 <= added[-1] - added[0] + 1 <= RATE
        starts.add(int(added[0]))
    assert len(starts) > 4


def test_normalized_noise_brings_both_to_their_levels(noise):
    options = {"manifest_path": noise, "min_snr_db": 20, "max_snr_db": 20, "norm_to_db": -30}
    mixed = apply("noise_norm", **options)
    speech = CLIP * 10 ** ((-30 - rms_db(CLIP)) / 20)
    assert len(mixed) == len(CLIP)
    assert rms_db(mixed - speech) == pytest.approx(-50, abs=0.1)
    chosen = apply("noise_norm", manifest_path=noise, snr_samples=[20], norm_to_db=-30)
    assert rms_db(chosen - speech) == pytest.approx(-50, abs=0.1)


@pytest.mark.parametrize(("shift", "normalize"), [(False, False), (True, False), (True, True)])
def test_impulse_is_scipys_convolution_with_a_peak_of_one(room, shift, normalize):
    response = load_audio(room.replace(".json", ".wav"), RATE)
    if normalize:
        response = response - response.mean()
        response = response / np.abs(response).max()
    expected = scipy.signal.fftconvolve(CLIP.astype(np.float64), response)[30 if shift else 0 :][: len(CLIP)]
    echoed = apply("impulse", manifest_path=room, shift_impulse=shift, normalize_impulse=normalize)
    np.testing.assert_allclose(echoed, expected / np.abs(expected).max(), atol=1e-5)
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(apply("impulse", silence, manifest_path=room), silence)


def test_rir_noise_aug_is_room_then_noise(noise, room):
    quiet = {"noise_prob": 0.0, "bg_noise_prob": 0.0}
    both = {"rir_manifest_path": room, "noise_manifest_paths": [noise], "bg_noise_manifest_paths": [noise]}
    echoed = apply("rir_noise_aug", rir_prob=1.0, **both, **quiet)
    np.testing.assert_array_equal(echoed, apply("impulse", manifest_path=room, shift_impulse=True))
    np.testing.assert_array_equal(apply("rir_noise_aug", rir_prob=0.0, **both, **quiet), CLIP)
    noisy = apply(
        "rir_noise_aug", rir_prob=0.0, **both, noise_prob=0.0, bg_min_snr_db=[20, 0], bg_max_snr_db=[20, 0],
        bg_orig_sample_rate=[RATE],
    )  # fmt: skip
    added = noisy - CLIP
    assert rms_db(CLIP) - rms_db(added[added != 0]) == pytest.approx(20, abs=0.1)
    foreground = apply("rir_noise_aug", rir_prob=0.0, **both, bg_noise_prob=0.0, apply_noise_rir=True)
    assert 0 < np.count_nonzero(foreground - CLIP) < len(CLIP)


@pytest.mark.parametrize("codec", ["g711", "ogg", "mp3"])
def test_a_codec_keeps_length_and_speech_band(codec):
    loud = CLIP / np.abs(CLIP).max()
    coded = apply("transcode_aug", loud, codecs=[codec])
    assert coded.shape == CLIP.shape
    assert np.abs(coded).max() <= 1.0
    band = scipy.signal.butter(4, (400, 1500), "bandpass", fs=RATE, output="sos")
    before, after = (scipy.signal.sosfiltfilt(band, samples) for samples in (loud * 0.8, coded))
    lag = np.argmax(scipy.signal.correlate(after, before)) - len(before) + 1
    assert abs(lag) < (1500 if codec == "mp3" else 3)
    assert np.corrcoef(before[2000:-2000], np.roll(after, -lag)[2000:-2000])[0, 1] > 0.95


def test_g711_is_telephone_band():
    white = 0.1 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    coded = build_augmentor({"transcode_aug": {"prob": 1.0, "codecs": ["g711"]}})(
        white, 16000, np.random.default_rng(0)
    )
    frequencies, power = scipy.signal.welch(coded, 16000)
    inside = power[(frequencies > 500) & (frequencies < 3200)].mean()
    assert power[frequencies > 4500].mean() < 1e-3 * inside
    assert power[frequencies < 150].mean() < 1e-2 * inside


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sped": {"prob": 1.0}}, "augmentor.sped: .*there are gain, impulse"),
        ({"gain": {}}, "augmentor.gain.prob: "),
        ({"gain": {"prob": 1.5}}, "augmentor.gain.prob: 1.5"),
        ({"gain": {"prob": True}}, "augmentor.gain.prob: "),
        ({"gain": {"prob": 1.0, "min_gain": 3}}, "augmentor.gain.min_gain"),
        ({"gain": {"prob": 1.0, "min_gain_dbfs": 3, "max_gain_dbfs": -3}}, "min_gain_dbfs 3 lies above"),
        ({"speed": {"prob": 1.0, "min_speed_rate": 0.0}}, "min_speed_rate 0.0 must be positive"),
        ({"white_noise": {"prob": 1.0, "min_level": -40}}, "min_level -40 must lie below"),
        ({"noise": {"prob": 1.0}}, "augmentor.noise: .*manifest_path must name"),
        ({"noise": {"prob": 1.0, "manifest_path": "???"}}, "augmentor.noise.manifest_path"),
        ({"noise": {"prob": 1.0, "manifest_path": "gone.json"}}, "augmentor.noise: .*gone.json: cannot be read"),
        ({"noise": {"prob": 1.0, "manifest_path": "a", "audio_tar_filepaths": "b"}}, "not supported"),
        ({"transcode_aug": {"prob": 1.0, "codecs": ["amr-nb"]}}, "codecs: amr-nb is none of g711, ogg, mp3"),
        ({"random_segment": {"prob": 1.0, "duration_sec": 0}}, "duration_sec 0 must be positive"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(section, message):
    with pytest.raises(ConfigError, match=message):
        build_augmentor(section)


def test_rng_and_buffer_options_of_nvidias_are_ignored():
    assert isinstance(build_augmentor({"gain": {"prob": 1.0, "rng": 3}}), Augmentor)
    assert isinstance(build_augmentor({"gain": {"prob": 1.0, "typo": 3}}, strict=False), Augmentor)


class Negation:
    def __call__(self, samples, sample_rate, rng):
        return -samples


def test_a_perturbation_of_ones_own_can_be_registered():
    if "negation" not in perturbation_types():
        register_perturbation("negation", Negation)
    np.testing.assert_array_equal(apply("negation"), -CLIP)
    with pytest.raises(ValueError, match="'gain': the name is taken"):
        register_perturbation("gain", Negation)
