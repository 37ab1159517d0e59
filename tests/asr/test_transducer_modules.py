"""Prediction and joint networks: NVIDIA's stored numbers, one step at a time as all at once, and the options."""

from __future__ import annotations

import pytest
import torch

from nemo_asr.modules import HATJoint, RNNTDecoder, RNNTJoint, StatelessTransducerDecoder

CASES = (
    "fastconformer_rnnt_bpe",
    "conformer_rnnt_char",
    "fastconformer_hybrid_tdt_ctc_bpe",
    "fastconformer_hybrid_streaming_bpe",
)


def restored(case, name, kind):
    module = kind(**case.section(name))
    module.load_state_dict(case.weights(name))
    return module.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_prediction_network_gives_the_stored_outputs_and_state(golden, name):
    case = golden(name)
    decoder = restored(case, "decoder", RNNTDecoder)
    with torch.no_grad():
        outputs, lengths, (hidden, cell) = decoder(
            targets=case.io["in_targets"], target_length=case.io["in_target_length"]
        )
    torch.testing.assert_close(outputs, case.io["decoder_out"], atol=2e-6, rtol=0)
    torch.testing.assert_close(hidden, case.io["decoder_state_h"], atol=2e-6, rtol=0)
    torch.testing.assert_close(cell, case.io["decoder_state_c"], atol=2e-6, rtol=0)
    assert lengths.tolist() == case.io["in_target_length"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_joint_gives_the_stored_scores(golden, name):
    case = golden(name)
    joint = restored(case, "joint", RNNTJoint)
    joint.fuse_loss_wer = False
    arguments = {"encoder_outputs": case.io["encoded"], "decoder_outputs": case.io["decoder_out"]}
    frames, steps = case.io["joint_corner"].shape[1:3]
    with torch.no_grad():
        scores = joint(**arguments)[:, :frames, :steps]
        joint.log_softmax = False
        logits = joint(**arguments)[:, :frames, :steps]
    torch.testing.assert_close(scores, case.io["joint_corner"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, case.io["joint_logits_corner"], atol=1e-5, rtol=0)


def make(kind, **options):
    torch.manual_seed(0)
    return kind({"pred_hidden": 24, "pred_rnn_layers": 2}, 10, **options).eval()


DECODERS = {
    "LSTM": lambda: make(RNNTDecoder),
    "projected LSTM": lambda: RNNTDecoder({"pred_hidden": 24, "pred_rnn_layers": 2, "rnn_hidden_size": 40}, 10).eval(),
    "LSTM with layer norms": lambda: make(RNNTDecoder, normalization_mode="layer"),
    "LSTM with batch norms": lambda: make(RNNTDecoder, normalization_mode="batch"),
    "LSTM without a row for blank": lambda: make(RNNTDecoder, blank_as_pad=False),
    "no context": lambda: make(StatelessTransducerDecoder),
    "context of 3": lambda: make(StatelessTransducerDecoder, context_size=3, normalization_mode="layer"),
}


@pytest.mark.parametrize("build", DECODERS.values(), ids=list(DECODERS))
@torch.no_grad()
def test_steps_from_the_initial_state_equal_the_whole_sequence(build):
    decoder = build()
    targets = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    whole, _ = decoder.predict(targets)
    tokens = torch.cat([torch.full((2, 1), decoder.blank_idx), targets], dim=1)  # blank stands for the start
    state = decoder.initialize_state(torch.zeros(2))
    steps = []
    for token in tokens.unbind(1):
        output, state = decoder.predict(token[:, None], state, add_sos=False)
        steps.append(output)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", DECODERS.values(), ids=list(DECODERS))
@torch.no_grad()
def test_states_can_be_picked_and_replaced_per_utterance(build):
    decoder = build()
    before = decoder.initialize_state(torch.zeros(3))
    _, after = decoder.predict(torch.tensor([[1], [2], [3]]), before, add_sos=False)
    mask = torch.tensor([True, False, True])
    merged = decoder.replace_states(before, torch.tensor([0, 2]), decoder.select_states(after, mask))
    for index, source in enumerate((after, before, after)):
        for found, expected in zip(
            decoder.select_states(merged, torch.tensor([index])),
            decoder.select_states(source, torch.tensor([index])),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)
    picked = decoder.select_states(after, mask)
    for found, expected in zip(picked, decoder.select_states(after, torch.tensor([0, 2])), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_forget_gates_begin_with_the_bias_of_the_options():
    decoder = RNNTDecoder(
        {"pred_hidden": 8, "pred_rnn_layers": 1, "forget_gate_bias": 2.0, "weights_init_scale": 0.5}, 5
    )
    lstm = decoder.prediction["dec_rnn"].lstm
    assert lstm.bias_ih_l0[8:16].tolist() == [1.0] * 8
    assert lstm.bias_hh_l0[8:16].tolist() == [0.0] * 8
    assert lstm.weight_ih_l0.abs().max() <= 0.5 / 8**0.5


def test_chrono_initialisation_remembers_up_to_t_max_steps():
    lstm = RNNTDecoder({"pred_hidden": 512, "pred_rnn_layers": 1, "t_max": 100}, 5).prediction["dec_rnn"].lstm
    forget = lstm.bias_ih_l0[512:1024]
    assert 0 <= forget.min() < 1 and 4 < forget.max() <= torch.tensor(99.0).log()
    torch.testing.assert_close(lstm.bias_ih_l0[:512], -forget)


def joint_of(kind=RNNTJoint, **options):
    torch.manual_seed(0)
    sizes = {"encoder_hidden": 6, "pred_hidden": 5, "joint_hidden": 8, "activation": "tanh"}
    return kind(sizes, 7, **options)


def test_a_hat_joints_scores_are_probabilities_with_blanks_apart():
    joint = joint_of(HATJoint).eval()
    f, g = torch.randn(2, 4, 6), torch.randn(2, 3, 5)
    scores = joint.joint(f, g)
    torch.testing.assert_close(scores.exp().sum(3), torch.ones(2, 4, 3))
    hidden = joint.project_encoder(f).unsqueeze(2) + joint.project_prednet(g).unsqueeze(1)
    torch.testing.assert_close(scores[..., -1], joint.blank_pred[2](hidden.tanh()).sigmoid().log()[..., 0])
    tokens = joint.joint_net(hidden).softmax(3)
    torch.testing.assert_close(scores[..., :-1].exp(), tokens * (1 - scores[..., -1:].exp()))


def test_masking_hides_steps_of_the_prediction_network_in_training_only():
    joint = joint_of(masking_prob=0.5)
    g = torch.ones(4, 50, 8)
    kept = joint.train().mask_predictions(g)
    rows = kept.amax(2)
    assert torch.equal(kept, rows.unsqueeze(2).expand_as(kept)) and 0.3 < rows.mean() < 0.7
    assert torch.equal(joint.eval().mask_predictions(g), g)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RNNTDecoder({"pred_rnn_layers": 1}, 5), "prednet.pred_hidden: is missing"),
        (lambda: RNNTDecoder({"pred_hiden": 1, "pred_hidden": 1}, 5), "prednet.pred_hiden: is no option; nearest"),
        (lambda: make(StatelessTransducerDecoder, context_size=0), "context_size: 0 must be at least 1"),
        (lambda: joint_of(fuse_loss_wer=True), "fused_batch_size: None must be above 0"),
        (lambda: joint_of(masking_prob=1.0), "masking_prob: 1.0 must be below 1"),
        (lambda: joint_of(HATJoint, num_extra_outputs=2), "num_extra_outputs: 2 must be 0 in a HATJoint"),
        (
            lambda: RNNTJoint({"encoder_hidden": 1, "pred_hidden": 1, "joint_hidden": 1, "activation": "gelu"}, 5),
            "jointnet.activation: 'gelu' is none of relu, tanh, sigmoid",
        ),
    ],
)
def test_an_option_out_of_its_range_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
