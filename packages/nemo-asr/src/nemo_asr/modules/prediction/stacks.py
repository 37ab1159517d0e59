"""Stacks of LSTM layers below a prediction network, by how they are normalised; attribute names are NVIDIA's.

Each takes inputs (U, B, D) and a state, None for zeros, and gives outputs (U, B, D) and the state after them: hidden
(N, B, D) and cell (N, B, `cell_width`).  In NVIDIA's toolkit the states of the normalised stacks have layouts of their
own, which its batched searches cannot read; the numbers are the same.

B batch, U target steps, D width (pred_hidden), N layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.prediction.network import PredictionOptions, State
from nemo_asr.modules.untouched import is_untouched

logger = logging.getLogger(__name__)


class DroppedLSTM(nn.Module):
    """LSTM with dropout after every layer, the last included; without norms."""

    def __init__(self, options: PredictionOptions) -> None:
        super().__init__()
        width, layers = options.pred_hidden, options.pred_rnn_layers
        cells = options.rnn_hidden_size if options.rnn_hidden_size > 0 else width
        if cells < width:
            raise ValueError(f"prednet.rnn_hidden_size: {cells} must be at least pred_hidden {width}, or -1 for it")
        between = options.dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(width, cells, layers, dropout=between, proj_size=width if width < cells else 0)
        self.dropout = nn.Dropout(options.dropout) if options.dropout else None
        with torch.no_grad():
            self._initialize(options)

    @property
    def cell_width(self) -> int:
        """Width of the cell's state, which a projection leaves wider than D."""
        return self.lstm.hidden_size

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
        if len(x) == 1 and state is not None and self._steps_by_cells():
            return self._step(x[0], state)
        outputs, state = self.lstm(x, None if state is None else tuple(state))
        return (outputs if self.dropout is None else self.dropout(outputs)), state

    def _steps_by_cells(self) -> bool:
        return not self.training and is_untouched(self.lstm, nn.LSTM) and not self.lstm.proj_size

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of a search, of inputs (B, D): by torch's cell it takes a CPU a fraction of what its LSTM takes."""
        ends = []
        for weights, hidden, cell in zip(self.lstm.all_weights, *state, strict=True):
            x, cell = torch.lstm_cell(x, (hidden, cell), *weights)
            ends.append((x, cell))
        if len(ends) == 1:
            return x[None], (x[None], cell[None])
        hidden, cell = (torch.stack(part) for part in zip(*ends, strict=True))
        return x[None], (hidden, cell)


class LayerNormLSTM(nn.Module):
    """LSTM whose gates and cell are layer-normalised at each step (Ba et al., arXiv 1607.06450).

    Of the options on initialisation it heeds `forget_gate_bias` alone, as NVIDIA's does; it takes no dropout.
    """

    def __init__(self, options: PredictionOptions) -> None:
        super().__init__()
        if options.dropout:
            raise ValueError(f"prednet.dropout: {options.dropout} must be 0 with normalization_mode layer")
        _require_plain_width(options, "layer")
        _warn_of_unheeded(options, "layer")
        self.cell_width = options.pred_hidden
        cells = [_LayerNormCell(options.pred_hidden, options.forget_gate_bias) for _ in range(options.pred_rnn_layers)]
        self.layers = nn.ModuleList(nn.ModuleDict({"cell": cell}) for cell in cells)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        zeros = x.new_zeros(len(self.layers), x.shape[1], self.cell_width)
        ends = []
        for layer, *before in zip(self.layers, *(state or (zeros, zeros)), strict=True):
            x, *after = layer["cell"](x, *before)
            ends.append(after)
        hidden, cell = (torch.stack(part) for part in zip(*ends, strict=True))
        return x, (hidden, cell)


class _LayerNormCell(nn.Module):
    """One layer; its norms carry the biases of the gates, which stand in the order input, forget, cell, output."""

    def __init__(self, width: int, forget_gate_bias: float | None) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * width, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * width, width))
        self.layernorm_i = nn.LayerNorm(4 * width)
        self.layernorm_h = nn.LayerNorm(4 * width)
        self.layernorm_c = nn.LayerNorm(width)
        for parameter in self.parameters():  # the norms' factors among them, as in NVIDIA's toolkit
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        if forget_gate_bias is not None:
            nn.init.zeros_(self.layernorm_i.bias[width : 2 * width])
            nn.init.constant_(self.layernorm_h.bias[width : 2 * width], forget_gate_bias)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (U, B, D), hidden and cell after them, of inputs (U, B, D), hidden and cell (B, D) before."""
        outputs = []
        for from_input in self.layernorm_i(F.linear(x, self.weight_ih)).unbind(0):
            gates = from_input + self.layernorm_h(F.linear(hidden, self.weight_hh))
            inward, forget, new, outward = gates.chunk(4, dim=1)
            cell = self.layernorm_c(forget.sigmoid() * cell + inward.sigmoid() * new.tanh())
            hidden = outward.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), hidden, cell


class BatchNormLSTM(nn.Module):
    """LSTM layers with batch norm before each but the first (arXiv 1512.02595), and dropout between them.

    The statistics are over all steps and utterances, padding included.  It heeds none of the options on initialisation,
    `forget_gate_bias` neither: NVIDIA's reads them for a class that it never builds, and so trains from torch's values.
    """

    def __init__(self, options: PredictionOptions) -> None:
        super().__init__()
        _require_plain_width(options, "batch")
        _warn_of_unheeded(options, "batch")
        self.cell_width = options.pred_hidden
        self.layers = nn.ModuleList()
        for index in range(options.pred_rnn_layers):
            if index and options.dropout:  # an item of the list, since the names of weights count it
                self.layers.append(nn.Dropout(options.dropout))
            self.layers.append(_BatchNormLayer(options.pred_hidden, normalized=index > 0))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        ends: list[State] = []
        for layer in self.layers:
            if isinstance(layer, nn.Dropout):
                x = layer(x)
            else:
                index = len(ends)
                x, after = layer(x, None if state is None else tuple(part[index : index + 1] for part in state))
                ends.append(after)
        hidden, cell = (torch.cat(part) for part in zip(*ends, strict=True))
        return x, (hidden, cell)


class _BatchNormLayer(nn.Module):
    """A layer of an LSTM; behind a norm, whose bias is enough, it has no biases of its own."""

    def __init__(self, width: int, *, normalized: bool) -> None:
        super().__init__()
        self.bn = nn.ModuleDict({"module": nn.BatchNorm1d(width)}) if normalized else None
        self.rnn = nn.LSTM(width, width, bias=not normalized)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if self.bn is not None:
            x = self.bn["module"](x.flatten(0, 1)).view(x.shape)
        outputs, state = self.rnn(x, state)
        return outputs, state


def _require_plain_width(options: PredictionOptions, mode: str) -> None:
    """NVIDIA's stacks with norms have no projection, so that no joint would fit their outputs."""
    if options.rnn_hidden_size > 0 and options.rnn_hidden_size != options.pred_hidden:
        rule = f"must be pred_hidden {options.pred_hidden}, or -1 for it, with normalization_mode {mode}"
        raise ValueError(f"prednet.rnn_hidden_size: {options.rnn_hidden_size} {rule}")


def _warn_of_unheeded(options: PredictionOptions, mode: str) -> None:
    for name in ("t_max", "weights_init_scale", "hidden_hidden_bias_scale"):
        value = getattr(options, name)
        if value != getattr(PredictionOptions, name):
            logger.warning("prednet.%s: %r means nothing with normalization_mode %s", name, value, mode)


STACKS: dict[str | None, Callable[[PredictionOptions], nn.Module]] = {
    None: DroppedLSTM,
    "layer": LayerNormLSTM,
    "batch": BatchNormLSTM,
}
"""What `normalization_mode` names."""
