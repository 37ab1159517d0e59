"""Simple clean-up of transcripts for character models: the config key `normalize_transcripts`.

NVIDIA's character parsers `base`, `en` and `ru` lower-case; the latter two also spell a few signs and blank out the
punctuation that is no label. Numbers and abbreviations are left as they are here: spell them in the manifest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

SPELLED = {"en": {"+": " plus ", "&": " and ", "%": " percent "}, "ru": {"+": " плюс ", "ё": "е"}, "base": {}}


def normalize_transcript(text: str, labels: Sequence[str], parser: str = "en") -> str:
    """Lower-cases a transcript and, for `en` and `ru`, replaces punctuation and signs that are no labels by spaces.

    Raises:
        ValueError: an unknown parser.
    """
    if parser not in SPELLED:
        raise ValueError(f"parser: {parser!r} is none of {', '.join(SPELLED)}")
    text = text.lower().strip()
    if parser == "base":
        return text
    if parser == "en":
        text = _without_accents(text, labels)
    for sign, spelled in SPELLED[parser].items():
        if sign not in labels:
            text = text.replace(sign, spelled)
    return " ".join("".join(_blanked(text, frozenset(labels))).split())


def _blanked(text: str, labels: frozenset[str]) -> Iterator[str]:
    for sign in text:
        if sign in "‘’" and "'" in labels:
            yield "'"
        elif sign not in labels and unicodedata.category(sign)[0] in "PS":
            yield " "
        else:
            yield sign


def _without_accents(text: str, labels: Sequence[str]) -> str:
    kept = frozenset(labels)
    return "".join(letter if letter in kept or ord(letter) < 128 else _base_letters(letter) for letter in text)


def _base_letters(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter)
    return "".join(part for part in plain if not unicodedata.combining(part))
