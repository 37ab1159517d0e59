"""What a search adds to the network's scores: an n-gram language model and boosted phrases, each with its weight.

N hypotheses, M models, V tokens without blank.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nemo_asr.decoding.automaton import BackoffAutomaton
from nemo_asr.decoding.boosting import build_boosting_tree
from nemo_asr.decoding.fusion_config import BoostingTreeConfig, FusionKeys, PhraseItem
from nemo_asr.decoding.ngram.model import load_ngram

if TYPE_CHECKING:
    from nemo_asr.text import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bias:
    """Language model and phrases of one call; what is None is as the config says.

    Attributes:
        phrases: to boost, instead of the config's; a mapping gives each the score of its tokens.
        boosting_tree_alpha: weight of the phrases' scores; 1 for `phrases` if neither this nor the config names it.
        ngram_lm_model: path of an ARPA file.
        ngram_lm_alpha: weight of the language model's scores.
    """

    phrases: Sequence[str] | Mapping[str, float] | None = None
    boosting_tree_alpha: float | None = None
    ngram_lm_model: str | Path | None = None
    ngram_lm_alpha: float | None = None


class FusedModel(NamedTuple):
    """A model with its weight; `ends_sentences` says that it is a language model, whose score of an end is that of a
    sentence's, and not a tree of phrases."""

    automaton: BackoffAutomaton
    weight: float
    ends_sentences: bool


class Fusion:
    """Weighted sum of models.

    Args:
        models: at least one.

    Attributes:
        language_weight: sum of the language models' weights.
    """

    def __init__(self, models: Sequence[FusedModel]) -> None:
        self.models = tuple(models)
        self.language_weight = sum(model.weight for model in models if model.ends_sentences)

    def to(self, device: torch.device) -> Fusion:
        """The same on another device."""
        return Fusion([model._replace(automaton=model.automaton.to(device)) for model in self.models])

    def start(self, count: int) -> Tensor:
        """States (N, M) before the first token."""
        return torch.stack([model.automaton.start_states(count) for model in self.models], dim=1)

    def scores(self, states: Tensor) -> Tensor:
        """Scores (N, V) of every token after states (N, M)."""
        columns = zip(self.models, states.unbind(1), strict=True)
        return torch.stack([model.weight * model.automaton.scores(column) for model, column in columns]).sum(0)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States (N, M) after tokens (N,)."""
        columns = zip(self.models, states.unbind(1), strict=True)
        return torch.stack([model.automaton.advance(column, tokens) for model, column in columns], dim=1)

    def final(self, states: Tensor, *, sentence: bool) -> Tensor:
        """Scores (N,) of an end in states (N, M): phrases begun are paid back, and a `sentence` gets its end's."""
        columns = zip(self.models, states.unbind(1), strict=True)
        scores = torch.zeros(len(states), device=states.device)
        for model, column in columns:
            if sentence or not model.ends_sentences:
                scores = scores + model.weight * model.automaton.final[column]
        return scores


class FusionSource:
    """Makes the `Fusion` of a call, from a section and what the call itself says.

    Language models are read once, when they are first needed, and copied once to each device; threads may share this.

    Args:
        keys: what the section says.
        tokenizer: of the recogniser.
        path: where the section stands, for errors.
    """

    def __init__(self, keys: FusionKeys, tokenizer: Tokenizer, path: str) -> None:
        self.keys, self.tokenizer, self.path = keys, tokenizer, path
        self._language_models: dict[tuple[str, torch.device], BackoffAutomaton] = {}
        self._tree: BackoffAutomaton | None = None

    def __call__(self, bias: Bias | None, device: torch.device) -> Fusion | None:
        """The models of a call on a device, or None if there are none.

        Raises:
            ConfigError: a file is missing or no ARPA file, or phrases cannot be boosted.
        """
        bias = bias or Bias()
        models = [*self._language_model(bias, device), *self._boosting_tree(bias)]
        return Fusion(models).to(device) if models else None

    def _language_model(self, bias: Bias, device: torch.device) -> list[FusedModel]:
        name = bias.ngram_lm_model or self.keys.ngram_lm_model
        weight = bias.ngram_lm_alpha if bias.ngram_lm_alpha is not None else self.keys.ngram_lm_alpha
        if not name:
            return []
        if not weight:
            logger.warning("%s.ngram_lm_alpha: is 0, so the language model %s has no effect", self.path, name)
            return []
        return [FusedModel(self._language_model_on(device, str(name)), weight, ends_sentences=True)]

    def _language_model_on(self, device: torch.device, name: str) -> BackoffAutomaton:
        host, kept = torch.device("cpu"), self._language_models
        with _reading:
            if (name, host) not in kept:
                kept[name, host] = self._read_language_model(name)
            if (name, device) not in kept:
                kept[name, device] = kept[name, host].to(device)
            return kept[name, device]

    def _read_language_model(self, name: str) -> BackoffAutomaton:
        from nemo_config import ConfigError

        try:
            return load_ngram(name, self.tokenizer.vocabulary)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}.ngram_lm_model", name, "there is no such file") from None
        except (ValueError, OSError) as error:
            raise ConfigError(f"{self.path}.ngram_lm_model", name, str(error)) from None

    def _boosting_tree(self, bias: Bias) -> list[FusedModel]:
        path, config = f"{self.path}.boosting_tree", self.keys.boosting_tree or BoostingTreeConfig()
        weight = bias.boosting_tree_alpha if bias.boosting_tree_alpha is not None else self.keys.boosting_tree_alpha
        if bias.phrases is not None:
            weight = 1.0 if bias.boosting_tree_alpha is None and not weight else weight
            if not (bias.phrases and weight):
                return []
            tree = build_boosting_tree(_with_phrases(config, bias.phrases), self.tokenizer, path)
            return [FusedModel(tree, weight, ends_sentences=False)]
        if config.is_empty:
            return []
        if not weight:
            logger.warning("%s_alpha: is 0, so its phrases have no effect", path)
            return []
        if self._tree is None:
            self._tree = build_boosting_tree(config, self.tokenizer, path)
        return [FusedModel(self._tree, weight, ends_sentences=False)]


_reading = threading.Lock()


def _with_phrases(config: BoostingTreeConfig, phrases: Sequence[str] | Mapping[str, float]) -> BoostingTreeConfig:
    """The section with other phrases."""
    from dataclasses import replace

    weights = phrases if isinstance(phrases, Mapping) else dict.fromkeys(phrases)
    items = [PhraseItem(phrase, weight=weight) for phrase, weight in weights.items()]
    return replace(config, model_path=None, key_phrases_file=None, key_phrases_list=None, key_phrase_items_list=items)
