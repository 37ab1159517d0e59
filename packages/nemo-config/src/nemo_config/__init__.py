"""Hydra and OmegaConf configs for NeMo models: safe `_target_` resolution, clear errors.

Importing this package imports neither Hydra nor OmegaConf nor torch, and little of the standard library; each is
imported when first needed.
"""

from nemo_config.dataclass_config import update_model_config
from nemo_config.errors import ConfigError
from nemo_config.file_config import file_config
from nemo_config.hydra_runner import hydra_runner
from nemo_config.instantiate import instantiate
from nemo_config.plain import plain
from nemo_config.resolvers import register_resolvers
from nemo_config.saved_config import saved_config
from nemo_config.sections import check_keys, read_section
from nemo_config.targets import nvidia_name, register_targets, resolve_target

__all__ = [
    "ConfigError",
    "check_keys",
    "file_config",
    "hydra_runner",
    "instantiate",
    "nvidia_name",
    "plain",
    "read_section",
    "register_resolvers",
    "register_targets",
    "resolve_target",
    "saved_config",
    "update_model_config",
]
