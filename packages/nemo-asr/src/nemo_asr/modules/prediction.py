"""Prediction networks of transducers: what the tokens so far say of the next (Graves, arXiv 1211.3711).

`RNNTDecoder` is an LSTM over token embeddings; `StatelessTransducerDecoder` (arXiv 2109.07513) sees the last few tokens
only.  Blank's embedding is zero, and so is the vector that stands for the start of an utterance.

B batch, U target steps, D width (pred_hidden), V vocabulary with blank, N layers, C tokens of context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
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


class RNNTDecoder(PredictionNetwork):
    """LSTM prediction network.

    Args:
        prednet: as `PredictionOptions`.
        vocab_size: tokens without blank.
        normalization_mode: null; NVIDIA's `batch` and `layer` are not offered.
        random_state_sampling: in training the initial state is drawn from a normal distribution (arXiv 1910.11455).
        blank_as_pad: true; the embedding has a row for blank, which is zero.

    Raises:
        ValueError: an option out of its range, named as in the config.
    """

    state_batch_dim = 1

    def __init__(
        self,
        prednet: Mapping[str, Any],
        vocab_size: int,
        normalization_mode: str | None = None,
        random_state_sampling: bool = False,
        blank_as_pad: bool = True,
    ) -> None:
        super().__init__()
        if normalization_mode is not None:
            raise ValueError(f"normalization_mode: {normalization_mode!r} is not offered for an LSTM; null is")
        if not blank_as_pad:
            raise ValueError("blank_as_pad: false is not offered: batched search needs blank's embedding")
        options = read_options(PredictionOptions, prednet, "prednet")
        self.pred_hidden = options.pred_hidden
        self.pred_rnn_layers = options.pred_rnn_layers
        self.blank_idx = vocab_size
        self.random_state_sampling = random_state_sampling
        self.prediction = nn.ModuleDict(
            {
                "embed": nn.Embedding(vocab_size + 1, options.pred_hidden, padding_idx=vocab_size),
                "dec_rnn": _DroppedLSTM(options),
            }
        )

    def predict(
        self, y: Tensor | None = None, state: State | None = None, add_sos: bool = True, batch_size: int | None = None
    ) -> tuple[Tensor, State]:
        embed: Any = self.prediction["embed"]
        weight: Tensor = embed.weight
        if y is None:
            rows = batch_size or (state[0].shape[1] if state is not None else 1)
            embedded = weight.new_zeros(rows, 1, self.pred_hidden)
        else:
            embedded = embed(y.to(weight.device))
        if add_sos:
            embedded = F.pad(embedded, (0, 0, 1, 0))
        if state is None and self.random_state_sampling and self.training:
            state = self.initialize_state(embedded)
        outputs, state = self.prediction["dec_rnn"](embedded.transpose(0, 1), state)
        return outputs.transpose(0, 1), state

    def initialize_state(self, y: Tensor) -> State:
        recurrent: Any = self.prediction["dec_rnn"]
        lstm: nn.LSTM = recurrent.lstm
        make = torch.randn if self.random_state_sampling and self.training else torch.zeros
        dtype = y.dtype if y.is_floating_point() else next(lstm.parameters()).dtype
        widths = (self.pred_hidden, lstm.hidden_size)
        return tuple(make(self.pred_rnn_layers, y.shape[0], width, dtype=dtype, device=y.device) for width in widths)


class _DroppedLSTM(nn.Module):
    """LSTM with dropout after every layer, the last included; it takes and gives (U, B, D)."""

    def __init__(self, options: PredictionOptions) -> None:
        super().__init__()
        width, layers = options.pred_hidden, options.pred_rnn_layers
        cells = options.rnn_hidden_size if options.rnn_hidden_size > 0 else width
        between = options.dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, cells, layers, dropout=between, proj_size=width if width < cells else 0)
        self.dropout = nn.Dropout(options.dropout) if options.dropout else None
        with torch.no_grad():
            self._initialize(options)

    def _initialize(self, options: PredictionOptions) -> None:
        cells = self.lstm.hidden_size  # gates stand in the order input, forget, cell, output
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                if options.t_max is not None:
                    remembered = torch.empty(cells).uniform_(1, options.t_max - 1).log()
                    parameter.zero_()
                    parameter[:cells], parameter[cells : 2 * cells] = -remembered, remembered
                elif options.forget_gate_bias is not None and name.startswith("bias_ih"):
                    parameter[cells : 2 * cells] = options.forget_gate_bias
                elif options.forget_gate_bias is not None:
                    parameter[cells : 2 * cells].mul_(options.hidden_hidden_bias_scale)
            parameter.mul_(options.weights_init_scale)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        outputs, state = self.lstm(x, None if state is None else tuple(state))
        return (outputs if self.dropout is None else self.dropout(outputs)), state


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
