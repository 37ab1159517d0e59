"""Masks on spectrograms: how wide they get, where they lie, how often, and what they leave alone."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_asr.modules import SpectrogramAugmentation

B, F, T = 600, 40, 100


def masked(length=None, **options):
    """Where ones were replaced, (B, F, T)."""
    torch.manual_seed(7)
    length = torch.full((B,), T) if length is None else length
    augmented = SpectrogramAugmentation(**options)(input_spec=torch.ones(B, F, T), length=length)
    return augmented != 1


def test_a_band_of_frequency_covers_all_frames_and_a_stretch_of_time_all_bins():
    bands = masked(freq_masks=1, freq_width=10)
    assert torch.equal(bands.any(dim=2), bands.all(dim=2))
    stretches = masked(time_masks=1, time_width=10)
    assert torch.equal(stretches.any(dim=1), stretches.all(dim=1))


@pytest.mark.parametrize(("name", "width"), [("freq", 10), ("time", 25)])
def test_widths_are_uniform_below_their_maximum(name, width):
    stripes = masked(**{f"{name}_masks": 1, f"{name}_width": width}).any(dim=2 if name == "freq" else 1)
    widths = stripes.sum(dim=1)
    assert (int(widths.min()), int(widths.max())) == (0, width - 1)
    assert float(widths.double().mean()) == pytest.approx((width - 1) / 2, abs=4 * width / 12**0.5 / B**0.5)
    edges = stripes.int().diff(dim=1).abs().sum(dim=1)
    assert int(edges.max()) <= 2  # one piece


def test_places_are_spread_over_all_that_is_valid():
    share = masked(time_masks=2, time_width=20).any(dim=1).double().mean(dim=0)
    assert float(share.min()) >= 0
    assert float(share[20:80].min()) > 0.1
    assert float(share[20:80].max()) < 0.35


@pytest.mark.parametrize("time_width", [30, 0.5, 1.0])
def test_no_mask_reaches_beyond_the_valid_frames(time_width):
    length = torch.randint(1, T + 1, (B,))
    stretches = masked(length, time_masks=5, time_width=time_width).any(dim=1)
    beyond = torch.arange(T) >= length[:, None]
    assert not (stretches & beyond).any()
    assert not (masked(length, rect_masks=3, rect_time=50).any(dim=1) & beyond).any()


def test_a_share_of_time_is_one_of_the_utterances_own_frames():
    length = torch.full((B,), 40)
    widths = masked(length, time_masks=1, time_width=0.25).any(dim=1).sum(dim=1)
    assert (int(widths.min()), int(widths.max())) == (0, 9)


def test_rectangles_are_bounded_on_both_sides():
    rectangles = masked(rect_masks=1, rect_time=12, rect_freq=7)
    assert int(rectangles.any(dim=2).sum(dim=1).max()) == 7
    assert int(rectangles.any(dim=1).sum(dim=1).max()) == 12
    area = rectangles.sum(dim=(1, 2))
    assert torch.equal(area, rectangles.any(dim=2).sum(dim=1) * rectangles.any(dim=1).sum(dim=1))


def test_stripes_take_the_mask_value_and_rectangles_zero():
    ones = torch.ones(8, F, T)
    full = torch.full((8,), T)
    stripes = SpectrogramAugmentation(time_masks=3, freq_masks=2, mask_value=-5.0)(ones, full)
    assert sorted(stripes.unique().tolist()) == [-5.0, 1.0]
    rectangles = SpectrogramAugmentation(rect_masks=3, mask_value=-5.0)(ones, full)
    assert sorted(rectangles.unique().tolist()) == [0.0, 1.0]
    assert torch.equal(ones, torch.ones_like(ones))  # the input stays


def test_utterances_get_masks_of_their_own():
    stretches = masked(time_masks=1, time_width=50).any(dim=1)
    assert len(stretches.unique(dim=0)) > B // 2


def test_without_masks_nothing_changes():
    assert not masked().any()


def test_masks_wider_than_the_spectrogram_fit_into_it():
    tiny = torch.ones(50, 4, 3)
    options = {"freq_masks": 2, "freq_width": 27, "time_masks": 2, "time_width": 70, "rect_masks": 2}
    augmented = SpectrogramAugmentation(**options, rect_time=120, rect_freq=50)(tiny, torch.full((50,), 3))
    assert augmented.shape == tiny.shape
    assert not augmented.all()


def test_draws_follow_torchs_seed_or_the_given_generator():
    def draw(rng):
        torch.manual_seed(1)
        augment = SpectrogramAugmentation(time_masks=4, freq_masks=2, rng=rng)
        return augment(torch.ones(4, F, T), torch.full((4,), T))

    assert torch.equal(draw(None), draw(None))
    assert torch.equal(draw(random.Random(5)), draw(random.Random(5)))
    assert not torch.equal(draw(random.Random(5)), draw(random.Random(6)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"time_width": 1.5}, r"time_width: 1\.5 is a share"), ({"rect_freq": -1}, "rect_freq: -1 must not be negative")],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpectrogramAugmentation(**options)
