"""What the decoders of CTC and transducers have in common: the spelling of tokens, by the names that NVIDIA's scripts
call, and hypotheses as their `..._predictions_tensor` give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nemo_asr.decoding.hypothesis import Hypothesis

if TYPE_CHECKING:
    from nemo_asr.decoding.spelling import Spelling
    from nemo_asr.text import Tokenizer


class TokenDecoding:
    """A decoder's tokens and their spelling.

    Attributes:
        tokenizer: knows the tokens.
        spelling: spells them as `transcribe` does.
        blank_id: id of blank.
    """

    tokenizer: Tokenizer
    spelling: Spelling
    blank_id: int

    def decode_ids_to_tokens(self, tokens: Iterable[int]) -> list[str]:
        """The piece of each id."""
        return self.tokenizer.tokens([int(token) for token in tokens])

    def decode_ids_to_str(self, tokens: Iterable[int]) -> str:
        """The text of ids."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def decode_tokens_to_str(self, tokens: Iterable[str]) -> str:
        """The text of pieces."""
        ids = {piece: index for index, piece in enumerate(self.tokenizer.vocabulary)}
        return self.tokenizer.decode([ids[piece] for piece in tokens])

    def decode_tokens_to_str_with_strip_punctuation(self, tokens: Iterable[int]) -> str:
        """The text of ids, without the space that some vocabularies put before a punctuation mark."""
        return self.spelling.text([int(token) for token in tokens])


def as_predictions(hypotheses: Sequence[Hypothesis], *, keep_fields: bool) -> list[Hypothesis] | list[list[Hypothesis]]:
    """All readings of each item where a search gives several, else one; without `keep_fields` nothing but its score,
    sequence and text."""

    def reduced(hypothesis: Hypothesis) -> Hypothesis:
        return hypothesis if keep_fields else Hypothesis(hypothesis.score, hypothesis.y_sequence, hypothesis.text)

    if any(hypothesis.n_best for hypothesis in hypotheses):
        return [[reduced(reading) for reading in own.n_best or [own]] for own in hypotheses]
    return [reduced(hypothesis) for hypothesis in hypotheses]
