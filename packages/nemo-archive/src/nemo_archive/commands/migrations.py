"""What older releases of NeMo wrote, and what today's write in its place. Each rule is a function that edits a config.

Facts: NVIDIA's `maybe_update_config_version` (Hydra 0.x), `g2p_backward_compatible_support`, the alias modules that its
collections keep for old files, the deprecations of its CTC decoding, the history of the moved modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Config = dict[str, Any]

# Old beginnings of a `_target_`, and what they are now; the first that fits decides.
MOVED = (
    ("nemo_text_processing.g2p.", "nemo.collections.tts.g2p."),
    ("nemo.collections.tts.torch.data.", "nemo.collections.tts.data.dataset."),
    ("nemo.collections.tts.data.tts_dataset.", "nemo.collections.tts.data.dataset."),
    (
        "nemo.collections.tts.torch.tts_tokenizers.",
        "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers.",
    ),
    ("nemo.collections.tts.torch.g2ps.", "nemo.collections.tts.g2p.modules."),
    ("nemo.collections.tts.helpers.", "nemo.collections.tts.parts.utils."),
    ("nemo.collections.asr.parts.features.", "nemo.collections.asr.parts.preprocessing.features."),
    ("pytorch_lightning.", "lightning.pytorch."),
)
_G2P = "nemo.collections.tts.g2p.modules."
RENAMED = {
    f"{_G2P}EnglishG2p": "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p",
    f"{_G2P}IPAG2P": "nemo.collections.tts.g2p.models.i18n_ipa.IpaG2p",
    f"{_G2P}ChineseG2p": "nemo.collections.tts.g2p.models.zh_cn_pinyin.ChineseG2p",
}


def migrate_config(config: Config) -> None:
    """Applies every rule to a config, in place; a config of today stays as it is."""
    for rule in RULES:
        rule(config)


def hydra_one(config: Config) -> None:
    """Hydra 0.x: `cls` is `_target_`, and what stood below `params` stands beside it. As NVIDIA's, not inside lists."""
    if "cls" in config and "_target_" not in config:
        config["_target_"] = config.pop("cls")
    if isinstance(config.get("params"), dict):
        config.update(config.pop("params"))
    for section in list(config.values()):
        if isinstance(section, dict):
            hydra_one(section)


def aggregate_tokenizer(config: Config) -> None:
    """Tokenizers of several languages were of type `multilingual`."""
    for section in _sections(config):
        kind = section.get("type")
        if isinstance(kind, str) and kind.lower() == "multilingual" and isinstance(section.get("langs"), dict):
            section["type"] = "agg"


def moved_classes(config: Config) -> None:
    """Classes that live in another module now."""
    for section in _sections(config):
        for key in ("_target_", "target"):
            if isinstance(section.get(key), str):
                section[key] = today(section[key])


def today(name: str) -> str:
    """Where a class is now, by its old dotted name."""
    for old, new in MOVED:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    return RENAMED.get(name, name)


def ctc_beam_search(config: Config) -> None:
    """`beam_alpha` and `kenlm_path` of CTC beam search are `ngram_lm_alpha` and `ngram_lm_model`."""
    auxiliary = config.get("aux_ctc")
    for section in (config, auxiliary if isinstance(auxiliary, dict) else {}):
        decoding = section.get("decoding")
        beam = decoding.get("beam") if isinstance(decoding, dict) else None
        if not isinstance(beam, dict):
            continue
        for old, new in (("beam_alpha", "ngram_lm_alpha"), ("kenlm_path", "ngram_lm_model")):
            if beam.get(old) is not None:  # which then wins, as in NVIDIA's; today's files hold `null` here
                beam[new] = beam.pop(old)


def misplaced_tokenizer(config: Config) -> None:
    """TransformerLMModel put its tokenizer under `cfg.tokenizer`, where restoring does not look."""
    outer = config.get("cfg")
    misplaced = outer.get("tokenizer") if isinstance(outer, dict) else None
    tokenizer = config.get("tokenizer")
    if not isinstance(outer, dict) or not isinstance(misplaced, dict) or not isinstance(tokenizer, dict):
        return
    for key, value in list(misplaced.items()):
        if isinstance(value, str) and value.startswith("nemo:"):
            tokenizer[key] = misplaced.pop(key)
    if not misplaced:
        del outer["tokenizer"]
    if not outer:
        del config["cfg"]


def _sections(config: Any) -> Iterator[Config]:
    """Every mapping of a config, also those in lists."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


RULES: tuple[Callable[[Config], None], ...] = (
    hydra_one,
    aggregate_tokenizer,
    moved_classes,
    ctc_beam_search,
    misplaced_tokenizer,
)
