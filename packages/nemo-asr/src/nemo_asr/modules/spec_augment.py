"""Masks on spectrograms in training: SpecAugment (arXiv 1904.08779) and Cutout (arXiv 1708.04552).

SpecAugment blanks whole bands of frequency and stretches of time, Cutout rectangles. Widths and places are drawn
for every utterance: a width uniformly below its maximum, then a place uniformly where it fits.
B batch, F mel bins, T frames, M masks
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


class SpectrogramAugmentation(nn.Module):
    """Blanks random parts of each spectrogram. The caller applies it in training only.

    Args:
        freq_masks: bands of frequency in each utterance.
        time_masks: stretches of time in each utterance.
        freq_width: a band has fewer bins than this.
        time_width: a stretch has fewer frames than this; a float in [0, 1] is a share of the utterance's frames.
        rect_masks: rectangles in each utterance.
        rect_time: a rectangle has at most this many frames.
        rect_freq: a rectangle has at most this many bins.
        mask_value: what bands and stretches are filled with; rectangles are filled with 0.
        rng: a random.Random that seeds the draws; torch's generator by default.

    Raises:
        ValueError: a share of time outside of [0, 1], or a negative number.
    """

    IGNORED_KEYS = frozenset({"use_numba_spec_augment", "use_vectorized_spec_augment", "use_vectorized_code"})

    def __init__(
        self,
        freq_masks: int = 0,
        time_masks: int = 0,
        freq_width: int = 10,
        time_width: int | float = 10,
        rect_masks: int = 0,
        rect_time: int = 5,
        rect_freq: int = 20,
        rng: random.Random | None = None,
        mask_value: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(time_width, float) and not 0 <= time_width <= 1:
            raise ValueError(f"time_width: {time_width} is a share of the frames and must lie in [0, 1]")
        counts = {"freq_masks": freq_masks, "time_masks": time_masks, "rect_masks": rect_masks}
        widths = {"freq_width": freq_width, "time_width": time_width, "rect_time": rect_time, "rect_freq": rect_freq}
        for name, number in (counts | widths).items():
            if number < 0:
                raise ValueError(f"{name}: {number} must not be negative")
        self.freq_masks, self.time_masks, self.rect_masks = freq_masks, time_masks, rect_masks
        self.freq_width, self.time_width = freq_width, time_width
        self.rect_time, self.rect_freq = rect_time, rect_freq
        self.mask_value = mask_value
        self._generator = None if rng is None else torch.Generator().manual_seed(rng.getrandbits(63))

    @torch.no_grad()
    def forward(self, input_spec: Tensor, length: Tensor) -> Tensor:
        """A copy of input_spec (B, F, T) with its masks; frames from length (B,) on are left alone."""
        n_bins, n_frames = input_spec.shape[1:]
        length = length.to(input_spec.device).clamp(max=n_frames)
        if self.rect_masks:
            input_spec = input_spec.masked_fill(self._rectangles(input_spec, length), 0.0)
        if self.time_masks:
            width = self.time_width * length if isinstance(self.time_width, float) else self.time_width
            stretches = self._stripes(self.time_masks, width, length, n_frames)
            input_spec = input_spec.masked_fill(stretches.any(dim=1)[:, None, :], self.mask_value)
        if self.freq_masks:
            bins = torch.full_like(length, n_bins)
            bands = self._stripes(self.freq_masks, self.freq_width, bins, n_bins)
            input_spec = input_spec.masked_fill(bands.any(dim=1)[:, :, None], self.mask_value)
        return input_spec

    def _stripes(self, count: int, width: Tensor | float, room: Tensor, size: int) -> Tensor:
        """(B, M, size), true inside of each mask: narrower than `width`, inside of the first room (B,) places."""
        limit = torch.as_tensor(width, device=room.device).expand(room.shape)[:, None]
        drawn = (self._uniform(room, count) * limit).long()
        drawn = torch.minimum(drawn, room[:, None])
        start = (self._uniform(room, count) * (room[:, None] - drawn)).long()
        return _between(start, start + drawn, size)

    def _rectangles(self, input_spec: Tensor, length: Tensor) -> Tensor:
        """(B, F, T), true inside of the rectangles; a place leaves room for the widest one."""
        sides = []
        for size, widest in zip(input_spec.shape[1:], (self.rect_freq, self.rect_time), strict=True):
            drawn = (self._uniform(length, self.rect_masks) * (widest + 1)).long()
            start = (self._uniform(length, self.rect_masks) * (max(size - widest, 0) + 1)).long()
            sides.append(_between(start, start + drawn, size))
        inside = (sides[0][:, :, :, None] & sides[1][:, :, None, :]).any(dim=1)
        valid = torch.arange(input_spec.shape[2], device=length.device) < length[:, None]
        return inside & valid[:, None, :]

    def _uniform(self, like: Tensor, count: int) -> Tensor:
        """(B, count) numbers in [0, 1)."""
        shape = (like.shape[0], count)
        if self._generator is None:
            return torch.rand(shape, device=like.device)
        return torch.rand(shape, generator=self._generator).to(like.device)


def _between(start: Tensor, end: Tensor, size: int) -> Tensor:
    places = torch.arange(size, device=start.device)
    return (places >= start[..., None]) & (places < end[..., None])
