"""Characters as tokens: the id of a character is its place in the model's `labels`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_asr.text.tokenizer import PieceTokenizer, UnknownMode, UnknownTextError


class CharTokenizer(PieceTokenizer):
    """Each label is a token. Labels of several characters (`<noise>`) are matched as whole words.

    Args:
        labels: the characters in the order of their ids, as in the config's `labels`.

    Raises:
        ValueError: a label that is no text, is empty, or stands twice.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(str(label) for label in labels)
        if not self._pieces:
            raise ValueError("labels: an empty list is no vocabulary")
        if "" in self._pieces:
            raise ValueError("labels: an empty label is no character")
        self._ids = {label: index for index, label in enumerate(self._pieces)}
        if len(self._ids) < len(self._pieces):
            twice = next(label for label in self._pieces if self._pieces.count(label) > 1)
            raise ValueError(f"labels: {twice!r} stands in the list twice")
        self._words = frozenset(label for label in self._pieces if len(label) > 1)

    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text, character by character; unknown characters are dropped or raise."""
        pieces = self._split(text)
        ids = [self._ids[piece] for piece in pieces if piece in self._ids]
        if unknown == "error" and len(ids) < len(pieces):
            raise UnknownTextError(text, [piece for piece in pieces if piece not in self._ids])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.tokens(ids))

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
