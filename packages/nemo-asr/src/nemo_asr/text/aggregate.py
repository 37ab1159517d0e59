"""Several languages in one vocabulary: each has its own tokenizer, and a range of ids of its own after the others'."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate

from nemo_asr.text.sentence_piece import WORD_BOUNDARY
from nemo_asr.text.tokenizer import PieceTokenizer, Tokenizer, UnknownMode


class AggregateTokenizer(PieceTokenizer):
    """Tokenizers of several languages side by side, ids in the order in which the languages are given.

    Args:
        tokenizers: language -> tokenizer.
    """

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        if not tokenizers:
            raise ValueError("langs: no language is given")
        super().__init__(piece for tokenizer in tokenizers.values() for piece in tokenizer.vocabulary)
        self.tokenizers = dict(tokenizers)
        sizes = (tokenizer.vocab_size for tokenizer in self.tokenizers.values())
        self._langs = list(self.tokenizers)
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self.offsets = dict(zip(self._langs, self._starts, strict=True))

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

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids of any mixture of languages; like NVIDIA's, it keeps a leading word boundary as a space."""
        return "".join(self.tokens(ids)).replace(WORD_BOUNDARY, " ")

    def lang_of(self, index: int) -> str:
        """The language to which an id belongs."""
        return self._langs[bisect_right(self._starts, int(index)) - 1]
