"""Text of token ids; the space that some vocabularies put before a punctuation mark is dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_asr.decoding.timestamps import punctuation_of

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer


class Spelling:
    """A tokenizer, and the punctuation marks among its tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.punctuation = punctuation_of(tokenizer.vocabulary)
        marks = "|".join(re.escape(mark) for mark in sorted(self.punctuation))
        self._space_before_mark = re.compile(rf"\s({marks})") if marks else None

    def text(self, tokens: Sequence[int]) -> str:
        """Text of ids without blanks."""
        text = self.tokenizer.decode(tokens)
        return self._space_before_mark.sub(r"\1", text) if self._space_before_mark else text
