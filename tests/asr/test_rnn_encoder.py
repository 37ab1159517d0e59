"""The LSTM encoder."""

from __future__ import annotations

import pytest
import torch

from nemo_asr.modules import RNNEncoder

SIZES = {"feat_in": 6, "n_layers": 2, "d_model": 10, "proj_size": 8, "dropout": 0.0}


@pytest.mark.parametrize("case", ["lstm", "lstm_one_direction", "lstm_after_convolutions"])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_outputs_and_gradients_are_those_of_nvidias_toolkit(stored_module, case):
    stored = stored_module(case)
    stored.assert_equal(stored.build())


@pytest.mark.parametrize(
    ("options", "frames", "lengths"),
    [
        ({"subsampling": "stacking"}, 6, [6, 3]),  # 21 frames are padded to 24, and 9 counts as 12
        ({"subsampling": "striding"}, 6, [6, 3]),
        ({"subsampling": "stacking", "subsampling_factor": 3}, 7, [7, 3]),
        ({"subsampling": None}, 21, [21, 9]),
    ],
)
def test_frames_and_lengths_after_each_subsampling(options, frames, lengths):
    encoder = RNNEncoder(**SIZES, **options).eval()
    out, out_len = encoder(torch.randn(2, 6, 21), torch.tensor([21, 9]))
    assert out.shape == (2, 8, frames)
    assert out_len.tolist() == lengths
    assert encoder.subsampling_factor == (options.get("subsampling_factor", 4) if options["subsampling"] else 1)


def test_without_lengths_all_frames_are_valid():
    encoder = RNNEncoder(**SIZES).eval()
    x = torch.randn(2, 6, 20)
    torch.testing.assert_close(encoder(x), encoder(x, torch.tensor([20, 20])))


def test_in_one_direction_valid_frames_do_not_depend_on_the_padding():
    encoder = RNNEncoder(**SIZES, bidirectional=False, subsampling="striding").eval()
    x = torch.randn(2, 6, 40)
    together, together_len = encoder(x, torch.tensor([40, 17]))
    alone, alone_len = encoder(x[1:, :, :17], torch.tensor([17]))
    assert together_len[1] == alone_len[0]
    torch.testing.assert_close(together[1:, :, : alone.shape[2]], alone)


def test_proj_size_minus_one_is_d_model():
    for bidirectional in (True, False):
        encoder = RNNEncoder(6, 1, 10, bidirectional=bidirectional).eval()
        assert encoder(torch.randn(1, 6, 20))[0].shape == (1, 10, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnn_type": "gru"}, "rnn_type: 'gru' must be lstm"),
        ({"proj_size": 7}, "proj_size: 7 must be above 0, and even for two directions"),
        ({"proj_size": 30}, "proj_size: 30 makes 15 values of a cell's d_model 10"),
        ({"subsampling": "halving"}, "subsampling: halving is none of"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        RNNEncoder(**SIZES | options)
