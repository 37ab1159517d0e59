"""Audio loading against soundfile, soxr, scipy and stored values of librosa's trim."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch

from nemo_asr.data.audio import AudioError, audio_duration, load_audio, resample, trim_silence

SPEECH = Path(__file__).parent.parent / "data" / "speech" / "en"
CLIP = SPEECH / "conf-enteringno.flac"


def tone(seconds: float = 0.5, rate: int = 8000, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_a_file_gives_the_samples_that_soundfile_reads():
    expected, rate = soundfile.read(CLIP, dtype="float32")
    loaded = load_audio(CLIP, rate)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, expected)


def test_path_bytes_file_object_array_and_tensor_give_the_same():
    samples, rate = soundfile.read(CLIP, dtype="float32")
    expected = load_audio(str(CLIP), 16000)
    for source in (CLIP, CLIP.read_bytes(), io.BytesIO(CLIP.read_bytes())):
        np.testing.assert_array_equal(load_audio(source, 16000), expected)
    for array in (samples, torch.from_numpy(samples), samples.astype(np.float64), samples[:, None], samples[None, :]):
        np.testing.assert_array_equal(load_audio(array, 16000, source_rate=rate), expected)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_each_format_comes_back_near_the_original(kind):
    samples = tone(1.0, 16000)
    loaded = load_audio(encoded(samples, 16000, kind), 16000)
    error = np.abs(loaded[2000:14000] - samples[2000:14000]).max()
    assert error < (1e-4 if kind in ("WAV", "FLAC") else 0.05)


def test_resampling_is_soxr_and_keeps_a_tone_a_tone():
    samples = tone(1.0, 8000)
    doubled = load_audio(samples, 16000, source_rate=8000)
    np.testing.assert_array_equal(doubled, soxr.resample(samples, 8000, 16000, quality="HQ"))
    np.testing.assert_allclose(doubled[1000:15000], tone(1.0, 16000)[1000:15000], atol=1e-3)
    polyphase = scipy.signal.resample_poly(samples, 2, 1)
    np.testing.assert_allclose(doubled[1000:15000], polyphase[1000:15000], atol=2e-3)
    assert resample(samples, 8000, 8000) is samples


def test_offset_and_duration_cut_out_a_piece():
    samples, rate = soundfile.read(CLIP, dtype="float32")
    for source, given in ((CLIP, None), (samples, rate)):
        piece = load_audio(source, rate, offset_s=0.5, duration_s=1.0, source_rate=given)
        np.testing.assert_array_equal(piece, samples[4000:12000])
        rest = load_audio(source, rate, offset_s=2.0, duration_s=100.0, source_rate=given)
        np.testing.assert_array_equal(rest, samples[16000:])
    assert audio_duration(CLIP) == pytest.approx(len(samples) / rate)


def test_several_channels_need_a_selector():
    left, right = tone(), tone(frequency=880.0)
    data = encoded(np.stack([left, right], 1), 8000, "WAV", "FLOAT")
    with pytest.raises(AudioError, match=r"call\.wav: has 2 channels; channel_selector: .* from 0 to 1, or 'average'"):
        load_audio(data, 8000, name="call.wav")
    np.testing.assert_array_equal(load_audio(data, 8000, channel_selector=1), right)
    np.testing.assert_allclose(load_audio(data, 8000, channel_selector="average"), (left + right) / 2, atol=1e-7)
    for array in (np.stack([left, right]), np.stack([left, right], 1)):
        np.testing.assert_array_equal(load_audio(array, 8000, source_rate=8000, channel_selector=0), left)
    for selector, message in ((2, "2 is not among"), (-1, "-1 is not among"), ("left", "neither"), (True, "neither")):
        with pytest.raises(AudioError, match=message):
            load_audio(data, 8000, channel_selector=selector)
    with pytest.raises(AudioError, match=r"1 is not among its 1 channel"):
        load_audio(CLIP, 8000, channel_selector=1)


@pytest.mark.parametrize(("dtype", "full"), [(np.int8, 128), (np.int16, 32768), (np.int32, 2147483648)])
def test_integer_arrays_are_scaled_by_their_full_range(dtype, full):
    array = np.array([0, full // 2, -full // 2, -full], dtype)
    np.testing.assert_array_equal(load_audio(array, 8000, source_rate=8000), [0, 0.5, -0.5, -1])
    np.testing.assert_array_equal(load_audio(torch.from_numpy(array), 8000, source_rate=8000), [0, 0.5, -0.5, -1])


def test_unsigned_bytes_are_unsigned_pcm():
    np.testing.assert_array_equal(load_audio(np.array([128, 192, 0], np.uint8), 8000, source_rate=8000), [0, 0.5, -1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_are_taken(dtype):
    tensor = torch.tensor([0, 0.5, -0.5, -1], dtype=dtype)
    np.testing.assert_array_equal(load_audio(tensor, 8000, source_rate=8000), [0, 0.5, -0.5, -1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(0, np.float32), "holds no audio"),
        (np.zeros((0, 1), np.float32), "holds no audio"),
        (np.array([0.0, np.nan], np.float32), "not finite"),
        (np.array([np.nan, np.nan], np.float32), "not finite"),
        (np.array([0.0, np.inf], np.float32), "not finite"),
        (np.array([0.0, 12345.0], np.float32), "reach 12345"),
        (np.zeros(10, np.int64), "int64 is no type of audio"),
        (np.zeros(10, bool), "bool is no type of audio"),
        (np.zeros(10, complex), "complex128 is no type of audio"),
        (np.zeros((2, 2, 2), np.float32), r"shape \(2, 2, 2\)"),
        ([0.0, 0.1], "neither a path"),
        (b"RIFF nothing", "no audio that libsndfile reads"),
        (b"", "no audio that libsndfile reads"),
    ],
)
def test_what_is_no_audio_is_refused(source, message):
    with pytest.raises(AudioError, match=message):
        load_audio(source, 16000, source_rate=16000)


def test_an_array_without_its_rate_is_refused():
    with pytest.raises(AudioError, match="does not know its sample rate"):
        load_audio(tone(), 16000)


def test_a_missing_file_an_empty_file_and_an_offset_behind_the_end_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav: there is no such audio file"):
        load_audio(tmp_path / "gone.wav", 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(AudioError, match=r"empty\.wav: holds no audio"):
        load_audio(tmp_path / "empty.wav", 16000)
    with pytest.raises(AudioError, match=r"conf-enteringno\.flac: holds no audio after 60"):
        load_audio(CLIP, 16000, offset_s=60)


@pytest.mark.parametrize(
    ("quiet", "silence", "expected"),
    [
        # librosa 0.11.0: librosa.effects.trim(y, top_db=60)[1] for the signals made below
        (0.0, 6000, (5120, 15360)),
        (1e-4, 6000, (5120, 15360)),
        (0.0, 100, (0, 8200)),
        (0.01, 6000, (0, 20000)),
    ],
)
def test_trim_has_the_limits_of_librosa(quiet, silence, expected):
    noise = np.random.default_rng(0).standard_normal(8000 + 2 * silence).astype(np.float32)
    signal = noise * quiet * 0.1
    signal[silence : silence + 8000] = tone(1.0)
    np.testing.assert_array_equal(trim_silence(signal), signal[slice(*expected)])


@pytest.mark.parametrize(
    ("name", "top_db", "limits"),
    [
        ("conf-enteringno", 40, (0, 18812)),
        ("vm-press", 40, (0, 5120)),
        ("confbridge-locked", 40, (0, 13824)),
        ("vm-goodbye", 40, (0, 6920)),
        ("conf-enteringno", 20, (0, 17920)),
        ("vm-press", 20, (512, 4096)),
        ("confbridge-locked", 20, (0, 12288)),
        ("vm-goodbye", 20, (0, 6656)),
    ],  # librosa 0.11.0
)
def test_trim_of_a_real_clip_has_the_limits_of_librosa(name, top_db, limits):
    samples = load_audio(SPEECH / f"{name}.flac", 8000)
    np.testing.assert_array_equal(trim_silence(samples, top_db), samples[slice(*limits)])


def test_trim_keeps_silence_and_nothing():
    assert len(trim_silence(np.zeros(5000, np.float32))) == 5000
    assert len(trim_silence(np.zeros(0, np.float32))) == 0


def test_threads_load_the_same():
    paths = sorted(SPEECH.glob("*.flac"))[:12]
    alone = [trim_silence(load_audio(path, 16000)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(lambda p: trim_silence(load_audio(p, 16000)), paths), strict=True):
            np.testing.assert_array_equal(one, other)
