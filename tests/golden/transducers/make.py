"""Writes this folder's files; run by the Python of an environment with nemo_toolkit 3.0.0.

/path/to/its/python make.py [folder to write to]
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from nemo.collections.asr.losses.rnnt_pytorch import MultiblankRNNTLossPytorch, TDTLossPytorch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCModel, EncDecRNNTModel
from nemo.utils import logging as nemo_logging
from omegaconf import OmegaConf

SPEECH = Path(__file__).parents[2] / "data" / "speech" / "en"
CLIPS = {"conf-errormenu": "invalid choice", "vm-Family": "family"}
LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]
MODULES = "nemo.collections.asr.modules."
DURATIONS = {"durations": [0, 1, 2, 3, 4], "big_blank_durations": [2, 4]}

FRONT_END = {
    "_target_": MODULES + "AudioToMelSpectrogramPreprocessor",
    "sample_rate": 8000,
    "window_size": 0.025,
    "window_stride": 0.01,
    "features": 24,
    "n_fft": 256,
    "dither": 0.0,
    "pad_to": 0,
}
BLOCK = {"repeat": 1, "dilation": [1], "dropout": 0.0, "residual": True, "separable": True, "se": True}
BLOCK |= {"filters": 16, "kernel": [5], "stride": [1], "se_context_size": -1}
HALVING = {"stride": [2], "stride_last": True, "residual_mode": "stride_add", "repeat": 2}
LAST = {"residual": False, "kernel": [1], "filters": 24}
CONTEXTNET = {
    "_target_": MODULES + "ConvASREncoder",
    "feat_in": 24,
    "activation": "swish",
    "conv_mask": True,
    "jasper": [
        {**BLOCK, "residual": False},
        {**BLOCK, **HALVING},
        {**BLOCK, **HALVING, "kernel": [7]},
        {**BLOCK, **LAST},
    ],
}
CONFORMER = {
    "_target_": MODULES + "ConformerEncoder",
    "feat_in": 24,
    "n_layers": 1,
    "d_model": 16,
    "subsampling": "dw_striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "ff_expansion_factor": 2,
    "n_heads": 2,
    "conv_kernel_size": 5,
}
STREAMING = {
    "causal_downsampling": True,
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
    "att_context_style": "chunked_limited",
    "att_context_size": [[8, 3], [8, 1]],
}
STATELESS = {
    "_target_": MODULES + "StatelessTransducerDecoder",
    "context_size": 2,
    "normalization_mode": "layer",
    "prednet": {"pred_hidden": 16},
}
LSTM = {"_target_": MODULES + "RNNTDecoder", "prednet": {"pred_hidden": 16, "pred_rnn_layers": 1, "dropout": 0.2}}
HEAD = {
    "_target_": MODULES + "ConvASRDecoder",
    "feat_in": None,
    "num_classes": -1,
    "vocabulary": LABELS,
}
CASES: dict[str, Any] = {
    "contextnet_stateless": {"encoder": CONTEXTNET, "decoder": STATELESS, "loss": "warprnnt_numba"},
    "hybrid_tdt": {"encoder": CONFORMER, "decoder": LSTM, "loss": "tdt", "aux_ctc": {"decoder": HEAD}},
    "streaming_multiblank": {
        "encoder": {**CONFORMER, **STREAMING},
        "decoder": STATELESS,
        "loss": "multiblank_rnnt",
        "preprocessor": {**FRONT_END, "normalize": "NA"},
    },
}


def config_of(case: dict[str, Any]) -> dict[str, Any]:
    """The `model` section of a case."""
    key = {"tdt": "durations", "multiblank_rnnt": "big_blank_durations"}.get(case["loss"])
    extra: dict[str, Any] = {key: DURATIONS[key]} if key else {}
    kinds = {"tdt": "tdt", "multiblank_rnnt": "multiblank"}
    joint = {"joint_hidden": 20, "activation": "tanh", "dropout": 0.1}
    return {
        "sample_rate": 8000,
        "labels": LABELS,
        "model_defaults": {"enc_hidden": case["encoder"].get("d_model", 24), "pred_hidden": 16, "joint_hidden": 20},
        "preprocessor": FRONT_END,
        "joint": {
            "_target_": MODULES + "RNNTJoint",
            "jointnet": joint,
            "num_extra_outputs": len(DURATIONS[key]) if key else 0,
        },
        "validation_ds": {"manifest_filepath": None, "shuffle": False},
        **copy.deepcopy(case),
        "loss": {"loss_name": case["loss"], f"{case['loss']}_kwargs": {**extra, **({"sigma": 0.05} if key else {})}},
        "decoding": {
            # the search for batches would look, for an utterance, where the big blanks of the others lead
            "strategy": "greedy" if case["loss"] == "multiblank_rnnt" else "greedy_batch",
            "greedy": {"max_symbols": 4},
            **extra,
            **({"model_type": kinds[case["loss"]]} if key else {}),
        },
    }


def shake(model: torch.nn.Module) -> None:
    """Weights and statistics that no initialisation would give."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if "embed" not in name and parameter.std(unbiased=False) < 1e-6:
            parameter.data += 0.1 * torch.randn_like(parameter)


def centre(linear: torch.nn.Module, outputs: torch.Tensor, scale: float) -> None:
    """Brings the outputs (..., D) of a last layer to mean 0 and the scale, so that none is always the best."""
    outputs = outputs.flatten(0, -2)
    factor = scale / (outputs - outputs.mean(0)).std()
    linear.weight.data *= factor
    linear.bias.data = (linear.bias.data - outputs.mean(0)) * factor


def balance(linear: torch.nn.Module, outputs: torch.Tensor) -> None:
    """Lets blank, the last of the outputs (..., V), be the best about as often as not, and nowhere by a hair."""
    ahead = outputs[..., :-1].amax(-1) - outputs[..., -1]
    linear.bias.data[outputs.shape[-1] - 1] += ahead.median() - 0.2


def calibrate(model: Any, signal: torch.Tensor, signal_len: torch.Tensor) -> None:
    """Makes the greedy outputs vary: tokens at about half of the frames."""
    joint, blank = model.joint, len(LABELS)
    encoded, encoded_len = model(input_signal=signal, input_signal_length=signal_len)
    encoded = torch.cat([row[:, :length] for row, length in zip(encoded, encoded_len, strict=True)], dim=1)[None]
    f = encoded.transpose(1, 2)
    tokens = torch.randint(0, blank, (1, 40))
    g, _ = model.decoder.predict(tokens)
    g = torch.cat([g, g[:, :1].expand(-1, 40, -1)], dim=1)  # the start, as often as all tokens
    centre(joint.enc, joint.enc(f), 1.5)
    centre(joint.pred, joint.pred(g), 0.8)
    hidden = joint.project_encoder(f).unsqueeze(2) + joint.project_prednet(g).unsqueeze(1)
    centre(joint.joint_net[-1], joint.joint_net(hidden), 2.0)
    balance(joint.joint_net[-1], joint.joint_net(hidden)[..., : blank + 1])
    if hasattr(model, "ctc_decoder"):
        layer = model.ctc_decoder.decoder_layers[0]
        centre(layer, layer(encoded).transpose(1, 2), 3.0)
        balance(layer, layer(encoded).transpose(1, 2))


def spoken(model: Any, hypotheses: list[Any]) -> list[dict[str, Any]]:
    """What hypotheses hold; the text of all tokens, of which NVIDIA's leaves some out in characters with durations."""
    found = []
    for hypothesis in hypotheses:
        ids = [int(token) for token in hypothesis.y_sequence]
        times = [int(frame) for frame in hypothesis.timestamp]
        text = "".join(LABELS[token] for token in ids)
        found.append({"ids": ids, "frames": times, "score": float(hypothesis.score), "text": text})
    return found


def outputs_of(model: Any, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every stage's output."""
    found: dict[str, torch.Tensor] = {}
    signal, signal_len = arrays["signal"], arrays["signal_len"]
    targets, target_len = arrays["targets"], arrays["target_len"]
    with torch.no_grad():
        found["features"], found["features_len"] = model.preprocessor(input_signal=signal, length=signal_len)
        sizes = {"processed_signal": found["features"], "processed_signal_length": found["features_len"]}
        found["encoded"], found["encoded_len"] = model(**sizes)
        found["encoded"] = found["encoded"][:, :, : int(found["encoded_len"].max())]
        found["predicted"], *_ = model.decoder(targets=targets, target_length=target_len)
        model.joint.log_softmax = False
        scores = model.joint(encoder_outputs=found["encoded"], decoder_outputs=found["predicted"])
        found["scores"] = scores[:, :6, :3]
        lengths = {"input_lengths": found["encoded_len"], "target_lengths": target_len}
        model.loss.reduction = None
        found["loss"] = model.loss(log_probs=scores, targets=targets, **lengths)
        model.joint.log_softmax = None
        if hasattr(model, "ctc_decoder"):
            found["ctc_log_probs"] = model.ctc_decoder(encoder_output=found["encoded"])
            found["ctc_loss"] = model.ctc_loss(log_probs=found["ctc_log_probs"], targets=targets, **lengths)
    return found


def use_loss_of_torch(model: Any, name: str) -> None:
    """Two of NVIDIA's losses run on GPUs alone; its slow ones in torch stand in, one of them without its `.cuda()`."""
    blank = model.loss._blank
    if name == "tdt":
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign,assignment]
        model.loss._loss = TDTLossPytorch(blank, DURATIONS["durations"], reduction="none", sigma=0.05)
    if name == "multiblank_rnnt":
        big = DURATIONS["big_blank_durations"]
        model.loss._loss = MultiblankRNNTLossPytorch(blank, big, reduction="none", sigma=0.05)


def make(name: str, case: dict[str, Any], folder: Path) -> None:
    """Writes the model of a case, and what it says."""
    torch.manual_seed(1)
    signals = [torch.from_numpy(soundfile.read(SPEECH / f"{clip}.flac", dtype="float32")[0]) for clip in CLIPS]
    texts = [torch.tensor([LABELS.index(letter) for letter in text[:5]]) for text in CLIPS.values()]
    arrays = {
        "signal": torch.nn.utils.rnn.pad_sequence(signals, batch_first=True),
        "signal_len": torch.tensor([len(signal) for signal in signals]),
        "targets": torch.stack(texts),
        "target_len": torch.tensor([5, 4]),
    }
    kind = EncDecHybridRNNTCTCModel if "aux_ctc" in case else EncDecRNNTModel
    model = kind(cfg=OmegaConf.create(config_of(case))).eval()
    with torch.no_grad():
        shake(model)
        calibrate(model, arrays["signal"], arrays["signal_len"])
    model.save_to(str(folder / f"{name}.nemo"))
    model = ASRModel.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    use_loss_of_torch(model, case["loss"])
    arrays |= outputs_of(model, arrays)
    decoded = model.decoding.rnnt_decoder_predictions_tensor(arrays["encoded"], arrays["encoded_len"], True)
    said = {"greedy": spoken(model, decoded)}
    clips = [str(SPEECH / f"{clip}.flac") for clip in CLIPS]
    said["transcribe"] = spoken(model, model.transcribe(clips, return_hypotheses=True, verbose=False))
    if case["loss"] != "tdt":  # where NVIDIA's fails on tokens that it leaves out of the text
        timed = model.transcribe(clips, timestamps=True, verbose=False)
        said["timestamps"] = [{key: list(value) for key, value in one.timestamp.items()} for one in timed]
    if "aux_ctc" in case:
        model.change_decoding_strategy(decoder_type="ctc", verbose=False)
        said["ctc"] = [hypothesis.text for hypothesis in model.transcribe(clips, verbose=False)]
    del arrays["signal"]  # the clips are in the repository
    np.savez_compressed(folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
    (folder / f"{name}.json").write_text(json.dumps(said, default=int) + "\n")


def main() -> None:
    logging.disable(logging.WARNING)
    nemo_logging.setLevel(logging.ERROR)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, case in CASES.items():
        make(name, case, folder)


if __name__ == "__main__":
    main()
