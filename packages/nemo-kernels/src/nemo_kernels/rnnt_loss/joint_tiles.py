"""The joint network and the loss's rows, a tile of the lattice at a time, in torch's operations.

    hidden = dropout(activation(encoder_t + predictor_u)),   z = weight hidden + bias          (per cell t, u)

A tile is some frames of one utterance with all of its steps: no cell of the padding is ever computed, and the largest
tensors are the tile's logits and hidden states. Backward makes them again. Dropout's mask is drawn for each frame
from a generator seeded by its place, so that it is the same then, whatever the size of the tiles.
B batch, T frames, U target steps, W = U + 1, D width of the joint, V vocabulary with blank
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_kernels.rnnt_loss import rows
from nemo_kernels.rnnt_loss.rows import Lattices, Planes, Wanted

ROWS = 1024  # of a tile, where the caller does not say: its products are as fast as large ones, its tensors small


@dataclass(frozen=True)
class Joint:
    """The four inputs of the joint network and its two options; see `rnnt_loss_fused`.

    Attributes:
        encoder: (B, T, D).
        predictor: (B, W, D).
        weight: (V, D).
        bias: (V,), or None.
        activation: relu, tanh or sigmoid.
        dropout_p: probability of zeroing an element of the hidden states.
        seed: what the masks are drawn from.
    """

    encoder: Tensor
    predictor: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: str
    dropout_p: float
    seed: int

    def to(self, dtype: torch.dtype) -> Joint:
        """The same with all tensors in one type."""
        bias = None if self.bias is None else self.bias.to(dtype)
        tensors = (self.encoder.to(dtype), self.predictor.to(dtype), self.weight.to(dtype), bias)
        return Joint(*tensors, self.activation, self.dropout_p, self.seed)


def scores(joint: Joint, lattices: Lattices, max_rows: int | None) -> Planes:
    """lse and both log probabilities (B, T, W) of the joint's logits."""
    joint = joint.to(rows.precision(joint.encoder.dtype))
    batch, frames, _ = joint.encoder.shape
    planes = Planes.zeros((batch, frames, joint.predictor.shape[1]), joint.encoder)
    columns = lattices.columns()
    tiles = Tiles(joint, max_rows)
    for b, t, w in tiles.places(lattices.sizes(frames)):
        logits, *_ = tiles.logits(b, t, w)
        rows.score_cells(logits, columns[b, :w], lattices.blank, planes.at(b, t, slice(w)))
    return planes


def gradients(
    grad_losses: Tensor,
    joint: Joint,
    planes: Planes,
    lattices: Lattices,
    clamp: float,
    fastemit_lambda: float,
    max_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by encoder, predictor, weight and bias, in the type of sums; arguments as of `rows.gradient`."""
    joint = joint.to(planes.lse.dtype)
    of_encoder, of_predictor, of_weight = (x.new_zeros(x.shape) for x in (joint.encoder, joint.predictor, joint.weight))
    of_bias = joint.weight.new_zeros(joint.weight.shape[0])
    columns, factors = lattices.columns(), grad_losses.tolist()
    tiles = Tiles(joint, max_rows)
    for b, t, w in tiles.places(lattices.sizes(joint.encoder.shape[1])):
        logits, hidden, mask, dropped = tiles.logits(b, t, w)
        wanted = Wanted(factors[b], clamp, fastemit_lambda)
        rows.gradient_of_cells(logits, columns[b, :w], lattices.blank, planes.at(b, t, slice(w)), wanted, out=logits)
        of_logits = logits.flatten(0, 1)
        of_weight.addmm_(of_logits.t(), dropped)
        of_bias += of_logits.sum(0)
        of_hidden = torch.mm(of_logits, joint.weight, out=tiles.take("gradient", *hidden.shape))
        if mask is not None:
            of_hidden *= mask
        times_slope(joint.activation, of_hidden, hidden)
        cells = of_hidden.view(-1, w, hidden.shape[1])
        torch.sum(cells, 1, out=of_encoder[b, t])
        of_predictor[b, :w] += cells.sum(0)
    return of_encoder, of_predictor, of_weight, of_bias


class Tiles:
    """The tiles of a batch, one after the other in the same storage."""

    def __init__(self, joint: Joint, max_rows: int | None) -> None:
        self._joint = joint
        self._rows = max(max_rows or ROWS, joint.predictor.shape[1])
        self._storage: dict[str, Tensor] = {}

    def places(self, sizes: list[tuple[int, int]]) -> Iterator[tuple[int, slice, int]]:
        """Utterance, frames and width of each tile."""
        for b, (frames, steps) in enumerate(sizes):
            count = self._rows // (steps + 1)
            for first in range(0, frames, count):
                yield b, slice(first, min(first + count, frames)), steps + 1

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """A contiguous (rows, columns) tensor, with what the last tile left in it."""
        if name not in self._storage:
            self._storage[name] = self._joint.encoder.new_empty(self._rows * columns)
        return self._storage[name][: rows * columns].view(rows, columns)

    def logits(self, b: int, t: slice, width: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits (T, W, V), hidden states (T * W, D) before dropout, dropout's mask, and the states after it."""
        joint, frames = self._joint, t.stop - t.start
        vocabulary, depth = joint.weight.shape
        hidden = self.take("hidden", frames * width, depth)
        cells = hidden.view(frames, width, depth)
        torch.add(joint.encoder[b, t, None], joint.predictor[b, None, :width], out=cells)
        _activate(joint.activation, hidden)
        mask, dropped = None, hidden
        if joint.dropout_p > 0:
            mask = self.take("mask", *hidden.shape)
            _fill_mask(mask.view(cells.shape), joint, b * joint.encoder.shape[1] + t.start)
            dropped = torch.mul(hidden, mask, out=self.take("dropped", *hidden.shape))
        logits = self.take("logits", frames * width, vocabulary)
        if joint.bias is None:
            torch.mm(dropped, joint.weight.t(), out=logits)
        else:
            torch.addmm(joint.bias, dropped, joint.weight.t(), out=logits)
        return logits.view(frames, width, vocabulary), hidden, mask, dropped


def _fill_mask(mask: Tensor, joint: Joint, place: int) -> None:
    """Fills (T, W, D) with 0, with probability dropout_p, or with what keeps the mean; frame by frame."""
    generator = torch.Generator(mask.device)
    for offset, frame in enumerate(mask.unbind()):
        generator.manual_seed(joint.seed + place + offset)
        frame.uniform_(generator=generator)
    mask.ge_(joint.dropout_p)
    if joint.dropout_p < 1:
        mask /= 1.0 - joint.dropout_p


def _activate(activation: str, hidden: Tensor) -> None:
    if activation == "relu":
        hidden.relu_()
    elif activation == "tanh":
        hidden.tanh_()
    else:
        hidden.sigmoid_()


def times_slope(activation: str, grad: Tensor, hidden: Tensor) -> None:
    """Multiplies a gradient by the activation's derivative, in place, given the activation's result."""
    if activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad)
    elif activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(grad, hidden, grad_input=grad)
    else:
        torch.ops.aten.sigmoid_backward.grad_input(grad, hidden, grad_input=grad)
