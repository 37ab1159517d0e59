"""Squeezeformer encoder (arXiv 2206.00888): subsampling, positions, layers, those in the middle on half the frames.

Keywords and parameter names are NVIDIA's.  B batch, T frames (T' after subsampling), F mel bins, D width
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.context import Window, convolution_padding
from nemo_asr.modules.conformer.encoder import Encoded
from nemo_asr.modules.conformer.layer import LayerOptions
from nemo_asr.modules.conformer.multi_head import AttentionOptions, PositionBiases, build_attention
from nemo_asr.modules.conformer.positions import PositionOptions, build_positional_encoding
from nemo_asr.modules.neural_module import NeuralModule
from nemo_asr.modules.squeezeformer.layer import SqueezeformerLayer, draw_uniform
from nemo_asr.modules.squeezeformer.time_reduction import TimeReduction
from nemo_asr.modules.subsampling import ConvSubsampling, build_subsampling


class SqueezeformerEncoder(NeuralModule):
    """Encodes log-mel features.

    Args:
        feat_in: mel bins F.
        n_layers: number of layers.
        d_model: width D of the layers.
        feat_out: width of the output; -1 is d_model.
        subsampling: dw_striding, striding, vggnet, striding_conv1d, dw_striding_conv1d, stacking, or None for a plain
            projection.
        subsampling_factor: frames in per frame out, a power of two.
        subsampling_conv_channels: channels of its convolutions; -1 is d_model.
        ff_expansion_factor: width inside the feed-forward parts over d_model.
        self_attention_model: rel_pos or abs_pos.
        n_heads: attention heads.
        att_context_size: [left, right] frames that attention sees, -1 for all.
        xscaling: multiply the input of the layers by sqrt(d_model).
        untie_biases: each layer has its own position biases.
        pos_emb_max_len: frames up to which the table of positions is made larger than needed.
        conv_kernel_size: frames that a convolution sees, odd.
        conv_norm_type: batch_norm, layer_norm, instance_norm, fused_batch_norm or group_norm<groups>.
        dropout: in and after the parts of the layers.
        dropout_emb: on the positions.
        dropout_att: on the attention weights.
        adaptive_scale: the scales before the parts of a layer learn.
        time_reduce_idx: the layer (from 0) before which every other frame is left out; None leaves out none.
        time_recovery_idx: the layer before which there are all of them again; None is the last.

    Raises:
        ValueError: a value breaks the rule that the message states.
    """

    def __init__(
        self,
        feat_in: int,
        n_layers: int,
        d_model: int,
        feat_out: int = -1,
        subsampling: str | None = "dw_striding",
        subsampling_factor: int = 4,
        subsampling_conv_channels: int = -1,
        ff_expansion_factor: int = 4,
        self_attention_model: str = "rel_pos",
        n_heads: int = 4,
        att_context_size: Sequence[int] | None = None,
        xscaling: bool = True,
        untie_biases: bool = True,
        pos_emb_max_len: int = 5000,
        conv_kernel_size: int = 31,
        conv_norm_type: str = "batch_norm",
        dropout: float = 0.1,
        dropout_emb: float = 0.1,
        dropout_att: float = 0.0,
        adaptive_scale: bool = True,
        time_reduce_idx: int | None = None,
        time_recovery_idx: int | None = None,
    ) -> None:
        super().__init__()
        if self_attention_model not in ("rel_pos", "abs_pos"):
            raise ValueError(f"self_attention_model: {self_attention_model!r} is neither rel_pos nor abs_pos")
        self._feat_in, self.d_model, self.n_layers = feat_in, d_model, n_layers
        self._feat_out = feat_out if feat_out > 0 else d_model
        self.window = _window(att_context_size)
        self.reduced_layers = _reduced_layers(time_reduce_idx, time_recovery_idx, n_layers)
        channels = d_model if subsampling_conv_channels == -1 else subsampling_conv_channels
        self.pre_encode = build_subsampling(subsampling, subsampling_factor, feat_in, d_model, channels)
        self.subsampling_factor = 1 if isinstance(self.pre_encode, nn.Linear) else subsampling_factor
        if isinstance(self.pre_encode, ConvSubsampling) and subsampling == "dw_striding":
            _draw_subsampling(self.pre_encode, feat_in * d_model)
        positions = PositionOptions(d_model, xscaling, pos_emb_max_len, dropout, dropout, dropout_emb)
        self.pos_enc = build_positional_encoding(self_attention_model, self.window, positions)
        attention = AttentionOptions(n_heads, d_model, dropout_att)
        shared = PositionBiases.zeros(attention) if self_attention_model == "rel_pos" and not untie_biases else None
        padding = convolution_padding(None, conv_kernel_size)
        options = LayerOptions(d_model, d_model * ff_expansion_factor, padding, conv_norm_type, dropout, use_bias=True)
        self.layers = nn.ModuleList(
            SqueezeformerLayer(
                options,
                build_attention(self_attention_model, attention, self.window, shared),
                adaptive_scale=adaptive_scale,
            )
            for _ in range(n_layers)
        )
        if self.reduced_layers is not None:
            self.time_reduce_layer = TimeReduction(d_model)
            self.time_recovery_layer = nn.Linear(d_model, d_model)
        self.pre_ln = nn.LayerNorm(d_model)
        self.out_proj = nn.Linear(d_model, self._feat_out) if self._feat_out != d_model else None

    def forward(self, audio_signal: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes features (B, F, T) with valid frames (B,), all where None, to (B, D, T') and their frames (B,)."""
        encoded, encoded_len, _ = self.encode(audio_signal, length)
        return encoded, encoded_len

    def encode(
        self, audio_signal: Tensor, length: Tensor | None = None, *, capture_layers: Collection[int] = ()
    ) -> Encoded:
        """As `forward`, and gives the outputs of the layers (from 0) in `capture_layers`, some with half the frames."""
        x, length = self._pre_encoded(audio_signal, length)
        x, positions = self.pos_enc(x)
        mask = AttentionMask(length, x.size(1), self.window)
        whole = x, mask, positions
        captured: dict[int, tuple[Tensor, Tensor]] = {}
        x = self.pre_ln(x)
        for index, layer in enumerate(self.layers):
            if self.reduced_layers is not None and index == self.reduced_layers.start:
                whole = x, mask, positions
                x, mask = self.time_reduce_layer(x, mask)
                positions = self.pos_enc.table(x.size(1), x)
            if self.reduced_layers is not None and index == self.reduced_layers.stop:
                reduced, (x, mask, positions) = x, whole
                x = x + self.time_recovery_layer(reduced.repeat_interleave(2, dim=1)[:, : x.size(1)])
            x = layer(x, mask, positions)
            if index in capture_layers:
                captured[index] = self._output(x), mask.lengths
        return Encoded(self._output(x), length, captured)

    def _pre_encoded(self, audio_signal: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        x = audio_signal.transpose(1, 2)
        if x.dim() != 3 or x.size(2) != self._feat_in:
            raise ValueError(f"audio_signal: shape {tuple(x.mT.shape)} is not (batch, {self._feat_in}, frames)")
        if length is None:
            length = torch.full((x.size(0),), x.size(1), device=x.device)
        if isinstance(self.pre_encode, nn.Linear):
            return self.pre_encode(x), length.long()
        return self.pre_encode(x, length.long())

    def _output(self, x: Tensor) -> Tensor:
        """(B, T', D) -> (B, D, T'), projected if the output has a width of its own."""
        return (x if self.out_proj is None else self.out_proj(x)).transpose(1, 2)


def _window(size: Sequence[int] | None) -> Window:
    if not size:
        return Window()
    if len(size) != 2:
        raise ValueError(f"att_context_size: {list(size)} is not a pair [left, right]")
    return Window.of(size, "regular")


def _reduced_layers(reduce: int | None, recovery: int | None, n_layers: int) -> range | None:
    """The layers that work on half the frames; None if none do."""
    if reduce is None:
        return None
    recovery = n_layers - 1 if recovery is None else recovery
    if not 0 <= reduce < n_layers:
        raise ValueError(f"time_reduce_idx: {reduce} is not in [0, n_layers {n_layers})")
    if not reduce <= recovery < n_layers:
        raise ValueError(f"time_recovery_idx: {recovery} is not in [time_reduce_idx {reduce}, n_layers {n_layers})")
    return range(reduce, recovery)


def _draw_subsampling(subsampling: ConvSubsampling, size: int) -> None:
    """The initial weights of the paper's authors, as NVIDIA's toolkit adopted them."""
    for layer in subsampling.conv:
        if isinstance(layer, nn.Conv2d):
            pointwise = layer.kernel_size == (1, 1)
            draw_uniform(layer, layer.in_channels if pointwise else layer.kernel_size[0] ** 2)
    if subsampling.out is not None:
        draw_uniform(subsampling.out, size / subsampling.halvings)
