"""A YAML config laid over a dataclass that gives types and defaults, for scripts that use both."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OPTIONAL_SECTIONS = ("train_ds", "validation_ds", "test_ds", "optim")


def update_model_config(
    model_cls: Any, update_cfg: "DictConfig | Mapping[str, Any]", drop_missing_subconfigs: bool = True
) -> "DictConfig":
    """The dataclass's values, with those of the YAML in their place.

    Args:
        model_cls: a dataclass (or what OmegaConf made of one) with a `model` section.
        update_cfg: the YAML. Its `model.optim` may have keys that the dataclass has not: every optimizer has its own.
        drop_missing_subconfigs: leaves out `train_ds`, `validation_ds`, `test_ds` and `optim` where the YAML does.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a key that the dataclass does not have, or a value of another type.
    """
    from omegaconf import DictConfig, OmegaConf, open_dict

    update = update_cfg if isinstance(update_cfg, DictConfig) else OmegaConf.create(dict(update_cfg))
    model = OmegaConf.to_container(update.model, resolve=False)
    assert isinstance(model, dict)
    base = model_cls.copy() if isinstance(model_cls, DictConfig) else OmegaConf.structured(model_cls)
    with open_dict(base.model):
        for name in _OPTIONAL_SECTIONS:
            if name in model and name not in base.model:
                base.model[name] = model[name]
            elif name not in model and name in base.model and drop_missing_subconfigs:
                base.model.pop(name)
        if model.get("optim") is not None and base.model.get("optim") is not None:
            # laid over the YAML first: as a plain section it takes keys that are new to it
            base.model.optim = OmegaConf.merge(model["optim"], base.model.optim)
    # what a saved model's config carries beside its sections
    surplus = [name for name in ("target", "nemo_version") if name in model and name not in base.model]
    update = update.copy()
    with open_dict(update):
        for name in surplus:
            update.model.pop(name)
    merged = OmegaConf.merge(base, update)
    assert isinstance(merged, DictConfig)
    return merged
