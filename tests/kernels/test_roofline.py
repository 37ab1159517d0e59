"""Rooflines against figures worked out by hand for published shapes."""

from __future__ import annotations

import pytest

from nemo_kernels.roofline import (
    A100,
    B200,
    DEVICES,
    H100,
    AttentionShape,
    LogMelShape,
    TransducerShape,
    Work,
    log_mel_features,
    relative_attention,
    transducer_from_logits,
    transducer_with_joint,
)


def published(vocabulary):
    """B=32 T=200 U=60 H=640: 390,400 cells."""
    return TransducerShape(32, 200, 60, vocabulary, 640)


# vocabulary: GB moved, ms, ms of autograd, for bf16 logits on an H100
FROM_LOGITS = {128: (0.322, 0.096, 0.24), 1024: (2.42, 0.72, 1.91), 8192: (19.2, 5.73, 15.3)}
# vocabulary: ms of three products, and of the bytes, with logits in memory; of four products; GB moved with tiles
WITH_JOINT = {128: (0.194, 0.925, 0.258, 4.20), 1024: (1.55, 2.18, 2.07, 9.09), 8192: (12.4, 12.2, 16.5, 48.3)}
# vocabulary: GB held with bf16 logits, in place, fused with 200,000 rows, fused with small tiles
MEMORY = {128: (0.70, 0.60, 0.594, 0.031), 1024: (2.10, 1.30, 0.955, 0.033), 8192: (13.3, 6.9, 3.84, 0.052)}


@pytest.mark.parametrize("vocabulary", FROM_LOGITS)
def test_the_loss_of_given_logits_is_bound_by_three_passes_over_them(vocabulary):
    autograd, new, in_place = transducer_from_logits(published(vocabulary))
    moved, milliseconds, eager = FROM_LOGITS[vocabulary]
    assert new.moved / 1e9 == pytest.approx(moved, rel=0.01)
    assert new.bound_ms(H100) == pytest.approx(milliseconds, rel=0.01)
    assert autograd.bound_ms(H100) == pytest.approx(eager, rel=0.01)
    assert new.limit(H100) == "memory"
    assert new.held - in_place.held == 390_400 * vocabulary * 2
    assert in_place.held == 390_400 * 24  # six float32 planes: 9.4 MB


@pytest.mark.parametrize("vocabulary", WITH_JOINT)
def test_the_joint_is_bound_by_three_products_or_the_logits_and_fused_by_four(vocabulary):
    memory, _, tiles, cache = transducer_with_joint(published(vocabulary), 200_000)
    three_products, bytes_alone, four_products, tile_bytes = WITH_JOINT[vocabulary]
    assert memory.operations / 990e12 * 1e3 == pytest.approx(three_products, rel=0.02)
    assert memory.moved / 3.35e12 * 1e3 == pytest.approx(bytes_alone, rel=0.02)
    assert memory.bound_ms(H100) == pytest.approx(max(three_products, bytes_alone), rel=0.02)
    assert cache.bound_ms(H100) == pytest.approx(four_products, rel=0.02)
    assert tiles.moved / 1e9 == pytest.approx(tile_bytes, rel=0.01)
    assert cache.limit(H100) == "arithmetic"


@pytest.mark.parametrize("vocabulary", MEMORY)
def test_the_fused_joint_holds_the_cells_and_one_tile(vocabulary):
    memory, in_place, tiles, _ = transducer_with_joint(published(vocabulary), 200_000)
    smallest = transducer_with_joint(published(vocabulary), 0)[3]
    found = [work.held / 1e9 for work in (memory, in_place, tiles, smallest)]
    assert found == pytest.approx(MEMORY[vocabulary], rel=0.02)


def test_a_tile_is_no_larger_than_the_lattice():
    shape = TransducerShape(1, 10, 4, 16, 8)
    assert transducer_with_joint(shape, 50)[2].held == transducer_with_joint(shape, 10**9)[2].held


def test_durations_add_columns_and_planes():
    rnnt, tdt = TransducerShape(2, 3, 4, 16), TransducerShape(2, 3, 4, 16, durations=5)
    assert tdt.columns == 21
    moved = transducer_from_logits(tdt)[1].moved - transducer_from_logits(rnnt)[1].moved
    assert moved == 30 * (3 * 5 * 2 + 4 * 6 * 5)  # 30 cells: columns three times in bf16, planes in float32


def test_fused_attention_moves_a_sixteenth_of_the_eager_bytes():
    """B=32 H=8 K=64: 430 MB and 26 MB at T=200; 24 GB, and 221 GFLOP of three products, at T=1500."""
    eager, forward, *_ = relative_attention(AttentionShape(32, 8, 200))
    assert eager.moved / 1e6 == pytest.approx(430, rel=0.01)
    assert forward.moved / 1e6 == pytest.approx(26.2, rel=0.01)
    assert forward.operations / 1e9 == pytest.approx(3.93, rel=0.01)
    assert eager.bound_ms(H100) == pytest.approx(0.13, rel=0.02)
    assert forward.bound_ms(H100) == pytest.approx(0.0078, rel=0.01)
    eager, forward, backward, both = relative_attention(AttentionShape(32, 8, 1500))
    assert eager.moved / 1e9 == pytest.approx(24.2, rel=0.01)
    assert forward.operations / 1e9 == pytest.approx(221, rel=0.01)
    assert eager.bound_ms(H100) == pytest.approx(7.2, rel=0.01)
    assert forward.bound_ms(H100) == pytest.approx(0.223, rel=0.01)
    assert forward.limit(H100) == "arithmetic"
    assert backward.operations / forward.operations == pytest.approx(8 / 3)
    assert both.operations == forward.operations + backward.operations
    assert both.moved == forward.moved + backward.moved


def test_fused_attention_holds_memory_that_grows_with_the_frames_alone():
    held = [[work.held for work in relative_attention(AttentionShape(1, 8, frames))] for frames in (1000, 2000)]
    assert held[1][1] / held[0][1] == 2
    assert held[1][0] / held[0][0] == pytest.approx(4, rel=1e-3)


def test_the_front_end_does_54_thousand_operations_a_frame():
    """One second: 101 frames of 11,520 + 771 + 41,120 + 640 operations; 64 kB of audio, 3 x 32 kB of features."""
    stepwise, once = log_mel_features(LogMelShape(1, 16000))
    assert once.operations == stepwise.operations == 101 * 54051
    assert once.moved == 64_000 + 3 * 101 * 320
    assert stepwise.moved == 4 * 64_000 + 4 * 101 * (1024 + 6 * 257) + 8 * 101 * 320
    assert stepwise.limit(A100) == "memory"


def test_the_bound_is_the_longer_of_moving_and_computing():
    work = Work("any", moved=3.35e9, operations=1980e9, held=0)
    assert work.bound_ms(H100) == pytest.approx(2)  # 1 ms of bytes, 2 ms of operations
    assert work.limit(H100) == "arithmetic"
    assert work.intensity == pytest.approx(1980 / 3.35)
    assert Work("any", 3.35e9, 1e9, 0).bound_ms(H100) == pytest.approx(1)
    assert Work("any", 1, 80e12, 0, "float32").bound_ms(B200) == pytest.approx(1000)
    assert [device.architecture for device in DEVICES] == [80, 90, 100]
