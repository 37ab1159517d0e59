"""What a model, a data set and a decoder ask of a tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
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


class PieceTokenizer(ABC):
    """What the tokenizers here have in common: a list of pieces, and NVIDIA's names of the methods, which scripts call.

    Args:
        pieces: the spelling of each id.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = list(pieces)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def vocabulary(self) -> list[str]:
        return list(self._pieces)

    @abstractmethod
    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id."""
        return [self._pieces[int(index)] for index in ids]

    def text_to_ids(self, text: str, lang: str | None = None) -> list[int]:
        """NVIDIA's name of `encode`."""
        return self.encode(text, lang)

    def ids_to_text(self, ids: Iterable[int]) -> str:
        """NVIDIA's name of `decode`; ids may be a tensor."""
        return self.decode(ids)

    def text_to_tokens(self, text: str, lang: str | None = None) -> list[str]:
        """The pieces of a text, by NVIDIA's name."""
        return self.tokens(self.encode(text, lang))

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """NVIDIA's name of `tokens`."""
        return self.tokens(ids)

    @property
    def vocab(self) -> list[str]:
        """NVIDIA's name of `vocabulary`."""
        return self.vocabulary

    def token_to_id(self, token: str) -> int:
        """The id of a piece.

        Raises:
            ValueError: the vocabulary has no such piece.
        """
        if token not in self._pieces:
            raise ValueError(f"token: {token!r} is no piece of the vocabulary")
        return self._pieces.index(token)

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of pieces; see `token_to_id`."""
        return [self.token_to_id(token) for token in tokens]

    def tokens_to_text(self, tokens: Iterable[str]) -> str:
        """The text of pieces; see `token_to_id`."""
        return self.decode(self.tokens_to_ids(tokens))
