"""The Squeezeformer encoder."""

from __future__ import annotations

import pytest
import torch

from nemo_asr.modules import SqueezeformerEncoder
from nemo_asr.modules.conformer.attention import AttentionMask
from nemo_asr.modules.conformer.context import Window
from nemo_asr.modules.squeezeformer.time_reduction import TimeReduction

SIZES = {"feat_in": 12, "n_layers": 4, "d_model": 16, "conv_kernel_size": 5, "ff_expansion_factor": 2}


@pytest.mark.parametrize("case", ["squeezeformer", "squeezeformer_absolute", "squeezeformer_window"])
def test_outputs_and_gradients_are_those_of_nvidias_toolkit(stored_module, case):
    stored = stored_module(case)
    stored.assert_equal(stored.build())


def test_valid_frames_do_not_depend_on_the_padding(stored_module):
    stored = stored_module("squeezeformer")
    encoder, x = stored.build(), stored.arrays["x"]
    together, together_len = encoder(x, torch.tensor([61, 37, 12]))
    alone, alone_len = encoder(x[1:2, :, :37], torch.tensor([37]))
    assert together_len[1] == alone_len[0] == alone.shape[2]
    torch.testing.assert_close(together[1:2, :, : alone.shape[2]], alone, atol=1e-5, rtol=1e-5)


def test_the_layers_in_the_middle_work_on_half_the_frames():
    encoder = SqueezeformerEncoder(**SIZES, time_reduce_idx=1).eval()
    x, length = torch.randn(2, 12, 52), torch.tensor([52, 37])
    encoded, encoded_len, captured = encoder.encode(x, length, capture_layers=[0, 1, 2, 3])
    assert {layer: out.shape[2] for layer, (out, _) in captured.items()} == {0: 13, 1: 7, 2: 7, 3: 13}
    assert {layer: out_len.tolist() for layer, (_, out_len) in captured.items()} == {
        0: [13, 10], 1: [7, 5], 2: [7, 5], 3: [13, 10],
    }  # fmt: skip
    assert (encoded.shape, encoded_len.tolist()) == ((2, 16, 13), [13, 10])
    torch.testing.assert_close(captured[3][0], encoded)


def test_time_reduction_is_a_convolution_written_out():
    torch.manual_seed(0)
    reduction = TimeReduction(3)
    x = torch.randn(1, 7, 3)
    reduced, mask = reduction(x, AttentionMask(torch.tensor([5]), 7, Window(5, -1)))
    x[:, 5:] = 0.0
    expected = torch.zeros(1, 4, 3)
    for frame in range(4):
        mixed = reduction.dw_conv.bias.clone()
        for tap in range(5):
            source = 2 * frame - 3 + tap
            if 0 <= source < 7:
                mixed = mixed + reduction.dw_conv.weight[:, 0, tap] * x[0, source]
        expected[0, frame] = reduction.pw_conv.weight[:, :, 0] @ mixed + reduction.pw_conv.bias
    torch.testing.assert_close(reduced, expected)
    assert (mask.frames, mask.lengths.tolist(), mask.window) == (4, [3], Window(2, -1))


def test_scales_that_do_not_learn_are_buffers_of_the_same_names():
    learning = SqueezeformerEncoder(**SIZES, adaptive_scale=True)
    fixed = SqueezeformerEncoder(**SIZES, adaptive_scale=False)
    assert sorted(learning.state_dict()) == sorted(fixed.state_dict())
    names = {name for name, _ in learning.named_parameters()} - {name for name, _ in fixed.named_parameters()}
    assert len(names) == 4 * 4 * 2
    assert all(name.endswith(("_scale.scale", "_scale.bias")) for name in names)


def test_initial_weights_lie_within_the_papers_bounds():
    layer = SqueezeformerEncoder(**SIZES).layers[0]
    for weights, fan in [
        (layer.feed_forward1.linear1, 16), (layer.feed_forward1.linear2, 32), (layer.conv.pointwise_conv1, 16),
        (layer.conv.pointwise_conv2, 16), (layer.conv.depthwise_conv, 5),
    ]:  # fmt: skip
        assert 0.8 * fan**-0.5 < float(weights.weight.detach().abs().max()) <= fan**-0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_attention_model": "rel_pos_local_attn"}, "self_attention_model: 'rel_pos_local_attn' is neither"),
        ({"time_reduce_idx": 4}, r"time_reduce_idx: 4 is not in \[0, n_layers 4\)"),
        ({"time_reduce_idx": 2, "time_recovery_idx": 1}, r"time_recovery_idx: 1 is not in \[time_reduce_idx 2"),
        ({"att_context_size": [1, 2, 3]}, r"att_context_size: \[1, 2, 3\] is not a pair"),
        ({"n_heads": 5}, "n_heads: 5 does not divide d_model 16"),
        ({"conv_kernel_size": 4}, "conv_kernel_size: 4 must be odd"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeformerEncoder(**SIZES | options)


def test_features_of_another_width_are_an_error():
    with pytest.raises(ValueError, match=r"audio_signal: shape \(1, 9, 20\) is not \(batch, 12, frames\)"):
        SqueezeformerEncoder(**SIZES)(torch.zeros(1, 9, 20))
