"""Confidences of a greedy search through a transducer, against the networks run label by label."""

import itertools

import numpy as np
import pytest
import torch

from nemo_asr.decoding.confidence import ConfidenceMeasure
from nemo_asr.decoding.confidence_config import ConfidenceMethodConfig
from nemo_asr.decoding.transducer import TransducerDecoding
from nemo_asr.modules.joint import HATJoint, RNNTJoint
from nemo_asr.modules.prediction import RNNTDecoder, StatelessTransducerDecoder
from nemo_asr.text.char import CharTokenizer

KINDS = {
    "rnnt": {},
    "tdt": {"durations": [0, 1, 2]},
    "multi-blank": {"big_blank_durations": [2, 4]},
    "tdt, farther than the joint looks ahead": {"durations": [0, 1, 11]},
    "multi-blank, farther than the joint looks ahead": {"big_blank_durations": [2, 11]},
}


def small_networks(joint, stateless, leads):
    torch.manual_seed(3)
    sizes = {"encoder_hidden": 6, "pred_hidden": 6, "joint_hidden": 10, "activation": "tanh"}
    decoder = (StatelessTransducerDecoder if stateless else RNNTDecoder)({"pred_hidden": 6}, 4)
    pair = decoder.eval(), joint(sizes, 4, sum(map(len, leads.values()))).eval()
    with torch.no_grad():
        for parameter in itertools.chain.from_iterable(network.parameters() for network in pair):
            parameter.mul_(4)
    return pair


def greedy_by_hand(decoder, joint, frames, measure, durations=(), big_blank_durations=()):
    """Tokens, and for each frame that is looked at the confidences of its steps, one label at a time."""
    blank = joint.num_classes_with_blank - 1 - len(durations)
    leads = dict(zip(range(blank, -1, -1), [1, *big_blank_durations], strict=False))
    tokens, found, frame, symbols = [], {}, 0, 0
    while frame < frames.shape[1]:
        prediction, _ = decoder.predict(torch.tensor([tokens], dtype=torch.long).reshape(1, -1))
        seen = joint.joint(frames[None, :, frame : frame + 1].mT, prediction[:, -1:])[0, 0, 0]
        p, label = seen[: blank + 1].log_softmax(0), int(seen[: blank + 1].argmax())
        pair = (measure(p).item(), measure(seen[blank + 1 :].log_softmax(0)).item()) if durations else measure(p).item()
        found.setdefault(frame, []).append(pair)
        lead = durations[int(seen[blank + 1 :].argmax())] if durations else leads.get(label, 0)
        lead = max(lead, 1) if label in leads else lead
        tokens += [] if label in leads else [label]
        symbols = 0 if lead else symbols + 1
        lead, symbols = (1, 0) if symbols == 3 else (lead, symbols)
        frame += lead
    return tokens, list(found.values())


@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize(("joint", "kind"), [*((RNNTJoint, kind) for kind in KINDS), (HATJoint, "rnnt")])
@torch.no_grad()
def test_confidences_are_those_of_the_networks_step_by_step(kind, stateless, joint):
    leads = KINDS[kind]
    decoder, joint = small_networks(joint, stateless, leads)
    asked = {"preserve_token_confidence": True, "tdt_include_duration": True, "aggregation": "prod"}
    section = {"greedy": {"max_symbols": 3}, "confidence_cfg": asked, **leads}
    decoding = TransducerDecoding(section, CharTokenizer("ab c"), decoder, joint, strict=True)
    encoded, lengths = 2 * torch.randn(4, 6, 23), [23, 17, 1, 0]
    measure = ConfidenceMeasure(ConfidenceMethodConfig())
    found = decoding(encoded, torch.tensor(lengths))
    assert len(found[0].tokens) > 2
    for own, frames, length in zip(found, encoded, lengths, strict=True):
        tokens, steps = greedy_by_hand(decoder, joint, frames[:, :length], measure, **leads)
        assert own.tokens == tokens
        assert len(own.token_confidence) == len(tokens)
        assert [len(part) for part in own.frame_confidence] == [len(part) for part in steps]
        pairs = zip(itertools.chain(*own.frame_confidence), itertools.chain(*steps), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-3)
