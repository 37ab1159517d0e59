"""The attention layers of a Conformer: projections around `attention` and `local_attention`.

Parameter names are the checkpoints' (linear_q, linear_k, linear_v, linear_out, linear_pos, pos_bias_u, pos_bias_v,
global_q, global_k, global_v).  B batch, T frames, D width, H heads, K head width
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from nemo_asr.modules.conformer.attention import AttentionMask, attention
from nemo_asr.modules.conformer.context import Window
from nemo_asr.modules.conformer.local_attention import GlobalFrames, global_frame_index, local_attention
from nemo_kernels.attention import RelativePosition
from nemo_kernels.dispatch import uses_triton

# Frames of a window (left + right) from which on local attention is left to `attention`, if no frame is global. One CPU
# thread, the time of `attention` over that of `local_attention`, forward and backward: 2.3 in windows of 32 frames, 1.4
# of 128, 0.98 to 1.01 of 256; there `attention` keeps less memory.
_WIDE_WINDOW = 256


@dataclass(frozen=True)
class AttentionOptions:
    """What the attention of all layers has in common; the fields are NVIDIA's keys."""

    n_heads: int
    d_model: int
    dropout_p: float = 0.0
    use_bias: bool = True
    use_pytorch_sdpa_backends: tuple[str, ...] = ()
    global_tokens: int = 0
    global_tokens_spacing: int = 1
    global_attn_separate: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} does not divide d_model {self.d_model}")
        known = torch.nn.attention.SDPBackend.__members__
        for name in self.use_pytorch_sdpa_backends:
            if name not in known:
                raise ValueError(f"use_pytorch_sdpa_backends: {name} is none of {', '.join(known)}")


class PositionBiases(NamedTuple):
    """u and v of relative attention, (H, K) each; layers may share them."""

    u: nn.Parameter
    v: nn.Parameter

    @classmethod
    def zeros(cls, options: AttentionOptions) -> PositionBiases:
        shape = options.n_heads, options.d_model // options.n_heads
        return cls(nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape)))


class MultiHeadAttention(nn.Module):
    """Self-attention without relative positions."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        width, bias = options.d_model, options.use_bias
        self.options = options
        self.linear_q = nn.Linear(width, width, bias=bias)
        self.linear_k = nn.Linear(width, width, bias=bias)
        self.linear_v = nn.Linear(width, width, bias=bias)
        self.linear_out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, mask: AttentionMask, positions: Tensor, cached: Tensor | None = None) -> Tensor:
        """Mixes x (B, T, D) along time.

        Args:
            x: the frames.
            mask: which of them see which; its `cached` is S.
            positions: (1, P, D), what the encoder's positional encoding gave for S + T frames.
            cached: (B, S, D), what x was for the frames before.
        """
        past_and_x = x if cached is None else torch.cat([cached, x], dim=1)
        heads = attention(
            self._heads(self.linear_q(x)),
            self._heads(self.linear_k(past_and_x)),
            self._heads(self.linear_v(past_and_x)),
            mask=mask,
            position=self._position(positions),
            dropout_p=self._dropout_p,
            backends=self.options.use_pytorch_sdpa_backends,
        )
        return self.linear_out(_joined(heads))

    def with_weights_of(self, other: MultiHeadAttention) -> Self:
        """This layer with the weights that it shares with `other`, where and as that one is."""
        self.load_state_dict(other.state_dict(), strict=False)
        return self.to(other.linear_q.weight).train(other.training)

    def _position(self, positions: Tensor) -> RelativePosition | None:
        return None

    @property
    def _dropout_p(self) -> float:
        return self.options.dropout_p if self.training else 0.0

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return torch.unflatten(x, 2, (self.options.n_heads, -1)).transpose(1, 2)


class RelPositionMultiHeadAttention(MultiHeadAttention):
    """Self-attention with relative positions.

    Args:
        options: what all layers have in common.
        biases: u and v, if the layers share them.
    """

    def __init__(self, options: AttentionOptions, biases: PositionBiases | None = None) -> None:
        super().__init__(options)
        self.linear_pos = nn.Linear(options.d_model, options.d_model, bias=False)
        self.pos_bias_u, self.pos_bias_v = biases or PositionBiases.zeros(options)

    def _position(self, positions: Tensor) -> RelativePosition:
        """The positions that attention needs; dropout gives the whole batch the same."""
        return RelativePosition(self._heads(self.linear_pos(positions)).squeeze(0), self.pos_bias_u, self.pos_bias_v)


class LocalRelPositionMultiHeadAttention(RelPositionMultiHeadAttention):
    """Self-attention with relative positions within a window, and global frames.

    Args:
        options: what all layers have in common.
        window: frames seen before and after each frame.
    """

    def __init__(self, options: AttentionOptions, window: Window) -> None:
        super().__init__(options)
        self.window = window
        if options.global_attn_separate:
            width, bias = options.d_model, options.use_bias
            self.global_q = nn.Linear(width, width, bias=bias)
            self.global_k = nn.Linear(width, width, bias=bias)
            self.global_v = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, mask: AttentionMask, positions: Tensor, cached: Tensor | None = None) -> Tensor:
        """Mixes x (B, T, D) along time, looking as far as this layer's window; `mask` has no window of its own."""
        if cached is not None:
            raise ValueError("cached: rel_pos_local_attn cannot stream")
        if self._is_left_to_attention(x.device):
            return super().forward(x, replace(mask, window=self.window), positions)
        query, key, value = (self._heads(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        heads = local_attention(
            query,
            key,
            value,
            padded=mask.padded,
            position=self._position(positions),
            left=self.window.left,
            right=self.window.right,
            dropout_p=self._dropout_p,
            global_frames=self._global_frames(x, query, key, value),
        )
        return self.linear_out(_joined(heads))

    def _position(self, positions: Tensor) -> RelativePosition:
        return super()._position(positions)._replace(furthest=self.window.left)

    def _is_left_to_attention(self, device: torch.device) -> bool:
        if self.options.global_tokens > 0:
            return False
        return uses_triton(device) or self.window.left + self.window.right >= _WIDE_WINDOW

    def _global_frames(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> GlobalFrames | None:
        options = self.options
        if options.global_tokens <= 0:
            return None
        index = global_frame_index(x.size(1), options.global_tokens, options.global_tokens_spacing, x.device)
        if options.global_attn_separate:
            query, key, value = (self._heads(linear(x)) for linear in (self.global_q, self.global_k, self.global_v))
        return GlobalFrames(index, query, key, value)


def build_attention(
    model: str, options: AttentionOptions, window: Window, biases: PositionBiases | None = None
) -> MultiHeadAttention:
    """The attention layer that NVIDIA's self_attention_model names."""
    if model == "abs_pos":
        return MultiHeadAttention(options)
    if model == "rel_pos":
        return RelPositionMultiHeadAttention(options, biases)
    return LocalRelPositionMultiHeadAttention(options, window)


def _joined(heads: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, D)."""
    return heads.transpose(1, 2).flatten(2)
