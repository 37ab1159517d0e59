"""Confidences of the golden models by NVIDIA's nemo_toolkit 3.0.0, to be run with that toolkit's python:

    python tests/golden/confidence/make.py [case ...]

Random weights give flat distributions, so that log-probabilities of CTC and the last layer of a joint network are
multiplied by SHARPER first.  Each recording is decoded alone.  The files hold, of all recordings one after the other:

    frame/<measure>                                  of each frame, or of each step
    durations/<measure>                              of each step, the pair (S, 2) of token and duration
    token/<measure>/<aggregation>/<blank or none>    blank: with the blanks after it
    word/<measure>/<aggregation>/<blank or none>     of the recordings in `words`, where that toolkit does not fail
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf, open_dict

GOLDEN = Path(__file__).parents[1]
SHARPER = 12.0
CASES = {
    "quartznet_ctc_char": "ctc",
    "fastconformer_ctc_bpe": "ctc",
    "conformer_rnnt_char": "rnnt",
    "fastconformer_rnnt_bpe": "rnnt",
    "fastconformer_hybrid_tdt_ctc_bpe": "rnnt",
}
ALPHAS = {"max_prob": (1.0, 0.5), "gibbs": (1.0, 0.5), "tsallis": (1.0, 0.33, 1.7), "renyi": (1.0, 0.33, 2.5)}
MEASURES = {
    "-".join(map(str, (name, norm, alpha))): {
        "name": "max_prob" if name == "max_prob" else "entropy",
        "entropy_type": "tsallis" if name == "max_prob" else name,
        "entropy_norm": norm,
        "alpha": alpha,
    }
    for name, alphas in ALPHAS.items()
    for alpha in alphas
    for norm in (("lin",) if name == "max_prob" else ("lin", "exp"))
}
VARIED = ("tsallis-exp-0.33", "max_prob-lin-1.0")
OF_DURATIONS = ("gibbs-lin-1.0", "max_prob-lin-1.0")


def settings() -> list[tuple[str, str, bool]]:
    """Measure, aggregation, and whether blanks are left out."""
    every = [(measure, "min", True) for measure in MEASURES]
    return every + [
        (measure, how, alone)
        for measure in VARIED
        for how in ("mean", "min", "max", "prod")
        for alone in (True, False)
        if (how, alone) != ("min", True)
    ]


def decode(model: Any, kind: str, outputs: torch.Tensor, length: torch.Tensor) -> Any:
    if kind == "ctc":
        return model.decoding.ctc_decoder_predictions_tensor(outputs, length, return_hypotheses=True)[0]
    return model.decoding.rnnt_decoder_predictions_tensor(outputs, length, return_hypotheses=True)[0]


def numbers(value: Any) -> Any:
    """Floats of whatever nest of lists, tuples and tensors that toolkit gives."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [numbers(item) for item in value] if isinstance(value, (list, tuple)) else float(value)


def steps_of(section: Any, arguments: Any) -> list[Any]:
    """Confidences of frames, or of all their steps."""
    model, kind, *_ = arguments
    model.change_decoding_strategy(section, verbose=False)
    frames = numbers(decode(*arguments).frame_confidence)
    return frames if kind == "ctc" else [step for frame in frames for step in frame]


def store(case: str, kind: str) -> None:
    model = ASRModel.restore_from(str(GOLDEN / case / "model.nemo"), map_location="cpu").eval()
    with np.load(GOLDEN / case / "io.npz") as arrays:
        lengths = torch.from_numpy(arrays["encoded_length"])
        outputs = torch.from_numpy(arrays["log_probs" if kind == "ctc" else "encoded"])
    if kind == "ctc":
        outputs = (SHARPER * outputs).log_softmax(-1)
    else:
        with torch.no_grad():
            for parameter in model.joint.joint_net[-1].parameters():
                parameter.mul_(SHARPER)
    has_durations = "tdt" in case
    found: dict[str, list[Any]] = {}
    words: dict[str, list[int]] = {}
    for measure, how, alone in settings():
        section = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
        with open_dict(section):
            section.strategy = "greedy_batch"
            section.preserve_alignments = has_durations  # else that toolkit cannot tell blanks from tokens
            section.confidence_cfg = {
                "preserve_frame_confidence": True,
                "exclude_blank": alone,
                "aggregation": how,
                "method_cfg": MEASURES[measure],
            }
        name = f"{measure}/{how}/{'none' if alone else 'blank'}"
        for item, length in enumerate(lengths.tolist()):
            own = outputs[item : item + 1, :length] if kind == "ctc" else outputs[item : item + 1, :, :length]
            arguments = model, kind, own, lengths[item : item + 1]
            if how == "min" and not alone and measure in VARIED:
                asks = {"preserve_token_confidence": True, "preserve_word_confidence": False}
                whole = OmegaConf.merge(section, {"confidence_cfg": asks})
                found.setdefault(f"frame/{measure}", []).extend(steps_of(whole, arguments))
            if has_durations and how == "min" and alone and measure in OF_DURATIONS:
                asks = {"exclude_blank": False, "tdt_include_duration": True, "preserve_word_confidence": False}
                whole = OmegaConf.merge(section, {"confidence_cfg": {"preserve_token_confidence": True, **asks}})
                found.setdefault(f"durations/{measure}", []).extend(steps_of(whole, arguments))
            for asked in ("token", "word"):
                section.confidence_cfg.preserve_token_confidence = asked == "token"
                section.confidence_cfg.preserve_word_confidence = asked == "word"
                model.change_decoding_strategy(section, verbose=False)
                try:
                    hypothesis = decode(*arguments)
                except (RuntimeError, TypeError):  # of CTC with characters it joins numbers
                    if asked == "token":
                        raise
                    continue
                found.setdefault(f"{asked}/{name}", []).extend(numbers(getattr(hypothesis, f"{asked}_confidence")))
                if asked == "word":
                    words.setdefault(name, []).append(item)
    arrays = {key: np.array(value, np.float32) for key, value in found.items()}
    description = {"sharper": SHARPER, "kind": kind, "measures": MEASURES, "words": words}
    np.savez_compressed(Path(__file__).with_name(f"{case}.npz"), description=json.dumps(description), **arrays)
    print(case, len(arrays), {name: value for name, value in words.items() if len(value) < len(lengths)})


if __name__ == "__main__":
    for golden_case, decoder in CASES.items():
        if sys.argv[1:] and golden_case not in sys.argv[1:]:
            continue
        store(golden_case, decoder)
