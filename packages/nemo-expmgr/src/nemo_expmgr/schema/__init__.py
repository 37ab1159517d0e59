"""Configs as dataclasses, for scripts that make theirs in Python: the names are those of NVIDIA's `nemo.core.config`.

    from nemo_expmgr.schema import modelPT, optimizers, schedulers

They hold values and build nothing; a model takes one in place of a section of YAML.
"""

from nemo_expmgr.schema import modelPT, optimizers, schedulers
from nemo_expmgr.schema.trainer import TrainerConfig

__all__ = ["TrainerConfig", "modelPT", "optimizers", "schedulers"]
