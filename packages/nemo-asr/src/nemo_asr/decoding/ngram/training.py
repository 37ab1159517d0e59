"""N-gram models trained in Python: interpolated modified Kneser-Ney smoothing (Chen & Goodman 1998, section 3).

    p(w | h) = (c(h w) - D(c(h w))) / c(h ·) + g(h) p(w | h without its first token)

The counts c of the highest order, and of n-grams that begin a sentence, are occurrences; of lower orders they are the
number of different tokens before the n-gram.  Unigrams are interpolated with the uniform distribution over the
vocabulary and the sentence's end, so that every token has a probability.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_asr.decoding.ngram.arpa import BEGIN, END, ZERO_LOG10, Arpa, write_arpa
from nemo_asr.decoding.ngram.model import encode_token

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

NGram = tuple[str, ...]
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For n-grams seen once, twice and more often, where the text is too small to estimate them; KenLM's numbers."""


def train(
    texts: Iterable[str], tokenizer: Tokenizer, path: str | Path, order: int = 3, lang: str | None = None
) -> None:
    """Trains on texts, and writes an ARPA file as NVIDIA's tools do: the token i stands in it as chr(100 + i).

    Args:
        texts: one sentence each.
        tokenizer: of the recogniser.
        path: the file to write.
        order: length of the longest n-grams.
        lang: language of the texts, where the tokenizer has several.

    Raises:
        ValueError: `order` is below 1, or there is no text.
    """
    sentences = [[encode_token(token) for token in tokenizer.encode(text, lang)] for text in texts]
    write_arpa(estimate(sentences, [encode_token(token) for token in range(tokenizer.vocab_size)], order), path)


def estimate(sentences: Iterable[Sequence[str]], vocabulary: Sequence[str], order: int) -> Arpa:
    """The model of sentences of tokens; arguments and errors as of `train`."""
    if order < 1:
        raise ValueError(f"order: {order} must be at least 1")
    counts = _counts(sentences, order)
    if not counts[0]:
        raise ValueError("texts: no text to train on")
    below: dict[NGram, float] = {(): 1 / (len(vocabulary) + 1)}
    orders = []
    for number, seen in enumerate(counts, 1):
        if number == 1:
            for token in (*vocabulary, END):
                seen.setdefault((token,), 0)
        probabilities, left = _smooth(seen, below, number)
        orders.append((probabilities, left))
        below = probabilities
    return _arpa(orders)


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[NGram]]:
    """Counts of each order, from 1: of the highest order occurrences, of lower ones different tokens before."""
    occurrences: list[Counter[NGram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        tokens = (BEGIN, *sentence, END)
        for length in range(1, order + 1):
            occurrences[length - 1].update(tokens[begin : begin + length] for begin in range(len(tokens) - length + 1))
    counts = []
    for length in range(1, order):
        beginners = {ngram: count for ngram, count in occurrences[length - 1].items() if ngram[0] == BEGIN}
        counts.append(Counter(ngram[1:] for ngram in occurrences[length]) | Counter(beginners))
    counts.append(occurrences[-1])
    del counts[0][(BEGIN,)]
    return counts


def _smooth(
    seen: Counter[NGram], below: dict[NGram, float], order: int
) -> tuple[dict[NGram, float], dict[NGram, float]]:
    """Probabilities of the n-grams, and of each context the share that is left to the order below."""
    discounts = _discounts(seen)
    totals: dict[NGram, float] = defaultdict(float)
    saved: dict[NGram, float] = defaultdict(float)
    for ngram, count in seen.items():
        totals[ngram[:-1]] += count
        saved[ngram[:-1]] += _discount(count, discounts)
    left = {context: saved[context] / total for context, total in totals.items()}
    probabilities = {
        ngram: (count - _discount(count, discounts)) / totals[ngram[:-1]]
        + left[ngram[:-1]] * below[ngram[1:] if order > 1 else ()]
        for ngram, count in seen.items()
    }
    return probabilities, left


def _discounts(seen: Counter[NGram]) -> tuple[float, float, float]:
    once, twice, thrice, four = (sum(count == number for count in seen.values()) for number in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return FALLBACK_DISCOUNTS
    ratio = once / (once + 2 * twice)
    found = (1 - 2 * ratio * twice / once, 2 - 3 * ratio * thrice / twice, 3 - 4 * ratio * four / thrice)
    sensible = all(0 <= discount <= number for number, discount in enumerate(found, 1))
    return found if sensible else FALLBACK_DISCOUNTS


def _discount(count: int, discounts: tuple[float, float, float]) -> float:
    return discounts[min(count, 3) - 1] if count else 0.0


def _arpa(orders: Sequence[tuple[dict[NGram, float], dict[NGram, float]]]) -> Arpa:
    """The file's form: the back-off weight of an n-gram is what its context leaves to the order below."""
    arpa = Arpa()
    for number, (probabilities, _) in enumerate(orders, 1):
        left = orders[number][1] if number < len(orders) else {}
        ngrams = {
            ngram: (_log10(probability), _log10(left.get(ngram, 1.0))) for ngram, probability in probabilities.items()
        }
        if number == 1:
            ngrams[(BEGIN,)] = (ZERO_LOG10, _log10(left.get((BEGIN,), 1.0)))
        arpa.ngrams.append(dict(sorted(ngrams.items())))
    return arpa


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else ZERO_LOG10
