"""Manifests: one JSON object a line for each utterance.

    {"audio_filepath": "wav/1.flac", "duration": 2.35, "text": "you are entering", "offset": 0.5, "lang": "en"}

`audio_filepath` may be called `audio_file`, `audio_filename` or `wav`; relative paths stand against the manifest's
folder. `text_filepath` names a file with the text. Every other key is kept in `extra`. What is wrong with a line is
reported with the manifest's name and the line's number.
"""

# Paths are handled by os.path: objects of pathlib cost too much by the million.
# ruff: noqa: PTH111, PTH113, PTH117, PTH118

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import expanduser, isabs, isfile, join
from pathlib import Path
from typing import Any

from nemo_asr.data.paths import PathSpec, flatten_paths

logger = logging.getLogger(__name__)

AUDIO_KEYS = ("audio_filepath", "audio_file", "audio_filename", "wav")
TEXT_KEYS = ("text", "normalized_text")


class ManifestError(ValueError):
    """A manifest that cannot be used; the message begins with `manifest:line:`."""


@dataclass(slots=True)
class ManifestEntry:
    """One utterance.

    Attributes:
        audio_filepath: the audio file; in a tarred set the member's name.
        duration_s: length in seconds.
        text: transcript, '' where the manifest has none.
        offset_s: where in the file the utterance begins, in seconds.
        lang: language, for tokenizers of several.
        manifest, line: where the entry stands, lines from 1.
        extra: all other keys.
    """

    audio_filepath: str
    duration_s: float
    text: str
    offset_s: float
    lang: str | None
    manifest: str
    line: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.manifest}:{self.line}"


@dataclass(frozen=True)
class ManifestRules:
    """What is asked of the lines, and which of them are kept.

    Attributes:
        min_duration_s, max_duration_s: utterances outside the limits are left out; None is no limit.
        max_utts: at most so many utterances are kept, 0 means all.
        need_text: a line without text or text_filepath is an error.
        need_duration: a missing duration is read from the audio's header; otherwise it is 0.
        tarred: audio names are members of tar files: they are not looked for on the disk.
    """

    min_duration_s: float | None = None
    max_duration_s: float | None = None
    max_utts: int = 0
    need_text: bool = True
    need_duration: bool = True
    tarred: bool = False


def read_manifest(spec: PathSpec, rules: ManifestRules | None = None) -> list[ManifestEntry]:
    """Reads one or several manifests, checks every line, and applies the duration limits.

    Args:
        spec: path, comma-separated paths, or lists of them.
        rules: checks and limits; by default there are no limits, and a text is required.

    Raises:
        ManifestError: a missing or bad manifest, line, field or audio file.
    """
    rules = rules or ManifestRules()
    paths = flatten_paths(spec)
    if not paths:
        raise ManifestError("manifest_filepath: names no manifest")
    kept: list[ManifestEntry] = []
    left_out: list[float] = []
    for entry in _entries(paths, rules):
        if not _within_limits(entry.duration_s, rules):
            left_out.append(entry.duration_s)
            continue
        kept.append(entry)
        if rules.max_utts and len(kept) >= rules.max_utts:
            break
    _log_counts(paths, kept, left_out)
    return kept


def _entries(paths: list[str], rules: ManifestRules) -> Iterator[ManifestEntry]:
    for path in paths:
        resolved = expanduser(path)
        folder = str(Path(resolved).parent)
        for number, record in read_lines(resolved):
            yield _entry(record, resolved, number, folder, rules)


def read_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not empty, as they stand in the file.

    Raises:
        ManifestError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if line := raw.removeprefix(b"\xef\xbb\xbf").strip():
                    yield number, _parse(line, f"{path}:{number}")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: is not UTF-8 text (byte {error.start + 1} of the line)") from None
    except ValueError as error:
        raise ManifestError(f"{where}: is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ManifestError(f"{where}: is a JSON {type(record).__name__}; a line must be one {{…}} object")
    return record


def _entry(record: dict[str, Any], manifest: str, line: int, folder: str, rules: ManifestRules) -> ManifestEntry:
    where = f"{manifest}:{line}"
    audio = _audio_path(record, where, folder, rules)
    offset = record.pop("offset", None)
    offset_s = _seconds(offset, "offset", where, positive=False) if offset else 0.0
    duration_s = _duration(record, where, audio, offset_s, rules)
    text = _text(record, where, folder, rules)
    lang = record.pop("lang", None)
    return ManifestEntry(audio, duration_s, text, offset_s, lang, manifest, line, record)


def _audio_path(record: dict[str, Any], where: str, folder: str, rules: ManifestRules) -> str:
    key = next((key for key in AUDIO_KEYS if key in record), None)
    if key is None:
        raise ManifestError(f"{where}: audio_filepath: missing")
    value = record.pop(key)
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where}: {key}: {value!r} is no path")
    if rules.tarred:
        return value
    return _find_file(value, key, where, folder)


def _find_file(value: str, key: str, where: str, folder: str) -> str:
    """A relative path stands against the manifest's folder; if nothing is there, against the current one."""
    if not isabs(value) and isfile(beside := join(folder, value)):
        return beside
    given = expanduser(value) if value.startswith("~") else value
    if isfile(given):
        return given
    looked_for = "" if isabs(given) else f" (nor is {join(folder, value)})"
    raise ManifestError(f"{where}: {key}: {value} is not a file{looked_for}")


def _duration(record: dict[str, Any], where: str, audio: str, offset_s: float, rules: ManifestRules) -> float:
    value = record.pop("duration", None)
    if value is not None:
        return _seconds(value, "duration", where, positive=True)
    if not rules.need_duration:
        return 0.0
    if rules.tarred:
        raise ManifestError(f"{where}: duration: missing")
    from nemo_asr.data.audio import AudioError, audio_duration

    try:
        remaining = audio_duration(audio) - offset_s
    except AudioError as error:
        raise ManifestError(f"{where}: {error}") from None
    if remaining <= 0:
        raise ManifestError(f"{where}: offset: {offset_s} lies behind the end of {audio}")
    return remaining


def _seconds(value: object, key: str, where: str, *, positive: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ManifestError(f"{where}: {key}: {value!r} is no number of seconds")
    if value < 0 or (positive and value == 0):
        raise ManifestError(f"{where}: {key}: {value} must be {'positive' if positive else 'at least 0'}")
    return float(value)


def _text(record: dict[str, Any], where: str, folder: str, rules: ManifestRules) -> str:
    key = next((key for key in TEXT_KEYS if key in record), None)
    if key is not None:
        value = record.pop(key)
        if value is None and not rules.need_text:
            return ""
        if not isinstance(value, str):
            raise ManifestError(f"{where}: {key}: {value!r} is no text")
        return value
    if "text_filepath" in record:
        return _read_text(_find_file(str(record.pop("text_filepath")), "text_filepath", where, folder), where)
    if rules.need_text:
        raise ManifestError(f"{where}: text: missing")
    return ""


def _read_text(path: str, where: str) -> str:
    try:
        return " ".join(Path(path).read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        raise ManifestError(f"{where}: text_filepath: {path} is not UTF-8 text") from None


def _within_limits(duration_s: float, rules: ManifestRules) -> bool:
    too_short = rules.min_duration_s is not None and duration_s < rules.min_duration_s
    too_long = rules.max_duration_s is not None and duration_s > rules.max_duration_s
    return not (too_short or too_long)


def _log_counts(paths: list[str], kept: list[ManifestEntry], left_out: list[float]) -> None:
    hours = sum(entry.duration_s for entry in kept) / 3600
    name = paths[0] if len(paths) == 1 else f"{len(paths)} manifests"
    left = f"; {len(left_out)} outside the duration limits ({sum(left_out) / 3600:.2f} h)" if left_out else ""
    logger.info("%s: %d utterances, %.2f h%s", name, len(kept), hours, left)
