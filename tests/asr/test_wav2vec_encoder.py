"""The convolutions and the Transformer of wav2vec 2.0."""

from __future__ import annotations

import pytest
import torch

from nemo_asr.modules import ConvFeatureEncoder, Wav2VecTransformerEncoder
from nemo_asr.modules.wav2vec.transformer import PositionConvolution, PositionConvolutionOptions
from nemo_asr.networks.ctc import CtcNetwork

LAYERS = [{"emb_dim": 8, "kernel_size": 10, "stride": 5}, {"emb_dim": 8, "kernel_size": 3, "stride": 2}]
POSITIONS = {"embedding_dim": 8, "conv_pos": 4, "conv_pos_groups": 2}
TRANSFORMER = {"num_layers": 2, "hidden_size": 8, "inner_size": 16, "num_attention_heads": 2}


@pytest.mark.parametrize("case", ["waveform", "waveform_one_norm", "wav2vec", "wav2vec_norms_first"])
def test_outputs_and_gradients_are_those_of_nvidias_toolkit(stored_module, case):
    stored = stored_module(case)
    stored.assert_equal(stored.build())


def test_the_gradient_of_the_convolutions_is_scaled(stored_module):
    stored = stored_module("waveform")
    gradients = []
    for factor in (1.0, 0.25, 0.0):
        module = ConvFeatureEncoder(**stored.options | {"feature_grad_mult": factor})
        module.load_state_dict({key[6:]: value for key, value in stored.arrays.items() if key.startswith("state.")})
        module(stored.arrays["x"], stored.arrays["length"])[0].square().mean().backward()
        gradients.append(module.conv_layers[0][0].weight.grad)
        assert module.layer_norm.weight.grad is not None
    torch.testing.assert_close(gradients[0], stored.arrays["gradient"], atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0] / 4)
    assert gradients[2] is None


def test_audio_is_left_as_it_was_and_its_level_does_not_matter():
    encoder = ConvFeatureEncoder(LAYERS, embedding_dim=8).eval()
    audio, length = 0.1 * torch.randn(2, 400), torch.tensor([400, 250])
    before = audio.clone()
    features, features_len = encoder(audio, length)
    torch.testing.assert_close(audio, before, rtol=0, atol=0)
    louder, _ = encoder(5 * audio + 0.3, length)
    assert features_len.tolist() == encoder.get_lengths(length).tolist() == [39, 24]
    for row, frames in enumerate(features_len.tolist()):
        torch.testing.assert_close(louder[row, :, :frames], features[row, :, :frames], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("pre_ln", [False, True])
def test_valid_frames_do_not_depend_on_the_padding(pre_ln):
    front, encoder = ConvFeatureEncoder(LAYERS, embedding_dim=8).eval(), _transformer(pre_ln=pre_ln)
    audio = 0.1 * torch.randn(2, 600)
    together, together_len = encoder(*front(audio, torch.tensor([600, 300])))
    alone, alone_len = encoder(*front(audio[1:, :300], torch.tensor([300])))
    assert together_len[1] == alone_len[0] == alone.shape[2]
    torch.testing.assert_close(together[1:, :, : alone.shape[2]], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("frames", [4, 5])
def test_the_position_convolution_is_torchs_weight_norm(frames):
    ours = PositionConvolution(PositionConvolutionOptions(8, frames, 2), 0.1)
    torch.nn.init.uniform_(ours.weight_g, 0.5, 2.0)
    conv = torch.nn.Conv1d(8, 8, frames, padding=frames // 2, groups=2)
    theirs = torch.nn.utils.weight_norm(conv, dim=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 11)
    torch.testing.assert_close(ours(x), theirs(x)[:, :, :11])


def test_a_layer_that_training_leaves_out_has_no_effect_and_a_gradient_of_zero():
    encoder = _transformer(layer_drop=1.0).train()
    x, length = torch.randn(1, 8, 9), torch.tensor([9])
    out, _ = encoder(x, length)
    bare = Wav2VecTransformerEncoder(POSITIONS, TRANSFORMER | {"num_layers": 0})
    bare.load_state_dict({key: value for key, value in encoder.state_dict().items() if "layers." not in key})
    torch.testing.assert_close(out, bare(x, length)[0])
    out.sum().backward()
    gradients = [parameter.grad for parameter in encoder.layers.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_network_knows_how_long_a_frame_lasts():
    config = {
        "sample_rate": 16000,
        "labels": ["a", "b"],
        "preprocessor": {"_target_": f"{NVIDIA}.ConvFeatureEncoder", "conv_layers": LAYERS, "embedding_dim": 8},
        "encoder": {
            "_target_": f"{NVIDIA}.Wav2VecTransformerEncoder", "pos_embed": POSITIONS, "transformer": TRANSFORMER,
        },
        "decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": 8, "num_classes": 2},
    }  # fmt: skip
    network = CtcNetwork.from_config(config, lambda *_: b"", strict=True).eval()
    assert network.frame_clock.seconds(16) == pytest.approx(0.01)
    found = network.transcribe(0.1 * torch.randn(8000).numpy(), timestamps=True, verbose=False)
    assert isinstance(found[0].text, str)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvFeatureEncoder([]), r"conv_layers: \[\] makes no features"),
        (lambda: ConvFeatureEncoder([{"emb_dim": 8, "kernel_size": 3}]), r"conv_layers\.0\.stride: is missing"),
        (lambda: ConvFeatureEncoder(LAYERS, "batch_norm"), "extractor_mode: 'batch_norm' is neither"),
        (lambda: ConvFeatureEncoder(LAYERS)(torch.zeros(1, 12), torch.tensor([12])), "12 samples are too few"),
        (lambda: _transformer(num_attention_heads=3), "num_attention_heads: 3 does not divide hidden_size 8"),
        (lambda: _transformer(hidden_act="swish"), "hidden_act: 'swish' is neither gelu nor relu"),
        (lambda: _transformer(hidden_size=16), "embedding_dim: 8 differs from transformer.hidden_size"),
        (lambda: Wav2VecTransformerEncoder(POSITIONS | {"conv_pos_groups": 3}, TRANSFORMER), "conv_pos_groups: 3"),
    ],
)
def test_what_cannot_be_built_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


NVIDIA = "nemo.collections.asr.modules.wav2vec_modules"


def _transformer(layer_drop=0.0, **options):
    return Wav2VecTransformerEncoder(POSITIONS, TRANSFORMER | options, layer_drop).eval()
