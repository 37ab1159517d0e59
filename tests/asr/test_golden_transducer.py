"""Transducers and hybrids saved by NVIDIA's toolkit, restored here: every stage equals what that toolkit computed."""

from __future__ import annotations

import pytest
import torch

from nemo_asr import load_model
from nemo_asr.losses.rnnt import RNNTLoss
from nemo_asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel, EncDecRNNTModel
from nemo_asr.networks import HybridNetwork, TransducerNetwork

CASES = {
    "fastconformer_rnnt_bpe": EncDecRNNTBPEModel,
    "conformer_rnnt_char": EncDecRNNTModel,
    "fastconformer_hybrid_tdt_ctc_bpe": EncDecHybridRNNTCTCBPEModel,
    "fastconformer_hybrid_streaming_bpe": EncDecHybridRNNTCTCBPEModel,
}
HYBRIDS = [name for name, kind in CASES.items() if kind is EncDecHybridRNNTCTCBPEModel]


def audio_of(case):
    return [row[:length] for row, length in zip(case.io["in_audio"], case.io["in_audio_length"], strict=True)]


@pytest.fixture(params=CASES)
def case(request, golden):
    return golden(request.param)


def test_every_stage_of_a_restored_model_equals_nvidias(case, equal_when_valid):
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    assert type(model) is CASES[case.path.parent.name]
    io = case.io
    with torch.inference_mode():
        features, features_len = model.preprocessor(input_signal=io["in_audio"], length=io["in_audio_length"])
        frames = io["processed_signal"].shape[2]
        equal_when_valid(features[:, :, :frames], io["processed_signal"], features_len, 5e-3)
        stored = {"processed_signal": io["processed_signal"], "processed_signal_length": io["processed_signal_length"]}
        encoded, encoded_len = model(**stored)
        assert encoded_len.tolist() == io["encoded_length"].tolist()
        equal_when_valid(encoded, io["encoded"], encoded_len, 2e-4)
        predicted, _, _ = model.decoder(targets=io["in_targets"], target_length=io["in_target_length"])
        torch.testing.assert_close(predicted, io["decoder_out"], atol=2e-6, rtol=0)
        hypotheses = model.decoding(io["encoded"], io["encoded_length"], timestamps=False)
    for row, (hypothesis, expected) in enumerate(zip(hypotheses, case.meta["greedy_hypotheses"], strict=True)):
        count = int(io["greedy_ids_length"][row])
        assert hypothesis.tokens == io["greedy_ids"][row, :count].tolist()
        assert hypothesis.timestamp == io["greedy_timestep"][row, :count].tolist()
        assert hypothesis.text == expected["text"]
        assert hypothesis.score == pytest.approx(expected["score"], abs=1e-2)


@pytest.mark.parametrize(
    "name", ["fastconformer_rnnt_bpe", "conformer_rnnt_char", "fastconformer_hybrid_streaming_bpe"]
)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean_batch", "mean_volume"])
def test_the_rnnt_loss_equals_nvidias(golden, name, reduction):
    case = golden(name)
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    loss = RNNTLoss(model.loss.blank)  # the stored losses are without the config's FastEmit
    assert_losses(model, loss, reduction, case.io, case.io[f"rnnt_loss_{reduction}"])


@pytest.mark.parametrize("sigma", [0, 0.02])
def test_the_tdt_loss_equals_nvidias(golden, sigma):
    case = golden("fastconformer_hybrid_tdt_ctc_bpe")
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    options = {"durations": case.meta["spec"]["tdt"]["durations"], "sigma": sigma}
    loss = RNNTLoss(model.tokenizer.vocab_size, loss_name="tdt", loss_kwargs=options)
    assert_losses(model, loss, "none", case.io, case.io[f"tdt_loss_none_sigma{sigma}"])


def assert_losses(model, loss, reduction, io, expected):
    """The loss from the joint's scores, from its inputs at once, and from its inputs in tiles."""
    loss.reduction = reduction
    lengths = (io["in_targets"], io["encoded_length"], io["in_target_length"])
    inputs = (io["encoded"], io["decoder_out"])
    with torch.no_grad():
        model.joint.fuse_loss_wer = False
        found = loss(model.joint(*inputs)[:, : int(lengths[1].max())], *lengths)
        held = loss.of_joint(model.joint, *inputs, *lengths)
    tiled = loss.of_joint(model.joint, *inputs, *lengths, scores_to_hold=0)
    for value in (found, held, tiled):
        torch.testing.assert_close(value.detach().reshape(expected.shape), expected, atol=1e-3, rtol=1e-5)


def test_transcripts_equal_nvidias(case):
    network = load_model(case.path)
    expected_class = HybridNetwork if case.path.parent.name in HYBRIDS else TransducerNetwork
    assert type(network) is expected_class and not network.training
    assert network.transcribe(audio_of(case), batch_size=3, verbose=False) == case.meta["transcribe"]
    one_by_one = network.transcribe(audio_of(case), batch_size=1, verbose=False)
    assert one_by_one == case.meta["transcribe"], "the text must not depend on the batch"


def test_timestamps_equal_nvidias(case):
    hypotheses = load_model(case.path).transcribe(audio_of(case), timestamps=True, verbose=False)
    for found, expected in zip(hypotheses, case.meta["transcribe_timestamps"], strict=True):
        assert found.text == expected["text"]
        for kind in ("timestep", "char", "word", "segment"):
            assert list(found.timestamp[kind]) == expected["timestamp"][kind], kind
        assert found.token_duration == expected.get("token_duration")
        assert found.score == pytest.approx(expected["score"], abs=1e-2)


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_ctc_head_of_a_hybrid_equals_nvidias(golden, name):
    case = golden(name)
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    with torch.inference_mode():
        log_probs = model.ctc_decoder(encoder_output=case.io["encoded"])
    torch.testing.assert_close(log_probs, case.io["aux_log_probs"], atol=2e-4, rtol=0)
    loss = model.ctc_loss(log_probs, case.io["in_targets"], case.io["encoded_length"], case.io["in_target_length"])
    torch.testing.assert_close(loss, case.io["aux_ctc_loss_mean_batch"][0], atol=2e-4, rtol=1e-4)
    model.change_decoding_strategy(decoder_type="ctc", verbose=False)
    assert model.transcribe(audio_of(case), verbose=False) == case.meta["transcribe_ctc"]
    for found, expected in zip(
        model.transcribe(audio_of(case), timestamps=True, verbose=False),
        case.meta["transcribe_ctc_timestamps"],
        strict=True,
    ):
        assert found.timestamp["word"] == expected["timestamp"]["word"]
    model.change_decoding_strategy(decoder_type="rnnt", verbose=False)
    assert model.transcribe(audio_of(case), verbose=False) == case.meta["transcribe"]
