"""Phrases that a search prefers: a tree over their tokens, with fall-backs (Aho & Corasick 1975).

A hypothesis that is inside of a phrase is lent the scores of the tokens so far, and keeps them once the phrase is
whole; where it leaves the phrase before its end, it pays them back.  With the state n for "the last tokens are the
beginning of a phrase, and none longer", and f the state that it falls back to,

    lent(n) = score of n's tokens - kept(n)         kept(n) = score of the best whole phrase among n's tokens
    back-off of n = lent(f) - lent(n)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_asr.decoding.automaton import ROOT, BackoffAutomaton, longest_suffix
from nemo_asr.decoding.fusion_config import BoostingTreeConfig, PhraseItem

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Phrase:
    """Token ids, and the score of each."""

    tokens: Prefix
    scores: tuple[float, ...]


def build_boosting_tree(config: BoostingTreeConfig, tokenizer: Tokenizer, path: str) -> BackoffAutomaton:
    """The automaton of a `boosting_tree` section, which names phrases.

    Args:
        config: the section.
        tokenizer: spells the phrases.
        path: where the section stands, for errors.

    Raises:
        ConfigError: a key that is not offered, a file that is missing, or a phrase that the tokenizer cannot spell.
    """
    from nemo_asr.text.aggregate import AggregateTokenizer
    from nemo_asr.text.tokenizer import UnknownTextError
    from nemo_config import ConfigError

    if config.model_path:
        raise ConfigError(f"{path}.model_path", config.model_path, "a built tree is not read; give the phrases")
    if config.use_bpe_dropout:
        raise ConfigError(f"{path}.use_bpe_dropout", True, "sampled spellings are not offered")
    several = isinstance(tokenizer, AggregateTokenizer)
    phrases = []
    for item in _items(config, path):
        lang = (item.lang or config.source_lang) if several else None
        try:
            tokens = tuple(tokenizer.encode(item.phrase, lang, unknown="error"))
        except UnknownTextError as error:
            rule = f"cannot be boosted: {' '.join(error.characters)} stands outside the vocabulary"
            raise ConfigError(f"{path}: phrase", item.phrase, rule) from None
        except ValueError as error:
            raise ConfigError(f"{path}: phrase", item.phrase, f"cannot be spelled: {error}") from None
        phrases.append(Phrase(tokens, _token_scores(item, len(tokens), config)))
    return tree_automaton(
        phrases, tokenizer.vocab_size, other_score=config.unk_score, last_doubles=config.uniform_weights
    )


def _items(config: BoostingTreeConfig, path: str) -> list[PhraseItem]:
    from nemo_config import ConfigError

    items = [PhraseItem(phrase) for phrase in config.key_phrases_list or ()]
    items += config.key_phrase_items_list or ()
    if config.key_phrases_file:
        if items:
            rule = "stands beside a list of phrases; give one of them"
            raise ConfigError(f"{path}.key_phrases_file", config.key_phrases_file, rule)
        items = _read_file(config.key_phrases_file, f"{path}.key_phrases_file")
    return [item for item in items if item.phrase.strip()]


def _read_file(name: str, path: str) -> list[PhraseItem]:
    from nemo_config import ConfigError

    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ConfigError(path, name, reason) from None
    items = []
    for number, line in enumerate(lines, 1):
        phrase, _, weight = line.partition("\t")
        try:
            items.append(PhraseItem(phrase.strip(), weight=float(weight) if weight.strip() else None))
        except ValueError:
            raise ConfigError(path, name, f"line {number} has the weight {weight!r}, which is no number") from None
    return items


def _token_scores(item: PhraseItem, count: int, config: BoostingTreeConfig) -> tuple[float, ...]:
    """Score of each token of a phrase, by NVIDIA's formula."""
    first = config.context_score if item.weight is None else item.weight
    if item.weight is None and config.score_per_phrase:
        first = round(config.score_per_phrase / len(item.phrase), 2)
    if config.uniform_weights:
        return (first,) * count
    return tuple(first if place == 0 else first * config.depth_scaling + math.log(place + 1) for place in range(count))


def tree_automaton(
    phrases: Sequence[Phrase], vocab_size: int, *, other_score: float = 0.0, last_doubles: bool = False
) -> BackoffAutomaton:
    """The automaton of phrases.

    Args:
        phrases: tokens that several begin with have the highest of their scores.
        vocab_size: tokens without blank.
        other_score: of tokens that begin no phrase.
        last_doubles: a phrase's last token gets the scores of all of them once more, and a phrase left is paid back
            also after its end (Icefall's way).
    """
    score: dict[Prefix, float] = {(): 0.0}
    ends: set[Prefix] = set()
    for phrase in phrases:
        for length, value in enumerate(phrase.scores, 1):
            prefix = phrase.tokens[:length]
            score[prefix] = max(score.get(prefix, -math.inf), value)
        ends.add(phrase.tokens)
    states = {prefix: index for index, prefix in enumerate(sorted(score, key=lambda prefix: (len(prefix), prefix)))}
    fallback = {prefix: longest_suffix(prefix[1:], states) for prefix in states}
    total: dict[Prefix, float] = {(): 0.0}
    kept: dict[Prefix, float] = {(): 0.0}
    for prefix in list(states)[1:]:  # the shorter ones first
        total[prefix] = total[prefix[:-1]] + score[prefix]
        whole = total[prefix] if prefix in ends and not last_doubles else 0.0
        kept[prefix] = max(kept[prefix[:-1]], whole, kept[fallback[prefix]])
    lent = {prefix: total[prefix] - kept[prefix] for prefix in states}
    arrival = {p: score[p] + (total[p] if last_doubles and p in ends else 0.0) for p in states}
    beginners = ((token,) for token in range(vocab_size))
    return BackoffAutomaton.build(
        root=[(arrival[p], states[p]) if p in states else (other_score, ROOT) for p in beginners],
        arcs=[(states[p[:-1]], p[-1], arrival[p], states[p]) for p in states if len(p) > 1],
        backoffs=[(lent[f] - lent[p], states[f]) for p, f in fallback.items()],
        final=[-lent[p] for p in states],
    )
