"""The forms in which the kernels are shipped: which constants, how many warps and stages, for which GPU.

Nothing is tuned at run time. Each folder's `triton/builds.py` lists its table as `builds() -> tuple[KernelBuild, ...]`;
the launch takes its constants from the same table, and the tests compile every line of it and read the binary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class KernelBuild:
    """One kernel compiled in one form for one architecture.

    Attributes:
        name: what a table of builds calls it, e.g. `rnnt gradient bf16 V=1024`.
        kernel: where it is, `module:function`.
        architecture: compute capability, 80 (A100), 90 (H100) or 100 (B200).
        signature: Triton's type of each run-time argument, e.g. `*bf16`, `i32`, `fp32`.
        constants: values of the compile-time arguments.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline.
        divisible: arguments that are multiples of 16; pointers are without being named.
        matrix: whether it multiplies matrices, and so must use the tensor cores.
        exception: why it may use the stack, where no form without could be found; empty everywhere else.
    """

    name: str
    kernel: str
    architecture: int
    signature: Mapping[str, str]
    constants: Mapping[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 1
    divisible: tuple[str, ...] = ()
    matrix: bool = False
    exception: str = ""


ARCHITECTURES = (80, 90, 100)
# largest shared memory of one program, bytes (CUDA programming guide, table of compute capabilities)
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


def architecture_of(device: torch.device) -> int:
    """The line of the table for a device, by its matrix instruction: H100's and B200's kinds have their own."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8
    return {9: 90, 10: 100, 11: 100}.get(major, 80)
