"""Manifests: what is read, what is kept, and what a bad line is told."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_asr.data.manifest import ManifestError, ManifestRules, read_manifest
from nemo_asr.data.paths import expand_braces, flatten_paths, group_paths

SPEECH = Path(__file__).parent.parent / "data" / "speech"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 1.0), ("b.wav", 2.5), ("c.wav", 0.25)):
        soundfile.write(tmp_path / name, np.zeros(int(seconds * 8000), np.float32), 8000)
    return tmp_path


def write(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_bundled_manifests_are_what_their_readme_says():
    rows = {
        name: read_manifest(SPEECH / f"{name}.jsonl") for name in ("train", "heldout_repeated", "heldout_sentences")
    }
    assert {name: len(entries) for name, entries in rows.items()} == {
        "train": 130, "heldout_repeated": 19, "heldout_sentences": 14,
    }  # fmt: skip
    texts = {entry.text for entry in rows["train"]}
    words = [set(entry.text.split()) for entry in rows["train"]]
    assert all(entry.text in texts for entry in rows["heldout_repeated"])
    for entry in rows["heldout_sentences"]:
        assert entry.text not in texts
        assert all(sum(word in clip for clip in words) >= 3 for word in entry.text.split())
    files = [entry.audio_filepath for entries in rows.values() for entry in entries]
    assert len(set(files)) == 163
    assert sum(path.stat().st_size for path in SPEECH.rglob("*") if path.is_file()) <= 4_000_000


def test_every_documented_key_is_read_and_the_rest_is_kept(folder):
    write(folder / "texts.txt", "spoken over", "two lines")
    path = write(
        folder / "m.json",
        {"audio_filepath": "a.wav", "duration": 1, "text": "one", "lang": "en", "speaker": 7},
        {"audio_file": "b.wav", "duration": 2.0, "offset": 0.5, "text_filepath": "texts.txt"},
        "",
        {"audio_filename": str(folder / "c.wav"), "duration": 0.25, "text": ""},
    )
    first, second, third = read_manifest(path)
    assert (first.duration_s, first.text, first.lang, first.extra) == (1.0, "one", "en", {"speaker": 7})
    assert (second.offset_s, second.text, second.lang) == (0.5, "spoken over two lines", None)
    assert (third.audio_filepath, third.text, third.where) == (str(folder / "c.wav"), "", f"{path}:4")


def test_relative_audio_stands_against_the_manifest_then_against_the_current_folder(folder, monkeypatch, tmp_path):
    inner = folder / "inner"
    inner.mkdir()
    soundfile.write(inner / "a.wav", np.zeros(80, np.float32), 8000)
    monkeypatch.chdir(folder)
    path = write(
        inner / "m.json",
        {"audio_filepath": "a.wav", "duration": 1, "text": ""},
        {"audio_filepath": "b.wav", "duration": 1, "text": ""},
    )
    assert [e.audio_filepath for e in read_manifest(path)] == [str(inner / "a.wav"), "b.wav"]


def test_a_missing_duration_is_read_from_the_header(folder):
    path = write(
        folder / "m.jsonl",
        {"audio_filepath": "b.wav", "text": ""},
        {"audio_filepath": "b.wav", "text": "", "offset": 2.0},
    )
    assert [entry.duration_s for entry in read_manifest(path)] == [2.5, 0.5]


def test_limits_drop_entries_and_say_so_once(folder, caplog):
    path = write(folder / "m.json", *({"audio_filepath": f"{n}.wav", "text": n} for n in "abc"))
    with caplog.at_level(logging.INFO, logger="nemo_asr.data.manifest"):
        kept = read_manifest(path, ManifestRules(min_duration_s=0.25, max_duration_s=1.0))
    assert [entry.text for entry in kept] == ["a", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 utterances, 0.00 h; 1 outside the duration limits (0.00 h)"
    ]
    assert len(read_manifest(path, ManifestRules(max_utts=2))) == 2


def test_several_manifests_by_comma_list_or_nested_list(folder):
    for name in "ab":
        write(folder / f"{name}.json", {"audio_filepath": f"{name}.wav", "text": name})
    a, b = str(folder / "a.json"), str(folder / "b.json")
    for spec in (f"{a},{b}", [a, b], [[a], [b]], [Path(a), b]):
        assert [entry.text for entry in read_manifest(spec)] == ["a", "b"]


GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "is a JSON list"),
        ({"duration": 1.0, "text": "x"}, "audio_filepath: missing"),
        ({**GOOD, "audio_filepath": 3}, "audio_filepath: 3 is no path"),
        ({**GOOD, "audio_filepath": "gone.wav"}, "audio_filepath: gone.wav is not a file"),
        ({**GOOD, "audio_filepath": "/gone.wav"}, "audio_filepath: /gone.wav is not a file"),
        ({**GOOD, "duration": "1.0"}, "duration: '1.0' is no number of seconds"),
        ({**GOOD, "duration": 0}, "duration: 0 must be positive"),
        ({**GOOD, "offset": -1}, "offset: -1 must be at least 0"),
        ('{"audio_filepath": "a.wav", "duration": NaN, "text": "x"}', "duration: nan"),
        ({"audio_filepath": "a.wav", "duration": 1.0}, "text: missing"),
        ({**GOOD, "text": 5}, "text: 5 is no text"),
        (
            {"audio_filepath": "a.wav", "duration": 1.0, "text_filepath": "no.txt"},
            "text_filepath: no.txt is not a file",
        ),
        ({"audio_filepath": "m.json", "text": ""}, "is no audio that libsndfile reads"),
        ({"audio_filepath": "a.wav", "text": "", "offset": 3.0}, "offset: 3.0 lies behind the end"),
    ],
)
def test_a_bad_line_is_reported_with_manifest_and_number(folder, line, message):
    path = write(folder / "m.json", GOOD, "", line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_bytes_that_are_not_utf8_are_reported_with_their_line(folder):
    path = folder / "m.json"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(ManifestError, match=r"m\.json:2: is not UTF-8"):
        read_manifest(path)


def test_a_byte_order_mark_is_no_error(folder):
    path = folder / "m.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_manifest(path)) == 1


@pytest.mark.parametrize(("spec", "message"), [("gone.json", "gone.json: cannot be read"), ([], "names no manifest")])
def test_a_missing_manifest_is_reported(spec, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(spec)


def test_text_and_files_are_not_asked_for_where_they_are_not_needed(folder):
    path = write(folder / "m.json", {"audio_filepath": "member.wav", "duration": 1.0})
    (entry,) = read_manifest(path, ManifestRules(need_text=False, tarred=True))
    assert (entry.audio_filepath, entry.text) == ("member.wav", "")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a_{0..2}.tar", ["a_0.tar", "a_1.tar", "a_2.tar"]),
        ("a__OP_0..2_CL_.tar", ["a_0.tar", "a_1.tar", "a_2.tar"]),
        ("a_(1..2).tar", ["a_1.tar", "a_2.tar"]),
        ("a_[1..2].tar", ["a_1.tar", "a_2.tar"]),
        ("a_<1..2>.tar", ["a_1.tar", "a_2.tar"]),
        ("a_{008..010}.tar", ["a_008.tar", "a_009.tar", "a_010.tar"]),
        ("{x,y}/{1..2}", ["x/1", "x/2", "y/1", "y/2"]),
        ("folder (1)/a.tar", ["folder (1)/a.tar"]),
    ],
)
def test_braces_expand(pattern, expected):
    assert expand_braces(pattern) == expected
    assert flatten_paths(pattern) == expected


def test_buckets_are_the_entries_of_a_list():
    assert flatten_paths("a_{1,2}.tar,b.tar") == ["a_1.tar", "a_2.tar", "b.tar"]
    assert group_paths([["a_{1..2}.tar"], ["b.tar"]]) == [["a_1.tar", "a_2.tar"], ["b.tar"]]
    assert group_paths("a.tar,b.tar") == [["a.tar", "b.tar"]]
