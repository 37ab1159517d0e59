"""The interpolations that NVIDIA's configs use: `${multiply:a,b}`, `${sum:a,b}`, `${gpu_name:}`.

`gpu_name` is what NVIDIA's toolkit names after the compute capability of the first GPU: `a100` (8.0), `h100` (9.0),
and None for any other or none.
"""

import math
from collections.abc import Callable

NAME_OF_CAPABILITY = {"8.0": "a100", "9.0": "h100"}


def multiply(*factors: float) -> float:
    """The product of its arguments."""
    return math.prod(_numbers(factors))


def add(*terms: float) -> float:
    """The sum of its arguments."""
    return sum(_numbers(terms))


def _numbers(values: tuple[float, ...]) -> tuple[float, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{value!r} is not a number")
    return values


def gpu_name() -> str | None:
    """`a100` or `h100`, None for every other GPU and where there is none."""
    import shutil
    import subprocess

    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return NAME_OF_CAPABILITY.get(answer.stdout.strip())


RESOLVERS: dict[str, Callable[..., object]] = {"multiply": multiply, "sum": add, "gpu_name": gpu_name}


def register_resolvers() -> None:
    """Makes the resolvers known to OmegaConf; a name that is taken already keeps its meaning."""
    from omegaconf import OmegaConf

    for name, function in RESOLVERS.items():
        if not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function)
