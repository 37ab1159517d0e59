"""Which implementation runs: Triton's kernels on a CUDA device, torch's own operations everywhere else.

`NEMO_KERNELS_BACKEND` overrides the choice for the whole process: `torch` keeps to torch's operations, `triton` demands
the kernels, `interpret` runs them on a CPU under Triton's interpreter (slow; it shows that they are right).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

VARIABLE = "NEMO_KERNELS_BACKEND"
Backend = Literal["triton", "torch"]


class Choice(NamedTuple):
    """A backend and, in one clause, why it was chosen."""

    backend: Backend
    reason: str


def choose(device: torch.device) -> Choice:
    """What runs on a device, and why.

    Raises:
        RuntimeError: if NEMO_KERNELS_BACKEND demands what is not possible here.
        ValueError: if NEMO_KERNELS_BACKEND has an unknown value.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "torch", "triton", "interpret"):
        raise ValueError(f"{VARIABLE}: {wanted!r} must be torch, triton or interpret")
    if wanted == "torch":
        return Choice("torch", f"{VARIABLE}=torch")
    missing = _what_is_missing(device, interpreted=wanted == "interpret")
    if missing:
        if wanted:
            raise RuntimeError(f"{VARIABLE}={wanted}: {missing}")
        return Choice("torch", missing)
    if wanted == "interpret":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported
        return Choice("triton", f"{VARIABLE}=interpret")
    return Choice("triton", f"{device.type} device" + (f", {VARIABLE}=triton" if wanted else ""))


def uses_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; the one question that the operations ask."""
    return choose(device).backend == "triton"


def _what_is_missing(device: torch.device, *, interpreted: bool) -> str:
    if not interpreted and device.type != "cuda":  # asked first: it costs nothing, and a search asks often
        return f"{device.type} device: Triton's kernels need CUDA"
    if find_spec("triton") is None:
        return "triton is not installed (it comes with torch's CUDA builds on Linux)"
    if interpreted:
        return "" if device.type == "cpu" else "the interpreter runs on CPU tensors only"
    if torch.version.hip is not None:
        return "a ROCm build of torch: the kernels are tested for CUDA alone"
    return ""
