"""Compiles the shipped kernels for a GPU that need not be there, and reads what became of them from the machine code.

Triton's compiler and NVIDIA's disassembler (both in the triton wheel) run on any Linux that the wheel runs on. The
binary tells what decides speed before a clock does: registers and shared memory (how many programs share a
multiprocessor), stack and local accesses (registers that did not fit, spilled to memory), and whether products use the
tensor cores.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nemo_kernels.builds import SHARED_MEMORY, KernelBuild

# per multiprocessor: CUDA programming guide, table of compute capabilities
_REGISTERS = 64 << 10
_WARPS = 64
_PROGRAMS = 32
_SHARED_MEMORY = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
_RESERVED_SHARED_MEMORY = 1 << 10  # taken by the system for each resident program
_TENSOR_MEMORY = 512  # columns, sm_100 alone
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)")
# the newest first: a kernel for a new architecture may use an old instruction for a small product beside
_MATRIX = ("UTCHMMA", "UTCQMMA", "UTCIMMA", "HGMMA", "QGMMA", "HMMA")


@dataclass(frozen=True)
class BuildReport:
    """What one kernel build became.

    Attributes:
        build: the line of the table.
        registers: of a thread.
        stack: bytes of a thread; more than zero says that registers were spilled or arrays indexed.
        local_accesses: instructions that load or store local memory.
        shared_memory: bytes of a program.
        tensor_memory: columns of a program (sm_100).
        wide_loads: loads of 128 bits from global memory, and asynchronous copies of that width.
        matrix_instruction: the tensor-core instruction used (`HMMA`, `HGMMA`, `UTCHMMA`), or empty.
        occupancy: estimated share of the multiprocessor's warp slots that can be in use.
    """

    build: KernelBuild
    registers: int
    stack: int
    local_accesses: int
    shared_memory: int
    tensor_memory: int
    wide_loads: int
    matrix_instruction: str
    occupancy: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps this build from being shipped, one clause each; a named exception permits the stack, no more."""
        limit = SHARED_MEMORY[self.build.architecture]
        found = []
        if not self.build.exception and (self.stack or self.local_accesses):
            found.append(f"{self.stack} bytes of stack and {self.local_accesses} local accesses")
        if self.build.exception and not (self.stack or self.local_accesses):
            found.append("an exception is named and not needed")
        if self.shared_memory > limit:
            found.append(f"{self.shared_memory} bytes of shared memory, {limit} is the limit")
        if self.tensor_memory > _TENSOR_MEMORY:
            found.append(f"{self.tensor_memory} columns of tensor memory, {_TENSOR_MEMORY} is the limit")
        if self.build.matrix and not self.matrix_instruction:
            found.append("no tensor-core instruction")
        return tuple(found)

    def __str__(self) -> str:
        """One line for a table."""
        return (
            f"{self.build.name:<44} sm_{self.build.architecture:<4} {self.registers:>3} registers "
            f"{self.stack:>4} stack {self.local_accesses:>3} local {self.shared_memory:>6} shared "
            f"{self.wide_loads:>3} wide loads  {self.occupancy:>4.0%}  {self.matrix_instruction}"
        )


def all_builds() -> tuple[KernelBuild, ...]:
    """The tables of all operations, in the order of their folders' names."""
    return tuple(build for table in _tables() for build in table)


def inspect_build(build: KernelBuild) -> BuildReport:
    """Compiles one kernel and reads its binary; 2 to 15 s, or a cached binary of Triton's (TRITON_CACHE_DIR).

    Raises:
        ModuleNotFoundError: where triton is not installed.
        RuntimeError: under TRITON_INTERPRET=1, which keeps kernels from being compiled.
        ValueError: if the build does not fit the kernel's arguments.
    """
    compiled = _compile(build)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        resources = _run("cuobjdump", "--dump-resource-usage", binary.name)
        instructions = Counter(_INSTRUCTION.findall(_run("nvdisasm", binary.name)))
    found = _RESOURCES.search(resources)
    if found is None:
        raise RuntimeError(f"{build.name}: cuobjdump names no resources: {resources!r}")
    registers, stack, local = (int(number) for number in found.groups())
    return BuildReport(
        build=build,
        registers=registers,
        stack=stack + local,
        local_accesses=_count(instructions, "LDL", "STL"),
        shared_memory=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        wide_loads=sum(n for name, n in instructions.items() if re.match(r"LDG(STS)?\..*\b128\b", name)),
        matrix_instruction=next((name for name in _MATRIX if _count(instructions, name)), ""),
        occupancy=_occupancy(build, registers, compiled.metadata.shared),
    )


def _tables() -> Iterator[tuple[KernelBuild, ...]]:
    package = importlib.import_module("nemo_kernels")
    for folder in sorted(pkgutil.iter_modules(package.__path__, "nemo_kernels."), key=lambda module: module.name):
        if folder.ispkg and find_spec(f"{folder.name}.triton") and find_spec(f"{folder.name}.triton.builds"):
            yield importlib.import_module(f"{folder.name}.triton.builds").builds()


class _Compiled(NamedTuple):
    """The two attributes of Triton's CompiledKernel that are read here."""

    asm: dict[str, bytes]
    metadata: Any


def _compile(build: KernelBuild) -> _Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = build.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(f"{build.kernel}: cannot be compiled under TRITON_INTERPRET=1")
    names = list(kernel.arg_names)
    _require_same_arguments(build, names)
    aligned = [n for n in names if n in build.divisible or build.signature.get(n, "").startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in build.constants else build.signature[n] for n in names},
        constexprs={(names.index(n),): value for n, value in build.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", build.architecture, 32), options=options)
    return _Compiled(compiled.asm, compiled.metadata)


def _require_same_arguments(build: KernelBuild, names: list[str]) -> None:
    given = {*build.signature, *build.constants}
    wrong = sorted(given ^ set(names)) + sorted({*build.divisible} - given)
    if wrong or len(build.signature) + len(build.constants) != len(names):
        raise ValueError(f"{build.name}: signature and constants must name {build.kernel}'s arguments once: {wrong}")


def _run(tool: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _count(instructions: Counter[str], *names: str) -> int:
    return sum(n for spelled, n in instructions.items() if spelled.split(".")[0] in names)


def _occupancy(build: KernelBuild, registers: int, shared_memory: int) -> float:
    """Resident warps over warp slots, by the scarcest of registers (given out in eights), shared memory and slots."""
    registers_of_program = (registers + 7) // 8 * 8 * 32 * build.num_warps
    resident = min(
        _REGISTERS // registers_of_program,
        _SHARED_MEMORY[build.architecture] // (shared_memory + _RESERVED_SHARED_MEMORY),
        _WARPS // build.num_warps,
        _PROGRAMS,
    )
    return resident * build.num_warps / _WARPS
