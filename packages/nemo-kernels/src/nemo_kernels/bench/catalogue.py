"""The operations that can be measured, the shapes they take, and what a shape costs at least on a GPU.

A shape is written `B=8,T=200,U=40,V=128`; letters that are left out keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_kernels import roofline
from nemo_kernels.bench.front_end import front_end
from nemo_kernels.bench.problem import Operation
from nemo_kernels.bench.relative_attention import attention
from nemo_kernels.bench.transducer import DURATIONS, rnnt, tdt
from nemo_kernels.roofline import AttentionShape, LogMelShape, TransducerShape, Work

_TRANSDUCER = {"B": "batch", "T": "frames", "U": "targets", "V": "vocabulary", "H": "width"}
_CACHED_LOGITS = 32 << 20  # bytes of a tile that a GPU's second-level cache holds


@dataclass(frozen=True)
class Entry:
    """One operation of the command.

    Attributes:
        build: the problem and its subjects at a shape.
        shape: the type of its shapes.
        letters: how the command line spells the shape's fields.
        defaults: shapes that are measured where none is given.
        quick: small ones.
        least: letters that shrink to these for the warm-up.
        works: lines of the roofline.
        kernels: the folder whose builds are compiled, or empty.
    """

    build: Callable[[Any], Operation]
    shape: type
    letters: Mapping[str, str]
    defaults: tuple[str, ...]
    quick: tuple[str, ...]
    least: Mapping[str, int]
    works: Callable[[Any, roofline.Precision], tuple[Work, ...]]
    kernels: str


def _transducer_works(shape: TransducerShape, precision: roofline.Precision = "bf16") -> tuple[Work, ...]:
    if not shape.width:
        return roofline.transducer_from_logits(shape, precision)
    rows = min(max(_CACHED_LOGITS // (roofline.ELEMENT_BYTES[precision] * shape.columns), 2048), 65536)
    return roofline.transducer_with_joint(shape, rows, precision)


def _tdt_works(shape: TransducerShape, precision: roofline.Precision = "bf16") -> tuple[Work, ...]:
    return _transducer_works(replace(shape, durations=len(DURATIONS)), precision)


def _log_mel_works(shape: LogMelShape, precision: roofline.Precision = "float32") -> tuple[Work, ...]:
    return roofline.log_mel_features(shape)


OPERATIONS: dict[str, Entry] = {
    "rnnt": Entry(
        rnnt,
        TransducerShape,
        _TRANSDUCER,
        ("B=8,T=200,U=40,V=128", "B=8,T=200,U=40,V=1024", "B=8,T=200,U=40,V=1024,H=640"),
        ("B=2,T=9,U=3,V=11", "B=2,T=9,U=3,V=11,H=8"),
        {"B": 2, "T": 6, "U": 2},
        _transducer_works,
        "rnnt_loss",
    ),
    "tdt": Entry(
        tdt,
        TransducerShape,
        _TRANSDUCER,
        ("B=8,T=200,U=40,V=128", "B=8,T=200,U=40,V=1024", "B=8,T=200,U=40,V=1024,H=640"),
        ("B=2,T=9,U=3,V=11", "B=2,T=9,U=3,V=11,H=8"),
        {"B": 2, "T": 6, "U": 2},
        _tdt_works,
        "tdt_loss",
    ),
    "attention": Entry(
        attention,
        AttentionShape,
        {"B": "batch", "H": "heads", "T": "frames", "K": "head_width"},
        ("B=1,H=8,T=500,K=64", "B=1,H=8,T=2000,K=64"),
        ("B=2,H=2,T=17,K=8",),
        {"B": 2, "T": 16},
        roofline.relative_attention,
        "attention",
    ),
    "log_mel": Entry(
        front_end,
        LogMelShape,
        {"B": "batch", "L": "samples", "F": "n_mels"},
        ("B=16,L=160000,F=80",),
        ("B=2,L=8000,F=20",),
        {"B": 2, "L": 3200},
        _log_mel_works,
        "log_mel",
    ),
}


def numbers_in(operation: str, text: str) -> dict[str, int]:
    """The numbers of a shape by letter, those of the first default where they are left out.

    Raises:
        ValueError: an unknown letter, or no positive whole number.
    """
    entry = OPERATIONS[operation]
    numbers = _split(entry, entry.defaults[0])
    numbers.update(_split(entry, text))
    return numbers


def _split(entry: Entry, text: str) -> dict[str, int]:
    numbers = {}
    for part in text.split(","):
        letter, _, value = part.partition("=")
        if letter not in entry.letters:
            raise ValueError(f"shape: {part!r} must be LETTER=NUMBER with a letter of {', '.join(entry.letters)}")
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"shape: {part!r} must give a positive whole number")
        numbers[letter] = int(value)
    return numbers


def shape_of(operation: str, text: str) -> Any:
    """The shape that a text describes."""
    entry = OPERATIONS[operation]
    return entry.shape(**{entry.letters[letter]: value for letter, value in numbers_in(operation, text).items()})


def operation_of(operation: str, text: str) -> Operation:
    """An operation at the shape that a text describes."""
    return OPERATIONS[operation].build(shape_of(operation, text))


def works_of(operation: str, text: str, precision: roofline.Precision = "bf16") -> tuple[Work, ...]:
    """The roofline of an operation at the shape that a text describes."""
    return OPERATIONS[operation].works(shape_of(operation, text), precision)


def warm_up_shape(operation: str, text: str) -> str:
    """A small shape of the same kind, whose inner widths are the same."""
    numbers = numbers_in(operation, text)
    for letter, most in OPERATIONS[operation].least.items():
        numbers[letter] = min(numbers[letter], most)
    return _spelled(numbers)


def complete_shape(operation: str, text: str) -> str:
    """The same shape with all its letters."""
    return _spelled(numbers_in(operation, text))


def _spelled(numbers: Mapping[str, int]) -> str:
    return ",".join(f"{letter}={value}" for letter, value in numbers.items())
