"""Which tokens make each word of a text, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_asr.decoding.spelling import Spelling


def word_spans(tokens: Sequence[int], text: str, spelling: Spelling) -> list[list[int]]:
    """For each word of `text.split()` the places of its tokens, at least one.

    A space, or another token that spells nothing, is no part of a word; but a lone mark of a word's beginning is part
    of the word that a token without such a mark goes on with, as in NVIDIA's toolkit.  A punctuation mark that joins
    the word before it in the text does so here.

    Args:
        tokens: ids.
        text: what `spelling` makes of them.
        spelling: how tokens make a text.
    """
    total = len(text.split())
    counts = _word_counts(tokens, spelling, whole=False)
    if (counts[-1] if counts else 0) != total:
        counts = _word_counts(tokens, spelling, whole=True)
    pieces = spelling.tokenizer.tokens(tokens)
    spans: list[list[int]] = [[] for _ in range(total)]
    latest, mark = 0, None
    for place, (token, piece, count) in enumerate(zip(tokens, pieces, counts, strict=True)):
        alone = spelling.tokenizer.decode([token])
        if count <= latest and not alone.strip():
            mark = place if alone != piece else None
            continue
        begun = range(latest, count) if count > latest else range(max(count - 1, 0), count)
        for word in begun:
            spans[word].append(place)
        if count > latest and mark is not None and alone == piece:
            spans[begun[0]].insert(0, mark)
        latest, mark = max(latest, count), None
    return spans


def _word_counts(tokens: Sequence[int], spelling: Spelling, *, whole: bool) -> list[int]:
    """How many words the text of the tokens up to each has; it never falls.

    Args:
        whole: spells all of the text each time, instead of what follows from the latest word's beginning on.
    """
    counts: list[int] = []
    begin = before = 0
    for place in range(len(tokens)):
        count = before + len(spelling.text(tokens[begin : place + 1]).split())
        if not whole and counts and count > counts[-1]:
            begin, before = place, count - len(spelling.text(tokens[place : place + 1]).split())
        counts.append(count)
    return list(accumulate(reversed(counts), min))[::-1]  # bytes of one character may look like a word until its last
