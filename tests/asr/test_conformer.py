"""The Conformer encoder: NVIDIA's outputs, files and sizes; batches, gradients, options."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr.modules.conformer import ConformerEncoder, multi_head
from nemo_kernels.attention import function

CONFORMER_CASES = ("fastconformer_ctc_bpe", "conformer_ctc_bpe")
OPTIONS = Path(__file__).parents[1] / "golden" / "conformer_options"
TINY = {"feat_in": 8, "n_layers": 3, "d_model": 16, "subsampling_conv_channels": 4, "conv_kernel_size": 5}
LOCAL = {"self_attention_model": "rel_pos_local_attn", "att_context_size": [3, 4]}
CAUSAL = {
    "subsampling": "dw_striding",
    "causal_downsampling": True,
    "att_context_style": "chunked_limited",
    "att_context_size": [4, 1],
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
}
VARIANTS = {
    "conformer": {},
    "fastconformer": {"subsampling": "dw_striding", "subsampling_factor": 8, "xscaling": False},
    "abs_pos": {"self_attention_model": "abs_pos", "use_bias": False},
    "local": LOCAL,
    "local_global": {**LOCAL, "global_tokens": 1, "global_attn_separate": True},
    "causal": CAUSAL,
    "tied": {"untie_biases": False},
    "reduction": {"reduction": "striding", "reduction_position": 1, "reduction_factor": 2, "feat_out": 10},
}
without_dropout = {"dropout": 0.0, "dropout_pre_encoder": 0.0, "dropout_emb": 0.0}


def encoder(**options):
    torch.manual_seed(0)
    return ConformerEncoder(**TINY, **options)


def features(*lengths, mels=8):
    x = torch.randn(len(lengths), mels, max(lengths), generator=torch.Generator().manual_seed(1))
    return x, torch.tensor(lengths)


@pytest.mark.parametrize("case", CONFORMER_CASES)
def test_every_stage_equals_nvidias(case, golden, equal_when_valid):
    stored = golden(case)
    module = ConformerEncoder(**stored.section("encoder")).eval()
    module.load_state_dict(stored.weights("encoder"))
    seen = {}
    module.pre_encode.register_forward_hook(lambda _, __, output: seen.update(debug_pre_encode=output[0]))
    module.layers[0].register_forward_hook(lambda _, __, output: seen.update(debug_layer0=output))
    with torch.no_grad():
        encoded, encoded_len = module(
            audio_signal=stored.io["processed_signal"], length=stored.io["processed_signal_length"]
        )
    assert encoded_len.tolist() == stored.io["encoded_length"].tolist()
    for name, ours in seen.items():
        equal_when_valid(ours.mT, stored.io[name].mT, encoded_len, 2e-5)
    equal_when_valid(encoded, stored.io["encoded"], encoded_len, 2e-5)


@pytest.mark.parametrize("case", CONFORMER_CASES)
def test_parameters_have_the_names_and_the_order_of_nvidias_files(case, golden):
    stored = golden(case)
    ours = ConformerEncoder(**stored.section("encoder")).state_dict()
    assert [(name, tensor.shape) for name, tensor in ours.items()] == [
        (name, tensor.shape) for name, tensor in stored.weights("encoder").items()
    ]


@pytest.mark.parametrize("way", ["as it chooses", "matrix", "tiles"])
@pytest.mark.parametrize("case", ["streaming_small", "local_small", "local_global_small"])
def test_other_options_equal_nvidias_however_attention_is_computed(case, way, equal_when_valid, monkeypatch):
    if way != "as it chooses":
        first = 10**9 if way == "matrix" else 0
        monkeypatch.setattr(function, "TILED_FROM_KEYS", {"learning": first, "inference": first})
        monkeypatch.setattr(multi_head, "_WIDE_WINDOW", 0)  # narrow windows have blocks of their own otherwise
    with np.load(OPTIONS / f"{case}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "options"}
        module = ConformerEncoder(**json.loads(str(file["options"]))).eval()
    state = {name.removeprefix("state/"): value for name, value in arrays.items() if name.startswith("state/")}
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    for name, expected in arrays.items():
        if not name.startswith("result/encoded") or name == "result/encoded_len":
            continue
        context = name.removeprefix("result/encoded").strip()
        if context:
            module.set_default_att_context_size(json.loads(context))
        with torch.no_grad():
            encoded, encoded_len = module(arrays["in_features"], arrays["in_length"])
        assert encoded_len.tolist() == arrays["result/encoded_len"].tolist()
        equal_when_valid(encoded, expected, encoded_len, 2e-5)


@pytest.mark.parametrize(("layers", "parameters"), [(17, 108_762_112), (18, 115_074_560)])
def test_fastconformer_large_has_its_size(layers, parameters):
    with torch.device("meta"):
        module = ConformerEncoder(
            feat_in=80, n_layers=layers, d_model=512, n_heads=8, subsampling="dw_striding", subsampling_factor=8,
            subsampling_conv_channels=256, conv_kernel_size=9,
        )  # fmt: skip
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_an_item_is_encoded_alone_as_in_a_batch(name):
    module = encoder(**VARIANTS[name]).eval().double()
    x, length = features(120, 77, 33)
    x = x.double()
    with torch.no_grad():
        batch, batch_len = module(x, length)
        for item, frames in enumerate(length):
            alone, alone_len = module(x[item : item + 1, :, :frames], length[item : item + 1])
            assert alone_len[0] == batch_len[item] == alone.size(2)
            torch.testing.assert_close(batch[item, :, : alone.size(2)], alone[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns_and_what_padding_holds_does_not_matter(name):
    module = encoder(**VARIANTS[name], **without_dropout).train()
    x, length = features(90, 41)
    if module.layers[0].conv.batch_norm.__class__.__name__ == "FrameBatchNorm":
        module.layers.apply(lambda part: part.eval() if isinstance(part, torch.nn.BatchNorm1d) else None)
    gradients = []
    for padding in (0.0, 7.0):
        module.zero_grad()
        x[1, :, 41:] = padding
        encoded, encoded_len = module(x, length)
        loss = sum(item[:, :frames].square().mul(0.5).sum() for item, frames in zip(encoded, encoded_len, strict=True))
        loss.backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in module.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all(), key
        torch.testing.assert_close(gradient, gradients[1][key])
    # scores do not change when all keys do, so their bias learns nothing
    still = [key for key, gradient in gradients[0].items() if not gradient.abs().max() > 0]
    assert not [key for key in still if not key.endswith("linear_k.bias")]


def test_a_streaming_encoder_does_not_see_beyond_its_chunk():
    module = encoder(**CAUSAL).eval()
    x, length = features(96)
    later = x.clone()
    later[:, :, 48:] += 1.0
    with torch.no_grad():
        before, after = module(x, length)[0], module(later, length)[0]
    # 12 frames of 4 precede the change; causal subsampling shows it from frame 12 on, chunks of 2 keep it there
    torch.testing.assert_close(before[..., :12], after[..., :12])
    assert (before[..., 12:] - after[..., 12:]).abs().amax(dim=1).min() > 1e-4


def test_layers_can_be_captured():
    module = encoder(feat_out=10).eval()
    x, length = features(60, 31)
    seen = {}
    module.layers[1].register_forward_hook(lambda _, __, output: seen.update(layer=output))
    with torch.no_grad():
        encoded, encoded_len, captured = module.encode(x, length, capture_layers=[1, 2])
        torch.testing.assert_close(captured[1][0], module.out_proj(seen["layer"]).mT)
        torch.testing.assert_close(encoded, module(x, length)[0])
    assert sorted(captured) == [1, 2]
    torch.testing.assert_close(captured[2][0], encoded)
    assert captured[1][1].tolist() == encoded_len.tolist()


def test_encoding_can_begin_after_the_subsampling():
    module = encoder().eval()
    x, length = features(60, 31)
    with torch.no_grad():
        expected, expected_len = module(x, length)
        frames, frames_len = module.pre_encode(x.mT, length)
        encoded, encoded_len = module(frames, frames_len, bypass_pre_encode=True)
    torch.testing.assert_close(encoded, expected)
    assert encoded_len.tolist() == expected_len.tolist()


def test_without_lengths_every_frame_counts():
    module = encoder().eval()
    x, length = features(60, 60)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], module(x, length)[0])


def test_tied_biases_are_one_parameter_under_the_name_of_each_layer():
    module = encoder(untie_biases=False)
    assert module.layers[0].self_attn.pos_bias_u is module.layers[2].self_attn.pos_bias_u
    assert "layers.2.self_attn.pos_bias_v" in module.state_dict()


def test_attention_can_be_changed_to_a_local_one_and_back():
    module = encoder().eval()
    x, length = features(80, 50)
    with torch.no_grad():
        full = module(x, length)[0]
        module.change_attention_model("rel_pos_local_attn", [64, 64])
        wide = module(x, length)[0]
        module.change_attention_model("rel_pos_local_attn", [2, 2])
        narrow = module(x, length)[0]
        module.change_attention_model("rel_pos", [2, 2])
        window = module(x, length)[0]
    torch.testing.assert_close(wide[0], full[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(narrow[0], window[0], atol=2e-5, rtol=0)
    assert (narrow[0] - full[0]).abs().max() > 1e-2


def test_a_change_that_is_refused_changes_nothing():
    module = encoder().eval()
    x, length = features(40)
    with torch.no_grad():
        expected = module(x, length)[0]
        with pytest.raises(ValueError, match=r"att_context_size: .* does not limit both sides"):
            module.change_attention_model("rel_pos_local_attn")
        torch.testing.assert_close(module(x, length)[0], expected)


def test_stochastic_depth_leaves_layers_out_as_often_as_it_says():
    module = encoder(stochastic_depth_drop_prob=0.6, **without_dropout)
    assert module.layer_drop_probs == pytest.approx([0.0, 0.3, 0.6])
    x, length = features(8)
    frames = {}
    for index, layer in enumerate(module.layers):
        layer.register_forward_hook(lambda _, args, __, index=index: frames.__setitem__(index, args[0].detach()))
    torch.manual_seed(0)
    skipped = 0
    for _ in range(200):
        module(x, length)
        skipped += int(torch.equal(frames[1], frames[2]))
    assert skipped == pytest.approx(200 * 0.3, abs=4 * (200 * 0.3 * 0.7) ** 0.5)


def test_training_draws_contexts_and_evaluation_keeps_the_first():
    module = encoder(**{**CAUSAL, "att_context_size": [[4, 1], [0, 0]]}, **without_dropout)
    x, length = features(80)
    with torch.no_grad():
        drawn = {module.train()(x, length)[0].sum().item() for _ in range(40)}
        kept = {module.eval()(x, length)[0].sum().item() for _ in range(5)}
    assert len(drawn) == 2
    assert len(kept) == 1


def test_an_encoder_that_encoded_in_inference_mode_can_be_trained():
    module = encoder(**without_dropout)
    x, length = features(40)
    with torch.inference_mode():
        module(x, length)
    module(x, length)[0].sum().backward()
    assert module.layers[0].self_attn.linear_pos.weight.grad.isfinite().all()


def test_threads_encode_side_by_side():
    module = encoder().eval()
    inputs = [features(frames)[0] for frames in (40, 200, 90, 400)]
    with torch.no_grad():
        expected = [encoder().eval()(x)[0] for x in inputs]
    found = [None] * len(inputs)

    def encode(index):
        with torch.no_grad():
            found[index] = module(inputs[index])[0]

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_half_precision_autocast_stays_near_float32():
    module = encoder(**VARIANTS["fastconformer"]).eval()
    x, length = features(160, 90)
    with torch.no_grad():
        expected, _ = module(x, length)
        with torch.autocast("cpu", torch.bfloat16):
            encoded, _ = module(x, length)
    torch.testing.assert_close(encoded[0].float(), expected[0], atol=0.15, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 7}, "n_heads: 7 does not divide d_model 16"),
        ({"conv_norm_type": "batchnorm"}, "conv_norm_type: batchnorm is none of batch_norm, layer_norm"),
        ({"conv_norm_type": "group_norm3"}, "conv_norm_type: group_norm3: 3 does not divide d_model 16"),
        ({"self_attention_model": "rel"}, "self_attention_model: rel is none of rel_pos"),
        ({"self_attention_model": "rel_pos_local_attn"}, r"att_context_size: \[-1, -1\] does not limit both sides"),
        ({"reduction": "pooling", "reduction_position": 3, "reduction_factor": 2}, "reduction_position: 3 is not in"),
        ({"reduction": "pool", "reduction_position": 1, "reduction_factor": 2}, "reduction: pool is neither"),
        ({"stochastic_depth_drop_prob": 1.0}, "stochastic_depth_drop_prob: 1.0 is not in"),
        ({"stochastic_depth_start_layer": 4}, "stochastic_depth_start_layer: 4 is not in"),
        ({"stochastic_depth_mode": "cubic"}, "stochastic_depth_mode: cubic is neither linear nor uniform"),
        ({"use_pytorch_sdpa_backends": ["FAST"]}, "use_pytorch_sdpa_backends: FAST is none of"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        encoder(**options)


def test_input_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"audio_signal: shape \(1, 9, 20\) is not \(batch, 8, frames\)"):
        encoder()(torch.zeros(1, 9, 20))
