"""Compares ConformerEncoder with that of NVIDIA's nemo_toolkit, option by option.

    NEMO_TOOLKIT_PYTHON=/path/to/python python tests/asr/compare_conformer_with_nemo_toolkit.py [name ...]

That interpreter has nemo_toolkit 3.0.0, this one has nemo_asr.  The toolkit builds an encoder for each case, perturbs
its weights, and writes them with inputs, outputs and gradients to a file; here the same is computed and the greatest
differences are printed.  Frames beyond an item's length hold noise on the way in and are not compared.

    ... compare_conformer_with_nemo_toolkit.py --write tests/golden/conformer_options name ...

also keeps a case's options, weights, inputs and outputs, which tests compare with where there is no toolkit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

BASE = {
    "feat_in": 20,
    "n_layers": 2,
    "d_model": 32,
    "ff_expansion_factor": 2,
    "conv_kernel_size": 7,
    "dropout": 0.0,
    "dropout_pre_encoder": 0.0,
    "dropout_emb": 0.0,
    "subsampling_conv_channels": 8,
}
LENGTHS = [150, 97, 61]
STREAMING = {
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "causal_downsampling": True,
    "att_context_style": "chunked_limited",
    "att_context_size": [[4, 1], [6, 2], [8, 0], [6, 5]],
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
    "lengths": [330, 297, 161],
}
LOCAL = {"self_attention_model": "rel_pos_local_attn", "att_context_size": [4, 6]}

# keys of BASE and of the encoder, and: lengths; plain_conv (the toolkit's own forward fails, its layers are run one
# after another); contexts (each set as the default in turn); change (arguments of change_attention_model)
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "striding_x8": {"subsampling_factor": 8},
    "striding_causal": {"causal_downsampling": True},
    "dw_striding_x8": {"subsampling": "dw_striding", "subsampling_factor": 8},
    "dw_striding_x2": {"subsampling": "dw_striding", "subsampling_factor": 2},
    "dw_striding_causal": {"subsampling": "dw_striding", "subsampling_factor": 8, "causal_downsampling": True},
    "dw_striding_chunks_by_batch": {"subsampling": "dw_striding", "subsampling_conv_chunking_factor": 2},
    "dw_striding_chunks_in_time": {
        "subsampling": "dw_striding",
        "subsampling_conv_chunking_factor": 4,
        "lengths": [150],
        "spare": 0,  # the toolkit does not mask here
    },
    "stacking": {"subsampling": "stacking"},
    "stacking_norm": {"subsampling": "stacking_norm", "subsampling_factor": 8},
    "striding_conv1d": {"subsampling": "striding_conv1d", "lengths": [150], "plain_conv": True},
    "striding_conv1d_causal": {
        "subsampling": "striding_conv1d",
        "causal_downsampling": True,
        "lengths": [150],
        "plain_conv": True,
    },
    "dw_striding_conv1d": {"subsampling": "dw_striding_conv1d", "lengths": [150], "plain_conv": True},
    "vggnet": {"subsampling": "vggnet", "lengths": [150], "plain_conv": True},
    "no_chunking": {"subsampling_conv_chunking_factor": -1, "lengths": [150], "plain_conv": True},
    "no_subsampling": {"subsampling": None, "lengths": [40, 23]},
    "abs_pos": {"self_attention_model": "abs_pos"},
    "abs_pos_window": {"self_attention_model": "abs_pos", "att_context_size": [5, 2]},
    "rel_pos_window": {"att_context_size": [5, 3]},
    "rel_pos_left": {"att_context_size": [5, -1]},
    "rel_pos_right": {"att_context_size": [-1, 0]},
    "local": LOCAL,
    "local_left": {**LOCAL, "att_context_size": [5, 0]},
    "local_right": {**LOCAL, "att_context_size": [2, 9]},
    "local_more_left": {**LOCAL, "att_context_size": [6, 4]},
    "local_wide": {**LOCAL, "att_context_size": [30, 40]},
    "local_symmetric": {**LOCAL, "att_context_size": [5, 5]},
    "local_global": {**LOCAL, "global_tokens": 1},
    "local_global_separate": {**LOCAL, "global_tokens": 1, "global_attn_separate": True},
    "local_global_three": {**LOCAL, "global_tokens": 3, "global_tokens_spacing": 4},
    "local_global_three_separate": {
        **LOCAL,
        "global_tokens": 3,
        "global_tokens_spacing": 7,
        "global_attn_separate": True,
    },
    "local_global_beyond": {**LOCAL, "global_tokens": 9, "global_tokens_spacing": 5},
    "layer_norm": {"conv_norm_type": "layer_norm"},
    "group_norm": {"conv_norm_type": "group_norm4"},
    "instance_norm": {"conv_norm_type": "instance_norm"},
    "fused_batch_norm": {"conv_norm_type": "fused_batch_norm"},
    "causal_convolution": {"conv_context_size": "causal"},
    "convolution_context": {"conv_context_size": [5, 1]},
    "streaming": {**STREAMING, "contexts": [[6, 2], [8, 0], [6, 5]]},
    "streaming_unlimited_left": {**STREAMING, "att_context_size": [-1, 3]},
    "no_xscaling": {"xscaling": False},
    "no_bias": {"use_bias": False},
    "tied_biases": {"untie_biases": False},
    "sdpa": {"use_pytorch_sdpa": True, "use_pytorch_sdpa_backends": ["MATH"]},
    "sdpa_window": {"use_pytorch_sdpa": True, "att_context_size": [5, 3]},
    "sdpa_abs_pos": {"use_pytorch_sdpa": True, "self_attention_model": "abs_pos"},
    "reduction_pooling": {"reduction": "pooling", "reduction_position": 0, "reduction_factor": 2},
    "reduction_pooling_x4": {"reduction": "pooling", "reduction_position": 0, "reduction_factor": 4},
    "reduction_striding": {"reduction": "striding", "reduction_position": 0, "reduction_factor": 2},
    "reduction_after_all": {"reduction": "pooling", "reduction_position": -1, "reduction_factor": 2},
    "feat_out": {"feat_out": 24},
    "streaming_small": {
        **STREAMING,
        "d_model": 16,
        "att_context_size": [[6, 2], [4, 1], [8, 0]],
        "contexts": [[4, 1], [8, 0]],
    },
    "local_small": {**LOCAL, "att_context_size": [3, 8], "d_model": 16},
    "local_global_small": {**LOCAL, "global_tokens": 2, "global_tokens_spacing": 5, "d_model": 16},
    "stochastic_depth": {"n_layers": 5, "stochastic_depth_drop_prob": 0.6},
    "stochastic_depth_uniform": {
        "n_layers": 5,
        "stochastic_depth_drop_prob": 0.5,
        "stochastic_depth_mode": "uniform",
        "stochastic_depth_start_layer": 2,
    },
    "changed_to_local": {"change": ["rel_pos_local_attn", [4, 4]]},
    "changed_to_rel_pos": {**LOCAL, "change": ["rel_pos", [-1, -1]]},
}
OF_THE_CASE = ("lengths", "spare", "plain_conv", "contexts", "change")


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    return {**BASE, **{key: value for key, value in case.items() if key not in OF_THE_CASE}}


def measured(encoder: torch.nn.Module, case: dict[str, Any], x: torch.Tensor, length: torch.Tensor) -> dict[str, Any]:
    """Outputs in evaluation with each context, and one training step's output and gradients."""
    found: dict[str, Any] = {}
    encoder.eval()
    for context in [None, *case.get("contexts", [])]:
        if context is not None:
            encoder.set_default_att_context_size(context)
        with torch.no_grad():
            encoded, encoded_len = encoder(audio_signal=x, length=length)
        found[f"encoded {context or ''}".strip()] = encoded
        found["encoded_len"] = encoded_len
    if case.get("contexts"):
        return found
    encoder.train()
    torch.manual_seed(3)
    features = x.clone().requires_grad_()
    encoded, encoded_len = encoder(audio_signal=features, length=length)
    weights = torch.sin(torch.arange(encoded.numel(), dtype=encoded.dtype)).view_as(encoded)
    valid = torch.arange(encoded.size(2)) < encoded_len.unsqueeze(1)
    (encoded * weights * valid.unsqueeze(1)).sum().backward()
    found["encoded in training"] = encoded.detach()
    found["gradient of features"] = features.grad
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    return found


def inputs_of(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.tensor(case.get("lengths", LENGTHS))
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        len(length), BASE["feat_in"], int(length.max()) + case.get("spare", 1), generator=generator
    ), length


def write_toolkit_results(folder: Path, names: list[str]) -> None:
    """Runs under the toolkit's interpreter: one file per case."""
    from nemo.collections.asr.modules import ConformerEncoder
    from omegaconf import OmegaConf

    for name in names:
        case = CASES[name]
        torch.manual_seed(0)
        encoder = ConformerEncoder(**options_of(case))
        initial = {key: value.clone() for key, value in encoder.state_dict().items()}
        perturb(encoder)
        if case.get("plain_conv"):
            run_layers_one_after_another(encoder.pre_encode)
        if "change" in case:
            encoder._cfg = OmegaConf.create(
                {"n_heads": 4, "pos_emb_max_len": 5000, "dropout_att": 0.0, **options_of(case)}
            )
            encoder.change_attention_model(*case["change"])
        state = {key: value.clone() for key, value in encoder.state_dict().items() if "num_batches" not in key}
        results = measured(encoder, case, *inputs_of(case))
        arrays = {f"result/{key}": value for key, value in results.items()}
        arrays |= {f"state/{key}": value for key, value in state.items()}
        arrays |= {f"initial/{key}": value for key, value in initial.items()}
        np.savez(folder / f"{name}.npz", **{key: value.detach().numpy() for key, value in arrays.items()})


def perturb(encoder: torch.nn.Module) -> None:
    """Makes biases, norms and statistics nontrivial."""
    with torch.no_grad():
        for tensor in encoder.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
        for name, tensor in encoder.named_buffers():
            if "running" in name:
                tensor.add_(torch.rand_like(tensor) * 0.3)


def run_layers_one_after_another(pre_encode: Any) -> None:
    """Replaces a forward that fails in 3.0.0, as it calls MaskedConvSequential without lengths or on a pool."""
    from nemo.collections.asr.parts.submodules.subsampling import calc_length

    def forward(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        paddings = pre_encode._left_padding + pre_encode._right_padding
        x = x[:, : int(lengths.max())]
        x = x.unsqueeze(1) if pre_encode.conv2d_subsampling else x.transpose(1, 2)
        for layer in pre_encode.conv:
            x = layer(x)
        x = pre_encode.out(x.transpose(1, 2).flatten(2)) if pre_encode.conv2d_subsampling else x.transpose(1, 2)
        lengths = calc_length(
            lengths,
            paddings,
            pre_encode._kernel_size,
            pre_encode._stride,
            pre_encode._ceil_mode,
            pre_encode._sampling_num,
        )
        return x, lengths

    pre_encode.forward = forward


def greatest_differences(name: str, stored: dict[str, np.ndarray]) -> dict[str, float]:
    """Ours against the stored results of one case: the output, the training step, the initialisation."""
    from nemo_asr.modules.conformer import ConformerEncoder

    case = CASES[name]
    torch.manual_seed(0)
    encoder = ConformerEncoder(**options_of(case))
    spread = max(map(initial_spread, *initial_pairs(encoder, stored)), default=0.0)
    if "change" in case:
        encoder.change_attention_model(*case["change"])
    state = {key.removeprefix("state/"): torch.from_numpy(value) for key, value in stored.items() if "state/" in key}
    ours = [key for key in encoder.state_dict() if "num_batches" not in key]
    if ours != list(state) and ("change" not in case or set(ours) != set(state)):
        raise AssertionError(f"{name}: other parameters: {set(ours) ^ set(state) or 'in another order'}")
    encoder.load_state_dict(state, strict=False)
    results = measured(encoder, case, *inputs_of(case))
    length = torch.from_numpy(stored["result/encoded_len"])
    if not torch.equal(length, results["encoded_len"]):
        raise AssertionError(f"{name}: lengths {results['encoded_len'].tolist()} instead of {length.tolist()}")
    differences = {"output": 0.0, "gradient": 0.0, "initial": spread}
    steepest = max(
        [value.abs().max().item() for key, value in results.items() if key.startswith("gradient")], default=1
    )
    for key, value in results.items():
        expected = torch.from_numpy(stored[f"result/{key}"])
        if key.startswith("encoded"):
            frames = min(value.size(-1), expected.size(-1)) if value.dim() == 3 else 1
            pairs = zip(value[..., :frames], expected[..., :frames], length, strict=True) if value.dim() == 3 else ()
            found = max(((a - b)[:, :n].abs().max().item() for a, b, n in pairs), default=0.0)
            differences["output"] = max(differences["output"], found)
        else:
            found = (value - expected).abs().max().item() / steepest
            differences["gradient"] = max(differences["gradient"], found)
    return differences


def initial_pairs(encoder: torch.nn.Module, stored: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    state = {key: value for key, value in encoder.state_dict().items() if f"initial/{key}" in stored}
    return list(state.values()), [torch.from_numpy(stored[f"initial/{key}"]) for key in state]


def initial_spread(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far the standard deviations of two random initialisations are apart, where there are enough numbers."""
    if ours.numel() < 200 or not theirs.is_floating_point():
        return 0.0
    return abs(ours.std().item() / max(theirs.std().item(), 1e-12) - 1.0) if theirs.std() > 0 else ours.std().item()


def kept(name: str, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a golden file of the case holds."""
    x, length = inputs_of(CASES[name])
    arrays = {key: value for key, value in stored.items() if key.startswith(("state/", "result/encoded"))}
    arrays.pop("result/encoded in training", None)
    options = np.array(json.dumps(options_of(CASES[name])))
    return {"options": options, "in_features": x.numpy(), "in_length": length.numpy(), **arrays}


def main(names: list[str], folder_to_write: Path | None) -> int:
    names = names or list(CASES)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        command = [os.environ["NEMO_TOOLKIT_PYTHON"], __file__, "--toolkit", folder, json.dumps(names)]
        subprocess.run(command, check=True)
        worst = 0.0
        print(f"{'case':32}{'output':>10}{'gradient':>10}{'initial':>10}")
        for name in names:
            with np.load(Path(folder) / f"{name}.npz") as file:
                stored = dict(file)
            found = greatest_differences(name, stored)
            figures = [f"{found[key]:10.1e}" for key in ("output", "gradient", "initial")]
            print(f"{name:32}{''.join(figures)}", flush=True)
            worst = max(worst, found["output"], found["gradient"])
            if folder_to_write is not None:
                np.savez_compressed(folder_to_write / f"{name}.npz", **kept(name, stored))
    print(f"greatest difference of outputs (absolute) and gradients (of the steepest): {worst:.1e}")
    return 0 if worst < 2e-4 else 1


if __name__ == "__main__":
    if "--toolkit" in sys.argv:
        torch.set_num_threads(1)
        write_toolkit_results(Path(sys.argv[2]), json.loads(sys.argv[3]))
    elif "--write" in sys.argv:
        sys.exit(main(sys.argv[3:], Path(sys.argv[2])))
    else:
        sys.exit(main(sys.argv[1:], None))
