"""LSTM prediction networks with norms, a projection, or no row for blank: NVIDIA's stored numbers, and search."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr.decoding.transducer_greedy import GreedySearch
from nemo_asr.modules import RNNTDecoder, RNNTJoint

STORED = Path(__file__).parents[1] / "golden" / "transducer_modules"
CASES = (
    "layer_norm",
    "layer_norm_one_layer",
    "batch_norm",
    "batch_norm_dropout",
    "projection",
    "no_row_for_blank",
)
CLOSE = {"atol": 2e-6, "rtol": 0}
SIZES = {"pred_hidden": 12, "pred_rnn_layers": 2}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def read(case):
    with np.load(STORED / f"{case}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "options"}
        return json.loads(str(stored["options"])), arrays


def part(stored, prefix):
    return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


def restored(case):
    options, stored = read(case)
    decoder = RNNTDecoder(vocab_size=11, **options)
    assert list(decoder.state_dict()) == list(part(stored, "state."))
    decoder.load_state_dict(part(stored, "state."))
    return decoder, stored


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_and_states_are_those_of_nvidias_toolkit(case):
    decoder, stored = restored(case)
    out, (hidden, cell) = decoder.eval().predict(stored["targets"])
    torch.testing.assert_close(out, stored["out"], **CLOSE)
    torch.testing.assert_close(hidden, stored["hidden"], **CLOSE)
    torch.testing.assert_close(cell, stored["cell"], **CLOSE)
    after, _ = decoder.predict(stored["more"], (hidden, cell), add_sos=False)
    torch.testing.assert_close(after, stored["out_of_more"], **CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if "dropout" not in case])
def test_gradients_and_statistics_of_training_are_those_of_nvidias_toolkit(case):
    decoder, stored = restored(case)
    out, _ = decoder.train().predict(stored["targets"])
    torch.testing.assert_close(out, stored["train"], **CLOSE)
    (out * torch.arange(12).cos()).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        expected = stored[f"gradient.{name}"]
        scale = float(expected.abs().max()) or 1.0
        torch.testing.assert_close(parameter.grad / scale, expected / scale, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in decoder.state_dict().items():
        torch.testing.assert_close(value, stored[f"after.{name}"], **CLOSE)


@pytest.mark.parametrize("case", ["initial_chrono", "initial_biases", "initial_batch_norm"])
def test_initial_weights_are_those_that_nvidias_toolkit_draws_from_the_same_seed(case):
    options, stored = read(case)
    torch.manual_seed(0)
    decoder = RNNTDecoder(vocab_size=11, **options)
    torch.testing.assert_close(dict(decoder.state_dict()), part(stored, "state."), atol=1e-7, rtol=0)


def symbols_by_symbol(decoder, joint, encoded, limit):
    """Greedy search by its definition: one utterance, one frame, one label at a time."""
    output, state = decoder.predict(None, None, add_sos=False, batch_size=1)
    tokens = []
    for frame in encoded.unbind(1):
        for _ in range(limit):
            label = int(joint.joint(frame[None, None], output).argmax())
            if label == decoder.blank_idx:
                break
            tokens.append(label)
            output, state = decoder.predict(torch.tensor([[label]]), state, add_sos=False)
    return tokens


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_batched_search_finds_what_a_search_by_its_definition_finds(case):
    decoder, _ = restored(case)
    torch.manual_seed(1)
    joint = RNNTJoint({"encoder_hidden": 5, "pred_hidden": 12, "joint_hidden": 16, "activation": "tanh"}, 11).eval()
    joint.pred.weight *= 10
    joint.joint_net[-1].bias[-1] += 1.0
    encoded, lengths = 3 * torch.randn(4, 5, 20), torch.tensor([20, 13, 0, 17])
    paths = GreedySearch(decoder.eval(), joint, max_symbols=3)(encoded, lengths)
    expected = [
        symbols_by_symbol(decoder, joint, row[:, :n], 3) for row, n in zip(encoded, lengths.tolist(), strict=True)
    ]
    assert [path.tokens for path in paths] == expected
    assert 25 < sum(map(len, expected)) < 130  # of 150: blanks and tokens, mixed


@torch.no_grad()
def test_a_step_calls_an_lstm_that_is_hooked_or_of_another_class():
    decoder, called = RNNTDecoder(SIZES, 5).eval(), []
    step = (torch.tensor([[1], [2]]), decoder.initialize_state(torch.zeros(2)))
    expected, _ = decoder.predict(*step, add_sos=False)
    lstm = decoder.prediction["dec_rnn"].lstm
    hook = lstm.register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(decoder.predict(*step, add_sos=False)[0], expected)
    hook.remove()

    class Counted(torch.nn.LSTM):
        def forward(self, *arguments):
            called.append(2)
            return super().forward(*arguments)

    lstm.__class__ = Counted
    torch.testing.assert_close(decoder.predict(*step, add_sos=False)[0], expected)
    assert called == [1, 2]


@torch.no_grad()
def test_blank_is_zero_with_and_without_a_row_of_its_own():
    torch.manual_seed(0)
    without = RNNTDecoder(SIZES, 5, blank_as_pad=False).eval()
    rows = RNNTDecoder(SIZES, 5).eval()
    weights = without.state_dict()
    weights["prediction.embed.weight"] = torch.cat([weights["prediction.embed.weight"], torch.zeros(1, 12)])
    rows.load_state_dict(weights)
    tokens = torch.tensor([[5, 2, 5, 0], [4, 1, 5, 5]])
    torch.testing.assert_close(without.predict(tokens)[0], rows.predict(tokens)[0])


def test_layer_norms_begin_as_in_nvidias_toolkit_and_carry_the_bias_of_the_forget_gates():
    torch.manual_seed(0)
    decoder = RNNTDecoder({"pred_hidden": 64, "pred_rnn_layers": 1, "forget_gate_bias": 2.0}, 5, "layer")
    cell = decoder.prediction["dec_rnn"].layers[0]["cell"]
    for parameter in cell.parameters():
        assert 0.1 < parameter.detach()[:64].abs().max() <= 1 / 8
    assert cell.layernorm_i.bias[64:128].tolist() == [0.0] * 64
    assert cell.layernorm_h.bias[64:128].tolist() == [2.0] * 64


def test_a_random_initial_state_is_drawn_in_training_alone():
    for mode in (None, "layer", "batch"):
        decoder = RNNTDecoder(SIZES, 5, mode, random_state_sampling=True)
        tokens = torch.tensor([[1, 2], [3, 4]])
        assert not torch.equal(decoder.predict(tokens)[0], decoder.predict(tokens)[0])
        decoder.eval()
        assert torch.equal(decoder.predict(tokens)[0], decoder.predict(tokens)[0])


@pytest.mark.parametrize("mode", ["layer", "batch"])
def test_an_option_that_means_nothing_with_a_norm_is_logged(mode, caplog):
    with caplog.at_level(logging.WARNING):
        RNNTDecoder({**SIZES, "t_max": 50, "weights_init_scale": 1.0}, 5, mode)
    assert [record.getMessage() for record in caplog.records] == [
        f"prednet.t_max: 50 means nothing with normalization_mode {mode}"
    ]


@pytest.mark.parametrize(
    ("prednet", "mode", "message"),
    [
        ({}, "instance", "normalization_mode: 'instance' must be layer, batch or null"),
        ({"dropout": 0.2}, "layer", "prednet.dropout: 0.2 must be 0 with normalization_mode layer"),
        ({"rnn_hidden_size": 20}, "layer", "prednet.rnn_hidden_size: 20 must be pred_hidden 12, or -1 for it, with"),
        ({"rnn_hidden_size": 20}, "batch", "prednet.rnn_hidden_size: 20 must be pred_hidden 12, or -1 for it, with"),
        ({"rnn_hidden_size": 8}, None, "prednet.rnn_hidden_size: 8 must be at least pred_hidden 12"),
    ],
)
def test_an_option_that_a_stack_cannot_have_is_named(prednet, mode, message):
    with pytest.raises(ValueError, match=message):
        RNNTDecoder({**SIZES, **prednet}, 5, mode)
