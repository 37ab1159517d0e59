"""Convolutional encoder of Jasper, QuartzNet and Citrinet.  B batch, F mel bins, D width, T frames"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from nemo_asr.modules.jasper.block import JasperBlock, LayerMaker
from nemo_asr.modules.jasper.block_options import RESIDUAL_MODES, BlockOptions
from nemo_asr.modules.jasper.initialization import initialize_weights
from nemo_asr.modules.jasper.masked_conv import scaled_kernel
from nemo_asr.modules.neural_module import NeuralModule

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "hardtanh": nn.Hardtanh,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_IN_PLACE = (nn.Hardtanh, nn.ReLU, nn.SELU, nn.SiLU)


class ConvASREncoder(NeuralModule):
    """Blocks of one-dimensional convolutions over log-mel features.

    Args:
        jasper: the blocks, each a mapping with the keys of `BlockOptions`.
        activation: relu, hardtanh, selu, swish (silu), gelu or identity.
        feat_in: F, the mel bins.
        normalization_mode: batch, layer, group or instance.
        residual_mode: of the blocks before the first that names one; a named one holds for those after it, too.
        norm_groups: of group normalisation; -1 for one in each channel.
        conv_mask: convolutions treat padding as zeros and follow the lengths. Without it the lengths that come
            out are the ones that went in, as in NVIDIA's toolkit.
        frame_splicing: copies of the bins in a frame.
        init_mode: xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, tds_uniform, tds_normal; null
            keeps torch's initial weights.

    Raises:
        ValueError: an option out of its range, named as in the config.
    """

    IGNORED_KEYS = frozenset({"quantize"})

    def __init__(
        self,
        jasper: Sequence[Mapping[str, Any]],
        activation: str,
        feat_in: int,
        normalization_mode: str = "batch",
        residual_mode: str = "add",
        norm_groups: int = -1,
        conv_mask: bool = True,
        frame_splicing: int = 1,
        init_mode: str | None = "xavier_uniform",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
        if residual_mode not in RESIDUAL_MODES:
            raise ValueError(f"residual_mode: {residual_mode!r} is none of {', '.join(RESIDUAL_MODES)}")
        layers = LayerMaker(lambda: _activation(activation), normalization_mode, norm_groups, conv_mask=conv_mask)
        self._feat_in = feat_in * frame_splicing
        self._feat_out = self._feat_in
        self._subsampling_factor = 1
        self.encoder = nn.ModuleList()
        dense: tuple[int, ...] = ()  # channels that went into the dense blocks so far
        panes: tuple[int, ...] = (self._feat_in,)  # channels of what a block gets at run time
        for index, section in enumerate(jasper):
            towers = [
                replace(tower, kernel=scaled_kernel(tower.kernel, tower.kernel_size_factor))
                for tower in self._towers(section, f"jasper.{index}", residual_mode)
            ]
            options = towers[0]
            residual_mode = options.residual_mode or residual_mode
            if options.residual_dense:
                dense = (*dense, self._feat_out)
            ways = dense if options.residual_dense else (self._feat_out,)
            if options.residual and panes[: len(ways)] != ways:
                raise ValueError(f"jasper.{index}.residual: a block between dense ones is not dense")
            blocks = [_block(self._feat_out, tower, layers, ways, f"jasper.{index}") for tower in towers]
            self.encoder.append(self._side_by_side(blocks, section, self._feat_out, f"jasper.{index}"))
            keeps_panes = options.residual and options.residual_dense
            panes = (*panes, options.filters) if keeps_panes else (options.filters,)
            self._feat_out = options.filters
            self._subsampling_factor *= options.stride
        initialize_weights(self, init_mode)

    @property
    def subsampling_factor(self) -> int:
        """Product of the blocks' strides: input frames for one output frame."""
        return self._subsampling_factor

    def _towers(self, section: Mapping[str, Any], path: str, residual_mode: str) -> list[BlockOptions]:
        """The options of the blocks that a section describes: one here, several in a parallel encoder."""
        return [BlockOptions.read(section, path).with_residual_mode(residual_mode)]

    def _side_by_side(
        self, blocks: list[JasperBlock], section: Mapping[str, Any], in_channels: int, path: str
    ) -> nn.Module:
        """The module of a section's blocks."""
        return blocks[0]

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes features (B, F, T) with valid frames (B,) to (B, D, T') and their frames (B,)."""
        panes = [audio_signal]
        for block in self.encoder:
            panes, length = block(panes, length)
        return panes[-1], length


def _block(
    in_channels: int, options: BlockOptions, layers: LayerMaker, ways: tuple[int, ...], path: str
) -> JasperBlock:
    try:
        return JasperBlock(in_channels, options, layers, ways)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error


def _activation(name: str) -> nn.Module:
    kind = ACTIVATIONS[name]
    return kind(inplace=True) if issubclass(kind, _IN_PLACE) else kind()
