"""The transducer losses as problems: from given logits, and with the joint that makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nemo_kernels.bench.eager import joint_logits, transducer_losses
from nemo_kernels.bench.problem import Operation, Problem, Results, Subject
from nemo_kernels.roofline import TransducerShape

DURATIONS = (0, 1, 2, 3, 4)  # of NVIDIA's released TDT models


Losses = Callable[..., Tensor]  # of logits and the problem


def rnnt(shape: TransducerShape) -> Operation:
    """`rnnt_loss` for logits, or `rnnt_loss_fused` where the shape has a width."""
    if shape.width:
        return _with_joint(shape, (), _RNNT_JOINT, ("joint + torchaudio", "joint + torch eager"))
    return _from_logits(shape, (), _RNNT, ("torchaudio", "torch eager"))


def tdt(shape: TransducerShape) -> Operation:
    """`tdt_loss`, or `tdt_loss_fused` where the shape has a width."""
    if shape.width:
        return _with_joint(shape, DURATIONS, _TDT_JOINT, ("joint + torch eager",))
    return _from_logits(shape, DURATIONS, _TDT, ("torch eager",))


def _from_logits(
    shape: TransducerShape, durations: tuple[int, ...], subjects: tuple[Subject, ...], beside: tuple[str, ...]
) -> Operation:
    def make(device: torch.device, dtype: torch.dtype) -> Problem:
        columns = shape.vocabulary + len(durations)
        size = (shape.batch, shape.frames, shape.targets + 1, columns)
        logits = torch.empty(size, device=device, dtype=dtype, requires_grad=True)
        return Problem({"logits": logits}, _lengths(shape, device), {"logits": 1.0}, numbers=durations)

    return Operation(make, subjects, beside, _given(_eager), 0.5, _rounding(shape))


def _with_joint(
    shape: TransducerShape, durations: tuple[int, ...], subjects: tuple[Subject, ...], beside: tuple[str, ...]
) -> Operation:
    def make(device: torch.device, dtype: torch.dtype) -> Problem:
        columns, width = shape.vocabulary + len(durations), shape.width
        sizes: dict[str, tuple[int, ...]] = {
            "encoder_out": (shape.batch, shape.frames, width),
            "predictor_out": (shape.batch, shape.targets + 1, width),
            "weight": (columns, width),
            "bias": (columns,),
        }
        floating = {
            name: torch.empty(size, device=device, dtype=dtype, requires_grad=True) for name, size in sizes.items()
        }
        deviation = {"encoder_out": 1.0, "predictor_out": 1.0, "weight": width**-0.5, "bias": 0.1}
        shared = frozenset({"weight", "bias"})
        return Problem(floating, _lengths(shape, device), deviation, shared=shared, numbers=durations)

    return Operation(make, subjects, beside, _joined(_eager), 0.5, _rounding(shape))


def _lengths(shape: TransducerShape, device: torch.device) -> dict[str, Tensor]:
    """Targets and lengths: the first utterance is the longest, the others lose up to a fifth and a quarter."""
    generator = torch.Generator().manual_seed(7)
    targets = torch.randint(0, shape.vocabulary - 1, (shape.batch, shape.targets), generator=generator)
    part = torch.arange(shape.batch) / max(shape.batch - 1, 1)
    lengths = {
        "targets": targets,
        "frame_len": (shape.frames - (part * shape.frames / 5).long()).clamp(min=1),
        "target_len": shape.targets - (part * shape.targets / 4).long(),
    }
    return {name: tensor.to(device) for name, tensor in lengths.items()}


def _rounding(shape: TransducerShape) -> float:
    """Float32 gradients lose digits with the size of the loss, about log V a step, which the lattice subtracts."""
    return max(1.0, (shape.frames + shape.targets) * math.log(shape.vocabulary) / 20)


def _lattice(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """targets (B, U), frame_len (B,), target_len (B,)."""
    lengths = problem.lengths
    return lengths["targets"], lengths["frame_len"], lengths["target_len"]


def _joint(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """encoder_out, predictor_out, weight, bias: see `joint_logits`."""
    floating = problem.floating
    return floating["encoder_out"], floating["predictor_out"], floating["weight"], floating["bias"]


def _given(losses: Losses) -> Callable[[Problem], Results]:
    """Losses of the given logits, and their gradient."""
    return lambda problem: problem.gradients_of(losses(problem.floating["logits"], problem))


def _joined(losses: Losses) -> Callable[[Problem], Results]:
    """Losses of the logits of a joint, and the gradients of its four inputs."""
    return lambda problem: problem.gradients_of(losses(joint_logits(*_joint(problem)), problem))


def _eager(logits: Tensor, problem: Problem) -> Tensor:
    return transducer_losses(logits, *_lattice(problem), problem.numbers)


def _torchaudio(logits: Tensor, problem: Problem) -> Tensor:
    from torchaudio.functional import rnnt_loss

    return rnnt_loss(logits, *(tensor.int() for tensor in _lattice(problem)), reduction="none")


def _rnnt(logits: Tensor, problem: Problem, *, inplace: bool = False) -> Tensor:
    from nemo_kernels import rnnt_loss

    return rnnt_loss(logits, *_lattice(problem), reduction="none", inplace=inplace)


def _rnnt_reference(logits: Tensor, problem: Problem) -> Tensor:
    from nemo_kernels.rnnt_loss.reference import rnnt_loss_reference

    return rnnt_loss_reference(logits, *_lattice(problem))


def _rnnt_fused(problem: Problem) -> Results:
    from nemo_kernels import rnnt_loss_fused

    losses = rnnt_loss_fused(*_joint(problem), *_lattice(problem), reduction="none")
    return problem.gradients_of(losses)


def _tdt(logits: Tensor, problem: Problem, *, inplace: bool = False) -> Tensor:
    from nemo_kernels import tdt_loss

    return tdt_loss(logits, *_lattice(problem), problem.numbers, reduction="none", inplace=inplace)


def _tdt_reference(logits: Tensor, problem: Problem) -> Tensor:
    from nemo_kernels.tdt_loss.reference import tdt_loss_reference

    return tdt_loss_reference(logits, *_lattice(problem), problem.numbers)


def _tdt_fused(problem: Problem) -> Results:
    from nemo_kernels import tdt_loss_fused

    losses = tdt_loss_fused(*_joint(problem), *_lattice(problem), problem.numbers, reduction="none")
    return problem.gradients_of(losses)


def _from_logits_subjects(ours: Losses, reference: Losses) -> tuple[Subject, ...]:
    return (
        Subject("nemo_kernels", _given(ours), work="gradient in a new tensor"),
        Subject("nemo_kernels in place", _given(partial(ours, inplace=True)), work="gradient in place"),
        Subject("torch eager", _given(_eager), work="autograd of log_softmax"),
        Subject("reference", _given(reference), slow=True),
    )


def _joint_subjects(ours: Losses, fused: Callable[[Problem], Results]) -> tuple[Subject, ...]:
    return (
        Subject("nemo_kernels fused", fused, work="fused, tiles stay in cache"),
        Subject("joint + nemo_kernels", _joined(partial(ours, inplace=True)), work="logits in memory, in place"),
        Subject("joint + torch eager", _joined(_eager)),
    )


_TORCHAUDIO = Subject("torchaudio", _given(_torchaudio), "torchaudio", work="gradient in a new tensor")
_JOINT_TORCHAUDIO = Subject("joint + torchaudio", _joined(_torchaudio), "torchaudio", work="logits in memory")
_RNNT = (_TORCHAUDIO, *_from_logits_subjects(_rnnt, _rnnt_reference))
_TDT = _from_logits_subjects(_tdt, _tdt_reference)
_RNNT_JOINT = (_JOINT_TORCHAUDIO, *_joint_subjects(_rnnt, _rnnt_fused))
_TDT_JOINT = _joint_subjects(_tdt, _tdt_fused)
