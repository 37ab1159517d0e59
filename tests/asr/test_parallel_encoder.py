"""CarneliNet's encoder: towers side by side."""

from __future__ import annotations

import pytest
import torch

from nemo_asr.modules import ConvASREncoder, ParallelConvASREncoder
from nemo_asr.modules.jasper.parallel import ParallelBlock

BLOCK = {"filters": 8, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False}


def block(**options):
    return {**BLOCK, **options}


@pytest.mark.parametrize("case", ["carnelinet", "towers_input_convolved"])
def test_outputs_and_gradients_are_those_of_nvidias_toolkit(stored_module, case):
    stored = stored_module(case)
    stored.assert_equal(stored.build())


def test_with_one_kernel_in_every_section_it_is_a_plain_encoder():
    sections = [block(separable=True), block(stride=[2], se=True)]
    parallel = ParallelConvASREncoder(sections, "relu", feat_in=5).eval()
    plain = ConvASREncoder(sections, "relu", feat_in=5).eval()
    plain.load_state_dict(parallel.state_dict())
    x, length = torch.randn(2, 5, 20), torch.tensor([20, 11])
    for ours, theirs in zip(parallel(x, length), plain(x, length), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_parallel_block_adds_its_towers_and_its_input():
    encoder = ParallelConvASREncoder([block(kernel=[3, 5, 9])], "relu", feat_in=8).eval()
    (parallel,) = encoder.encoder
    x, length = torch.randn(1, 8, 20), torch.tensor([20])
    towers = [tower([x], length)[0][-1] for tower in parallel.blocks]
    assert [tower.mconv[0].conv.kernel_size[0] for tower in parallel.blocks] == [3, 5, 9]
    torch.testing.assert_close(encoder(x, length)[0], x + sum(towers))


def test_training_leaves_towers_out_and_makes_up_for_it():
    torch.manual_seed(0)
    dropped = block(kernel=[3, 5], aggregation_mode="dropout", block_dropout=0.5)
    encoder = ParallelConvASREncoder([dropped], "relu", feat_in=8)
    (parallel,) = encoder.encoder
    assert isinstance(parallel, ParallelBlock)
    drawn = {tuple(parallel._tower_weights().tolist()) for _ in range(60)}
    assert drawn == {(2.0, 0.0), (0.0, 2.0), (2.0, 2.0)}  # never none at all
    parallel.eval()
    assert parallel._tower_weights().tolist() == [1.0, 1.0]
    assert "encoder.0.weights" in encoder.state_dict()
    assert not parallel.weights.requires_grad


def test_valid_frames_do_not_depend_on_the_padding(stored_module):
    stored = stored_module("carnelinet")
    encoder, x = stored.build(), stored.arrays["x"]
    alone, alone_len = encoder(x[1:2, :, :37], torch.tensor([37]))
    together, together_len = encoder(x, torch.tensor([61, 37, 12]))
    assert alone_len[0] == together_len[1] == alone.shape[2]
    torch.testing.assert_close(together[1:2, :, : alone.shape[2]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": []}, r"jasper\.0\.kernel: \[\] names no kernel"),
        ({"kernel": [3, 5], "stride": [2]}, r"jasper\.0\.stride: 2 must be 1 with several kernels"),
        ({"kernel": [3, 5], "filters": 6}, r"jasper\.0\.parallel_residual_mode: sum adds 8 channels to filters 6"),
        ({"kernel": [3, 5], "residual_dense": True}, r"jasper\.0\.residual_dense: must be false"),
        ({"aggregation_mode": "mean"}, r"jasper\.0\.aggregation_mode: 'mean' is neither sum nor dropout"),
        ({"parallel_residual_mode": "add"}, r"jasper\.0\.parallel_residual_mode: 'add' is neither sum nor conv"),
        ({"block_dropout": 1.5}, r"jasper\.0\.block_dropout: 1\.5 is not in \[0, 1\]"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ParallelConvASREncoder([block(**options)], "relu", feat_in=8)
