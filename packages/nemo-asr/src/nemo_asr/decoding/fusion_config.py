"""The keys of language models and boosted phrases, as they stand in `decoding.greedy` and `decoding.beam`, with
NVIDIA's spelling.  Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass
class PhraseItem:
    """A phrase with options of its own.

    Attributes:
        phrase: its text.
        lang: its language, for tokenizers of several.
        weight: score of each of its tokens, instead of `context_score`.
    """

    phrase: str
    lang: str | None = None
    weight: float | None = None


@dataclass
class BoostingTreeConfig:
    """The `boosting_tree` section.

    Attributes:
        key_phrases_file: a phrase a line; after a tab may stand its weight.
        key_phrases_list: phrases.
        key_phrase_items_list: phrases with their own language and weight.
        context_score: score of a phrase's token.
        depth_scaling: factor of it from the second token on; the logarithm of the token's place is added to it.
        unk_score: score of tokens that begin no phrase.
        score_per_phrase: if not 0, a phrase's token gets this, divided by the phrase's characters.
        source_lang: language of the phrases, for tokenizers of several.
        uniform_weights: every token of a phrase gets `context_score`, and its last one all of them once more.
        model_path, use_bpe_dropout: not offered.
    """

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        "use_triton final_eos_score num_of_transcriptions bpe_alpha".split()
    )

    model_path: str | None = None
    key_phrases_file: str | None = None
    key_phrases_list: list[str] | None = None
    key_phrase_items_list: list[PhraseItem] | None = None
    context_score: float = 1.0
    depth_scaling: float = 2.0
    unk_score: float = 0.0
    score_per_phrase: float = 0.0
    source_lang: str | None = "en"
    uniform_weights: bool = False
    use_bpe_dropout: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it names no phrases."""
        return not (self.model_path or self.key_phrases_file or self.key_phrases_list or self.key_phrase_items_list)


class FusionKeys(Protocol):
    """What a section says of language models and phrases."""

    ngram_lm_model: str | None
    ngram_lm_alpha: float | None
    boosting_tree: BoostingTreeConfig | None
    boosting_tree_alpha: float | None
