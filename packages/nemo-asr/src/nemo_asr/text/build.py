"""A tokenizer from the `tokenizer` section of a model's config.

    tokenizer:                      tokenizer:
      dir: path/of/a/folder           type: agg
      type: bpe                       langs:
                                        en: {dir: …, type: bpe}
                                        es: {dir: …, type: bpe}

A saved model names its files instead (`model_path: nemo:…`). `bpe` is NVIDIA's word for SentencePiece of any kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from nemo_asr.text.aggregate import AggregateTokenizer
from nemo_asr.text.sentence_piece import SentencePieceTokenizer
from nemo_asr.text.tokenizer import Tokenizer
from nemo_config import ConfigError

if TYPE_CHECKING:
    from nemo_archive import Artifact

logger = logging.getLogger(__name__)

ArtifactFetch = Callable[[str, str], "Artifact"]
"""(config path, source) -> the bytes and the name of the file; the model remembers it under the config path."""

MODEL_FILE = "tokenizer.model"
COMPANION_FILES = {"vocab_path": "vocab.txt", "spe_tokenizer_vocab": "tokenizer.vocab"}
"""Not read here, yet NVIDIA's toolkit wants them in the saved file."""


def build_tokenizer(section: Mapping[str, Any], fetch: ArtifactFetch, path: str = "tokenizer") -> Tokenizer:
    """Makes the tokenizer that a config section describes.

    Args:
        section: the `tokenizer` section.
        fetch: gives a file's content for (config path, file name or `nemo:` reference).
        path: where the section stands in the config, for messages and for `fetch`.

    Raises:
        ConfigError: the section is incomplete, or of a kind that does not exist here.
        FileNotFoundError: there is no model file.
    """
    kind = str(section.get("type") or "").lower()
    if section.get("custom_tokenizer") is not None:
        raise ConfigError(f"{path}.custom_tokenizer", section["custom_tokenizer"], "is not supported")
    if kind in ("agg", "multilingual"):
        return _build_aggregate(section, fetch, path)
    if kind == "bpe":
        return _build_sentence_piece(section, fetch, path)
    if kind == "wpe":
        raise ConfigError(
            f"{path}.type", kind, "(WordPiece) is not supported; train a SentencePiece tokenizer, type bpe"
        )
    raise ConfigError(f"{path}.type", section.get("type"), "is none of bpe, agg")


def _build_aggregate(section: Mapping[str, Any], fetch: ArtifactFetch, path: str) -> AggregateTokenizer:
    langs = section.get("langs")
    if not isinstance(langs, Mapping) or not langs:
        raise ConfigError(f"{path}.langs", langs, "must map each language to its tokenizer")
    return AggregateTokenizer(
        {str(lang): build_tokenizer(langs[lang], fetch, f"{path}.langs.{lang}") for lang in langs}
    )


def _build_sentence_piece(section: Mapping[str, Any], fetch: ArtifactFetch, path: str) -> SentencePieceTokenizer:
    if section.get("special_tokens"):
        raise ConfigError(
            f"{path}.special_tokens",
            section["special_tokens"],
            "is not supported; put them in when you train the tokenizer",
        )
    source = _source(section, "model_path", MODEL_FILE, path)
    artifact = fetch(f"{path}.model_path", source)
    try:
        tokenizer = SentencePieceTokenizer(artifact.data)
    except ValueError as error:
        raise ConfigError(f"{path}.model_path", source, f"holds {error}") from None
    for key, name in COMPANION_FILES.items():
        if section.get(key) or _is_given(section.get("dir")):
            _fetch_companion(fetch, f"{path}.{key}", _source(section, key, name, path))
    return tokenizer


def _source(section: Mapping[str, Any], key: str, name: str, path: str) -> str:
    if section.get(key):
        if not _is_given(section[key]):
            raise ConfigError(f"{path}.{key}", section[key], f"must name the file {name}")
        return str(section[key])
    if not _is_given(section.get("dir")):
        raise ConfigError(f"{path}.dir", section.get("dir"), f"must name the folder that holds {name}")
    return str(PurePath(str(section["dir"])) / name)


def _is_given(value: object) -> bool:
    return value is not None and str(value) not in ("", "???")


def _fetch_companion(fetch: ArtifactFetch, path: str, source: str) -> None:
    try:
        fetch(path, source)
    except FileNotFoundError:
        logger.info(
            "%s: %s is not there; it is needed only for saving a file that NVIDIA's toolkit restores", path, source
        )
