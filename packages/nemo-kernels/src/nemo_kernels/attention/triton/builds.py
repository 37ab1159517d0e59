"""The forms in which the attention kernels are launched, and the table of builds that the tests compile.

BLOCK queries meet BLOCK keys; sums of BLOCK x BLOCK scores and BLOCK x K outputs stay in the registers of the warps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nemo_kernels.builds import ARCHITECTURES, KernelBuild

# widest head whose tiles the registers hold
LARGEST_WIDTH = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}
_HERE = "nemo_kernels.attention.triton"
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Form:
    """Compile-time values of a kernel."""

    channels: int
    block: int
    dropout: bool
    precision: str
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "CHANNELS": self.channels,
            "BLOCK": self.block,
            "DROPOUT": self.dropout,
            "PRECISION": self.precision,
        }

    @property
    def launch(self) -> dict[str, Any]:
        """As keywords of a kernel launch."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


def channels_of(width: int) -> int:
    """The power of two, 16 or more, that holds a head of `width`: what the tensor cores multiply."""
    return max(16, 1 << (width - 1).bit_length())


def form_of(kernel: str, dtype: torch.dtype, channels: int, dropout: bool, architecture: int) -> Form:
    """The form of the kernel `forward`, `query`, `key` or `embedding`.

    Tiles of 64 read less than those of 32, and the tensor-core instructions of sm_90 and sm_100 need them; but the
    backward has the registers for them on sm_100 alone, where products are kept in tensor memory, and no kernel on
    sm_80.
    """
    if dtype == torch.float32:
        return _float32_form(kernel, channels, dropout, architecture)
    if architecture >= 100 or (architecture >= 90 and kernel == "forward"):
        return Form(channels, 64, dropout, "ieee", num_warps=8, num_stages=2 if kernel == "forward" else 1)
    if kernel == "embedding" and channels > 64:
        return Form(channels, 16, dropout, "ieee", num_warps=4, num_stages=1)
    if channels > 64:
        return Form(channels, 32, dropout, "ieee", num_warps=8, num_stages=1)
    return Form(channels, 32, dropout, "ieee", num_warps=4, num_stages=2 if kernel == "forward" else 1)


def _float32_form(kernel: str, channels: int, dropout: bool, architecture: int) -> Form:
    """Float32 is multiplied as three products of tf32, which together are as good, on the tensor cores.

    `query` spills with them whatever the block, and multiplies without tensor cores.
    """
    newest = architecture >= 100
    if kernel == "forward":
        return Form(channels, 32, dropout, "tf32x3", num_warps=8, num_stages=2 if newest else 1)
    if kernel == "query":
        return Form(channels, 16, dropout, "ieee", num_warps=8, num_stages=1)
    return Form(channels, 16, dropout, "tf32x3", num_warps=8 if newest or kernel == "embedding" else 4, num_stages=1)


# 248, 40, 8 and 392 bytes with 2, 4, 8 and 16 warps; a smaller block than 16 cannot be multiplied
_EXCEPTIONS = {("embedding", torch.float32, 90): "8 bytes of float32 sums at the smallest block"}


_READ = "content_query:*{0} position_query:*{0} key:*{0} value:*{0} embedding:*{0} first:*i32 last:*i32 seed:*i64 "
_AGAIN = _READ + "log_sum:*fp32 along_output:*fp32 grad_output:*{0} "
_SIZES = "T:i32 S:i32 P:i32 H:i32 shift:i32 scale:fp32 threshold:i32"
_KERNELS = {
    "forward": ("forward:forward_kernel", _READ + "output:*{0} log_sum:*fp32 " + _SIZES),
    "query": (
        "backward:query_kernel",
        _AGAIN + "grad_query:*{0} grad_content_bias:*fp32 grad_position_bias:*fp32 " + _SIZES,
    ),
    "key": ("backward:key_kernel", _AGAIN + "grad_key:*{0} grad_value:*{0} " + _SIZES),
    "embedding": ("backward:embedding_kernel", _AGAIN + "grad_embedding:*fp32 B:i32 " + _SIZES),
}
_SHIPPED = (
    (torch.bfloat16, 64, False),
    (torch.bfloat16, 64, True),
    (torch.bfloat16, 128, False),
    (torch.float32, 64, False),
)


def builds() -> tuple[KernelBuild, ...]:
    """Every kernel, in the forms that the usual sizes choose, for every architecture."""
    return tuple(
        _build(kernel, dtype, channels, dropout, architecture)
        for architecture in ARCHITECTURES
        for kernel in _KERNELS
        for dtype, channels, dropout in _SHIPPED
    )


def _build(kernel: str, dtype: torch.dtype, channels: int, dropout: bool, architecture: int) -> KernelBuild:
    form = form_of(kernel, dtype, channels, dropout, architecture)
    place, signature = _KERNELS[kernel]
    types = dict(argument.split(":") for argument in signature.format(_TYPES[dtype]).split())
    return KernelBuild(
        name=f"attention {kernel} {_TYPES[dtype]} K={channels}{' dropout' if dropout else ''}",
        kernel=f"{_HERE}.{place}",
        architecture=architecture,
        signature=types,
        constants=form.constants,
        num_warps=form.num_warps,
        num_stages=form.num_stages,
        exception=_EXCEPTIONS.get((kernel, dtype, architecture), ""),
        matrix=form.precision == "tf32x3" or dtype != torch.float32,
    )
