"""Sinusoidal positions (arXiv 1706.03762) and what they do to the encoder's input.

    p_t[2 i] = sin(t / 10000^(2 i / D))        p_t[2 i + 1] = cos(t / 10000^(2 i / D))

Tables are computed when a longer one is needed and belong to no checkpoint.  B batch, T frames, D width
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemo_asr.modules.conformer.context import Window


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Embeds positions (P,) as (P, D), in float32."""
    rates = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float32, device=positions.device) * -(math.log(10000.0) / d_model)
    )
    angles = positions.float().unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class PositionalEncoding(nn.Module):
    """Adds absolute positions.

    Args:
        d_model: width D, even.
        dropout_p: dropout of the encoder's input.
        scale: factor on the input, or None.
        max_len: frames up to which a table may be larger than what asks for it.
        dropout_emb_p: dropout of the positions.
    """

    def __init__(
        self,
        d_model: int,
        dropout_p: float,
        *,
        scale: float | None = None,
        max_len: int = 5000,
        dropout_emb_p: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.scale = scale
        self.max_len = max_len
        self.dropout = nn.Dropout(dropout_p)
        self.dropout_emb = nn.Dropout(dropout_emb_p)
        # no buffer: it would have to be computed where a model is only built to receive a checkpoint
        self._table: tuple[int, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prepares x (B, T, D): gives it, scaled and dropped out, and the positions that attention needs."""
        positions = self.dropout_emb(self.table(x.size(1), x))
        return self.dropout(self._scaled(x) + positions), positions

    def table(self, frames: int, like: Tensor) -> Tensor:
        """(1, P, D) for inputs of `frames` frames, on the device and of the type of `like`."""
        reach, table = self._table or (0, like)
        if reach < frames or table.device != like.device or table.dtype != like.dtype:
            reach = max(frames, min(2 * frames, self.max_len))
            # an ordinary tensor even if this is an inference: training may use it next
            with torch.inference_mode(False), torch.no_grad():
                table = self._embedded(reach, like.device).unsqueeze(0).to(like.dtype)
            self._table = reach, table
        return self._cut(table, reach, frames)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self.scale

    def _embedded(self, reach: int, device: torch.device) -> Tensor:
        return sinusoids(torch.arange(reach, device=device), self.d_model)

    def _cut(self, table: Tensor, reach: int, frames: int) -> Tensor:
        return table[:, :frames]


class RelPositionalEncoding(PositionalEncoding):
    """Positions T - 1 down to -(T - 1) for attention; the input is only scaled."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prepares x (B, T, D): gives it and the positions (1, 2 T - 1, D), or what the window needs of them."""
        return self.dropout(self._scaled(x)), self.dropout_emb(self.table(x.size(1), x))

    def _embedded(self, reach: int, device: torch.device) -> Tensor:
        return sinusoids(torch.arange(reach - 1, -reach, -1, device=device), self.d_model)

    def _cut(self, table: Tensor, reach: int, frames: int) -> Tensor:
        return table[:, reach - frames : reach + frames - 1]


class LocalRelPositionalEncoding(RelPositionalEncoding):
    """Positions `left` down to -`right`, whatever the length; with left != right displaced as NVIDIA's are.

    Args:
        left: frames that attention sees before each frame.
        right: frames that it sees after it.
        d_model: width D, even.
        dropout_p: dropout of the encoder's input.
        scale: factor on the input, or None.
        dropout_emb_p: dropout of the positions.
    """

    def __init__(
        self,
        left: int,
        right: int,
        d_model: int,
        dropout_p: float,
        *,
        scale: float | None = None,
        dropout_emb_p: float = 0.0,
    ) -> None:
        super().__init__(d_model, dropout_p, scale=scale, dropout_emb_p=dropout_emb_p)
        self.left = left
        self.right = right

    def _embedded(self, reach: int, device: torch.device) -> Tensor:
        rows = sinusoids(torch.arange(self.left, -self.right - 1, -1, device=device), self.d_model)
        return _as_checkpoints_place_them(rows, self.left, self.right)

    def _cut(self, table: Tensor, reach: int, frames: int) -> Tensor:
        return table


def _as_checkpoints_place_them(rows: Tensor, left: int, right: int) -> Tensor:
    """Displaces the positions (left + right + 1, D) of a window that is not symmetric.

    NVIDIA's toolkit keeps scores in 2 max(left, right) + 1 columns and adds those of positions at both ends, where
    they do not belong if one side is shorter: that side is displaced, and what is left uncovered has no position.
    Checkpoints with such windows were trained so.
    """
    shift = abs(left - right)
    placed = rows.clone()
    if left < right:
        placed[:left] = 0.0
        placed[: max(left - shift, 0)] = rows[shift:left]
    elif left > right:
        placed[left:] = 0.0
        placed[left + shift :] = rows[left : max(left + right + 1 - shift, left)]
    return placed


@dataclass(frozen=True)
class PositionOptions:
    """What the positional encodings have in common; the fields are NVIDIA's keys."""

    d_model: int
    xscaling: bool
    pos_emb_max_len: int
    dropout: float
    dropout_pre_encoder: float
    dropout_emb: float


def build_positional_encoding(model: str, window: Window, options: PositionOptions) -> PositionalEncoding:
    """The positional encoding that belongs to NVIDIA's self_attention_model."""
    width, scale = options.d_model, math.sqrt(options.d_model) if options.xscaling else None
    match model:
        case "rel_pos":
            return RelPositionalEncoding(
                width,
                options.dropout_pre_encoder,
                scale=scale,
                max_len=options.pos_emb_max_len,
                dropout_emb_p=options.dropout_emb,
            )
        case "rel_pos_local_attn":
            return LocalRelPositionalEncoding(
                window.left,
                window.right,
                width,
                options.dropout,
                scale=scale,
                dropout_emb_p=options.dropout_emb,
            )
        case "abs_pos":
            return PositionalEncoding(width, options.dropout_pre_encoder, scale=scale, max_len=options.pos_emb_max_len)
    raise ValueError(f"self_attention_model: {model} is none of rel_pos, rel_pos_local_attn, abs_pos")
