"""The forms in which the RNNT kernels are launched, and the table of builds that the tests compile.

A form is chosen by what is known at a launch: data type, vocabulary or lattice width, architecture. A streaming kernel
gives each thread four loads of 128 bits (32 halves or 16 floats). Rows of a vocabulary that is no multiple of 16 start
anywhere, so their elements are loaded one by one: eight for each thread. A wavefront gets a lane for each position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nemo_kernels.builds import ARCHITECTURES, KernelBuild

_HERE = "nemo_kernels.rnnt_loss.triton"
_SMALLEST_PART = 256  # columns of a tile, or 512 or 1024; longer rows are gone through in parts
_LARGEST_WAVEFRONT = 1024  # target positions at once; longer transcripts are swept in strips
ACTIVATIONS = ("relu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Form:
    """Compile-time values of a kernel, and its warps and pipeline stages."""

    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1

    @property
    def launch(self) -> dict[str, Any]:
        """As keywords of a kernel launch."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


def rows_form(dtype: torch.dtype, columns: int) -> Form:
    """Tiles ROWS x COLUMNS for kernels that stream rows of `columns` elements once."""
    width = max(_power_of_two(columns), 32)
    if columns > _SMALLEST_PART:  # the parts of a row that leave the least of the last one idle
        widths = (_SMALLEST_PART << n for n in range(3))
        width = min(widths, key=lambda w: (-(-columns // w) * w, -w))
    elements = 1024 if columns % 16 else 8192 // dtype.itemsize
    return Form({"ROWS": elements // width, "COLUMNS": width})


def wavefront_form(width: int) -> Form:
    """A strip of target positions, and a warp for every 64 of them."""
    lanes = min(max(_power_of_two(width), 32), _LARGEST_WAVEFRONT)
    return Form({"LANES": lanes}, num_warps=max(lanes // 64, 1))


def cells_form() -> Form:
    """Cells of the lattice for one program of an elementwise kernel."""
    return Form({"CELLS": 512})


def join_form(dtype: torch.dtype, width: int, activation: str, dropout_p: float) -> Form:
    """Tiles of joint states: the row form, with what is computed in it."""
    tile = rows_form(dtype, width)
    return Form({**tile.constants, "ACTIVATION": activation, "DROPOUT": dropout_p > 0})


def join_backward_form(width: int, activation: str, dropout_p: float, over_frames: bool) -> Form:
    """POSITIONS of the summed axis by CHANNELS of the joint state in one step of the sum."""
    tile = {"POSITIONS": 16, "CHANNELS": min(max(_power_of_two(width), 32), 128)}
    return Form({**tile, "ACTIVATION": activation, "DROPOUT": dropout_p > 0, "OVER_FRAMES": over_frames})


def joint_scores_form(architecture: int, activation: str, width: int, *, interpreted: bool = False) -> Form:
    """FRAMES x LABELS cells by COLUMNS of the vocabulary, products over CHANNELS at a time.

    Larger tiles spill: an A100 holds the factors of a product in registers, and so gets half the CHANNELS; tanh and
    sigmoid want registers of their own, and so get half the COLUMNS.
    """
    columns = 128 if activation == "relu" else 64
    tile = {"FRAMES": 8, "LABELS": 8, "COLUMNS": columns, "CHANNELS": 32 if architecture < 90 else 64}
    kind = {"ACTIVATION": activation, "EVEN": width % tile["CHANNELS"] == 0, "UPCAST": interpreted}
    return Form({**tile, **kind}, num_stages=3)


def builds() -> tuple[KernelBuild, ...]:
    """Every kernel, in the forms that the usual sizes choose, for every architecture."""
    return tuple(
        build
        for architecture in ARCHITECTURES
        for builds_of in (_scores, _gradient, _wavefront, _join, _joint_scores)
        for build in builds_of(architecture)
    )


_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_STREAMED = ((torch.bfloat16, 128), (torch.bfloat16, 1024), (torch.bfloat16, 1025), (torch.float32, 1024))


def _scores(architecture: int) -> list[KernelBuild]:
    integers = "cells T W V blank stride_b stride_t stride_u stride_targets"
    return [
        _build(
            f"rnnt scores {_TYPES[dtype]} V={vocabulary}",
            "softmax:scores_kernel",
            architecture,
            f"logits:*{_TYPES[dtype]} targets:*i32 logit_len:*i32 target_len:*i32 "
            f"lse:*fp32 lp_blank:*fp32 lp_label:*fp32 {_integers(integers)}",
            rows_form(dtype, vocabulary),
            divisible=() if vocabulary % 16 else ("V",),
        )
        for dtype, vocabulary in _STREAMED
    ]


def _gradient(architecture: int) -> list[KernelBuild]:
    return [
        _build(
            f"rnnt gradient {_TYPES[dtype]} V={vocabulary}",
            "softmax:gradient_kernel",
            architecture,
            f"logits:*{_TYPES[dtype]} out:*{_TYPES[dtype]} targets:*i32 logit_len:*i32 target_len:*i32 lse:*fp32 "
            f"occupancy_blank:*fp32 occupancy_label:*fp32 grad_losses:*fp32 "
            f"{_integers('cells T W V blank stride_targets')} emphasis:fp32 clamp:fp32",
            rows_form(dtype, vocabulary),
            divisible=() if vocabulary % 16 else ("V",),
        )
        for dtype, vocabulary in _STREAMED
    ]


def _wavefront(architecture: int) -> list[KernelBuild]:
    planes = "lp_blank:*fp32 lp_label:*fp32 logit_len:*i32 target_len:*i32"
    strides = _integers("T W stride_b stride_t stride_u")
    sweeps = [
        _build(
            f"rnnt wavefront W={width}",
            "wavefront:wavefront_kernel",
            architecture,
            f"{planes} alpha_beta:*fp64 log_p:*fp64 {strides}",
            wavefront_form(width),
        )
        for width in (64, 256, 1024)
    ]
    occupancies = _build(
        "rnnt occupancies",
        "wavefront:occupancies_kernel",
        architecture,
        f"{planes} alpha_beta:*fp64 log_p:*fp64 occupancy_blank:*fp32 occupancy_label:*fp32 {strides}",
        cells_form(),
    )
    return [*sweeps, occupancies]


def _join(architecture: int) -> list[KernelBuild]:
    forms = [(torch.bfloat16, activation, 0.0) for activation in ACTIVATIONS]
    forms += [(torch.bfloat16, "relu", 0.2), (torch.float32, "relu", 0.0)]
    return [build for form in forms for build in _join_both_ways(architecture, *form)]


def _join_both_ways(architecture: int, dtype: torch.dtype, activation: str, dropout_p: float) -> list[KernelBuild]:
    kind = _TYPES[dtype]
    name = f"{kind} {activation}{' dropout' if dropout_p else ''}"
    states = f"encoder:*{kind} predictor:*{kind}"
    common = "logit_len:*i32 target_len:*i32 seed:i64 scale:fp32 threshold:i64"
    strides = "stride_eb stride_et stride_pb stride_pu"
    forward = _build(
        f"rnnt join {name}",
        "joint_state:join_kernel",
        architecture,
        f"{states} hidden:*{kind} {common} {_integers(f'cells T W width {strides} first_utterance first_frame')}",
        join_form(dtype, 640, activation, dropout_p),
        divisible=("width", *strides.split()),
    )
    strides += " stride_gb stride_gr"
    backward = [
        _build(
            f"rnnt join backward over {'frames' if over_frames else 'labels'} {name}",
            "joint_state:join_backward_kernel",
            architecture,
            f"grad_hidden:*{kind} {states} grad:*fp32 {common} "
            f"{_integers(f'T W width {strides} first_utterance first_frame')}",
            join_backward_form(640, activation, dropout_p, over_frames),
            divisible=("width", *strides.split()),
        )
        for over_frames in (False, True)
    ]
    return [forward, *backward]


def _joint_scores(architecture: int) -> list[KernelBuild]:
    pointers = "encoder:*bf16 predictor:*bf16 weight:*bf16 bias:*bf16 targets:*i32 logit_len:*i32 target_len:*i32"
    integers = _integers("T W V width blank stride_b stride_t stride_u stride_targets")
    return [
        _build(
            f"rnnt joint scores bf16 {activation}",
            "fused_scores:joint_scores_kernel",
            architecture,
            f"{pointers} lse:*fp32 lp_blank:*fp32 lp_label:*fp32 {integers}",
            joint_scores_form(architecture, activation, 640),
            divisible=("V", "width"),
            matrix=True,
        )
        for activation in ACTIVATIONS
    ]


def _build(
    name: str,
    kernel: str,
    architecture: int,
    signature: str,
    form: Form,
    *,
    divisible: tuple[str, ...] = (),
    matrix: bool = False,
) -> KernelBuild:
    return KernelBuild(
        name=name,
        kernel=f"{_HERE}.{kernel}",
        architecture=architecture,
        signature=dict(argument.split(":") for argument in signature.split()),
        constants=form.constants,
        num_warps=form.num_warps,
        num_stages=form.num_stages,
        divisible=divisible,
        matrix=matrix,
    )


def _integers(names: str) -> str:
    return " ".join(f"{name}:i32" for name in names.split())


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()
