"""Time and memory of one call, on a CPU and on a CUDA device.

Memory on a CPU is the growth of the resident set to its highest point during the call. Linux keeps that point for a
process and forgets it on request (proc(5), clear_refs), so that allocations before the call do not count.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

Result = TypeVar("Result")
_STATUS = Path("/proc/self/status")


class Time(NamedTuple):
    """Seconds that pass on the wall (on a GPU: on the device), and seconds of a CPU's work in this process."""

    wall_s: float
    cpu_s: float


def timed(call: Callable[[], object], device: torch.device) -> Time:
    """How long a call takes, the device's work included."""
    if device.type == "cuda":
        return _timed_on_cuda(call)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


def _timed_on_cuda(call: Callable[[], object]) -> Time:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    cpu = time.process_time() - cpu  # what it takes to launch
    torch.cuda.synchronize()
    return Time(start.elapsed_time(end) / 1e3, cpu)


def with_memory(call: Callable[[], Result], device: torch.device) -> tuple[Result, float | None]:
    """What a call gives, and the bytes it needed beyond those in use before; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, float(torch.cuda.max_memory_allocated() - before)
    if not _STATUS.exists():
        return call(), None
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    baseline = _kilobytes("VmRSS")
    result = call()
    return result, 1024.0 * max(_kilobytes("VmHWM") - baseline, 0)


def _return_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; without it freed memory may be used again
    if trim is not None:
        trim(0)


def _kilobytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_STATUS}: has no line {key}")
    return int(found[1])
