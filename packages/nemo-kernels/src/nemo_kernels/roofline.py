"""What an operation must at least cost: bytes moved, operations done, and the time in which a GPU can do either.

    bound = max(bytes / bandwidth, operations / throughput)       Williams et al. 2009, "Roofline"

Nothing here is measured. A bound says which side limits, and how far a measured time is from the best there can be.
Bytes are those that pass between the chip and its memory, each tensor once for every time it is read or written;
operations are multiplications and additions (a product of matrices M x K and K x N is 2MKN), exponentials not counted.

B batch, T frames, U target steps, W = U + 1, V vocabulary with blank, D durations, H width of the joint or heads,
K head width, L samples, F mel bins; N = B T W cells of the lattice; s bytes of an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "float32"]
ELEMENT_BYTES: dict[Precision, int] = {"bf16": 2, "float32": 4}


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: dense bf16 on the tensor cores, float32 on the vector units."""

    name: str
    architecture: int
    bytes_per_s: float
    operations_per_s: dict[Precision, float]


A100 = Device("A100 SXM 80 GB", 80, 2.039e12, {"bf16": 312e12, "float32": 19.5e12})
H100 = Device("H100 SXM", 90, 3.35e12, {"bf16": 990e12, "float32": 67e12})
B200 = Device("B200", 100, 8.0e12, {"bf16": 2250e12, "float32": 80e12})
DEVICES = (A100, H100, B200)


def device_named(name: str) -> Device | None:
    """The data sheet of a GPU by the name that its driver gives it, e.g. `NVIDIA H100 80GB HBM3`."""
    return next((device for device in DEVICES if device.name.split()[0] in name.replace("-", " ").split()), None)


@dataclass(frozen=True)
class Work:
    """One way to do an operation.

    Attributes:
        name: the way.
        moved: bytes between the chip and its memory.
        operations: multiplications and additions.
        held: bytes that the operation needs at its worst moment: what a joint makes counts, given inputs do not.
        precision: in which the operations are done.
    """

    name: str
    moved: float
    operations: float
    held: float
    precision: Precision = "bf16"

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.moved

    def bound_ms(self, device: Device) -> float:
        """The least time on a device, where moving and computing overlap perfectly."""
        return 1e3 * max(self.moved / device.bytes_per_s, self.operations / device.operations_per_s[self.precision])

    def limit(self, device: Device) -> Literal["memory", "arithmetic"]:
        """Which of the two takes longer."""
        ridge = device.operations_per_s[self.precision] / device.bytes_per_s
        return "memory" if self.intensity < ridge else "arithmetic"


@dataclass(frozen=True)
class TransducerShape:
    """A lattice, with the width H of the joint, or 0 where logits are given; `durations` is 0 for RNNT."""

    batch: int
    frames: int
    targets: int
    vocabulary: int
    width: int = 0
    durations: int = 0

    @property
    def cells(self) -> int:
        """N."""
        return self.batch * self.frames * (self.targets + 1)

    @property
    def columns(self) -> int:
        """Logits of a cell."""
        return self.vocabulary + self.durations


def transducer_from_logits(shape: TransducerShape, precision: Precision = "bf16") -> tuple[Work, ...]:
    """Loss and gradient of given logits (N, V + D): by autograd, into a new tensor, and into the logits' own."""
    size = ELEMENT_BYTES[precision]
    logits = shape.cells * shape.columns * size
    moved = 3 * logits + _lattice_bytes(shape)
    held = _lattice_memory(shape)
    # autograd of log_softmax: read the logits, write and read log-probabilities and their gradient in float32, write
    autograd = shape.cells * shape.columns * (2 * size + 3 * 4)
    return (
        Work("autograd of log_softmax", autograd, 0, logits + shape.cells * shape.columns * 8, "float32"),
        Work("gradient in a new tensor", moved, 0, logits + held, "float32"),
        Work("gradient in place", moved, 0, held, "float32"),
    )


def transducer_with_joint(shape: TransducerShape, tile_rows: int, precision: Precision = "bf16") -> tuple[Work, ...]:
    """Loss and all gradients of act(f + g) W^T + b.

    With the logits in memory three products are enough (logits, two gradients); the fused form computes the logits
    again in the backward pass, which makes four, in tiles of `tile_rows` rows.
    """
    size, n, h, v = ELEMENT_BYTES[precision], shape.cells, shape.width, shape.columns
    product = 2 * n * h * v
    states = shape.batch * (shape.frames + shape.targets + 1) * h
    through_cache = states * size * 3 + v * h * (2 * size + 2 * 4) + _lattice_bytes(shape)
    accumulators = (states + v * h) * 4
    tile = min(n, tile_rows) * size * (v + 2 * h)
    return (
        Work("logits in memory", n * size * (5 * h + 6 * v), 3 * product, n * size * (2 * v + h), precision),
        Work("logits in memory, in place", n * size * (5 * h + 6 * v), 3 * product, n * size * (v + h), precision),
        Work(
            "fused, tiles pass through memory",
            n * size * 7 * (h + v),
            4 * product,
            _joint_held(shape, accumulators, tile),
        ),
        Work(
            "fused, tiles stay in cache", through_cache, 4 * product, _joint_held(shape, accumulators, tile), precision
        ),
    )


def _joint_held(shape: TransducerShape, accumulators: float, tile: float) -> float:
    return _lattice_memory(shape) + accumulators + tile


def _lattice_bytes(shape: TransducerShape) -> int:
    """float32 planes of the lattice that are written and read: 14 of RNNT, and 6 more for each duration.

    Scores write 3 + D planes (normaliser, blank, label, durations); forward and backward variables read 2 + D each,
    write and read one; occupancies are 2 + D; the gradient reads those, the normaliser and the durations.
    """
    return 4 * shape.cells * (14 + 6 * shape.durations)


def _lattice_memory(shape: TransducerShape) -> int:
    """float32 planes alive together: normaliser, blank, label, forward variable, two occupancies; durations twice."""
    return 4 * shape.cells * (6 + 2 * shape.durations)


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention with relative positions."""

    batch: int
    heads: int
    frames: int
    head_width: int = 64


# passes over a [B, H, T, T] matrix of the eager forward: the position products (twice as wide) written, padded, and
# shifted; content products; the sum; scaling; two masks; the softmax; the product with the values
_EAGER_PASSES = 21


def relative_attention(shape: AttentionShape, precision: Precision = "bf16") -> tuple[Work, ...]:
    """Eager forward pass with a shifted position matrix; fused forward, backward, and both."""
    size = ELEMENT_BYTES[precision]
    rows = shape.batch * shape.heads * shape.frames
    scores, stream = rows * shape.frames, rows * shape.head_width * size
    product = 2 * scores * shape.head_width
    positions = rows * (2 * shape.frames - 1)
    eager_products = 2 * product + 2 * positions * shape.head_width
    return (
        Work("eager, forward", _EAGER_PASSES * scores * size, eager_products, (positions + scores) * size, precision),
        # queries, keys and values in, output out; three products: content, position, values
        Work("fused, forward", 4 * stream, 3 * product, rows * 4, precision),
        # the same and the output's gradient in, three gradients out; products: content and position scores again,
        # the gradient of the weights, and those of queries (twice), keys, values and positions
        Work("fused, backward", 8 * stream, 8 * product, rows * 4, precision),
        Work("fused, both", 12 * stream, 11 * product, rows * 4, precision),
    )


@dataclass(frozen=True)
class LogMelShape:
    """Audio of one length, L samples, and the geometry of its frames."""

    batch: int
    samples: int
    n_fft: int = 512
    hop_size: int = 160
    n_mels: int = 80

    @property
    def frames(self) -> int:
        """Of one utterance."""
        return 1 + self.samples // self.hop_size


def log_mel_features(shape: LogMelShape) -> tuple[Work, ...]:
    """Step by step through memory, and with the audio read once; float32. Features are normalised in a second pass."""
    audio = 4 * shape.batch * shape.samples
    frames = shape.batch * shape.frames
    bins = shape.n_fft // 2 + 1
    features = 4 * frames * shape.n_mels
    # a real transform takes half of a complex one's 5 n log2 n; then |X|^2, the filters, and 8 operations a feature
    a_frame = 2.5 * shape.n_fft * math.log2(shape.n_fft) + 3 * bins + 2 * bins * shape.n_mels + 8 * shape.n_mels
    # windowed frames written and read, then the complex spectrum, then its squares
    spectra = 4 * frames * (2 * shape.n_fft + 4 * bins + 2 * bins)
    stepwise = 4 * audio + spectra + 8 * features
    return (
        Work("step by step", stepwise, frames * a_frame, spectra / 2 + audio + features, "float32"),
        Work("audio read once", audio + 3 * features, frames * a_frame, features, "float32"),
    )
