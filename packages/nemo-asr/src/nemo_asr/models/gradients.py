"""What a transducer's config may do to gradients before a step: noise and norms, under NVIDIA's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GradientOptions:
    """Changes of the gradients, from the `model` section.

    Attributes:
        noise_std: standard deviation of the noise on the prediction network's (`variational_noise.std`).
        noise_start: first step with noise (`variational_noise.start_step`).
        by_lengths: the encoder's are divided by the longest target, the prediction network's by the longest audio
            (`normalize_joint_txu`).
        normalized: children whose gradients are brought to norm 1, one parameter at a time (`normalize_*_norm`).
    """

    noise_std: float = 0.0
    noise_start: int = 0
    by_lengths: bool = False
    normalized: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GradientOptions:
        """From the `model` section."""
        noise = config.get("variational_noise") or {}
        children = (name for name in ("encoder", "decoder", "joint") if config.get(f"normalize_{name}_norm"))
        return cls(
            noise_std=noise.get("std") or 0.0,
            noise_start=noise.get("start_step") or 0,
            by_lengths=bool(config.get("normalize_joint_txu")),
            normalized=tuple(children),
        )

    def apply(self, model: nn.Module, step: int, longest: tuple[int, int]) -> None:
        """Changes the gradients of a step; `longest` are the frames and tokens of the longest utterances."""
        if self.noise_std > 0 and step >= self.noise_start:
            for gradient in _gradients(model.get_submodule("decoder")):
                gradient.add_(torch.randn_like(gradient), alpha=self.noise_std)
        if self.by_lengths:
            frames, tokens = longest
            for name, length in (("encoder", tokens), ("decoder", frames)):
                for gradient in _gradients(model.get_submodule(name)):
                    gradient.div_(max(length, 1))
        for name in self.normalized:
            for gradient in _gradients(model.get_submodule(name)):
                gradient.div_(gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny))


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    return (parameter.grad for parameter in module.parameters() if parameter.grad is not None)
