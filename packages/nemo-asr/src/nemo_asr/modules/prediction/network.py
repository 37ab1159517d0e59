"""What training and search need of a prediction network, and the options that its kinds share.

B batch, U target steps, D width (pred_hidden), V vocabulary with blank, N layers, C tokens of context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_asr.modules.neural_module import NeuralModule

State = Sequence[Tensor]
"""What a network remembers: hidden (N, B, D) and cell (N, B, ...) of an LSTM, or the last tokens [(B, C - 1)]."""


class PredictionNetwork(NeuralModule):
    """What training and search need of a prediction network.

    Attributes:
        blank_idx: id of blank, the last token.
        pred_hidden: D.
    """

    blank_idx: int
    pred_hidden: int
    state_batch_dim: int

    def forward(
        self, targets: Tensor, target_length: Tensor, states: State | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Outputs (B, D, U + 1), the first for the start, of targets (B, U); their lengths (B,), and the state."""
        outputs, states = self.predict(targets, states)
        return outputs.transpose(1, 2), target_length, states

    def predict(
        self, y: Tensor | None = None, state: State | None = None, add_sos: bool = True, batch_size: int | None = None
    ) -> tuple[Tensor, State]:
        """Outputs and state after some tokens.

        Args:
            y: tokens (B, U); None for one step with the vector of the start.
            state: what was remembered before them; None at the start.
            add_sos: puts the vector of the start before them.
            batch_size: B, where neither tokens nor state tell it.

        Returns:
            (B, U, D), or (B, U + 1, D) with the start, and the state.
        """
        raise NotImplementedError

    def initialize_state(self, y: Tensor) -> State:
        """The state at the start, for the batch, device and (LSTM) precision of `y` (B, ...)."""
        raise NotImplementedError

    def select_states(self, state: State, index: Tensor) -> State:
        """The states of the utterances that an index or mask (B,) picks."""
        rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        return [part.index_select(self.state_batch_dim, rows) for part in state]

    def replace_states(self, state: State, rows: Tensor, chosen: State) -> State:
        """The states, with those of the utterances `rows` (N,) replaced by the N of `chosen`."""
        dim = self.state_batch_dim
        return [old.index_copy(dim, rows, new.to(old.dtype)) for old, new in zip(state, chosen, strict=True)]


@dataclass(frozen=True)
class PredictionOptions:
    """The `prednet` section.

    Attributes:
        pred_hidden: D.
        pred_rnn_layers: N.
        dropout: probability, after each layer; after the embeddings where there is no LSTM.
        t_max: steps that an utterance may last, for Chrono initialisation (Tallec & Ollivier, arXiv 1804.11188).
        forget_gate_bias: initial bias of the forget gates (Jozefowicz et al. 2015); null keeps torch's.
        weights_init_scale: factor of all initial weights.
        hidden_hidden_bias_scale: factor of the second bias of the forget gates, initially.
        rnn_hidden_size: width of the cells; where larger than D, the LSTM projects its output to D.
    """

    pred_hidden: int
    pred_rnn_layers: int = 1
    dropout: float = 0.0
    t_max: int | None = None
    forget_gate_bias: float | None = 1.0
    weights_init_scale: float = 1.0
    hidden_hidden_bias_scale: float = 0.0
    rnn_hidden_size: int = -1
