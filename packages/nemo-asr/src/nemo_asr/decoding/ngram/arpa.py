"""ARPA files: n-grams with log10 probabilities and back-off weights, as text.

    \\data\\
    ngram 1=3
    ngram 2=1

    \\1-grams:
    -0.5 <TAB> a <TAB> -0.3

    \\2-grams:
    -0.2 <TAB> a b

    \\end\\
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ZERO_LOG10 = -99.0
"""What stands in ARPA files for the logarithm of zero."""
LN10 = math.log(10)


@dataclass
class Arpa:
    """A back-off model.

    Attributes:
        ngrams: for each order, from 1, the n-grams with log10 probability and log10 back-off weight.
    """

    ngrams: list[dict[tuple[str, ...], tuple[float, float]]] = field(default_factory=list)

    @property
    def order(self) -> int:
        """The length of its longest n-grams."""
        return len(self.ngrams)


def read_arpa(path: str | Path) -> Arpa:
    """Reads a file, also a gzipped one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no ARPA file; the message names the line.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:7] == b"mmap lm":
        raise ValueError("is a binary file of KenLM; give the ARPA text that it was made from")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is no ARPA file: it is not text in UTF-8") from None
    # Tokens may be characters that str.splitlines takes for ends of lines, so only \n counts.
    return _parse(enumerate((line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")), 1))


def _parse(lines: Iterator[tuple[int, str]]) -> Arpa:
    arpa = Arpa()
    counts = _read_counts(lines)
    for number, line in lines:
        if not line:
            continue
        if line == "\\end\\":
            found = [len(ngrams) for ngrams in arpa.ngrams]
            if found != counts:
                raise ValueError(f"is no whole ARPA file: its header counts {counts} n-grams, and {found} follow")
            return arpa
        if line == f"\\{arpa.order + 1}-grams:":
            arpa.ngrams.append({})
        elif arpa.ngrams:
            ngram, values = _parse_ngram(line, number, arpa.order)
            arpa.ngrams[-1][ngram] = values
        else:
            raise ValueError(f"is no ARPA file: line {number} is {line!r}, where \\1-grams: should stand")
    raise ValueError("is no whole ARPA file: it has no \\end\\")


def _read_counts(lines: Iterator[tuple[int, str]]) -> list[int]:
    """N-grams of each order by the header."""
    for _, line in lines:
        if line.strip() == "\\data\\":
            break
    else:
        raise ValueError("is no ARPA file: it has no \\data\\")
    counts: list[int] = []
    for number, line in lines:
        if not line.strip():
            return counts
        name, _, count = line.partition("=")
        if name.split() != ["ngram", str(len(counts) + 1)] or not count.strip().isdigit():
            raise ValueError(f"is no ARPA file: line {number} is {line!r}, where a count of n-grams should stand")
        counts.append(int(count))
    return counts


def _parse_ngram(line: str, number: int, order: int) -> tuple[tuple[str, ...], tuple[float, float]]:
    probability, _, rest = line.partition("\t")
    tokens, _, backoff = rest.partition("\t")
    ngram = tuple(tokens.split(" "))
    try:
        values = float(probability), float(backoff or 0)
    except ValueError:
        ngram = ()
    if len(ngram) != order:
        raise ValueError(f"is no ARPA file: line {number} is {line!r}, where a {order}-gram should stand")
    return ngram, values


def write_arpa(arpa: Arpa, path: str | Path) -> None:
    """Writes a file; n-grams of the highest order have no back-off weight."""
    lines = ["\\data\\", *(f"ngram {order}={len(ngrams)}" for order, ngrams in enumerate(arpa.ngrams, 1)), ""]
    for order, ngrams in enumerate(arpa.ngrams, 1):
        lines.append(f"\\{order}-grams:")
        for ngram, (probability, backoff) in ngrams.items():
            ending = f"\t{backoff:.7g}" if order < arpa.order else ""
            lines.append(f"{probability:.7g}\t{' '.join(ngram)}{ending}")
        lines.append("")
    Path(path).write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8", newline="\n")
