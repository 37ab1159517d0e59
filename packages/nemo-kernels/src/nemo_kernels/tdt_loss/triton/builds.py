"""The forms in which the TDT kernels are launched, and the table of builds that the tests compile."""

from __future__ import annotations

import torch

from nemo_kernels.builds import ARCHITECTURES, KernelBuild
from nemo_kernels.rnnt_loss.triton.builds import Form, cells_form

__all__ = ["builds", "cells_form", "rows_form", "wavefront_form"]

_HERE = "nemo_kernels.tdt_loss.triton"
_LARGEST_ROW = 1024  # columns of a tile; longer rows are looped over
_TILE = 1024  # logits of a tile: rows of V + D logits start anywhere, so there are no wide loads to make room for
_LARGEST_WAVEFRONT = 256  # target positions at once; longer transcripts are swept in strips
_RESIDENT = 2048  # doubles of one ring that a program keeps in its registers, 4 of them in a thread's
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def rows_form(columns: int) -> Form:
    """Tiles ROWS x COLUMNS for kernels that stream rows of `columns` elements once."""
    width = min(max(_power_of_two(columns), 32), _LARGEST_ROW)
    return Form({"ROWS": _TILE // width, "COLUMNS": width})


def wavefront_form(width: int, longest: int) -> Form:
    """Lanes for the target positions, and the diagonals that the longest duration reaches."""
    ring = max(_power_of_two(longest + 1), 2)
    lanes = min(max(_power_of_two(width), 32), _LARGEST_WAVEFRONT, max(_RESIDENT // ring, 32))
    return Form({"LANES": lanes, "RING": ring}, num_warps=min(max(lanes * ring // 128, 1), 16))


def builds() -> tuple[KernelBuild, ...]:
    """Every kernel, in the forms that the usual sizes choose, for every architecture."""
    return tuple(
        build for architecture in ARCHITECTURES for table in (_streams, _lattices) for build in table(architecture)
    )


def _streams(architecture: int) -> list[KernelBuild]:
    lengths = "targets:*i32 logit_len:*i32 target_len:*i32"
    planes = "norm:*fp32 lp_blank:*fp32 lp_label:*fp32 lp_duration:*fp32"
    found = []
    for dtype, vocabulary in ((torch.bfloat16, 128), (torch.bfloat16, 1024), (torch.float32, 1024)):
        kind, form = _TYPES[dtype], rows_form(vocabulary)
        sizes = _integers("T W V D blank")
        strides = f"{_integers('stride_b stride_t stride_u')} plane:i64 stride_targets:i32 sigma:fp32"
        signature = f"logits:*{kind} {lengths} {planes} cells:i64 {sizes} {strides}"
        wider = Form({**form.constants, "DURATIONS": 8}, form.num_warps, form.num_stages)
        found.append(
            _build(f"tdt scores {kind} V={vocabulary}", "softmax:scores_kernel", architecture, signature, wider)
        )
        occupancies = "norm:*fp32 occupancy_blank:*fp32 occupancy_label:*fp32 of_durations:*fp32 grad_losses:*fp32"
        signature = (
            f"logits:*{kind} out:*{kind} {lengths} {occupancies} cells:i64 {sizes} "
            "stride_targets:i32 emphasis:fp32 clamp:fp32"
        )
        found.append(
            _build(f"tdt gradient {kind} V={vocabulary}", "softmax:gradient_kernel", architecture, signature, form)
        )
    return found


def _lattices(architecture: int) -> list[KernelBuild]:
    planes = "lp_blank:*fp32 lp_label:*fp32 lp_duration:*fp32"
    lengths = "logit_len:*i32 target_len:*i32 alpha_beta:*fp64 log_p:*fp64"
    strides = f"{_integers('stride_b stride_t stride_u')} plane:i64"
    sweeps = [
        _build(
            f"tdt wavefront W={width} longest={longest}",
            "wavefront:wavefront_kernel",
            architecture,
            f"{planes} slots:*i32 {lengths} {_integers('T W')} {strides}",
            wavefront_form(width, longest),
        )
        for width, longest in ((64, 4), (256, 4), (64, 8))
    ]
    occupancies = _build(
        "tdt occupancies",
        "wavefront:occupancies_kernel",
        architecture,
        f"{planes} durations:*i32 {lengths} occupancy_blank:*fp32 occupancy_label:*fp32 of_durations:*fp32 "
        f"{_integers('T W D')} {strides}",
        cells_form(),
    )
    return [*sweeps, occupancies]


def _build(name: str, kernel: str, architecture: int, signature: str, form: Form) -> KernelBuild:
    return KernelBuild(
        name=name,
        kernel=f"{_HERE}.{kernel}",
        architecture=architecture,
        signature=dict(argument.split(":") for argument in signature.split()),
        constants=form.constants,
        num_warps=form.num_warps,
        num_stages=form.num_stages,
    )


def _integers(names: str) -> str:
    return " ".join(f"{name}:i32" for name in names.split())


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()
