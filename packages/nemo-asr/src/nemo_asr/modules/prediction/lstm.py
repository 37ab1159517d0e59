"""LSTM prediction network (Graves, arXiv 1211.3711): token embeddings, then a stack of LSTM layers.

Blank's embedding is zero, and so is the vector that stands for the start of an utterance.

B batch, U target steps, D width (pred_hidden), N layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_asr.modules.nested_options import read_options
from nemo_asr.modules.prediction.network import PredictionNetwork, PredictionOptions, State
from nemo_asr.modules.prediction.stacks import STACKS


class RNNTDecoder(PredictionNetwork):
    """LSTM prediction network.

    With norms it trains and is searched as without.  In NVIDIA's toolkit 3.0.0 the type checks refuse the states of
    both kinds, so that training stops unless they are turned off; no search there takes `layer`, and those that take
    `batch` go through one utterance at a time.

    Args:
        prednet: as `PredictionOptions`.
        vocab_size: tokens without blank.
        normalization_mode: null; `layer` normalises the gates and the cell at each step, `batch` the input of every
            layer but the first.
        random_state_sampling: in training the initial state is drawn from a normal distribution (arXiv 1910.11455).
        blank_as_pad: the embedding has a row for blank, which stays zero; without the row, blank is zero all the same.

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
        if normalization_mode not in STACKS:
            raise ValueError(f"normalization_mode: {normalization_mode!r} must be layer, batch or null")
        options = read_options(PredictionOptions, prednet, "prednet")
        self.pred_hidden = options.pred_hidden
        self.pred_rnn_layers = options.pred_rnn_layers
        self.blank_idx = vocab_size
        self.random_state_sampling = random_state_sampling
        self.blank_as_pad = blank_as_pad
        rows = vocab_size + 1 if blank_as_pad else vocab_size
        embed = nn.Embedding(rows, options.pred_hidden, padding_idx=vocab_size if blank_as_pad else None)
        self.prediction = nn.ModuleDict({"embed": embed, "dec_rnn": STACKS[normalization_mode](options)})

    def predict(
        self, y: Tensor | None = None, state: State | None = None, add_sos: bool = True, batch_size: int | None = None
    ) -> tuple[Tensor, State]:
        if y is None:
            weight: Any = self.prediction["embed"].weight
            rows = batch_size or (state[0].shape[1] if state is not None else 1)
            embedded = weight.new_zeros(rows, 1, self.pred_hidden)
        else:
            embedded = self._embed(y)
        if add_sos:
            embedded = F.pad(embedded, (0, 0, 1, 0))
        if state is None and self.random_state_sampling and self.training:
            state = self.initialize_state(embedded)
        outputs, state = self.prediction["dec_rnn"](embedded.transpose(0, 1), state)
        return outputs.transpose(0, 1), state

    def _embed(self, y: Tensor) -> Tensor:
        """Embeddings (B, U, D) of tokens (B, U), zero for blank."""
        embed: Any = self.prediction["embed"]
        y = y.to(embed.weight.device)
        if self.blank_as_pad:
            embedded: Tensor = embed(y)
            return embedded
        blank = y >= self.blank_idx
        without: Tensor = embed(y.masked_fill(blank, 0))
        return without.masked_fill(blank.unsqueeze(2), 0)

    def initialize_state(self, y: Tensor) -> State:
        stack: Any = self.prediction["dec_rnn"]
        make = torch.randn if self.random_state_sampling and self.training else torch.zeros
        dtype = y.dtype if y.is_floating_point() else next(stack.parameters()).dtype
        widths = (self.pred_hidden, stack.cell_width)
        return tuple(make(self.pred_rnn_layers, y.shape[0], width, dtype=dtype, device=y.device) for width in widths)
