"""Characters as tokens: the id of a character is its place in the model's `labels`."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_asr.text.tokenizer import UnknownMode, UnknownTextError


class CharTokenizer:
    """Each label is a token. Labels of several characters (`<noise>`) are matched as whole words.

    Args:
        labels: the characters in the order of their ids, as in the config's `labels`.

    Raises:
        ValueError: a label that is no text, is empty, or stands twice.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = [str(label) for label in labels]
        if not self._labels:
            raise ValueError("labels: an empty list is no vocabulary")
        if "" in self._labels:
            raise ValueError("labels: an empty label is no character")
        self._ids = {label: index for index, label in enumerate(self._labels)}
        if len(self._ids) < len(self._labels):
            twice = next(label for label in self._labels if self._labels.count(label) > 1)
            raise ValueError(f"labels: {twice!r} stands in the list twice")
        self._words = frozenset(label for label in self._labels if len(label) > 1)

    @property
    def vocab_size(self) -> int:
        return len(self._labels)

    @property
    def vocabulary(self) -> list[str]:
        return list(self._labels)

    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text, character by character; unknown characters are dropped or raise."""
        pieces = self._split(text)
        ids = [self._ids[piece] for piece in pieces if piece in self._ids]
        if unknown == "error" and len(ids) < len(pieces):
            raise UnknownTextError(text, [piece for piece in pieces if piece not in self._ids])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens(ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._labels[int(index)] for index in ids]

    def _split(self, text: str) -> list[str]:
        if not self._words:
            return list(text)
        pieces: list[str] = []
        for place, word in enumerate(text.split(" ")):
            if place:
                pieces.append(" ")
            if word in self._words:
                pieces.append(word)
            else:
                pieces.extend(word)
        return pieces
