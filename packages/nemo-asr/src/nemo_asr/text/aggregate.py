"""Several languages in one vocabulary: each has its own tokenizer, and a range of ids of its own after the others'."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from nemo_asr.text.sentence_piece import WORD_BOUNDARY
from nemo_asr.text.tokenizer import Tokenizer, UnknownMode


class AggregateTokenizer:
    """Tokenizers of several languages side by side, ids in the order in which the languages are given.

    Args:
        tokenizers: language -> tokenizer.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        if not tokenizers:
            raise ValueError("langs: no language is given")
        self.tokenizers = dict(tokenizers)
        self.offsets: dict[str, int] = {}
        self._vocabulary: list[str] = []
        for lang, tokenizer in self.tokenizers.items():
            self.offsets[lang] = len(self._vocabulary)
            self._vocabulary.extend(tokenizer.vocabulary)
        self._langs = list(self.offsets)
        self._starts = list(self.offsets.values())

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    @property
    def vocabulary(self) -> list[str]:
        return list(self._vocabulary)

    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text in the language `lang`, which must be given.

        Raises:
            ValueError: no language, or one that the tokenizer does not have.
        """
        if lang is None:
            raise ValueError(f"lang: missing; the tokenizer has several languages: {', '.join(self._langs)}")
        if lang not in self.tokenizers:
            raise ValueError(f"lang: {lang!r} is none of the tokenizer's: {', '.join(self._langs)}")
        offset = self.offsets[lang]
        return [offset + index for index in self.tokenizers[lang].encode(text, unknown=unknown)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids of any mixture of languages; like NVIDIA's, it keeps a leading word boundary as a space."""
        return "".join(self.tokens(ids)).replace(WORD_BOUNDARY, " ")

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[int(index)] for index in ids]

    def lang_of(self, index: int) -> str:
        """The language to which an id belongs."""
        return self._langs[bisect_right(self._starts, int(index)) - 1]
