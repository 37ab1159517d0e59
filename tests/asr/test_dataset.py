"""Data sets and loaders on the bundled clips."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_asr.commands.tokenizer import train_tokenizer
from nemo_asr.data.audio import load_audio, trim_silence
from nemo_asr.data.config import AudioTextDataConfig
from nemo_asr.data.dataset import AudioTextDataset
from nemo_asr.data.loader import build_dataloader
from nemo_asr.data.manifest import ManifestError, ManifestRules, read_manifest
from nemo_asr.data.utterance import SignalReader, TranscriptEncoder, collate
from nemo_asr.text import CharTokenizer, SentencePieceTokenizer
from nemo_config import ConfigError

SPEECH = Path(__file__).parent.parent / "data" / "speech"
HELDOUT = str(SPEECH / "heldout_repeated.jsonl")
LETTERS = CharTokenizer([" ", *"abcdefghijklmnopqrstuvwxyz'"])
SECTION = {"manifest_filepath": HELDOUT, "sample_rate": 8000, "batch_size": 4}


def dataset(reader: SignalReader | None = None, **options) -> AudioTextDataset:
    return AudioTextDataset(read_manifest(HELDOUT), reader or SignalReader(8000), TranscriptEncoder(LETTERS), **options)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches_equal(one, other) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_is_signal_and_ids_with_their_lengths():
    data = dataset()
    assert len(data) == 19
    signal, signal_len, tokens, token_len = data[3]
    expected, _ = soundfile.read(data.entries[3].audio_filepath, dtype="float32")
    np.testing.assert_array_equal(signal, expected)
    assert LETTERS.decode(tokens.tolist()) == data.entries[3].text
    assert (signal_len, token_len) == (len(signal), len(tokens))
    assert (signal.dtype, tokens.dtype, signal_len.dtype, token_len.dtype) == (torch.float32, *[torch.int64] * 3)
    assert same(data[-1], data[18])
    with pytest.raises(IndexError):
        data[19]


def test_collate_pads_signals_with_zero_and_transcripts_with_the_pad_id():
    data = dataset(return_sample_id=True)
    samples = [data[i] for i in (5, 2, 9)]
    signal, signal_len, transcript, transcript_len, numbers = collate(samples, pad_id=7)
    assert signal.shape == (3, max(len(s[0]) for s in samples))
    assert transcript.shape == (3, max(len(s[2]) for s in samples))
    assert numbers.tolist() == [5, 2, 9]
    for row, sample in enumerate(samples):
        assert torch.equal(signal[row, : signal_len[row]], sample[0])
        assert torch.equal(transcript[row, : transcript_len[row]], sample[2])
        assert not signal[row, signal_len[row] :].any()
        assert (transcript[row, transcript_len[row] :] == 7).all()


def test_the_loader_goes_through_the_manifest_in_order_and_by_four():
    loader = build_dataloader(SECTION, LETTERS, training=False)
    entries = read_manifest(HELDOUT)
    texts = []
    for signal, signal_len, transcript, transcript_len in loader:
        assert signal.shape == (len(signal_len), signal_len.max())
        texts += [LETTERS.decode(row[:n]) for row, n in zip(transcript.tolist(), transcript_len, strict=True)]
    assert texts == [entry.text for entry in entries]
    assert len(loader) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    section = {
        **SECTION, "shuffle": True, "use_bucketing": True,
        "augmentor": {"white_noise": {"prob": 0.5}, "gain": {"prob": 1.0}, "speed": {"prob": 0.5}},
    }  # fmt: skip
    alone = build_dataloader(section, LETTERS)
    working = build_dataloader({**section, "num_workers": workers}, LETTERS)
    for _ in range(2):
        assert batches_equal(list(alone), list(working))


def test_workers_may_be_spawned():
    loader = build_dataloader({**SECTION, "num_workers": 1, "max_utts": 4}, LETTERS, training=False)
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    alone = build_dataloader({**SECTION, "max_utts": 4}, LETTERS, training=False)
    assert batches_equal(list(loader), list(alone))


def test_training_shuffles_each_epoch_anew_and_a_second_run_the_same():
    first, second = (build_dataloader(SECTION, LETTERS) for _ in range(2))
    one, two = list(first), list(first)
    assert not batches_equal(one, two)
    assert batches_equal(one, list(second))
    assert batches_equal(two, list(second))


def test_batch_duration_limits_the_padded_seconds_of_a_batch():
    loader = build_dataloader({**SECTION, "batch_size": None, "batch_duration": 12.0}, LETTERS)
    seconds = [signal.numel() / 8000 for signal, *_ in loader]
    assert max(seconds) <= 12.01
    assert len(seconds) == len(loader)
    assert sum(seconds) < 1.25 * sum(entry.duration_s for entry in read_manifest(HELDOUT))


def test_audio_is_resampled_and_trimmed_when_asked():
    loader = build_dataloader(
        {**SECTION, "sample_rate": 16000, "trim_silence": True, "batch_size": 1}, LETTERS, training=False
    )
    entry = read_manifest(HELDOUT)[0]
    signal, *_ = next(iter(loader))
    np.testing.assert_array_equal(signal[0], trim_silence(load_audio(entry.audio_filepath, 16000)))


def test_the_models_sample_rate_is_taken_where_the_section_has_none():
    section = {key: value for key, value in SECTION.items() if key != "sample_rate"}
    given, _, *_ = next(iter(build_dataloader(section, LETTERS, training=False, sample_rate=8000)))
    assert same(next(iter(build_dataloader(SECTION, LETTERS, training=False)))[:1], [given])


def test_start_and_end_tokens_stand_around_the_transcript_where_the_tokenizer_has_them():
    texts = [entry.text for entry in read_manifest(HELDOUT)]
    plain = SentencePieceTokenizer(train_tokenizer(texts, vocab_size=40))
    special = SentencePieceTokenizer(train_tokenizer(texts, vocab_size=42, start_end_tokens=True))
    for tokenizer, wanted, first in ((special, True, [1]), (special, False, []), (plain, True, [])):
        section = {**SECTION, "use_start_end_token": wanted, "batch_size": 1}
        _, _, transcript, length = next(iter(build_dataloader(section, tokenizer, training=False)))
        last = [2] if first else []
        assert transcript[0].tolist() == first + tokenizer.encode(texts[0]) + last
        assert length == transcript.shape[1]


def write_manifest(folder: Path, *texts: str, **extra) -> str:
    soundfile.write(folder / "a.wav", np.zeros(8000, np.float32), 8000)
    rows = [json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": text, **extra}) for text in texts]
    (folder / "m.json").write_text("\n".join(rows) + "\n")
    return str(folder / "m.json")


def test_text_outside_the_vocabulary_is_reported_with_its_line(tmp_path):
    path = write_manifest(tmp_path, "fine", "Nicht gut!")
    with pytest.raises(
        ManifestError, match=r"m\.json:2: text 'Nicht gut!': 'N' '!' outside the vocabulary; with `unknown_text"
    ):
        build_dataloader({**SECTION, "manifest_filepath": path}, LETTERS)
    spm = SentencePieceTokenizer(train_tokenizer(["fine", "nicht gut"], vocab_size=14))
    with pytest.raises(ManifestError, match=r"m\.json:2: .*'!'"):
        build_dataloader({**SECTION, "manifest_filepath": path}, spm)


def test_text_outside_the_vocabulary_can_be_replaced_or_cleaned_up(tmp_path):
    path = write_manifest(tmp_path, "Nicht gut!")
    for option, expected in (({"unknown_text": "replace"}, "icht gut"), ({"normalize_transcripts": True}, "nicht gut")):
        loader = build_dataloader({**SECTION, "manifest_filepath": path, **option}, LETTERS)
        assert LETTERS.decode(next(iter(loader))[2][0].tolist()) == expected


def test_audio_that_fails_while_loading_is_reported_with_its_line(tmp_path):
    path = write_manifest(tmp_path, "fine", "good")
    loader = build_dataloader({**SECTION, "manifest_filepath": path, "num_workers": 1}, LETTERS, training=False)
    soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2), np.float32), 8000)
    with pytest.raises(ManifestError, match=r"m\.json:1: .*a\.wav: has 2 channels; channel_selector: "):
        next(iter(loader))
    averaged = build_dataloader({**SECTION, "manifest_filepath": path, "channel_selector": "average"}, LETTERS)
    assert next(iter(averaged))[0].shape == (2, 8000)


@pytest.mark.parametrize("manifest", [None, ""])
def test_a_section_without_a_manifest_has_no_loader(manifest):
    assert build_dataloader({"manifest_filepath": manifest, "batch_size": 4}, LETTERS) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_sise": 4}, "train_ds.batch_sise.*batch_size"),
        ({"batch_size": None}, "train_ds.batch_size: None must be given"),
        ({"batch_size": 0}, "train_ds.batch_size: 0 must be positive"),
        ({"batch_size": "???"}, "train_ds.batch_size"),
        ({"batch_size": "four"}, "train_ds.batch_size: .four"),
        ({"manifest_filepath": "???"}, "train_ds.manifest_filepath"),
        ({"channel_selector": "left"}, "train_ds.channel_selector: 'left'"),
        ({"min_duration": 5, "max_duration": 2}, "train_ds.min_duration: 5"),
        ({"unknown_text": "ignore"}, "train_ds.unknown_text: 'ignore'"),
        ({"is_concat": True}, "train_ds.is_concat: true"),
        ({"use_bucketing": True, "bucket_batch_size": [1, 2]}, "train_ds.bucket_duration_bins: None"),
        ({"use_bucketing": True, "bucket_duration_bins": [3.0, 2.0]}, "train_ds.bucket_duration_bins: "),
        ({"augmentor": {"sped": {"prob": 1.0}}}, "train_ds.augmentor.sped"),
        ({"is_tarred": True}, "train_ds.tarred_audio_filepaths: None"),
    ],
)
def test_what_is_wrong_in_the_section_is_named_with_its_path(change, message):
    with pytest.raises(ConfigError, match=message):
        build_dataloader({**SECTION, **change}, LETTERS)


def test_an_unknown_key_of_a_restored_file_is_left_out():
    assert build_dataloader({**SECTION, "batch_sise": 4}, LETTERS, strict=False) is not None


def test_an_omegaconf_section_is_read_too():
    config = OmegaConf.create({"rate": 8000, "train_ds": {**SECTION, "sample_rate": "${rate}"}})
    assert len(build_dataloader(config.train_ds, LETTERS, sample_rate=16000)) == 5
    missing = OmegaConf.create({**SECTION, "manifest_filepath": "???", "sample_rate": None})
    with pytest.raises(ConfigError, match=r"dev\.manifest_filepath"):
        build_dataloader(missing, LETTERS, path="dev", sample_rate=8000)
    absent = OmegaConf.create({"manifest_filepath": None, "batch_size": "???"})
    assert build_dataloader(absent, LETTERS, sample_rate=8000) is None


NVIDIAS_KEYS = """augmentor batch_size bucketing_batch_size bucketing_strategy is_tarred labels manifest_filepath
max_duration min_duration normalize num_workers parser pin_memory sample_rate shard_strategy shuffle shuffle_n
tarred_audio_filepaths tarred_shard_strategy trim_silence use_start_end_token"""


def test_every_key_of_nvidias_ctc_configs_is_known():
    known = {*AudioTextDataConfig.__dataclass_fields__, *AudioTextDataConfig.IGNORED_KEYS}
    assert set(NVIDIAS_KEYS.split()) <= known
    assert not set(AudioTextDataConfig.__dataclass_fields__) & AudioTextDataConfig.IGNORED_KEYS


def test_limits_of_the_section_reach_the_manifest():
    loader = build_dataloader({**SECTION, "min_duration": 2.0, "max_duration": 3.5, "batch_size": 1}, LETTERS)
    expected = read_manifest(HELDOUT, ManifestRules(2.0, 3.5))
    assert len(loader) == len(expected) < 19


def test_a_set_without_utterances_is_an_error():
    with pytest.raises(ManifestError, match=r"heldout_repeated\.jsonl: no utterance is left"):
        build_dataloader({**SECTION, "min_duration": 100.0}, LETTERS)
