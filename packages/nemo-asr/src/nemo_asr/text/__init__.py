"""Between text and token ids: characters, SentencePiece, and several languages side by side."""

from __future__ import annotations

from nemo_asr.text.aggregate import AggregateTokenizer
from nemo_asr.text.build import build_tokenizer
from nemo_asr.text.char import CharTokenizer
from nemo_asr.text.sentence_piece import SentencePieceTokenizer
from nemo_asr.text.tokenizer import Tokenizer, UnknownMode, UnknownTextError

__all__ = [
    "AggregateTokenizer",
    "CharTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "UnknownMode",
    "UnknownTextError",
    "build_tokenizer",
]
