"""`nemo-kernels doctor`: what would run here for every operation, and why."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

import torch

from nemo_kernels import dispatch


@dataclass(frozen=True)
class Path:
    """What serves one operation on one device."""

    operation: str
    device: str
    runs: str
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """Versions, devices, the override, and the path of every operation; `problem` where the override cannot be."""

    versions: dict[str, str | None]
    devices: dict[str, str]
    override: str
    paths: list[Path]
    problem: str


# operations with kernels of their own, and what serves them elsewhere
_WITH_KERNELS = {
    "rnnt_loss": "torch operations in cache-sized blocks",
    "rnnt_loss_fused": "torch operations, a tile of the joint at a time",
    "rnnt_loss_from_scores": "torch operations, diagonal by diagonal",
    "rnnt_occupancies": "torch operations, diagonal by diagonal",
    "tdt_loss": "torch operations in cache-sized blocks",
    "tdt_loss_fused": "torch operations, a tile of the joint at a time",
    "attention": "torch operations, a tile of the scores at a time, or all scores where they are few",
}
_WITHOUT_KERNELS = {
    "attention, no positions": ("scaled_dot_product_attention of torch", "torch's kernels are as good"),
    "multiblank_rnnt_loss": ("torch operations", "it has no kernel of its own"),
    "log_mel": ("FFT and matrix product of torch", "torch's kernels are as good"),
}


def diagnose() -> Diagnosis:
    """Looks at this process's torch, devices and environment; runs nothing."""
    devices = {"cpu": platform.processor() or platform.machine()}
    devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    versions: dict[str, str | None] = {"torch": torch.__version__}
    for name in ("nemo-kernels", "triton", "torchaudio"):
        versions[name] = _version(name)
    paths, problems = [], []
    for device in devices:
        try:
            paths += _paths(device)
        except (RuntimeError, ValueError) as error:
            problems.append(f"{device}: {error}")
    override = os.environ.get(dispatch.VARIABLE, "")
    return Diagnosis(versions, devices, override, paths, "; ".join(problems))


def _paths(device: str) -> list[Path]:
    choice = dispatch.choose(torch.device(device))
    found = []
    for operation, otherwise in _WITH_KERNELS.items():
        runs = "Triton kernels (float64: torch operations)" if choice.backend == "triton" else otherwise
        found.append(Path(operation, device, runs, choice.reason))
    return found + [Path(operation, device, *path) for operation, path in _WITHOUT_KERNELS.items()]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def as_text(diagnosis: Diagnosis) -> str:
    """A line for every version, device and operation."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in diagnosis.versions.items())
    lines = [versions, f"{dispatch.VARIABLE}: {diagnosis.override or 'not set (torch, triton or interpret)'}"]
    for device, name in diagnosis.devices.items():
        lines += ["", f"{device}: {name}"]
        own = [path for path in diagnosis.paths if path.device == device]
        lines += [f"  {path.operation:<24}{path.runs} ({path.reason})" for path in own]
    if diagnosis.problem:
        lines += ["", diagnosis.problem]
    return "\n".join(lines)


def as_json(diagnosis: Diagnosis) -> str:
    """The same as one JSON document."""
    return json.dumps(asdict(diagnosis), indent=1)
