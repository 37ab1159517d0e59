"""What a transducer says of paths that are known: one pass of the prediction network over the tokens, and of the joint
network over the steps.

B batch, N paths, S steps of all of them, T frames, U tokens, D width, H joint width, V vocabulary with blank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_asr.decoding.transducer_path import SearchSteps, StepMeasure, TransducerPath
from nemo_asr.evaluation_mode import evaluation_mode
from nemo_asr.modules.joint import RNNTJoint
from nemo_asr.modules.prediction import PredictionNetwork

SCORES_AT_ONCE = 2**24
"""Numbers that the joint network gives at a time: 64 MB in float32."""


@torch.no_grad()
def measure_paths(
    decoder: PredictionNetwork,
    joint: RNNTJoint,
    encoded: Tensor,
    beams: Sequence[Sequence[TransducerPath]],
    measure: StepMeasure,
    first_blank: int,
) -> None:
    """Adds the confidence of each step to the steps of paths.

    Args:
        decoder: the prediction network.
        joint: the joint network.
        encoded: encoder outputs (B, D, T).
        beams: for each utterance its paths, with steps.
        measure: the confidence of the joint's scores.
        first_blank: labels below are tokens.
    """
    found = [(row, path, path.steps) for row, paths in enumerate(beams) for path in paths if path.steps is not None]
    if not found:
        return
    with evaluation_mode(decoder), evaluation_mode(joint):
        f = joint.project_encoder(encoded.transpose(1, 2))
        g = _predictions(decoder, joint, f, [path.tokens for _, path, _ in found])
        frame = torch.cat([steps.frames for _, _, steps in found]).to(f.device)
        before = torch.cat([_tokens_before(steps, first_blank) for _, _, steps in found]).to(f.device)
        counts = [len(steps.frames) for _, _, steps in found]
        path_and_row = torch.tensor([(number, row) for number, (row, _, _) in enumerate(found)])
        number, row = torch.repeat_interleave(path_and_row, torch.tensor(counts), dim=0).to(f.device).unbind(1)
        chunk = max(1, SCORES_AT_ONCE // joint.num_classes_with_blank)
        parts = [
            measure(joint.joint_after_projection(f[r, t][:, None], g[n, u][:, None])[:, 0, 0])
            for r, t, n, u in zip(*(torch.split(column, chunk) for column in (row, frame, number, before)), strict=True)
        ]
    for (_, path, steps), confidence in zip(found, torch.split(torch.cat(parts).cpu(), counts), strict=True):
        path.steps = steps._replace(confidence=confidence)


def _predictions(decoder: PredictionNetwork, joint: RNNTJoint, f: Tensor, tokens: Sequence[list[int]]) -> Tensor:
    """Projected outputs (N, U + 1, H), the first for the start; f gives device and precision."""
    targets = torch.full((len(tokens), max(map(len, tokens)) + 1), decoder.blank_idx)
    for target, own in zip(targets, tokens, strict=True):
        target[1 : len(own) + 1] = torch.tensor(own, dtype=torch.long)
    state = decoder.initialize_state(f.new_empty(len(tokens), 1))
    output, _ = decoder.predict(targets.to(f.device), state, add_sos=False)
    return joint.project_prednet(output)


def _tokens_before(steps: SearchSteps, first_blank: int) -> Tensor:
    """How many tokens a path has before each step (S,)."""
    made = (steps.labels < first_blank).long()
    return made.cumsum(0) - made
