"""Augmentation of training audio: the `augmentor` section.

    augmentor:
      speed: {prob: 0.5, min_speed_rate: 0.9, max_speed_rate: 1.1}
      noise: {prob: 0.3, manifest_path: noise.json, min_snr_db: 5, max_snr_db: 30}

Names and options are NVIDIA's. The perturbations are applied in the order in which they stand, each with its `prob`.
"""

from __future__ import annotations

from nemo_asr.data.augment.pipeline import (
    Augmentor,
    Perturbation,
    build_augmentor,
    perturbation_types,
    register_perturbation,
)

__all__ = ["Augmentor", "Perturbation", "build_augmentor", "perturbation_types", "register_perturbation"]
