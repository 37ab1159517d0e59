"""Other tokenizers for a model that is there: what the `change_vocabulary` of the families has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemo_asr.text.aggregate import AggregateTokenizer
from nemo_asr.text.build import build_tokenizer
from nemo_config import plain
from nemo_expmgr.artifact_store import ArtifactStore

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nemo_asr.models.asr_model import ASRModel
    from nemo_asr.text.tokenizer import Tokenizer


def require_tokenizer(cfg: DictConfig | Mapping[str, Any], model: str) -> None:
    """The `…BPE` classes are for configs with a tokenizer.

    Raises:
        ValueError: there is none.
    """
    if not cfg.get("tokenizer"):
        raise ValueError(f"model.tokenizer: is missing, and {model} needs one; see nemo-asr tokenizer")


def take_tokenizer(
    model: ASRModel, new_tokenizer_dir: str | Mapping[str, Any], new_tokenizer_type: str
) -> tuple[Tokenizer, dict[str, Any]]:
    """A new tokenizer, whose files become the model's artifacts in the place of the old one's, and its section.

    Args:
        model: is left as it was if the tokenizer cannot be read.
        new_tokenizer_dir: folder of a tokenizer, or a whole `tokenizer` section (aggregate tokenizers).
        new_tokenizer_type: `bpe`, for a folder.
    """
    if isinstance(new_tokenizer_dir, Mapping):
        section = plain(new_tokenizer_dir)
    else:
        section = {"dir": str(new_tokenizer_dir), "type": new_tokenizer_type}
    build_tokenizer(section, ArtifactStore().fetch)
    model.forget_artifacts("tokenizer")
    return build_tokenizer(section, model.artifact), section


def derived_vocabulary(model: ASRModel) -> dict[str, Any]:
    """What a saved config must say of the tokenizer beside the sizes of heads."""
    if not model.cfg.get("tokenizer"):
        return {"labels": list(model.tokenizer.vocabulary)}
    if isinstance(model.tokenizer, AggregateTokenizer):  # which older files call multilingual
        return {"tokenizer.type": "agg"}
    return {}
