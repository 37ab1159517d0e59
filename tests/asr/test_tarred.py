"""Tar shards made here of the bundled clips: what is in them comes out, whoever reads them."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset

from nemo_asr.data import tarred
from nemo_asr.data.loader import build_dataloader
from nemo_asr.data.manifest import ManifestError, read_manifest
from nemo_asr.data.tarred import read_members, shards_of
from nemo_asr.text import CharTokenizer
from nemo_config import ConfigError

SPEECH = Path(__file__).parent.parent / "data" / "speech"
LETTERS = CharTokenizer([" ", *"abcdefghijklmnopqrstuvwxyz'"])
ENTRIES = read_manifest(SPEECH / "train.jsonl")[:24]


def make_shards(folder: Path, entries=ENTRIES, shards: int = 4, suffix: str = "", shard_id: bool = True) -> dict:
    """Shards in turn, as NVIDIA's converter lays them out; returns the keys of a data section."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(shards):
        with tarfile.open(folder / f"audio_{number}.tar{suffix}", f"w:{suffix[1:]}") as archive:
            for entry in entries[number::shards]:
                name = Path(entry.audio_filepath).name
                add(archive, name, Path(entry.audio_filepath).read_bytes())
                row = {"audio_filepath": name, "duration": entry.duration_s, "text": entry.text}
                rows.append(row | ({"shard_id": number} if shard_id else {}))
    (folder / "tarred_audio_manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "manifest_filepath": str(folder / "tarred_audio_manifest.json"),
        "tarred_audio_filepaths": f"{folder}/audio__OP_0..{shards - 1}_CL_.tar{suffix}",
        "is_tarred": True,
        "sample_rate": 8000,
        "batch_size": 4,
        "shuffle_n": 8,
    }


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def section(tmp_path_factory) -> dict:
    return make_shards(tmp_path_factory.mktemp("tars"))


def texts_of(loader) -> list[str]:
    return [
        LETTERS.decode(row[:length])
        for batch in loader
        for row, length in zip(batch[2].tolist(), batch[3], strict=True)
    ]


def texts(section: dict, **change) -> list[str]:
    return texts_of(build_dataloader({**section, **change}, LETTERS))


EVERY_TEXT = Counter(entry.text for entry in ENTRIES)


def test_unshuffled_shards_come_in_order_with_their_audio(section):
    loader = build_dataloader({**section, "shuffle": False}, LETTERS)
    in_shards = [entry for number in range(4) for entry in ENTRIES[number::4]]
    assert texts_of(loader) == [entry.text for entry in in_shards]
    signals = [row[:length] for batch in loader for row, length in zip(batch[0], batch[1], strict=True)]
    for signal, entry in zip(signals, in_shards, strict=True):
        samples, rate = soundfile.read(entry.audio_filepath, dtype="float32")
        np.testing.assert_array_equal(signal, samples[: round(entry.duration_s * rate)])
    assert len(loader) == 6


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_utterance_comes_once_an_epoch_whatever_the_workers(section, workers):
    loader = build_dataloader({**section, "num_workers": workers}, LETTERS)
    first, second = texts_of(loader), texts_of(loader)
    assert Counter(first) == Counter(second) == EVERY_TEXT
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_is_the_same(section, workers):
    change = {"num_workers": workers, "augmentor": {"white_noise": {"prob": 1.0}}}
    one, other = (build_dataloader({**section, **change}, LETTERS) for _ in range(2))
    for _ in range(2):
        for first, second in zip(one, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_webdataset_reads_the_same_members(section):
    tars = sorted(Path(section["manifest_filepath"]).parent.glob("*.tar"))
    for tar in tars:
        ours = [(Path(name).stem, data) for name, data in read_members(str(tar))]
        theirs = [(s["__key__"], s["flac"]) for s in webdataset.WebDataset(str(tar), shardshuffle=False)]
        assert ours == theirs


def test_compressed_shards_and_lists_of_shards_are_read(tmp_path):
    packed = make_shards(tmp_path, shards=2, suffix=".gz")
    assert Counter(texts(packed)) == EVERY_TEXT
    names = [str(tmp_path / f"audio_{number}.tar.gz") for number in (0, 1)]
    for spec in ([names], [list(names)], ",".join(names)):
        assert Counter(texts(packed, tarred_audio_filepaths=spec)) == EVERY_TEXT


def test_limits_leave_utterances_of_a_shard_out(section):
    kept = Counter(entry.text for entry in ENTRIES if entry.duration_s <= 2.0)
    assert Counter(texts(section, max_duration=2.0)) == kept
    assert kept != EVERY_TEXT


@pytest.mark.parametrize("spelling", ["-sub", "same name"])
def test_segments_of_one_member_are_told_apart_by_offset(tmp_path, spelling):
    rows = [
        {"audio_filepath": "a.flac", "offset": 0.0, "duration": 0.5, "text": "one", "shard_id": 0},
        {"audio_filepath": "a-sub1.flac" if spelling == "-sub" else "a.flac", "offset": 0.5, "duration": 0.25,
         "text": "two", "shard_id": 0},
    ]  # fmt: skip
    clip = Path(ENTRIES[0].audio_filepath)
    with tarfile.open(tmp_path / "audio_0.tar", "w") as archive:
        add(archive, "a.flac", clip.read_bytes())
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"manifest_filepath": str(tmp_path / "m.json"), "tarred_audio_filepaths": str(tmp_path / "audio_0.tar"),
               "is_tarred": True, "sample_rate": 8000, "batch_size": 2, "shuffle": False}  # fmt: skip
    ((signal, signal_len, transcript, transcript_len),) = build_dataloader(section, LETTERS)
    samples, _ = soundfile.read(clip, dtype="float32")
    assert [LETTERS.decode(row[:n]) for row, n in zip(transcript.tolist(), transcript_len, strict=True)] == [
        "one",
        "two",
    ]
    np.testing.assert_array_equal(signal[0], samples[:4000])
    np.testing.assert_array_equal(signal[1][: signal_len[1]], samples[4000:6000])


def test_one_name_in_two_shards_is_told_apart_by_shard_id(tmp_path):
    rows = []
    for number in (0, 1):
        with tarfile.open(tmp_path / f"audio_{number}.tar", "w") as archive:
            add(archive, "a.flac", Path(ENTRIES[number].audio_filepath).read_bytes())
        rows.append({"audio_filepath": "a.flac", "duration": 9.0, "text": ENTRIES[number].text, "shard_id": number})
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tars = f"{tmp_path}/audio_{{0..1}}.tar"
    section = {"manifest_filepath": str(tmp_path / "m.json"), "tarred_audio_filepaths": tars,
               "is_tarred": True, "sample_rate": 8000, "batch_size": 1, "shuffle": False}  # fmt: skip
    loader = build_dataloader(section, LETTERS)
    assert texts_of(loader) == [entry.text for entry in ENTRIES[:2]]
    lengths = [int(batch[1]) for batch in loader]
    assert lengths == [len(soundfile.read(entry.audio_filepath)[0]) for entry in ENTRIES[:2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_scatter_gives_each_process_its_own_shards_and_as_many_batches(section, monkeypatch, workers):
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(tarred, "process_rank", lambda rank=rank: (rank, 2))
        loader = build_dataloader({**section, "num_workers": workers, "batch_size": 3}, LETTERS)
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        seen.append(Counter(texts_of(loader)))
    assert not seen[0] & seen[1]
    assert seen[0] + seen[1] == EVERY_TEXT


def test_uneven_shards_still_give_each_process_as_many_batches(tmp_path, monkeypatch):
    uneven = make_shards(tmp_path, ENTRIES[:21], shards=2)
    for rank in (0, 1):
        monkeypatch.setattr(tarred, "process_rank", lambda rank=rank: (rank, 2))
        loader = build_dataloader({**uneven, "batch_size": 2}, LETTERS)
        assert len(list(loader)) == len(loader) == 5
    few = make_shards(tmp_path / "few", [*ENTRIES[:4], *ENTRIES[4:16:2]], shards=2)
    monkeypatch.setattr(tarred, "process_rank", lambda: (0, 2))
    assert len(list(build_dataloader({**few, "max_duration": 2.0, "batch_size": 1}, LETTERS))) > 0


def test_replicate_gives_every_process_everything(section, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setattr(tarred, "process_rank", lambda rank=rank: (rank, 2))
        assert Counter(texts(section, tarred_shard_strategy="replicate")) == EVERY_TEXT


def test_too_few_shards_for_the_processes_is_an_error():
    assert shards_of(["a", "b", "c"], "scatter", 1, 2) == ["b"]
    with pytest.raises(ValueError, match="tarred_audio_filepaths: 1 shards are too few for 2 processes"):
        shards_of(["a"], "scatter", 0, 2)


@pytest.fixture(scope="module")
def buckets(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("buckets")
    by_length = sorted(ENTRIES, key=lambda entry: entry.duration_s)
    parts = [make_shards(folder / f"bucket{i}", by_length[i * 8 : i * 8 + 8], shards=2) for i in range(3)]
    return {
        **parts[0],
        "manifest_filepath": [[part["manifest_filepath"]] for part in parts],
        "tarred_audio_filepaths": [[part["tarred_audio_filepaths"]] for part in parts],
    }


@pytest.mark.parametrize("strategy", ["fixed_order", "synced_randomized", "fully_randomized"])
@pytest.mark.parametrize("workers", [0, 2])
def test_buckets_keep_their_batches_to_themselves(buckets, strategy, workers):
    section = {**buckets, "bucketing_strategy": strategy, "num_workers": workers}
    loader = build_dataloader(section, LETTERS)
    places = {entry.text: place // 8 for place, entry in enumerate(sorted(ENTRIES, key=lambda e: e.duration_s))}
    batches = [[places[text] for text in texts_of([batch])] for batch in loader]
    assert Counter(texts_of(loader)) == EVERY_TEXT
    assert all(len(set(batch)) == 1 for batch in batches)
    if strategy == "fixed_order" and not workers:
        assert [batch[0] for batch in batches] == [0, 0, 1, 1, 2, 2]


def test_bucket_batch_sizes_shrink_with_length(buckets):
    sizes = {"bucketing_batch_size": 2, "batch_size": 1, "bucketing_strategy": "fixed_order"}
    assert [len(batch[1]) for batch in build_dataloader({**buckets, **sizes}, LETTERS)] == [6, 2, 4, 4, 2, 2, 2, 2]
    sizes["bucketing_batch_size"] = [8, 4, 2]
    assert [len(batch[1]) for batch in build_dataloader({**buckets, **sizes}, LETTERS)] == [8, 4, 4, 2, 2, 2, 2]
    twice = texts(buckets, bucketing_weights=[1, 1, 2])
    assert len(twice) == 32


def test_a_broken_or_missing_shard_is_named(section, tmp_path):
    (tmp_path / "audio_0.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for name in ("audio_0.tar", "gone.tar"):
        with pytest.raises(ManifestError, match=f"{name}: cannot be read"):
            texts(section, tarred_audio_filepaths=str(tmp_path / name))


def test_a_manifest_of_other_shards_is_an_error(section, tmp_path):
    other = make_shards(tmp_path, read_manifest(SPEECH / "heldout_sentences.jsonl"), shards=1)
    with pytest.raises(ManifestError, match="no utterance of it is in"):
        texts(section, tarred_audio_filepaths=other["tarred_audio_filepaths"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tarred_audio_filepaths": [["a.tar"], ["b.tar"]]}, "train_ds.tarred_audio_filepaths: .*2 bucket"),
        ({"bucketing_weights": [1, 2]}, "train_ds.bucketing_weights: .*must be 1 positive"),
        ({"batch_size": None, "batch_duration": 9.0}, "train_ds.batch_size: None must be given for tarred data"),
        ({"tarred_shard_strategy": "both"}, "train_ds.tarred_shard_strategy: 'both'"),
        ({"bucketing_strategy": "none"}, "train_ds.bucketing_strategy: 'none'"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(section, change, message):
    with pytest.raises(ConfigError, match=message):
        build_dataloader({**section, **change}, LETTERS)


def test_sample_ids_are_the_lines_of_the_manifest(section):
    loader = build_dataloader({**section, "return_sample_id": True}, LETTERS)
    entries = read_manifest(SPEECH / "train.jsonl")
    in_manifest = [json.loads(line)["text"] for line in Path(section["manifest_filepath"]).read_text().splitlines()]
    assert len(entries) > len(in_manifest)
    for batch in loader:
        assert texts_of([batch]) == [in_manifest[number] for number in batch[4]]
