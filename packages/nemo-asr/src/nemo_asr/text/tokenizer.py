"""What a model, a data set and a decoder ask of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

UnknownMode: TypeAlias = Literal["replace", "error"]
"""What happens to text that the vocabulary lacks: `replace` is NVIDIA's way (SentencePiece's <unk>; a character
tokenizer drops the character), `error` raises UnknownTextError."""


class UnknownTextError(ValueError):
    """Text with characters that the vocabulary cannot spell.

    Attributes:
        text: the text.
        characters: what is unknown, each once, in order of appearance.
    """

    def __init__(self, text: str, characters: Sequence[str]) -> None:
        self.text = text
        self.characters = list(dict.fromkeys(characters))
        named = " ".join(repr(character) for character in self.characters)
        super().__init__(f"text {text!r}: {named} outside the vocabulary")

    def __reduce__(self) -> tuple[type[UnknownTextError], tuple[str, list[str]]]:
        return type(self), (self.text, self.characters)


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; ids run from 0 to vocab_size - 1, the CTC blank comes after them.

    Attributes:
        vocabulary: the piece of each id, as NVIDIA lists them in `decoder.vocabulary`.
        bos_id, eos_id, pad_id: ids of the special pieces; None where there is none.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def vocabulary(self) -> list[str]: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text; `lang` matters to a tokenizer of several languages only."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, as NVIDIA's toolkit spells it."""

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id."""
