"""Recurrent encoder (arXiv 1811.06621): subsampling, then layers of an LSTM with projection, layer norm and dropout.

B batch, F mel bins, D width of the output, T frames (T' after subsampling)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nemo_asr.modules.neural_module import NeuralModule
from nemo_asr.modules.subsampling import build_subsampling


class RNNEncoder(NeuralModule):
    """LSTM layers over log-mel features.

    A bidirectional one reads the padding of a batch before the end of its shorter items, and `stacking` counts padding
    as frames, as in NVIDIA's toolkit: what comes out for an item depends a little on what it is batched with.

    Args:
        feat_in: F, the mel bins.
        n_layers: number of layers.
        d_model: width of the cells.
        proj_size: D, both directions together; -1 is d_model.
        rnn_type: lstm. NVIDIA's toolkit names gru and rnn, too, and builds neither.
        bidirectional: the layers look at the whole utterance.
        subsampling: stacking, stacking_norm, striding, vggnet, dw_striding; null for a plain projection.
        subsampling_factor: frames in per frame out, a power of two for convolutions.
        subsampling_conv_channels: channels of its convolutions; -1 is proj_size.
        dropout: after every layer.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        feat_in: int,
        n_layers: int,
        d_model: int,
        proj_size: int = -1,
        rnn_type: str = "lstm",
        bidirectional: bool = True,
        subsampling: str | None = "striding",
        subsampling_factor: int = 4,
        subsampling_conv_channels: int = -1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = d_model if proj_size == -1 else proj_size
        each_way = _projection(width, d_model, bidirectional)
        if rnn_type != "lstm":
            raise ValueError(f"rnn_type: {rnn_type!r} must be lstm: others have no projection")
        self._feat_in, self.d_model, self._feat_out = feat_in, d_model, width
        channels = width if subsampling_conv_channels == -1 else subsampling_conv_channels
        self.pre_encode = build_subsampling(subsampling, subsampling_factor, feat_in, width, channels)
        self.subsampling_factor = 1 if isinstance(self.pre_encode, nn.Linear) else subsampling_factor
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            lstm = nn.LSTM(width, d_model, batch_first=True, bidirectional=bidirectional, proj_size=each_way)
            self.layers.extend([lstm, nn.LayerNorm(width), nn.Dropout(dropout)])

    def forward(self, audio_signal: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes features (B, F, T) with valid frames (B,), all where None, to (B, D, T') and their frames (B,)."""
        x = audio_signal.transpose(1, 2)
        if length is None:
            length = torch.full((x.size(0),), x.size(1), device=x.device)
        length = length.long()
        if isinstance(self.pre_encode, nn.Linear):
            x = self.pre_encode(x)
        else:
            x, length = self.pre_encode(x, length)
        for layer in self.layers:
            x = layer(x)[0] if isinstance(layer, nn.LSTM) else layer(x)
        return x.transpose(1, 2), length


def _projection(width: int, d_model: int, bidirectional: bool) -> int:
    """What each direction is projected to; 0 where the cells have that width already."""
    if width < 1 or (bidirectional and width % 2):
        raise ValueError(f"proj_size: {width} must be above 0, and even for two directions")
    each_way = width // 2 if bidirectional else width
    if each_way > d_model:
        raise ValueError(f"proj_size: {width} makes {each_way} values of a cell's d_model {d_model}")
    return 0 if each_way == d_model else each_way
