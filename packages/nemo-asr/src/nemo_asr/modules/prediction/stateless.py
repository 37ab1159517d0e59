"""Stateless prediction network: embeddings of the last few tokens (arXiv 2109.07513).

Blank's embedding is zero, and so is the output that stands for the start of an utterance.

B batch, U target steps, D width (pred_hidden), C tokens of context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
from nemo_asr.modules.prediction.network import PredictionNetwork, PredictionOptions, State


class StatelessTransducerDecoder(PredictionNetwork):
    """Embeddings of the last C tokens, side by side; the more recent ones are wider.

    Args:
        prednet: as `PredictionOptions`, of which pred_hidden and dropout mean something here.
        vocab_size: tokens without blank.
        context_size: C.
        normalization_mode: `layer` for a layer norm without weights, or null.

    Raises:
        ValueError: an option out of its range, named as in the config.
    """

    state_batch_dim = 0

    def __init__(
        self,
        prednet: Mapping[str, Any],
        vocab_size: int,
        context_size: int = 1,
        normalization_mode: str | None = None,
    ) -> None:
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context_size: {context_size} must be at least 1")
        if normalization_mode not in (None, "layer"):
            raise ValueError(f"normalization_mode: {normalization_mode!r} must be layer or null")
        options = read_options(PredictionOptions, prednet, "prednet")
        self.pred_hidden = options.pred_hidden
        self.blank_idx = vocab_size
        self.context_size = context_size
        self.prediction = _ContextEmbedding(options, vocab_size, context_size, normalization_mode)

    def predict(
        self, y: Tensor | None = None, state: State | None = None, add_sos: bool = True, batch_size: int | None = None
    ) -> tuple[Tensor, State]:
        device = next(self.prediction.parameters()).device
        if y is None:
            rows = batch_size or (state[0].shape[0] if state is not None else 1)
            outputs = next(self.prediction.parameters()).new_zeros(rows, 1, self.pred_hidden)
            state = self.initialize_state(outputs) if state is None else state
        else:
            y = y.to(device).long()
            history = torch.cat([(self.initialize_state(y) if state is None else state)[0], y], dim=1)
            outputs = self.prediction(history)
            state = [history[:, history.shape[1] - self.context_size + 1 :]]
        return (F.pad(outputs, (0, 0, 1, 0)) if add_sos else outputs), state

    def initialize_state(self, y: Tensor) -> State:
        return [torch.full((y.shape[0], self.context_size - 1), self.blank_idx, dtype=torch.long, device=y.device)]


class _ContextEmbedding(nn.Module):
    """Embeddings (B, U, D) of each token and the C - 1 before it, of a history (B, C - 1 + U)."""

    def __init__(self, options: PredictionOptions, blank: int, context_size: int, normalization: str | None) -> None:
        super().__init__()
        older = options.pred_hidden // 2 // context_size
        widths = [options.pred_hidden - older * (context_size - 1)] + [older] * (context_size - 1)
        self.embeds = nn.ModuleList(nn.Embedding(blank + 1, width, padding_idx=blank) for width in widths)
        self.dropout = nn.Dropout(options.dropout)
        wants_norm = normalization == "layer"
        self.norm = nn.LayerNorm(options.pred_hidden, elementwise_affine=False) if wants_norm else nn.Identity()

    def forward(self, history: Tensor) -> Tensor:
        oldest = len(self.embeds) - 1
        steps = history.shape[1] - oldest
        seen = [embed(history[:, oldest - age : oldest - age + steps]) for age, embed in enumerate(self.embeds)]
        return self.norm(self.dropout(torch.cat(seen, dim=2)))
