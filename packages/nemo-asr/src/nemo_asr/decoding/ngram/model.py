"""An ARPA file as a back-off automaton over the tokens of a recogniser.

A state is a context; its arcs are the n-grams that continue it, and each leads to the longest context that its n-gram
ends in.  Scores are natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_asr.decoding.automaton import ROOT, BackoffAutomaton, longest_suffix
from nemo_asr.decoding.ngram.arpa import BEGIN, END, LN10, UNKNOWN, ZERO_LOG10, Arpa, read_arpa

TOKEN_OFFSET = 100
"""NVIDIA's tools write the token i as the character chr(100 + i)."""
SPACE_NAMES = ("<space>", "▁", "|")
"""What may stand for the token of a space, which an ARPA file cannot hold."""
_BEGIN, _END = -1, -2

Context = tuple[int, ...]


def load_ngram(path: str | Path, vocabulary: Sequence[str]) -> BackoffAutomaton:
    """Reads an ARPA file, whose tokens are pieces of the vocabulary, or characters chr(100 + id) as NVIDIA writes them.

    Args:
        path: the file.
        vocabulary: the piece of each id.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no ARPA file, or one over other tokens.
    """
    if Path(path).suffix == ".nemo":
        raise ValueError("is a .nemo file; give the ARPA text that it was made from")
    return automaton_of(read_arpa(path), vocabulary)


def encode_token(token: int) -> str:
    """How NVIDIA's tools write a token into an ARPA file."""
    return chr(TOKEN_OFFSET + token)


def automaton_of(arpa: Arpa, vocabulary: Sequence[str]) -> BackoffAutomaton:
    """The automaton of a model over the tokens of a vocabulary; errors as of `load_ngram`."""
    number = _numbering(arpa, vocabulary)
    ngrams = [
        (tuple(map(number, ngram)), probability * LN10, backoff * LN10)
        for order in arpa.ngrams
        for ngram, (probability, backoff) in order.items()
        if UNKNOWN not in ngram
    ]
    contexts = _contexts(ngrams, arpa.order)
    backoff_of = {ngram: backoff for ngram, _, backoff in ngrams}
    unigrams = {ngram[0]: probability for ngram, probability, _ in ngrams if len(ngram) == 1}
    targets = (contexts.get((token,), ROOT) for token in range(len(vocabulary)))
    unseen = _unseen_score(arpa, len(vocabulary) - sum(token >= 0 for token in unigrams))
    return BackoffAutomaton.build(
        root=[(unigrams.get(token, unseen), target) for token, target in enumerate(targets)],
        arcs=[
            (contexts[ngram[:-1]], ngram[-1], probability, contexts[longest_suffix(ngram, contexts)])
            for ngram, probability, _ in ngrams
            if len(ngram) > 1 and ngram[-1] >= 0
        ],
        backoffs=[(backoff_of.get(c, 0.0), contexts[longest_suffix(c[1:], contexts)]) for c in contexts],
        final=_finals(ngrams, contexts, backoff_of),
        start=contexts.get((_BEGIN,), ROOT),
    )


def _numbering(arpa: Arpa, vocabulary: Sequence[str]) -> Callable[[str], int]:
    """What turns the file's tokens into ids: the way of writing them that knows more of its unigrams."""
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    if " " in ids:
        ids.update({name: ids[" "] for name in SPACE_NAMES if name not in ids})
    special = {BEGIN: _BEGIN, END: _END}
    tokens = [ngram[0] for ngram in arpa.ngrams[0] if ngram[0] not in (*special, UNKNOWN)] if arpa.ngrams else []
    shifted = {encode_token(index): index for index in range(len(vocabulary))}
    known = max(ids, shifted, key=lambda table: sum(token in table for token in tokens))
    stranger = next((token for token in tokens if token not in known), None)
    if stranger is not None:
        raise ValueError(f"is over other tokens than the model's: {stranger!r} is none of its {len(vocabulary)}")
    return {**known, **special}.__getitem__


def _contexts(ngrams: Sequence[tuple[Context, float, float]], order: int) -> dict[Context, int]:
    """The state of each context; the empty one is state 0."""
    contexts: dict[Context, int] = {(): ROOT}
    for ngram, _, _ in ngrams:
        contexts.setdefault(ngram[:-1], len(contexts))
        if len(ngram) < order and ngram[-1] != _END:
            contexts.setdefault(ngram, len(contexts))
    return contexts


def _unseen_score(arpa: Arpa, count: int) -> float:
    """Score of each of `count` tokens that the model does not know: they share the unknown one's probability."""
    probability, _ = arpa.ngrams[0].get((UNKNOWN,), (ZERO_LOG10, 0.0)) if arpa.ngrams else (ZERO_LOG10, 0.0)
    return max(probability, ZERO_LOG10) * LN10 - math.log(max(count, 1))


def _finals(
    ngrams: Sequence[tuple[Context, float, float]], contexts: dict[Context, int], backoff_of: dict[Context, float]
) -> list[float]:
    """Score of the sentence's end in each context, falling back as a token does; 0 where the model has no end."""
    ends = {ngram[:-1]: probability for ngram, probability, _ in ngrams if ngram[-1] == _END}
    finals: dict[Context, float] = {(): ends.get((), 0.0)}
    for context in sorted(contexts, key=len)[1:]:
        fallback = longest_suffix(context[1:], contexts)
        finals[context] = ends.get(context, backoff_of.get(context, 0.0) + finals[fallback])
    return [finals[context] for context in contexts]
