"""Measures of confidence and their aggregates against the paper's formulas (arXiv 2212.08703) in plain Python."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_asr.decoding.confidence import AGGREGATES, ConfidenceMeasure
from nemo_asr.decoding.confidence_config import ConfidenceMethodConfig

MEASURES = [
    {"name": name, "entropy_type": kind, "entropy_norm": norm}
    for name, kind, norm in [
        ("max_prob", "gibbs", "lin"),
        *itertools.product(["entropy"], ["gibbs", "tsallis", "renyi"], ["lin", "exp"]),
    ]
]


def entropy_by_hand(p, kind, alpha):
    if alpha == 1:
        return -math.fsum(x * math.log(x) for x in p if x)
    if kind == "gibbs":
        return -math.fsum(x**alpha * math.log(x) for x in p if x)
    total = math.fsum(x**alpha for x in p if x)
    return (1 - total) / (alpha - 1) if kind == "tsallis" else math.log(total) / (1 - alpha)


def confidence_by_hand(p, name, entropy_type, entropy_norm, alpha):
    V = len(p)
    if name == "max_prob":
        return (max(p) ** alpha * V**alpha - 1) / (V**alpha - 1)
    H, most = (entropy_by_hand(q, entropy_type, alpha) for q in (p, [1 / V] * V))
    if entropy_norm == "lin":
        return 1 - H / most
    rate = alpha if entropy_type == "gibbs" else 1
    return (math.exp(-rate * H) - math.exp(-rate * most)) / (1 - math.exp(-rate * most))


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@pytest.mark.parametrize(
    ("alpha", "tolerance"), [(0.25, 1e-12), (0.33, 1e-12), (0.97, 1e-11), (1.0, 1e-12), (1.03, 1e-11), (1.12, 1e-12)]
)
def test_measures_are_the_papers_formulas(method, alpha, tolerance):
    torch.manual_seed(0)
    for scale in (0.0, 0.5, 3.0, 12.0):
        p = (scale * torch.randn(6, 29, dtype=torch.float64)).softmax(-1)
        p[0, 3:7] = 0  # impossible tokens
        p[0] /= p[0].sum()
        found = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))(p.log())
        expected = [confidence_by_hand(row, **method, alpha=alpha) for row in p.tolist()]
        np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=tolerance)


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@pytest.mark.parametrize("alpha", [0.2, 0.33, 0.999999, 1.0, 1.000001, 1.1])
def test_measures_keep_their_digits_in_float32(method, alpha):
    torch.manual_seed(0)
    measure = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))
    logits = torch.randn(40, 1025) * torch.linspace(0, 20, 40)[:, None]
    exact = measure(logits.double().log_softmax(-1))
    torch.testing.assert_close(measure(logits.log_softmax(-1)).double(), exact, atol=5e-6, rtol=0)
    assert exact.min() < 0.01 and exact.max() > 0.8


@pytest.mark.parametrize("method", MEASURES, ids=lambda method: "-".join(method.values()))
@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.22, 1.25), logits=st.lists(st.floats(-200, 200), min_size=29, max_size=29))
def test_a_confidence_is_in_0_to_1_and_the_ends_are_certainty_and_ignorance(method, alpha, logits):
    measure = ConfidenceMeasure(ConfidenceMethodConfig(**method, alpha=alpha))
    certain, ignorant = torch.full((29,), -torch.inf), torch.zeros(29).log_softmax(0)
    certain[4] = 0
    assert measure(certain).item() == pytest.approx(1, abs=1e-5)
    assert measure(ignorant).item() == pytest.approx(0, abs=1e-5)
    assert 0 <= measure(torch.tensor(logits).log_softmax(0)).item() <= 1


def test_aggregates_by_hand():
    numbers = [0.5, 0.2, 0.8]
    assert {name: pytest.approx(own(numbers)) for name, own in AGGREGATES.items()} == {
        "mean": 0.5, "min": 0.2, "max": 0.8, "prod": 0.08
    }  # fmt: skip
