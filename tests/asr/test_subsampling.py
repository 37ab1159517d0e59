"""Subsampling: lengths, masking, pieces; the layers themselves run one after another are the oracle."""

import pytest
import torch
from torch import nn

from nemo_asr.modules.subsampling import ConvSubsampling, StackingSubsampling, build_subsampling

OVER_MEL_BINS = [
    ("striding", False),
    ("striding", True),
    ("dw_striding", False),
    ("dw_striding", True),
    ("vggnet", False),
]
OVER_TIME = [("striding_conv1d", False), ("striding_conv1d", True), ("dw_striding_conv1d", False)]
F, D, C = 11, 12, 6


def subsampling(name, causal=False, factor=8, **options):
    torch.manual_seed(0)
    return ConvSubsampling(name, factor, F, D, C, is_causal=causal, **options).double()


def features(*lengths):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), max(lengths) + 3, F, dtype=torch.float64, generator=generator)
    return x, torch.tensor(lengths)


def layers_one_after_another(module, x_TF):
    """The strided convolutions on one item without padding, in torch's default layout."""
    x = x_TF.T[None] if module.out is None else x_TF[None, None]
    for layer in module.conv:
        x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
    return x[0].T if module.out is None else module.out(x.transpose(1, 2).flatten(2))[0]


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("name", "causal"), OVER_MEL_BINS + OVER_TIME)
def test_each_item_is_what_the_layers_make_of_it_alone(name, causal, factor):
    module = subsampling(name, causal, factor)
    x, length = features(64, 41, 24, 9)
    y, y_len = module(x, length)
    assert y_len.dtype == torch.int64
    for item, frames, out in zip(x, length, y, strict=True):
        alone = layers_one_after_another(module, item[:frames])
        assert module.length(int(frames)) == len(alone)
        torch.testing.assert_close(out[: len(alone)], alone)
    assert y_len.tolist() == [module.length(int(frames)) for frames in length]


@pytest.mark.parametrize(("name", "causal"), OVER_MEL_BINS + OVER_TIME)
def test_length_is_the_layers_output_size(name, causal):
    module = subsampling(name, causal)
    for frames in (9, 15, 16, 17, 33, 40, 63):
        assert module.length(frames) == len(layers_one_after_another(module, torch.zeros(frames, F).double()))
        assert module.length(torch.tensor([frames])).tolist() == [module.length(frames)]


def test_length_of_the_checkpoints_strategies_is_a_rounded_quotient():
    symmetric, causal = subsampling("dw_striding"), subsampling("striding", causal=True, factor=2)
    pooling = subsampling("vggnet", factor=4)
    for frames in range(1, 200):
        assert symmetric.length(frames) == -(-frames // 8)
        assert causal.length(frames) == frames // 2 + 1
        assert pooling.length(frames) == -(-frames // 4)


@pytest.mark.parametrize("lengths", [(150, 97, 64, 5), (203,)])
@pytest.mark.parametrize("pieces", [2, 4, 16])
@pytest.mark.parametrize(("name", "causal"), OVER_MEL_BINS)
def test_pieces_give_what_the_whole_gives(name, causal, pieces, lengths):
    x, length = features(*lengths)
    whole, whole_len = subsampling(name, causal, subsampling_conv_chunking_factor=-1)(x, length)
    parts, parts_len = subsampling(name, causal, subsampling_conv_chunking_factor=pieces)(x, length)
    torch.testing.assert_close(parts_len, whole_len)
    for item, expected, frames in zip(parts, whole, whole_len, strict=True):
        torch.testing.assert_close(item[:frames], expected[:frames])


def test_a_large_input_is_computed_in_pieces_that_32_bits_can_index():
    module = ConvSubsampling("dw_striding", 8, 80, 512, 256)
    assert module._pieces(torch.empty(1, 30_000, 80, device="meta")) == 1
    hour = torch.empty(1, 4 * 360_000, 80, device="meta")
    assert hour.numel() * 256 / 4 / module._pieces(hour) <= 2**31
    module.change_subsampling_conv_chunking_factor(-1)
    assert module._pieces(hour) == 1


def test_gradients_reach_every_parameter_and_only_valid_frames():
    module = subsampling("dw_striding")
    x, length = features(50, 20)
    x.requires_grad_()
    y, y_len = module(x, length)
    (y[0, : y_len[0]].sum() + y[1, : y_len[1]].sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert x.grad[1, :20].abs().sum() > 0
    assert x.grad[1, 20:].abs().sum() == 0


@pytest.mark.parametrize(("norm", "factor"), [(False, 4), (True, 3)])
def test_stacking_puts_frames_side_by_side(norm, factor):
    module = StackingSubsampling(factor, F, D, norm=norm).double()
    x, length = features(22, 10)
    y, y_len = module(x, length)
    padded = torch.cat([x, x.new_zeros(2, -x.size(1) % factor, F)], dim=1)
    if norm:
        padded = nn.functional.layer_norm(padded, (F,), module.pre_norm.weight, module.pre_norm.bias)
    for frame in range(y.size(1)):
        rows = torch.cat([padded[:, frame * factor + offset] for offset in range(factor)], dim=1)
        torch.testing.assert_close(y[:, frame], module.proj_out(rows))
    assert y_len.tolist() == [(int(n) + -x.size(1) % factor) // factor for n in length]


def test_without_subsampling_there_is_a_projection():
    assert isinstance(build_subsampling(None, 4, F, D, C), nn.Linear)
    assert isinstance(build_subsampling("striding", 1, F, D, C), nn.Linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsampling": "strided"}, "subsampling: strided is none of striding, "),
        ({"subsampling_factor": 6}, "subsampling_factor: 6 is not a power of 2"),
        ({"chunking_factor": 3}, "subsampling_conv_chunking_factor: 3 is neither -1, 1 nor a power of 2"),
    ],
)
def test_a_wrong_value_is_named(options, message):
    keywords = {"subsampling": "striding", "subsampling_factor": 4, **options}
    with pytest.raises(ValueError, match=message):
        build_subsampling(feat_in=F, feat_out=D, conv_channels=C, **keywords)
