"""The convolutional encoder and the CTC head against NVIDIA's golden numbers, and the options by what they mean."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from nemo_asr.modules import ConvASRDecoder, ConvASREncoder
from nemo_asr.modules.jasper.block import GroupShuffle
from nemo_asr.modules.jasper.masked_conv import MaskedConv1d, context_padding, scaled_kernel


@pytest.fixture
def quartznet(golden):
    return golden("quartznet_ctc_char")


@pytest.fixture
def encoder(quartznet):
    encoder = ConvASREncoder(**quartznet.section("encoder")).eval()
    encoder.load_state_dict(quartznet.weights("encoder"))
    return encoder


def block(**options):
    plain = {"filters": 12, "repeat": 1, "kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.0}
    return plain | {"residual": False} | options


def test_encoder_equals_the_golden_one_on_stored_features(encoder, quartznet, equal_when_valid):
    stored = quartznet.io
    with torch.no_grad():
        encoded, lengths = encoder(audio_signal=stored["processed_signal"], length=stored["processed_signal_length"])
    assert lengths.tolist() == stored["encoded_length"].tolist()
    equal_when_valid(encoded, stored["encoded"], lengths, 2e-4)


def test_head_equals_the_golden_one(quartznet):
    head = ConvASRDecoder(**quartznet.section("decoder")).eval()
    head.load_state_dict(quartznet.weights("decoder"))
    with torch.no_grad():
        log_probs = head(encoder_output=quartznet.io["encoded"])
    torch.testing.assert_close(log_probs, quartznet.io["log_probs"], rtol=0, atol=2e-4)
    assert torch.equal(log_probs.argmax(dim=-1), quartznet.io["predictions"])


def test_names_and_order_of_the_weights_are_the_files(encoder, quartznet):
    head = ConvASRDecoder(**quartznet.section("decoder"))
    assert list(encoder.state_dict()) == list(quartznet.weights("encoder"))
    assert list(head.state_dict()) == list(quartznet.weights("decoder"))


def test_width_and_stride_of_the_encoder_are_told(encoder):
    assert (encoder._feat_in, encoder._feat_out, encoder.subsampling_factor) == (64, 64, 2)


def test_an_utterance_is_encoded_the_same_alone_and_in_a_batch(encoder, quartznet):
    features, lengths = quartznet.io["processed_signal"], quartznet.io["processed_signal_length"]
    shortest = int(lengths.argmin())
    alone = features[shortest : shortest + 1, :, : int(lengths[shortest])]
    with torch.no_grad():
        together, frames = encoder(features, lengths)
        by_itself, _ = encoder(alone, lengths[shortest : shortest + 1])
    valid = int(frames[shortest])
    torch.testing.assert_close(by_itself[0, :, :valid], together[shortest, :, :valid], rtol=0, atol=1e-5)


def test_an_encoder_can_be_copied_and_pickled(encoder, quartznet):
    features, lengths = quartznet.io["processed_signal"][:1, :, :50], torch.tensor([50])
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(features, lengths)[0], encoder(features, lengths)[0])


@pytest.mark.parametrize("geometry", [(3, 1, 1, 0), (11, 2, 1, 5), (5, 3, 1, (4, 0)), (7, 1, 3, 9), (4, 1, 1, 1)])
def test_lengths_follow_torchs_convolution(geometry):
    kernel, stride, dilation, padding = geometry
    layer = MaskedConv1d(2, 2, kernel, stride=stride, dilation=dilation, padding=padding)
    for frames in (15, 16, 40):
        out, lengths = layer(torch.randn(1, 2, frames), torch.tensor([frames]))
        assert lengths.tolist() == [out.shape[2]]


def test_a_masked_convolution_sees_zeros_after_the_end():
    layer = MaskedConv1d(3, 4, 5, padding=2)
    x = torch.randn(2, 3, 20)
    out, _ = layer(x, torch.tensor([20, 8]))
    cut = x[1:, :, :8]
    torch.testing.assert_close(out[1:, :, :8], layer.conv(cut))


def test_heads_share_their_kernels_among_the_channels():
    layer = MaskedConv1d(6, 6, 3, padding=1, groups=6, heads=2)
    assert layer.conv.weight.shape == (2, 1, 3)
    x = torch.randn(1, 6, 9)
    out, _ = layer(x, torch.tensor([9]))
    apart = nn.functional.conv1d(x, layer.conv.weight.repeat(3, 1, 1), padding=1, groups=6)
    torch.testing.assert_close(out, apart)


def test_a_future_context_bounds_how_far_ahead_the_encoder_looks():
    encoder = ConvASREncoder([block(kernel=[7], future_context=1)], "identity", feat_in=3).eval()
    x = torch.randn(1, 3, 30)
    changed = x.clone()
    changed[:, :, 20:] += 1
    difference = (encoder(x, torch.tensor([30]))[0] - encoder(changed, torch.tensor([30]))[0]).abs().sum(dim=1)[0]
    assert difference[:19].max() == 0
    assert difference[19] > 0


@pytest.mark.parametrize(("kernel", "future", "expected"), [(7, -1, 3), (7, 2, (4, 2)), (3, 3, 1), (5, 0, (4, 0))])
def test_paddings_by_future_context(kernel, future, expected):
    assert context_padding(kernel, 1, 1, future) == expected


@pytest.mark.parametrize(("kernel", "factor", "expected"), [(11, 1.0, 11), (11, 0.25, 3), (13, 0.5, 7), (1, 0.1, 1)])
def test_kernels_are_scaled_to_odd_sizes(kernel, factor, expected):
    assert scaled_kernel(kernel, factor) == expected


def test_shuffling_groups_is_torchs_channel_shuffle():
    x = torch.randn(2, 12, 5)
    assert torch.equal(GroupShuffle(3)(x), nn.functional.channel_shuffle(x[..., None], 3)[..., 0])


def test_squeeze_and_excitation_takes_its_mean_over_valid_frames_only():
    encoder = ConvASREncoder([block(se=True, filters=16)], "relu", feat_in=4).eval()
    x = torch.randn(1, 4, 24)
    padded = nn.functional.pad(x, (0, 40))
    alone, _ = encoder(x, torch.tensor([24]))
    together, _ = encoder(padded, torch.tensor([24]))
    torch.testing.assert_close(alone, together[:, :, :24])


def test_a_limited_context_of_squeeze_and_excitation_matters_in_training_only():
    options = {"jasper": [block(se=True, filters=16, se_context_size=6)], "activation": "relu", "feat_in": 4}
    encoder = ConvASREncoder(**options, normalization_mode="layer").eval()
    x, lengths = torch.randn(1, 4, 24), torch.tensor([24])
    assert torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])
    encoder.train()
    outputs = torch.stack([encoder(x, lengths)[0] for _ in range(12)])
    assert outputs.std(dim=0).max() > 1e-4


def test_a_named_residual_mode_holds_for_the_blocks_after_it():
    blocks = [block(residual=True), block(residual=True, residual_mode="max"), block(residual=True)]
    encoder = ConvASREncoder(blocks, "relu", feat_in=12)
    assert [part.options.residual_mode for part in encoder.encoder] == ["add", "max", "max"]


def test_dense_blocks_add_every_dense_block_before():
    blocks = [block(), *[block(residual=True, residual_dense=True)] * 3, block()]
    encoder = ConvASREncoder(blocks, "relu", feat_in=8).eval()
    assert [len(part.res) if part.res else 0 for part in encoder.encoder] == [0, 1, 2, 3, 0]
    encoded, _ = encoder(torch.randn(2, 8, 31), torch.tensor([31, 17]))
    assert encoded.shape == (2, 12, 31)


def test_without_masks_the_lengths_stay_and_the_weights_lose_a_level():
    encoder = ConvASREncoder([block(stride=[2])], "relu", feat_in=4, conv_mask=False)
    encoded, lengths = encoder(torch.randn(1, 4, 20), torch.tensor([20]))
    assert (encoded.shape[2], lengths.tolist()) == (10, [20])
    assert "encoder.0.mconv.0.weight" in encoder.state_dict()


def test_gradients_reach_every_weight():
    blocks = [block(separable=True), block(residual=True, separable=True, se=True, repeat=3, filters=16)]
    encoder = ConvASREncoder(blocks, "swish", feat_in=6)
    encoded, _ = encoder(torch.randn(2, 6, 25), torch.tensor([25, 13]))
    encoded.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())


@pytest.mark.parametrize(
    ("mode", "deviation"),
    [
        ("xavier_uniform", (2 / (12 * 5 + 400 * 5)) ** 0.5),
        ("xavier_normal", (2 / (12 * 5 + 400 * 5)) ** 0.5),
        ("kaiming_uniform", (2 / (12 * 5)) ** 0.5),
        ("kaiming_normal", (2 / (12 * 5)) ** 0.5),
        ("tds_uniform", 2 / (12 * 5) ** 0.5 / 3**0.5),
        ("tds_normal", 2 / (12 * 5) ** 0.5),
    ],
)
def test_initial_weights_have_the_deviation_of_their_mode(mode, deviation):
    encoder = ConvASREncoder([block(filters=400)], "relu", feat_in=12, init_mode=mode)
    assert float(encoder.encoder[0].mconv[0].conv.weight.detach().std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seperable": True}, "jasper.1.seperable: is no option; nearest: separable"),
        ({"kernel": [3, 5]}, r"jasper.1.kernel: \[3, 5\] must be one number"),
        ({"stride": [0]}, "jasper.1.stride: 0 must be a whole number above 0"),
        ({"stride": [2], "dilation": [2]}, "jasper.1.stride: 2 and dilation 2 cannot both be above 1"),
        ({"separable": "yes"}, "jasper.1.separable: 'yes' must be true or false"),
        ({"dropout": "0.1"}, "jasper.1.dropout: '0.1' must be a number"),
        ({"residual_mode": "sum"}, "jasper.1.residual_mode: 'sum' is none of add"),
        ({"separable": True, "heads": 5}, "jasper.1.heads: 5 must divide the 12 channels"),
    ],
)
def test_a_wrong_option_of_a_block_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        ConvASREncoder([block(), block(**change)], "relu", feat_in=4)


def test_a_missing_option_of_a_block_is_named():
    section = block()
    del section["filters"]
    with pytest.raises(ValueError, match=r"jasper\.0\.filters: is missing"):
        ConvASREncoder([section], "relu", feat_in=4)


def test_a_foreign_option_of_a_block_is_ignored_with_a_line_in_the_log(caplog):
    ConvASREncoder([block(tower="left", se_repeat=2)], "relu", feat_in=4)
    assert caplog.messages == ["jasper.0.tower: is no option here and is ignored"]


def test_the_head_counts_its_vocabulary_and_adds_the_blank():
    head = ConvASRDecoder(feat_in=4, num_classes=-1, vocabulary=["a", "b"])
    assert (head.num_classes_with_blank, head.vocabulary) == (3, ["a", "b"])
    assert ConvASRDecoder(feat_in=4, num_classes=5, add_blank=False).num_classes_with_blank == 5
    with pytest.raises(ValueError, match="num_classes: 3 differs from the 2 tokens"):
        ConvASRDecoder(feat_in=4, num_classes=3, vocabulary=["a", "b"])
    with pytest.raises(ValueError, match="num_classes: -1 leaves it to the vocabulary"):
        ConvASRDecoder(feat_in=4, num_classes=-1)


def test_a_temperature_divides_the_logits_of_the_head():
    head = ConvASRDecoder(feat_in=4, num_classes=5)
    encoded = torch.randn(2, 4, 7)
    head.temperature = 2.0
    expected = (head.decoder_layers(encoded).transpose(1, 2) / 2).log_softmax(dim=-1)
    torch.testing.assert_close(head(encoded), expected)
