"""Hydra and OmegaConf configs for NeMo models: safe _target_ resolution, clear errors."""
