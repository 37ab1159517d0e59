"""Files saved by NVIDIA's toolkit, restored here: every stage equals what that toolkit computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_asr import load_model
from nemo_asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo_asr.networks import CtcNetwork

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("quartznet_ctc_char", "conformer_ctc_bpe", "fastconformer_ctc_bpe")
FILES = [(case, path.name) for case in CASES for path in sorted((GOLDEN / case).glob("*.nemo"))]


class Case:
    """A golden case: its model, inputs and expected outputs."""

    def __init__(self, name: str, file: str = "model.nemo") -> None:
        self.path = GOLDEN / name / file
        self.meta = json.loads((GOLDEN / name / "meta.json").read_text())
        with np.load(GOLDEN / name / "io.npz") as arrays:
            self.io = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    @property
    def audio(self) -> list[torch.Tensor]:
        return [row[:n] for row, n in zip(self.io["in_audio"], self.io["in_audio_length"], strict=True)]

    def assert_close(self, name: str, found: torch.Tensor, length: torch.Tensor, atol: float, time: int) -> None:
        """Compares inside the valid lengths; `time` is the time axis."""
        expected = self.io[name]
        frames = min(expected.shape[time], found.shape[time])
        valid = torch.arange(frames)[None] < length[:, None]
        found, expected = (x.narrow(time, 0, frames).movedim(time, 1)[valid] for x in (found, expected))
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3)


@pytest.fixture(params=FILES, ids=lambda file: "/".join(file))
def case(request):
    return Case(*request.param)


def test_every_stage_of_a_restored_model_equals_nvidias(case):
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    expected_class = EncDecCTCModelBPE if "bpe" in case.path.parent.name else EncDecCTCModel
    assert type(model) is expected_class
    io = case.io
    with torch.inference_mode():
        features, features_len = model.preprocessor(input_signal=io["in_audio"], length=io["in_audio_length"])
        assert features_len.tolist() == io["processed_signal_length"].tolist()
        case.assert_close("processed_signal", features, features_len, 5e-3, time=2)
        stored = {"audio_signal": io["processed_signal"], "length": io["processed_signal_length"]}
        encoded, encoded_len = model.encoder(**stored)
        assert encoded_len.tolist() == io["encoded_length"].tolist()
        case.assert_close("encoded", encoded, encoded_len, 2e-4, time=2)
        log_probs = model.decoder(encoder_output=encoded)
        case.assert_close("log_probs", log_probs, encoded_len, 2e-4, time=1)
        whole, whole_len, ids = model(input_signal=io["in_audio"], input_signal_length=io["in_audio_length"])
        assert whole_len.tolist() == encoded_len.tolist()
        valid = torch.arange(ids.shape[1])[None] < encoded_len[:, None]
        frames = min(ids.shape[1], io["predictions"].shape[1])
        assert torch.equal(ids[:, :frames][valid[:, :frames]], io["predictions"][:, :frames][valid[:, :frames]])
        assert whole.shape[2] == model.tokenizer.vocab_size + 1


def test_the_ctc_loss_equals_nvidias(case):
    model = ASRModel.restore_from(case.path, map_location="cpu").eval()
    io = case.io
    arguments = {
        "log_probs": io["log_probs"],
        "targets": io["in_targets"],
        "input_lengths": io["encoded_length"],
        "target_lengths": io["in_target_length"],
    }
    reduction = model.cfg.get("ctc_reduction", "mean_batch")
    torch.testing.assert_close(model.loss(**arguments), io[f"ctc_loss_{reduction}"][0], atol=2e-4, rtol=1e-4)
    model.loss.reduction = "none"
    torch.testing.assert_close(model.loss(**arguments), io["ctc_loss_none"], atol=5e-4, rtol=1e-4)


def test_transcripts_equal_nvidias(case):
    network = load_model(case.path)
    assert type(network) is CtcNetwork and not network.training
    assert network.transcribe(case.audio, batch_size=3, verbose=False) == case.meta["transcribe"]
    one_by_one = network.transcribe(case.audio, batch_size=1, verbose=False)
    assert one_by_one == case.meta["transcribe"], "the text must not depend on the batch"


def test_timestamps_equal_nvidias(case):
    hypotheses = load_model(case.path).transcribe(case.audio, timestamps=True, verbose=False)
    for found, expected in zip(hypotheses, case.meta["transcribe_timestamps"], strict=True):
        assert found.text == expected["text"]
        for kind in ("timestep", "char", "word", "segment"):
            assert list(found.timestamp[kind]) == expected["timestamp"][kind], kind
        assert found.score == pytest.approx(expected["score"], abs=1e-2)
