"""SentencePiece tokenizers, bpe and unigram, from the bytes of a `tokenizer.model`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemo_asr.text.tokenizer import PieceTokenizer, UnknownMode, UnknownTextError

WORD_BOUNDARY = "▁"
SPECIAL_PIECES = frozenset({"<s>", "</s>", "<pad>", "<unk>"})


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model; its ids are the pieces' places in the model, `<unk>` among them, as in NVIDIA's files.

    Encoding and decoding may be called from several threads. Instances pickle as the model's bytes.

    Args:
        model: content of a `tokenizer.model`.

    Raises:
        ValueError: the bytes are no SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.model = bytes(model)
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(self.model) and self._processor.LoadFromSerializedProto(self.model)
        except (RuntimeError, ValueError, OSError):
            loaded = False
        if not loaded:
            raise ValueError(f"{len(self.model)} bytes that are no SentencePiece model")
        super().__init__(self._processor.id_to_piece(i) for i in range(len(self._processor)))
        self.unk_id = int(self._processor.unk_id())
        self.bos_id = _or_none(self._processor.bos_id())
        self.eos_id = _or_none(self._processor.eos_id())
        self.pad_id = _or_none(self._processor.pad_id())

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes]]:
        return type(self), (self.model,)

    def encode(self, text: str, lang: str | None = None, *, unknown: UnknownMode = "replace") -> list[int]:
        """The ids of a text; what the model cannot spell becomes `<unk>` or raises."""
        ids: list[int] = self._processor.encode(text, out_type=int)
        if unknown == "error" and self.unk_id in ids:
            raise UnknownTextError(text, self._unknown_characters(text))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._processor.decode([int(index) for index in ids]))

    def vocab_txt(self) -> bytes:
        """The `vocab.txt` that NVIDIA's toolkit wants beside the model: BERT's spelling, without special pieces."""
        spelled = [_bert_spelling(piece) for piece in self._pieces if piece not in SPECIAL_PIECES]
        return "".join(f"{piece}\n" for piece in spelled).encode()

    def spe_vocab(self) -> bytes:
        """The `tokenizer.vocab` that SentencePiece writes beside the model: piece, tab, score."""
        scores = [self._processor.get_score(i) for i in range(len(self._pieces))]
        lines = (f"{piece}\t{score:g}\n" for piece, score in zip(self._pieces, scores, strict=True))
        return "".join(lines).encode()

    def _unknown_characters(self, text: str) -> list[str]:
        alone = [character for character in text if self.unk_id in self._processor.encode(character, out_type=int)]
        return alone or [text]  # what is normalised to something unknown in context only


def _or_none(index: int) -> int | None:
    return index if index >= 0 else None


def _bert_spelling(piece: str) -> str:
    if not piece.startswith(WORD_BOUNDARY):
        return f"##{piece}"
    return piece.removeprefix(WORD_BOUNDARY) or WORD_BOUNDARY
