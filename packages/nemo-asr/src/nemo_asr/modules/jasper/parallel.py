"""CarneliNet: blocks of shallow towers side by side, one for each kernel of a section (arXiv 2106.14574).

    out = sum_k w_k tower_k(x) + x          w_k: 1, or in training 0 for some towers and 1 / (1 - p) for the others

B batch, D channels, T frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemo_asr.modules.jasper.block import JasperBlock
from nemo_asr.modules.jasper.block_options import BlockOptions
from nemo_asr.modules.jasper.encoder import ConvASREncoder
from nemo_asr.modules.jasper.masked_conv import MaskedConv1d

AGGREGATIONS = ("sum", "dropout")
PARALLEL_RESIDUALS = ("sum", "conv")


@dataclass(frozen=True)
class ParallelOptions:
    """What a section says of its towers together, under NVIDIA's keys.

    Attributes:
        aggregation_mode: sum; or dropout, which leaves towers out in training.
        block_dropout: probability that a tower is left out.
        parallel_residual_mode: the input is added as it is (sum), or after a convolution of width 1 (conv).
    """

    aggregation_mode: str = "sum"
    block_dropout: float = 0.0
    parallel_residual_mode: str = "sum"

    @classmethod
    def read(cls, section: Mapping[str, Any], path: str) -> ParallelOptions:
        """The options of a section.

        Raises:
            ValueError: a value out of its range.
        """
        names = ("aggregation_mode", "block_dropout", "parallel_residual_mode")
        options = cls(**{name: section[name] for name in names if name in section})
        if options.aggregation_mode not in AGGREGATIONS:
            raise ValueError(f"{path}.aggregation_mode: {options.aggregation_mode!r} is neither sum nor dropout")
        if options.parallel_residual_mode not in PARALLEL_RESIDUALS:
            rule = "is neither sum nor conv"
            raise ValueError(f"{path}.parallel_residual_mode: {options.parallel_residual_mode!r} {rule}")
        if not 0 <= options.block_dropout <= 1:
            raise ValueError(f"{path}.block_dropout: {options.block_dropout} is not in [0, 1]")
        return options


class ParallelBlock(nn.Module):
    """Adds the outputs of several blocks, and their input.

    Args:
        blocks: the towers, alike but for their kernels.
        options: how they are added.
        in_channels: D of the input.
        out_channels: D of the output.
    """

    def __init__(
        self, blocks: Sequence[JasperBlock], options: ParallelOptions, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.weights: nn.Parameter | None = None
        if options.aggregation_mode == "dropout":
            # files hold these ones; they are never learned
            self.weights = nn.Parameter(torch.ones(len(blocks)), requires_grad=False)
        self.dropout = nn.Dropout(options.block_dropout)
        wants_conv = options.parallel_residual_mode == "conv"
        self.res_conv = MaskedConv1d(in_channels, out_channels, 1) if wants_conv else None

    def forward(self, panes: list[Tensor], lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """The sum of the towers' outputs for the last pane (B, D, T), as the only pane, and its lengths (B,)."""
        weights = self._tower_weights()
        total, out_lengths = self._around(panes[-1], lengths), lengths
        for index, block in enumerate(self.blocks):
            outputs, out_lengths = block(panes, lengths)
            total = total + (outputs[-1] if weights is None else weights[index] * outputs[-1])
        return [total], out_lengths

    def _around(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.res_conv is None:
            return x
        convolved: Tensor = self.res_conv(x, lengths)[0]
        return convolved

    def _tower_weights(self) -> Tensor | None:
        """Weights of the towers, drawn anew until one is left; None where all count the same."""
        if self.weights is None:
            return None
        drawn: Tensor = self.dropout(self.weights)
        while self.dropout.p < 1 and not drawn.any():
            drawn = self.dropout(self.weights)
        return drawn


class ParallelConvASREncoder(ConvASREncoder):
    """As `ConvASREncoder`, but a section's `kernel` may list several: each makes a block, and they stand side by side.

    Such a section may have the keys of `ParallelOptions`, too. Its blocks keep the number of frames, and the number of
    channels unless parallel_residual_mode is conv.
    """

    IGNORED_KEYS = ConvASREncoder.IGNORED_KEYS | {"aggregation_mode"}  # NVIDIA reads that of the sections

    def _towers(self, section: Mapping[str, Any], path: str, residual_mode: str) -> list[BlockOptions]:
        kernels = section.get("kernel")
        if isinstance(kernels, str) or not isinstance(kernels, Sequence):
            kernels = [kernels]
        if not kernels:
            raise ValueError(f"{path}.kernel: [] names no kernel")
        # as NVIDIA's, which reads no future_context in this encoder
        sections = [{**section, "kernel": kernel, "future_context": -1} for kernel in kernels]
        towers = [BlockOptions.read(tower, path).with_residual_mode(residual_mode) for tower in sections]
        if len(towers) > 1:
            _check_towers(towers[0], path)
        return towers

    def _side_by_side(
        self, blocks: list[JasperBlock], section: Mapping[str, Any], in_channels: int, path: str
    ) -> nn.Module:
        options = ParallelOptions.read(section, path)
        if len(blocks) == 1:
            return blocks[0]
        filters = blocks[0].options.filters
        if options.parallel_residual_mode == "sum" and filters != in_channels:
            raise ValueError(
                f"{path}.parallel_residual_mode: sum adds {in_channels} channels to filters {filters}; take conv"
            )
        return ParallelBlock(blocks, options, in_channels, filters)


def _check_towers(options: BlockOptions, path: str) -> None:
    if options.stride > 1:
        raise ValueError(f"{path}.stride: {options.stride} must be 1 with several kernels: the input is added")
    if options.residual_dense:
        raise ValueError(f"{path}.residual_dense: must be false with several kernels: they pass on their sum only")
