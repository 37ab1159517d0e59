"""Writes this folder's files; run by the Python of an environment with nemo_toolkit 3.0.0.

/path/to/its/python make.py [folder to write to]
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.modules import RNNTDecoder, SampledRNNTJoint
from nemo.utils import logging as nemo_logging

VOCABULARY = 11
SIZES = {"pred_hidden": 12, "pred_rnn_layers": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "layer_norm": {"prednet": SIZES, "normalization_mode": "layer"},
    "layer_norm_one_layer": {"prednet": {**SIZES, "pred_rnn_layers": 1}, "normalization_mode": "layer"},
    "batch_norm": {"prednet": {**SIZES, "pred_rnn_layers": 3}, "normalization_mode": "batch"},
    "batch_norm_dropout": {"prednet": {**SIZES, "dropout": 0.3}, "normalization_mode": "batch"},
    "projection": {"prednet": {**SIZES, "rnn_hidden_size": 20}},
    "no_row_for_blank": {"prednet": SIZES, "blank_as_pad": False},
}
CHRONO = {"t_max": 20, "weights_init_scale": 0.5}
BIASES = {"forget_gate_bias": 2.0, "hidden_hidden_bias_scale": 0.3, "weights_init_scale": 0.8}
INITIAL: dict[str, dict[str, Any]] = {
    "initial_chrono": {"prednet": {**SIZES, **CHRONO}},
    "initial_biases": {"prednet": {**SIZES, **BIASES, "rnn_hidden_size": 16}},
    "initial_batch_norm": {"prednet": {**SIZES, **CHRONO, **BIASES}, "normalization_mode": "batch"},
}
JOINT_SIZES = {"encoder_hidden": 7, "pred_hidden": 6, "joint_hidden": 9, "activation": "tanh"}
JOINTS = {"sampled_joint": 4, "sampled_joint_all": 100}


def shake(module: torch.nn.Module) -> None:
    """Weights and statistics that no initialisation would give."""
    for name, parameter in module.named_parameters():
        norm = parameter.dim() == 1 and name.endswith("weight")
        noise = torch.randn_like(parameter)
        parameter.data = 1 + 0.3 * noise if norm else parameter.data + 0.1 * noise
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    for embedding in module.modules():
        if isinstance(embedding, torch.nn.Embedding) and embedding.padding_idx is not None:
            embedding.weight.data[embedding.padding_idx] = 0


def state_of(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value.clone() for key, value in module.state_dict().items()}


def gradients_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"gradient.{name}": value.grad for name, value in module.named_parameters()}


def hidden_and_cell(state: Any) -> dict[str, torch.Tensor]:
    """The state in one layout (N, B, D): a list of pairs with layer norm, (N, 1, B, D) with batch norm."""
    pairs = list(zip(*state, strict=True)) if isinstance(state, list) else state
    hidden, cell = (torch.stack(list(part)) if isinstance(part, tuple) else part for part in pairs)
    return {"hidden": hidden.reshape(-1, *hidden.shape[-2:]), "cell": cell.reshape(-1, *cell.shape[-2:])}


def of_decoder(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Outputs and state after some tokens, outputs after more, and outputs, gradients and statistics in training."""
    module = RNNTDecoder(vocab_size=VOCABULARY, **options).eval()
    shake(module)
    found = state_of(module, "state.")
    targets, more = torch.randint(0, VOCABULARY, (3, 5)), torch.randint(0, VOCABULARY, (3, 2))
    with torch.no_grad():
        out, state = module.predict(targets)
        found |= {"targets": targets, "more": more, "out": out, **hidden_and_cell(state)}
        found["out_of_more"], _ = module.predict(more, state, add_sos=False)
    if options["prednet"].get("dropout"):
        return found
    found["train"], _ = module.train().predict(targets)
    (found["train"] * torch.arange(12).cos()).square().sum().backward()
    return {**found, **gradients_of(module), **state_of(module, "after.")}


def at_first(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights after torch.manual_seed(0)."""
    return state_of(RNNTDecoder(vocab_size=VOCABULARY, **options), "state.")


def of_joint(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loss and gradients of a training step.

    The smallest token stands in the padding alone, where it does no harm: NVIDIA's toolkit takes the smallest of a
    batch for blank.  And it is in the sample, since NVIDIA's counts the padding among the tokens of the batch.
    """
    fused = {"fuse_loss_wer": True, "fused_batch_size": 3}
    module = SampledRNNTJoint(num_classes=VOCABULARY, **options, **fused).train()
    shake(module)
    found = state_of(module, "state.")
    loss = RNNTLoss(VOCABULARY, reduction="mean_batch", loss_name="warprnnt_numba")
    module.set_loss(loss)
    module.set_wer(torch.nn.Identity())
    found["encoded"], found["predicted"] = torch.randn(3, 7, 9), torch.randn(3, 6, 5)
    found["encoded_len"], found["target_len"] = torch.tensor([9, 6, 8]), torch.tensor([4, 2, 3])
    found["targets"] = torch.tensor([[3, 7, 7, 2], [9, 3, 0, 0], [7, 2, 9, 0]])
    found["order"] = torch.tensor([5, 0, 3, 10, 8, 1, 2, 4, 6, 7, 9])
    drawn, torch.randperm = torch.randperm, lambda n, device=None: found["order"]
    try:
        found["loss"], *_ = module(
            encoder_outputs=found["encoded"],
            decoder_outputs=found["predicted"],
            encoder_lengths=found["encoded_len"],
            transcripts=found["targets"],
            transcript_lengths=found["target_len"],
        )
    finally:
        torch.randperm = drawn
    found["loss"].backward()
    return {**found, **gradients_of(module)}


def main() -> None:
    nemo_logging.setLevel(logging.ERROR)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    joints = {name: {"jointnet": JOINT_SIZES, "n_samples": n} for name, n in JOINTS.items()}
    for made_by, cases in ((of_decoder, DECODERS), (at_first, INITIAL), (of_joint, joints)):
        for name, options in cases.items():
            torch.manual_seed(0)
            arrays = {key: value.detach().numpy() for key, value in made_by(options).items()}
            np.savez_compressed(folder / f"{name}.npz", options=json.dumps(options), **arrays)


if __name__ == "__main__":
    main()
