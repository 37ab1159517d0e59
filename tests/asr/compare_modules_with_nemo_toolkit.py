"""Front ends and encoders with many options, beside NVIDIA's nemo_toolkit in its own environment.

    NEMO_TOOLKIT_PYTHON=/path/to/its/python NEMO_SOURCE=/path/to/NeMo \\
        python tests/asr/compare_modules_with_nemo_toolkit.py [random cases]

NVIDIA's side builds each module, shakes every weight and statistic, and stores state dict and outputs, in eval and
in training mode (there with the gradient of the input); ours loads that state dict strictly and must agree. Not
part of the tests, since it needs that toolkit (pip install 'nemo_toolkit[asr]==3.0.0'). What 3.0.0 no longer has
(Squeezeformer) or can no longer import (wav2vec) is loaded from a checkout of NVIDIA/NeMo from September 2025, and left
out without one.

    ... compare_modules_with_nemo_toolkit.py --write tests/golden/encoders NAME ...

also keeps the named cases' options, weights, inputs and outputs, which tests compare with where there is no toolkit.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_asr import modules

PLAIN = {"filters": 32, "repeat": 1, "kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False}
STRIDED = {**PLAIN, "repeat": 3, "kernel": [11], "stride": [2], "residual": True, "stride_last": True}
SEPARABLE = {**PLAIN, "separable": True, "residual": True, "repeat": 2}
CITRINET = {**SEPARABLE, "se": True, "se_context_size": -1, "kernel_size_factor": 0.5, "kernel": [13]}
DENSE = {**PLAIN, "repeat": 2, "residual": True, "residual_dense": True}


def encoder(*blocks: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "class": "ConvASREncoder",
        "options": {"jasper": list(blocks), "activation": "relu", "feat_in": 24} | options,
    }


def front_end(**options: Any) -> dict[str, Any]:
    return {"class": "AudioToMelSpectrogramPreprocessor", "options": {"dither": 0.0, **options}}


def carnelinet(*blocks: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**encoder(*blocks, **options), "class": "ParallelConvASREncoder"}


def rnn(**options: Any) -> dict[str, Any]:
    sizes = {"feat_in": 24, "n_layers": 2, "d_model": 20, "proj_size": 16, "dropout": 0.0}
    return {"class": "RNNEncoder", "options": sizes | options}


def squeezeformer(**options: Any) -> dict[str, Any]:
    sizes = {"feat_in": 24, "n_layers": 3, "d_model": 16, "conv_kernel_size": 7, "dropout": 0.0, "dropout_emb": 0.0}
    sizes |= {"ff_expansion_factor": 2}
    return {"class": "SqueezeformerEncoder", "options": sizes | options}


def wav2vec(transformer: dict[str, Any] | None = None, **positions: Any) -> dict[str, Any]:
    sizes = {"num_layers": 2, "hidden_size": 24, "inner_size": 40, "num_attention_heads": 4}
    sizes |= {"hidden_act": "gelu", "attn_layer_dropout": 0.0}
    pos_embed = {"embedding_dim": 24, "conv_pos": 16, "conv_pos_groups": 4, **positions}
    options = {"pos_embed": pos_embed, "transformer": sizes | (transformer or {})}
    return {"class": "Wav2VecTransformerEncoder", "options": options}


def waveform(**options: Any) -> dict[str, Any]:
    layers = [(16, 10, 5), (16, 3, 2), (24, 3, 2), (24, 2, 2)]
    conv_layers = [dict(zip(("emb_dim", "kernel_size", "stride"), layer, strict=True)) for layer in layers]
    return {"class": "ConvFeatureEncoder", "options": {"conv_layers": conv_layers, "embedding_dim": 20, **options}}


TOWERS = {**SEPARABLE, "kernel": [5, 7, 11]}
TOWER_DROPOUT = {"aggregation_mode": "dropout", "block_dropout": 0.5}
OLDER = ("SqueezeformerEncoder", "Wav2VecTransformerEncoder", "ConvFeatureEncoder")
CASES = {
    "carnelinet": carnelinet(
        {**SEPARABLE, "residual": False, "repeat": 1, "se": True},
        {**SEPARABLE, "stride": [2], "stride_last": True, "residual_mode": "stride_add", "se": True},
        {**TOWERS, "se": True, "se_context_size": -1},
        {**PLAIN, "filters": 40, "kernel": [11], "separable": True},
        activation="swish", init_mode="tds_uniform",
    ),
    "towers, input convolved": carnelinet(PLAIN, {**TOWERS, "filters": 40, "parallel_residual_mode": "conv"}),
    "towers, some left out": {**carnelinet(PLAIN, {**TOWERS, **TOWER_DROPOUT}), "random_in_training": True},
    "towers of the same kernel": carnelinet(PLAIN, {**TOWERS, "kernel": [7, 7]}, {**TOWERS, "kernel": [3]}),
    "towers without masks": carnelinet(PLAIN, TOWERS, conv_mask=False),
    "lstm": rnn(subsampling="stacking"),
    "lstm, one direction": rnn(subsampling="stacking_norm", bidirectional=False, subsampling_factor=3),
    "lstm after convolutions": rnn(subsampling="striding", subsampling_conv_channels=8),
    "lstm without subsampling": rnn(subsampling=None),
    "squeezeformer": squeezeformer(time_reduce_idx=1),
    "squeezeformer, all frames": squeezeformer(subsampling="striding", feat_out=20),
    "squeezeformer, recovery": squeezeformer(time_reduce_idx=0, time_recovery_idx=2, adaptive_scale=False),
    "squeezeformer, absolute": squeezeformer(time_reduce_idx=2, self_attention_model="abs_pos", xscaling=False),
    "squeezeformer, window": squeezeformer(time_reduce_idx=1, att_context_size=[5, 2], untie_biases=False),
    "squeezeformer, layer norm": squeezeformer(time_reduce_idx=1, conv_norm_type="layer_norm"),
    "squeezeformer, stacking": squeezeformer(subsampling="stacking", subsampling_factor=2, time_reduce_idx=1),
    "wav2vec": wav2vec(),
    "wav2vec, odd kernel": wav2vec(conv_pos=9, conv_pos_groups=1),
    "wav2vec, norms first": wav2vec({"pre_ln": True, "hidden_act": "relu"}),
    "waveform": waveform(),
    "waveform, one norm": waveform(extractor_mode="group_norm", conv_bias=True),
    "waveform, as it is": waveform(normalize_audio=False, embedding_dim=24),
    "waveform, smaller gradient": waveform(feature_grad_mult=0.1),
    "waveform, frozen": waveform(feature_grad_mult=0.0),
    "citrinet": encoder(
        {**PLAIN, "separable": True, "se": True},
        {**CITRINET, "stride": [2], "stride_last": True, "residual_mode": "stride_add", "repeat": 3},
        CITRINET,
        {**CITRINET, "se_context_size": 256, "filters": 48, "se_reduction_ratio": 4},
        {**PLAIN, "filters": 40, "kernel": [41], "separable": True, "se": True, "kernel_size_factor": 0.25},
    ),
    "limited squeeze": {**encoder(*[{**CITRINET, "se_context_size": 8}] * 2), "random_in_training": True},
    "stride in every repeat": encoder({**SEPARABLE, "stride": [2], "repeat": 2, "residual": False}, SEPARABLE),
    "stride_add without squeeze": encoder({**STRIDED, "residual_mode": "stride_add"}, SEPARABLE),
    "sticky max": encoder({**SEPARABLE, "residual_mode": "max"}, SEPARABLE, {**SEPARABLE, "filters": 20}),
    "jasper": encoder({**PLAIN, "stride": [2]}, {**PLAIN, "residual": True, "repeat": 3}, {**PLAIN, "dilation": [2]}),
    "jasper dense": encoder({**PLAIN, "stride": [2]}, *[{**DENSE, "filters": n} for n in (32, 40, 48)], PLAIN),
    "grouped": encoder({**PLAIN, "groups": 4}, {**SEPARABLE, "groups": 8, "repeat": 3}, {**PLAIN, "groups": 2}),
    "heads": encoder({**SEPARABLE, "heads": 8}, {**SEPARABLE, "heads": 4}),
    "future context": encoder(
        {**SEPARABLE, "kernel": [9], "future_context": 2},
        {**SEPARABLE, "kernel": [3], "future_context": 5},
        {**PLAIN, "kernel": [9], "future_context": 0, "stride": [2]},
        {**PLAIN, "kernel": [5], "future_context": 1, "dilation": [3]},
    ),
    "even kernel": encoder({**SEPARABLE, "kernel": [8]}, {**SEPARABLE, "kernel": [1], "kernel_size_factor": 0.1}),
    "frame splicing": encoder(PLAIN, frame_splicing=3),
    "layer norm": encoder(*[SEPARABLE] * 2, normalization_mode="layer"),
    "instance norm": encoder(*[SEPARABLE] * 2, normalization_mode="instance"),
    "group norm": encoder(*[SEPARABLE] * 2, normalization_mode="group", norm_groups=8),
    "group norm by default": encoder(*[SEPARABLE] * 2, normalization_mode="group"),
    "no masks": encoder({**PLAIN, "stride": [2]}, {**CITRINET, "groups": 2}, conv_mask=False),
    "whole max": encoder(*[SEPARABLE] * 2, residual_mode="max"),
    **{
        f"activation {name}": encoder(*[CITRINET] * 2, activation=name)
        for name in ("hardtanh", "selu", "swish", "silu", "gelu", "identity")
    },
    "head": {"class": "ConvASRDecoder", "options": {"feat_in": 24, "num_classes": 9}},
    "head without blank": {
        "class": "ConvASRDecoder",
        "options": {"feat_in": 24, "num_classes": -1, "vocabulary": ["a", "b", "c"], "add_blank": False},
    },
    "front end": front_end(),
    "front end 80": front_end(features=80, window_size=0.025, n_fft=512, pad_to=0),
    "front end all features": front_end(normalize="all_features", window="hamming", pad_value=-3.0),
    "front end without normalisation": front_end(normalize="NA", window="blackman", frame_splicing=2),
    "front end of synthesis": front_end(
        sample_rate=22050, n_window_size=1024, n_window_stride=256, window_size=False, window_stride=False,
        n_fft=1024, highfreq=8000, preemph=None, mag_power=1.0, normalize=None, features=80, pad_to=1,
        log_zero_guard_type="clamp", log_zero_guard_value=1e-05, exact_pad=True, pad_value=-11.52,
    ),
    "front end padded exactly": front_end(exact_pad=True, normalize=None),
    "front end with tiny guard": front_end(log_zero_guard_value="tiny", log_zero_guard_type="clamp", window="bartlett"),
    "front end with eps guard": front_end(log_zero_guard_value="eps", mel_norm=None, lowfreq=100, normalize=None),
    "front end without logarithm": front_end(log=False, mel_norm=1.0, n_fft=400),
    "front end of 8 kHz": front_end(sample_rate=8000, features=40, window_size=0.032, window_stride=0.016),
}  # fmt: skip

THEIRS = """
import importlib.util, json, logging, os, sys, types, numpy, torch
from nemo.utils import logging as nemo_logging
nemo_logging.setLevel(logging.ERROR)
from nemo.collections.asr import modules
from omegaconf import DictConfig

def load(name, path=None):
    if path is None:
        module = types.ModuleType(name)
        module.__path__ = []
    else:
        spec = importlib.util.spec_from_file_location(name, os.path.join(os.environ["NEMO_SOURCE"], path))
        module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if path is not None: spec.loader.exec_module(module)
    return module

if os.environ.get("NEMO_SOURCE"):
    asr, nlp = "nemo.collections.asr.", "nemo.collections.nlp"
    parts = "parts/submodules/"
    for path in (parts + "subsampling", parts + "squeezeformer_modules", "modules/squeezeformer_encoder"):
        name = asr + path.replace("/", ".")
        before = sys.modules.get(name)
        module = load(name, "nemo/collections/asr/" + path + ".py")
        if before is not None: restore = name, before
    sys.modules[restore[0]] = restore[1]
    modules.SqueezeformerEncoder = module.SqueezeformerEncoder
    for package in ("", ".modules", ".modules.common", ".modules.common.transformer"): load(nlp + package)
    folder = "nemo/collections/nlp/modules/common/transformer/"
    load(nlp + ".modules.common.transformer.transformer_modules", folder + "transformer_modules.py")
    encoders = load(nlp + ".modules.common.transformer.transformer_encoders", folder + "transformer_encoders.py")
    sys.modules[nlp + ".modules.common.transformer"].TransformerEncoder = encoders.TransformerEncoder
    module = load(asr + "modules.wav2vec_modules", "nemo/collections/asr/modules/wav2vec_modules.py")
    modules.Wav2VecTransformerEncoder = module.Wav2VecTransformerEncoder
    modules.ConvFeatureEncoder = module.ConvFeatureEncoder

def shake(module):
    for name, parameter in module.named_parameters():
        norm = parameter.dim() == 1 and name.endswith("weight")
        noise = torch.randn_like(parameter)
        parameter.data = 1 + 0.3 * noise if norm else parameter.data + 0.1 * noise
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"): buffer.normal_(std=0.2)
        if name.endswith("running_var"): buffer.uniform_(0.5, 1.5)

for name, case in json.load(open(sys.argv[1])).items():
    torch.manual_seed(0)
    kind = getattr(modules, case["class"])
    module = kind(**(DictConfig(case["options"]) if case["class"].startswith("Wav2Vec") else case["options"])).eval()
    shake(module)
    x, length = torch.tensor(case["x"]), torch.tensor(case["length"])
    found = {"state." + key: value.clone() for key, value in module.state_dict().items()}
    if case["class"].startswith("Audio"):
        found["out"], found["length"] = module(input_signal=x, length=length)
    elif case["class"] == "ConvASRDecoder":
        found["out"], found["length"] = module(encoder_output=x), length
    elif case["class"] == "ConvFeatureEncoder":
        found["out"], found["length"] = module(x.clone(), length)
        (found["out"] ** 2).mean().backward()
        if module.grad_mult: found["gradient"] = module.conv_layers[0][0].weight.grad
    else:
        found["out"], found["length"] = module(audio_signal=x.clone(), length=length)
        x.requires_grad_()
        if case.get("random_in_training"): module.eval()
        else: module.train()
        found["train"], _ = module(audio_signal=x * 1, length=length)
        (found["train"] * torch.arange(found["train"].shape[2]).cos()).square().mean().backward()
        found["gradient"] = x.grad
    numpy.savez(case["file"], **{key: value.detach().numpy() for key, value in found.items()})
"""


def random_encoder(draw: random.Random) -> dict[str, Any]:
    """An encoder that NVIDIA's toolkit can build and run: ways around must end at the length of the convolutions."""
    blocks, reach = [], draw.choice([-1, -1, 1, 3])
    for _ in range(draw.randint(1, 5)):
        residual, stride, repeat = draw.random() < 0.6, draw.choice([1, 1, 2]), draw.randint(1, 3)
        block = {**PLAIN, "repeat": repeat, "residual": residual, "stride": [stride], "kernel": [draw.randint(1, 16)]}
        block |= {"filters": draw.choice([16, 24, 48]), "separable": draw.random() < 0.6, "se": draw.random() < 0.4}
        block |= {"stride_last": residual or draw.random() < 0.5, "kernel_size_factor": draw.choice([1.0, 0.5, 1.5])}
        block |= {"groups": draw.choice([1, 1, 4]), "future_context": reach if repeat == 1 or stride == 1 else -1}
        block |= {"residual_mode": "stride_add" if stride > 1 else draw.choice(["add", "max", "stride_add"])}
        if stride == 1 and reach < 0:
            block["dilation"] = [draw.choice([1, 1, 2, 3])]
        blocks.append(block)
    options = {"normalization_mode": draw.choice(["batch", "batch", "layer", "instance", "group"]), "norm_groups": 4}
    options |= {
        "activation": draw.choice(["relu", "swish", "hardtanh"]),
        "conv_mask": reach >= 0 or draw.random() < 0.8,
    }
    return encoder(*blocks, **options)


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Two or three inputs of different lengths, the padding of audio zero and that of features anything."""
    generator = torch.Generator().manual_seed(1)
    if case["class"].startswith("Audio"):
        length = [6400, 5003, 480]
        x = 0.1 * torch.randn(3, 6400, generator=generator)
        x[torch.arange(6400) >= torch.tensor(length)[:, None]] = 0
        if case["options"].get("preemph", 1) is None:
            x, length = x[:2], length[:2]
        return {"x": x.tolist(), "length": length}
    if case["class"] == "ConvFeatureEncoder":
        return {"x": (0.1 * torch.randn(3, 6400, generator=generator) + 0.02).tolist(), "length": [6400, 5003, 480]}
    options = case["options"]
    width = options["pos_embed"]["embedding_dim"] if "pos_embed" in options else options["feat_in"]
    x = torch.randn(3, width * options.get("frame_splicing", 1), 61, generator=generator)
    return {"x": x.tolist(), "length": [61, 37, 12]}


def compare(case: dict[str, Any], stored: dict[str, np.ndarray]) -> tuple[float, str]:
    """The greatest difference of anything, and what is wrong beside it."""
    module = getattr(modules, case["class"])(**case["options"]).eval()
    state = {key.removeprefix("state."): torch.from_numpy(stored[key]) for key in stored if key.startswith("state.")}
    if list(module.state_dict()) != list(state):
        return float("nan"), "other names of weights, or another order"
    module.load_state_dict(state)
    x, length = torch.tensor(case["x"]), torch.tensor(case["length"])
    if case["class"] == "ConvASRDecoder":
        out, out_len = module(encoder_output=x), length
    else:
        out, out_len = module(x, length)
    found = {"out": out}
    if case["class"] == "ConvFeatureEncoder" and "gradient" in stored:
        out.square().mean().backward()
        found["gradient"] = module.conv_layers[0][0].weight.grad
    if "train" in stored:
        x.requires_grad_()
        found["train"], _ = module.train(not case.get("random_in_training"))(x, length)
        (found["train"] * torch.arange(found["train"].shape[2]).cos()).square().mean().backward()
        found["gradient"] = x.grad
    if out_len.tolist() != stored["length"].tolist():
        return float("nan"), f"lengths {out_len.tolist()} are {stored['length'].tolist()} there"
    for key, value in found.items():
        if tuple(value.shape) != stored[key].shape:
            return float("nan"), f"{key} has shape {tuple(value.shape)}, there {stored[key].shape}"
    differences = {}
    for key, value in found.items():
        greatest = float(abs(stored[key]).max())
        scale = greatest or 1.0 if key == "gradient" else max(1.0, greatest)
        differences[key] = float((value.detach() - torch.from_numpy(stored[key])).abs().max()) / scale
    return max(differences.values()), ", ".join(f"{key} {difference:.1e}" for key, difference in differences.items())


def write(path: Path, case: dict[str, Any], stored: dict[str, np.ndarray]) -> None:
    """Keeps a case: class and options as JSON, input, lengths, weights and what the toolkit made of them."""
    description = json.dumps({"class": case["class"], "options": case["options"]})
    x = np.asarray(case["x"], dtype=np.float32)
    stored["out_length"] = stored.pop("length")
    np.savez_compressed(path, description=description, x=x, length=np.asarray(case["length"]), **stored)


def main() -> int:
    python = os.environ.get("NEMO_TOOLKIT_PYTHON")
    if not python:
        print("set NEMO_TOOLKIT_PYTHON to the Python of an environment with nemo_toolkit 3.0.0", file=sys.stderr)
        return 2
    failed, draw = 0, random.Random(0)
    target = Path(sys.argv[2]) if sys.argv[1:2] == ["--write"] else None
    extra = int(sys.argv[1]) if len(sys.argv) > 1 and target is None else 0
    every = CASES | {f"random {number}": random_encoder(draw) for number in range(extra)}
    if target is not None:
        every = {name: CASES[name] for name in sys.argv[3:]}
    if not os.environ.get("NEMO_SOURCE"):
        every = {name: case for name, case in every.items() if case["class"] not in OLDER}
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            name: {**case, **inputs(case), "file": str(Path(folder) / f"{name}.npz")} for name, case in every.items()
        }
        listing = Path(folder) / "cases.json"
        listing.write_text(json.dumps(cases), encoding="utf-8")
        theirs = subprocess.run([python, "-c", THEIRS, str(listing)], capture_output=True, text=True, check=False)
        if theirs.returncode:
            print(theirs.stderr[-4000:], file=sys.stderr)
            return 2
        for name, case in cases.items():
            tolerance = 5e-3 if case["class"].startswith("Audio") else 1e-4
            with np.load(case["file"]) as stored:
                difference, remark = compare(case, dict(stored))
                if target is not None:
                    write(target / f"{name.replace(',', '').replace(' ', '_')}.npz", case, dict(stored))
            good = difference < tolerance
            failed += not good
            print(f"{'ok  ' if good else 'BAD '} {name:32} {difference:.1e}  {remark}")
    print(f"{len(every) - failed} of {len(every)} agree")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
