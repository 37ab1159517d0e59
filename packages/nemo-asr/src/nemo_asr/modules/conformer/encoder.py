"""Conformer and FastConformer encoder (arXiv 2005.08100, 2305.05084): subsampling, positions, layers.

Keywords and parameter names are NVIDIA's.  B batch, T frames (T' after subsampling), F mel bins, D width
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.context import AttentionContexts, Window, convolution_padding
from nemo_asr.modules.conformer.layer import ConformerLayer, LayerOptions, build_layer
from nemo_asr.modules.conformer.multi_head import (
    AttentionOptions,
    MultiHeadAttention,
    PositionBiases,
    build_attention,
)
from nemo_asr.modules.conformer.positions import (
    PositionOptions,
    build_positional_encoding,
)
from nemo_asr.modules.conformer.reduction import SubsamplingReductionModule
from nemo_asr.modules.conformer.stochastic_depth import layer_drop_probabilities, randomly_skipped
from nemo_asr.modules.neural_module import NeuralModule
from nemo_asr.modules.subsampling import build_subsampling

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """What an encoder made of a batch.

    Args:
        encoded: (B, D, T').
        encoded_len: (B,), int64.
        captured: for each layer asked for, its output (B, D, T') and lengths (B,).
    """

    encoded: Tensor
    encoded_len: Tensor
    captured: dict[int, tuple[Tensor, Tensor]]


class ConformerEncoder(NeuralModule):
    """Encodes log-mel features.

    Args:
        feat_in: mel bins F.
        n_layers: number of layers.
        d_model: width D of the layers.
        feat_out: width of the output; -1 is d_model.
        causal_downsampling: the subsampling does not look ahead.
        subsampling: striding, dw_striding, vggnet, striding_conv1d, dw_striding_conv1d, stacking, stacking_norm, or
            None for a plain projection.
        subsampling_factor: frames in per frame out, a power of two.
        subsampling_conv_chunking_factor: pieces in which the subsampling computes (1 by size, -1 never).
        subsampling_conv_channels: channels of its convolutions; -1 is d_model.
        reduction: pooling or striding, a further subsampling.
        reduction_position: the layer (from 0) after which it stands; -1 is after all.
        reduction_factor: frames in per frame out there, a power of two.
        ff_expansion_factor: width inside the feed-forward parts over d_model.
        self_attention_model: rel_pos, abs_pos or rel_pos_local_attn.
        n_heads: attention heads.
        att_context_size: [left, right] frames that attention sees, -1 for all; a list of them to train with several.
        att_context_probs: how often each is used; equally often if not given.
        att_context_style: regular, chunked_limited or chunked_limited_with_rc (see `context`).
        xscaling: multiply the input of the layers by sqrt(d_model).
        untie_biases: each layer has its own position biases.
        pos_emb_max_len: frames up to which the table of positions is made larger than needed.
        conv_kernel_size: frames that a convolution sees, odd.
        conv_norm_type: batch_norm, layer_norm, instance_norm, fused_batch_norm or group_norm<groups>.
        conv_context_size: [left, right] frames of the convolution, or causal; symmetric if not given.
        use_bias: linear maps and convolutions of the layers have biases.
        dropout: in and after the parts of the layers.
        dropout_pre_encoder: on the input of the layers.
        dropout_emb: on the positions.
        dropout_att: on the attention weights.
        stochastic_depth_drop_prob: how often training leaves out the last layer.
        stochastic_depth_mode: linear (earlier layers less often) or uniform.
        stochastic_depth_start_layer: layers before this one are never left out.
        global_tokens: with rel_pos_local_attn, frames that see all and are seen by all.
        global_tokens_spacing: frames from one of them to the next.
        global_attn_separate: they have projections of their own.
        use_pytorch_sdpa: read and without effect: abs_pos always computes with torch's scaled_dot_product_attention,
            and relative positions with nemo_kernels.attention.
        use_pytorch_sdpa_backends: names of torch.nn.attention.SDPBackend that abs_pos may choose from.

    Raises:
        ValueError: a value breaks the rule that the message states.
    """

    # how processes agree on table sizes, and what NVIDIA's encoder accepts and does not read
    IGNORED_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"sync_max_audio_length", "att_chunk_context_size", "conv_context_style"}
    )

    def __init__(
        self,
        feat_in: int,
        n_layers: int,
        d_model: int,
        feat_out: int = -1,
        causal_downsampling: bool = False,
        subsampling: str | None = "striding",
        subsampling_factor: int = 4,
        subsampling_conv_chunking_factor: int = 1,
        subsampling_conv_channels: int = -1,
        reduction: str | None = None,
        reduction_position: int | None = None,
        reduction_factor: int = 1,
        ff_expansion_factor: int = 4,
        self_attention_model: str = "rel_pos",
        n_heads: int = 4,
        att_context_size: Sequence[int] | Sequence[Sequence[int]] | None = None,
        att_context_probs: Sequence[float] | None = None,
        att_context_style: str = "regular",
        xscaling: bool = True,
        untie_biases: bool = True,
        pos_emb_max_len: int = 5000,
        conv_kernel_size: int = 31,
        conv_norm_type: str = "batch_norm",
        conv_context_size: str | Sequence[int] | None = None,
        use_bias: bool = True,
        dropout: float = 0.1,
        dropout_pre_encoder: float = 0.1,
        dropout_emb: float = 0.1,
        dropout_att: float = 0.0,
        stochastic_depth_drop_prob: float = 0.0,
        stochastic_depth_mode: str = "linear",
        stochastic_depth_start_layer: int = 1,
        global_tokens: int = 0,
        global_tokens_spacing: int = 1,
        global_attn_separate: bool = False,
        use_pytorch_sdpa: bool = False,
        use_pytorch_sdpa_backends: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self._feat_in, self.d_model, self.n_layers = feat_in, d_model, n_layers
        self._feat_out = feat_out if feat_out > 0 else d_model
        self.subsampling_factor = subsampling_factor
        self.self_attention_model = self_attention_model
        self.contexts = AttentionContexts.parse(att_context_size, att_context_probs, att_context_style)
        self.att_context_size = self.contexts.default
        self.conv_padding = convolution_padding(conv_context_size, conv_kernel_size)
        self.attention_options = AttentionOptions(
            n_heads, d_model, dropout_att, use_bias, tuple(use_pytorch_sdpa_backends or ()),
            global_tokens, global_tokens_spacing, global_attn_separate,
        )  # fmt: skip
        self.position_options = PositionOptions(
            d_model, xscaling, pos_emb_max_len, dropout, dropout_pre_encoder, dropout_emb
        )
        self.pre_encode = build_subsampling(
            subsampling, subsampling_factor, feat_in, d_model,
            d_model if subsampling_conv_channels == -1 else subsampling_conv_channels,
            chunking_factor=subsampling_conv_chunking_factor, is_causal=causal_downsampling,
        )  # fmt: skip
        self.reduction_position = _checked_position(reduction, reduction_position, reduction_factor, n_layers)
        if reduction is not None and self.reduction_position is not None:
            self.reduction_subsampling = SubsamplingReductionModule(reduction, d_model, reduction_factor)
        window = _local_window(self_attention_model, self.att_context_size)
        self.pos_enc = build_positional_encoding(self_attention_model, window, self.position_options)
        layer_options = LayerOptions(
            d_model, d_model * ff_expansion_factor, self.conv_padding, conv_norm_type, dropout, use_bias
        )
        attentions = _attentions(self_attention_model, self.attention_options, window, share=not untie_biases)
        self.layers = nn.ModuleList(build_layer(layer_options, next(attentions)) for _ in range(n_layers))
        self.out_proj = nn.Linear(d_model, self._feat_out) if self._feat_out != d_model else None
        self.layer_drop_probs = layer_drop_probabilities(
            n_layers, stochastic_depth_drop_prob, stochastic_depth_mode, stochastic_depth_start_layer
        )

    def forward(
        self, audio_signal: Tensor, length: Tensor | None = None, *, bypass_pre_encode: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Encodes a batch.

        Args:
            audio_signal: features (B, F, T); with bypass_pre_encode what the subsampling gave, (B, T', D).
            length: (B,) valid frames; all where None.
            bypass_pre_encode: skip the subsampling.

        Returns:
            (B, D, T') and the new lengths (B,), int64.
        """
        encoded, encoded_len, _ = self.encode(audio_signal, length, bypass_pre_encode=bypass_pre_encode)
        return encoded, encoded_len

    def encode(
        self,
        audio_signal: Tensor,
        length: Tensor | None = None,
        *,
        capture_layers: Collection[int] = (),
        bypass_pre_encode: bool = False,
    ) -> Encoded:
        """As `forward`, and gives the outputs of the layers (from 0) in `capture_layers`, too."""
        x, length = self._pre_encoded(audio_signal, length, bypass_pre_encode)
        window = self._window()
        x, positions = self.pos_enc(x)
        mask = AttentionMask(length, x.size(1), window)
        captured: dict[int, tuple[Tensor, Tensor]] = {}
        for index, layer in enumerate(self.layers):
            x = self._through(layer, self.layer_drop_probs[index], x, mask, positions)
            if index == self.reduction_position:
                x, length = self.reduction_subsampling(x, length)
                _, positions = self.pos_enc(x)
                mask = AttentionMask(length, x.size(1), window)
            if index in capture_layers:
                captured[index] = self._output(x), length
        if self.reduction_position != -1:
            return Encoded(self._output(x), length, captured)
        x, length = self.reduction_subsampling(self._output(x).transpose(1, 2), length)
        return Encoded(x.transpose(1, 2), length, captured)

    def set_default_att_context_size(self, att_context_size: Sequence[int]) -> None:
        """Chooses what attention sees outside training, usually one of the sizes that training used."""
        if self.self_attention_model == "rel_pos_local_attn":
            raise ValueError("att_context_size: the window of rel_pos_local_attn is set by change_attention_model")
        size = tuple(att_context_size)
        parts = 3 if self.contexts.style == "chunked_limited_with_rc" else 2
        if len(size) != parts:
            raise ValueError(f"att_context_size: {list(size)} has not the {parts} values of {self.contexts.style}")
        if size not in self.contexts.sizes:
            logger.warning("att_context_size %s is none of those trained with: %s", size, self.contexts.sizes)
        self.att_context_size = size

    def change_attention_model(
        self, self_attention_model: str | None = None, att_context_size: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Replaces the attention of all layers, keeping the weights: for example by a local one for long audio.

        Args:
            self_attention_model: rel_pos, abs_pos or rel_pos_local_attn; the same one where None.
            att_context_size: [left, right] frames that it sees; the same where None.

        Returns:
            the constructor's keywords that would make the encoder as it is now.
        """
        model = self_attention_model or self.self_attention_model
        size = self.att_context_size if att_context_size is None else tuple(att_context_size)
        window = _local_window(model, size)
        self.pos_enc = build_positional_encoding(model, window, self.position_options).train(self.training)
        self.self_attention_model, self.att_context_size = model, size
        style = "regular" if model == "rel_pos_local_attn" else self.contexts.style
        self.contexts = replace(self.contexts, sizes=(size,), probabilities=(1.0,), style=style)
        # as NVIDIA's: the new attention has no global frames
        self.attention_options = replace(self.attention_options, global_tokens=0, global_attn_separate=False)
        attentions = _attentions(model, self.attention_options, window)
        for layer in self.layers:
            assert isinstance(layer, ConformerLayer)
            layer.self_attn = next(attentions).with_weights_of(layer.self_attn)
        return {
            "self_attention_model": model,
            "att_context_size": list(size),
            "att_context_style": style,
            "att_context_probs": None,
            "global_tokens": 0,
            "global_attn_separate": False,
        }

    def _pre_encoded(self, x: Tensor, length: Tensor | None, bypass: bool) -> tuple[Tensor, Tensor]:
        width = self.d_model if bypass else self._feat_in
        x = x if bypass else x.transpose(1, 2)
        if x.dim() != 3 or x.size(2) != width:
            expected = f"(batch, frames, {width})" if bypass else f"(batch, {width}, frames)"
            raise ValueError(f"audio_signal: shape {tuple(x.mT.shape)} is not {expected}")
        if length is None:
            length = torch.full((x.size(0),), x.size(1), device=x.device)
        length = length.long()
        if bypass:
            return x, length
        if isinstance(self.pre_encode, nn.Linear):
            return self.pre_encode(x), length
        return self.pre_encode(x, length)

    def _through(self, layer: nn.Module, drop_p: float, x: Tensor, mask: AttentionMask, positions: Tensor) -> Tensor:
        y = layer(x, mask, positions)
        return randomly_skipped(x, y, drop_p) if self.training and drop_p > 0.0 else y

    def _output(self, x: Tensor) -> Tensor:
        """(B, T', D) -> (B, D, T'), projected if the output has a width of its own."""
        return (x if self.out_proj is None else self.out_proj(x)).transpose(1, 2)

    def _window(self) -> Window:
        if self.self_attention_model == "rel_pos_local_attn":
            return Window()  # the layers have their own
        drawn = self.training and len(self.contexts.sizes) > 1
        return Window.of(self.contexts.draw() if drawn else self.att_context_size, self.contexts.style)


def _attentions(
    model: str, options: AttentionOptions, window: Window, *, share: bool = False
) -> Iterator[MultiHeadAttention]:
    """Attention for one layer after the other; with `share` they have the same position biases."""
    biases = PositionBiases.zeros(options) if share and model == "rel_pos" else None
    while True:
        yield build_attention(model, options, window, biases)


def _local_window(model: str, size: Sequence[int]) -> Window:
    """The fixed window of local attention; unlimited for the others, whose mask says what they see."""
    if model != "rel_pos_local_attn":
        return Window()
    left, right = size[0], size[-1]
    if min(left, right) < 0 or max(left, right) == 0:
        raise ValueError(f"att_context_size: {list(size)} does not limit both sides, as rel_pos_local_attn needs it")
    return Window(left, right)


def _checked_position(reduction: str | None, position: int | None, factor: int, n_layers: int) -> int | None:
    """The layer after which the reduction stands, None without one."""
    if not reduction or factor <= 1:
        return None
    if position is None or not -1 <= position < n_layers:
        raise ValueError(f"reduction_position: {position} is not in [-1, n_layers {n_layers})")
    return position
