"""Attention with relative positions as a problem: forward, and the gradients of all six inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_kernels.bench.eager import shifted_attention
from nemo_kernels.bench.problem import Operation, Problem, Results, Subject
from nemo_kernels.roofline import AttentionShape

_LARGEST_REFERENCE = 600  # frames; the textbook version holds (H, T, T, K) positions


def attention(shape: AttentionShape) -> Operation:
    """Self-attention of utterances of which the last is a fifth shorter, everything to be seen."""
    subjects = (_EAGER, _OURS, _REFERENCE) if shape.frames <= _LARGEST_REFERENCE else (_EAGER, _OURS)

    def make(device: torch.device, dtype: torch.dtype) -> Problem:
        heads, width = shape.heads, shape.head_width
        rows = (shape.batch, heads, shape.frames, width)
        sizes: dict[str, tuple[int, ...]] = {
            "query": rows,
            "key": rows,
            "value": rows,
            "embedding": (heads, 2 * shape.frames - 1, width),
            "content_bias": (heads, width),
            "position_bias": (heads, width),
        }
        floating = {
            name: torch.empty(size, device=device, dtype=dtype, requires_grad=True) for name, size in sizes.items()
        }
        upstream = torch.empty(rows).normal_(generator=torch.Generator().manual_seed(11)).to(device, dtype)
        frame_len = torch.full((shape.batch,), shape.frames)
        frame_len[-1] -= shape.frames // 5
        return Problem(
            floating,
            {"frame_len": frame_len.to(device)},
            dict.fromkeys(sizes, 1.0),
            {"upstream": upstream},
            frozenset({"embedding", "content_bias", "position_bias"}),
        )

    return Operation(make, subjects, ("torch eager",), _EAGER.run)


def _heads(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return problem.floating["query"], problem.floating["key"], problem.floating["value"]


def _position(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    floating = problem.floating
    return floating["embedding"], floating["content_bias"], floating["position_bias"]


def _eager(problem: Problem) -> Results:
    output = shifted_attention(*_heads(problem), *_position(problem), problem.lengths["frame_len"])
    return problem.gradients_of(output, problem.constant["upstream"])


def _ours(problem: Problem) -> Results:
    from nemo_kernels.attention import RelativePosition, attention

    query, key, value = _heads(problem)
    frame_len = problem.lengths["frame_len"]
    output = attention(
        query, key, value, position=RelativePosition(*_position(problem)), query_len=frame_len, key_len=frame_len
    )
    return problem.gradients_of(output, problem.constant["upstream"])


def _reference(problem: Problem) -> Results:
    from nemo_kernels.attention import RelativePosition
    from nemo_kernels.attention.key_ranges import KeyRanges
    from nemo_kernels.attention.reference import reference_attention

    query, key, value = _heads(problem)
    frame_len, frames = problem.lengths["frame_len"], query.shape[2]
    ranges = KeyRanges.of(frames, frames, query.device, query_len=frame_len, key_len=frame_len)
    output = reference_attention(query, key, value, ranges, RelativePosition(*_position(problem)))
    return problem.gradients_of(output, problem.constant["upstream"])


_EAGER = Subject("torch eager", _eager)
_OURS = Subject("nemo_kernels", _ours, work="fused, both")
_REFERENCE = Subject("reference", _reference, slow=True)
