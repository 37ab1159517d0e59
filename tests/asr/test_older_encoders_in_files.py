"""Models with the older encoders: saved under NVIDIA's names, restored with the same outputs."""

from __future__ import annotations

import pytest
import torch

from nemo_archive import open_archive
from nemo_asr import load_model
from nemo_asr.models import EncDecCTCModel

NVIDIA = "nemo.collections.asr.modules"
MEL = {"_target_": f"{NVIDIA}.AudioToMelSpectrogramPreprocessor", "features": 8, "dither": 0.0}
LAYERS = [{"emb_dim": 8, "kernel_size": 10, "stride": 80}, {"emb_dim": 8, "kernel_size": 3, "stride": 4}]
BLOCK = {"filters": 8, "repeat": 1, "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False}
TOWERS = {"activation": "relu", "jasper": [BLOCK | {"kernel": [3, 5]}]}
LSTM = {"n_layers": 1, "d_model": 12, "proj_size": 8, "subsampling": "stacking"}
SECTIONS = {
    f"{NVIDIA}.ParallelConvASREncoder": (MEL, {"feat_in": 8, **TOWERS}),
    f"{NVIDIA}.RNNEncoder": (MEL, {"feat_in": 8, **LSTM}),
    f"{NVIDIA}.SqueezeformerEncoder": (MEL, {"feat_in": 8, "n_layers": 2, "d_model": 8, "time_reduce_idx": 0}),
    f"{NVIDIA}.wav2vec_modules.Wav2VecTransformerEncoder": (
        {"_target_": f"{NVIDIA}.wav2vec_modules.ConvFeatureEncoder", "conv_layers": LAYERS, "embedding_dim": 8},
        {
            "pos_embed": {"embedding_dim": 8, "conv_pos": 4, "conv_pos_groups": 2},
            "transformer": {"num_layers": 1, "hidden_size": 8, "inner_size": 16},
        },
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("target", SECTIONS)
def test_a_saved_model_names_nvidias_classes_and_gives_the_same_outputs(target, tmp_path):
    preprocessor, encoder = SECTIONS[target]
    model = EncDecCTCModel({
        "sample_rate": 16000,
        "labels": ["a", "b", " "],
        "preprocessor": preprocessor,
        "encoder": {"_target_": target, **encoder},
        "decoder": {"_target_": f"{NVIDIA}.ConvASRDecoder", "feat_in": 8, "num_classes": 3, "vocabulary": []},
    }).eval()  # fmt: skip
    model.save_to(tmp_path / "model.nemo")
    with open_archive(tmp_path / "model.nemo") as archive:
        config = archive.config()
    assert config["encoder"]["_target_"] == target
    assert config["preprocessor"]["_target_"] == preprocessor["_target_"]
    signal, signal_len = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    expected, expected_len, _ = model(input_signal=signal, input_signal_length=signal_len)
    network = load_model(tmp_path / "model.nemo")
    found, found_len, _ = network(input_signal=signal, input_signal_length=signal_len)
    torch.testing.assert_close(found, expected)
    assert found_len.tolist() == expected_len.tolist()
