"""One entry of an encoder's `jasper` list, under NVIDIA's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from nemo_asr.modules.nested_options import refuse_misspelling

RESIDUAL_MODES = ("add", "stride_add", "max", "stride_max")


@dataclass(frozen=True)
class BlockOptions:
    """A block of `repeat` convolutions.

    Attributes:
        filters: channels of the output.
        repeat: convolutions in the block.
        kernel: frames; rounded up to an odd number.
        stride: frames; of every convolution, or of the last alone with stride_last.
        dilation: frames between the taps of the kernel.
        dropout: probability.
        residual: whether a way leads around the convolutions.
        residual_mode: how it is merged; the stride_ modes also stride it. None: as in the block before.
        residual_dense: ways around from every dense block before.
        separable: depthwise convolutions followed by pointwise ones.
        groups: of the convolutions; of the pointwise ones in a separable block.
        heads: kernels that the channels of a depthwise convolution share; -1 for one each.
        se: squeeze-and-excitation before the sum, with se_reduction_ratio and se_context_size.
        kernel_size_factor: scales the kernel.
        stride_last: only the last convolution strides.
        future_context: kernel steps that may lie in the future; -1 for half the kernel.
    """

    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "se_interpolation_mode",
            "se_repeat",
            "quantize",
            "aggregation_mode",
            "block_dropout",
            "parallel_residual_mode",
        }
    )

    filters: int
    repeat: int
    kernel: int
    stride: int
    dilation: int
    dropout: float
    residual: bool
    residual_mode: str | None = None
    residual_dense: bool = False
    separable: bool = False
    groups: int = 1
    heads: int = -1
    se: bool = False
    se_reduction_ratio: int = 8
    se_context_size: int = -1
    kernel_size_factor: float = 1.0
    stride_last: bool = False
    future_context: int = -1

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str) -> BlockOptions:
        """The options of a section; kernel, stride and dilation may be lists of one number.

        Raises:
            ValueError: a missing key, one that looks like a misspelt one, or a value out of its range.
        """
        names = [field.name for field in fields(cls)]
        for key in section:
            if key not in names and key not in cls.IGNORED_KEYS:
                refuse_misspelling(str(key), names, path)
        given = {name: _first(section[name], f"{path}.{name}") for name in names if name in section}
        for name in names[:7]:
            if name not in given:
                raise ValueError(f"{path}.{name}: is missing")
        options = cls(**given)
        options._check(path)
        return options

    def _check(self, path: str) -> None:
        for name in ("filters", "repeat", "kernel", "stride", "dilation", "groups", "se_reduction_ratio"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{path}.{name}: {number!r} must be a whole number above 0")
        for name in ("residual", "residual_dense", "separable", "se", "stride_last"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{path}.{name}: {getattr(self, name)!r} must be true or false")
        for name in ("dropout", "kernel_size_factor"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{path}.{name}: {getattr(self, name)!r} must be a number")
        if self.residual_mode not in (None, *RESIDUAL_MODES):
            raise ValueError(f"{path}.residual_mode: {self.residual_mode!r} is none of {', '.join(RESIDUAL_MODES)}")

    def with_residual_mode(self, mode: str) -> BlockOptions:
        """These options, with a mode where none was given."""
        return self if self.residual_mode else replace(self, residual_mode=mode)


def _first(value: Any, path: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    if len(value) != 1:
        raise ValueError(f"{path}: {list(value)} must be one number")
    return value[0]
