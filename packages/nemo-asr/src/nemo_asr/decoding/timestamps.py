"""When each token, word and segment was said, read off a path the way NVIDIA's `transcribe(timestamps=True)` does.

The convention of CTC, which files and scripts rely on: a token *ends* at the frame where it first appears and *starts*
where the token before it did; the first one starts one frame before the first frame that is not blank. Seconds are
frame x window stride x subsampling factor, multiplied in this order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

_NO_PUNCTUATION = re.compile(r"\[.*\]$|<.*>$|##|▁|\s*$")
_WORD_MARKS = frozenset((" ", "_", "▁"))
TIMESTAMP_TYPES = ("char", "word", "segment", "all")


@dataclass(frozen=True)
class FrameClock:
    """How long an encoder frame lasts."""

    window_stride_s: float
    subsampling_factor: int

    def seconds(self, frame: int) -> float:
        """Where a frame begins, in seconds."""
        return frame * self.window_stride_s * self.subsampling_factor


@dataclass(frozen=True)
class TimestampOptions:
    """What parts words and segments, and which lists are wanted."""

    word_separator: str
    segment_separators: Sequence[str]
    segment_gap: int | None
    kind: str


@dataclass
class Span:
    """A token, word or segment from the frame `start` to the frame `end`; `piece` is a token's spelling as stored."""

    text: str
    start: int
    end: int
    token: int = -1
    piece: str = ""

    def entry(self, kind: str, clock: FrameClock | None) -> dict[str, Any]:
        """As a hypothesis lists it; seconds only where a clock is known."""
        offsets: dict[str, Any] = {kind: self.text, "start_offset": self.start, "end_offset": self.end}
        if clock is not None:
            offsets |= {"start": clock.seconds(self.start), "end": clock.seconds(self.end)}
        return offsets


def punctuation_of(vocabulary: Sequence[str]) -> frozenset[str]:
    """Punctuation characters of the tokens that neither are special nor begin a word."""
    return frozenset(
        character
        for token in vocabulary
        if not _NO_PUNCTUATION.match(token)
        for character in token
        if unicodedata.category(character).startswith("P")
    )


def ctc_timestamps(
    tokens: Sequence[int],
    onsets: Sequence[int],
    spoken_frames: Sequence[int],
    tokenizer: Tokenizer,
    punctuation: frozenset[str],
    options: TimestampOptions,
    clock: FrameClock | None,
) -> dict[str, list[Any]]:
    """The `timestamp` of a hypothesis.

    Args:
        tokens: ids after the collapse.
        onsets: the frame where each of them first appears.
        spoken_frames: every frame that is not blank.
        tokenizer: gives the spelling of tokens.
        punctuation: characters that end where they start and join the word before them.
        options: separators and the lists wanted.
        clock: adds `start` and `end` in seconds.
    """
    chars = _token_spans(tokens, onsets, spoken_frames, tokenizer, punctuation)
    return {"timestep": list(spoken_frames), **_entries(chars, tokenizer, punctuation, options, clock)}


def transducer_timestamps(
    tokens: Sequence[int],
    frames: Sequence[int],
    durations: Sequence[int],
    tokenizer: Tokenizer,
    punctuation: frozenset[str],
    options: TimestampOptions,
    clock: FrameClock | None,
) -> dict[str, list[Any]]:
    """The `timestamp` of a transducer's hypothesis; its `char` entries hold lists of one token, as NVIDIA's do.

    A token starts at its frame and ends one frame, or its duration, later.  A punctuation mark of a model with
    durations stands where the token before it ends.

    Args:
        tokens: their ids.
        frames: the frame of each.
        durations: frames that each leads on (TDT), or empty.
        tokenizer, punctuation, options, clock: as in `ctc_timestamps`.
    """
    lasting = durations or [1] * len(tokens)
    chars = [
        Span(tokenizer.decode([token]), frame, frame + duration, token, piece)
        for token, frame, duration, piece in zip(tokens, frames, lasting, tokenizer.tokens(tokens), strict=True)
    ]
    if durations:
        for before, span in pairwise(chars):
            if span.text in punctuation:
                span.start = span.end = before.end
    entries = _entries(chars, tokenizer, punctuation, options, clock)
    for entry in entries.get("char", []):
        entry["char"] = [entry["char"]]
    return {"timestep": list(frames), **entries}


def _entries(
    chars: Sequence[Span],
    tokenizer: Tokenizer,
    punctuation: frozenset[str],
    options: TimestampOptions,
    clock: FrameClock | None,
) -> dict[str, list[dict[str, Any]]]:
    words = _join_words(chars, tokenizer, options.word_separator, punctuation)
    segments = _join_segments(words, options.segment_separators, options.segment_gap)
    return {
        kind: [span.entry(kind, clock) for span in spans]
        for kind, spans in (("char", chars), ("word", words), ("segment", segments))
        if options.kind in (kind, "all")
    }


def _token_spans(
    tokens: Sequence[int],
    onsets: Sequence[int],
    spoken_frames: Sequence[int],
    tokenizer: Tokenizer,
    punctuation: frozenset[str],
) -> list[Span]:
    first = max(0, spoken_frames[0] - 1) if spoken_frames else 0
    spans = [
        Span(tokenizer.decode([token]), start, end, token, piece)
        for token, piece, start, end in zip(
            tokens, tokenizer.tokens(tokens), [first, *onsets[:-1]], onsets, strict=False
        )
    ]
    for span in spans[1:]:
        if span.text[:1] in punctuation:  # a mark is no sound, however long the network dwells on it
            span.end = span.start
    return spans


def _begins_word(span: Span, following: str | None, separator: str, punctuation: frozenset[str]) -> bool:
    if separator != " ":
        return span.text == separator
    marked = span.piece != span.text  # decoding stripped the mark of a word's beginning
    return marked or (span.text == separator and following not in punctuation)


def _following_texts(spans: Sequence[Span], separator: str) -> list[str | None]:
    """For each token the next one that is neither empty nor a separator."""
    following: list[str | None] = []
    latest: str | None = None
    for span in reversed(spans):
        following.append(latest)
        if span.text and span.text != separator:
            latest = span.text
    return following[::-1]


def _join_words(chars: Sequence[Span], tokenizer: Tokenizer, separator: str, punctuation: frozenset[str]) -> list[Span]:
    """Groups tokens into words; punctuation joins the word before it."""
    words: list[Span] = []
    built: list[Span] = []
    begin = 0

    def finish(end: int) -> None:
        if built:
            words.append(Span(tokenizer.decode([span.token for span in built]), begin, end))
            built.clear()

    for index, (span, following) in enumerate(zip(chars, _following_texts(chars, separator), strict=True)):
        mark = span.text in punctuation and span.text != separator
        if not mark and _begins_word(span, following, separator, punctuation):
            finish(chars[index - 1].end)
            if span.text == separator:
                continue
        elif mark and not built and words:
            words[-1].text = words[-1].text.removesuffix(" ") + span.text
            words[-1].end = span.end
            continue
        elif mark and built and built[-1].piece in _WORD_MARKS:
            built.pop()
            built.append(span)
            continue
        if not built:
            begin = span.start
        built.append(span)
    if chars:
        finish(chars[-1].end)
        if words:
            words[0].start = chars[0].start
    return words


def _join_segments(words: Sequence[Span], separators: Sequence[str], gap: int | None) -> list[Span]:
    """Ends a segment after a word that ends in a separator, or before a pause of at least `gap` frames."""
    segments: list[Span] = []
    begin = 0

    def finish(end: int) -> None:
        if end > begin:
            text = " ".join(word.text for word in words[begin:end])
            segments.append(Span(text, words[begin].start, words[end - 1].end))

    for index, word in enumerate(words):
        if gap and index > begin:  # where pauses part segments, separators count only in a segment's first word
            if word.start - words[index - 1].end >= gap:
                finish(index)
                begin = index
        elif word.text and (word.text[-1] in separators or word.text in separators):
            finish(index + 1)
            begin = index + 1
    finish(len(words))
    return segments
