"""Tokenizers against NVIDIA's golden files and against sentencepiece itself."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import yaml

from nemo_asr.text import (
    AggregateTokenizer,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    UnknownTextError,
    build_tokenizer,
)
from nemo_asr.text.normalize import normalize_transcript
from nemo_config import ConfigError

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ("quartznet_ctc_char", "fastconformer_ctc_bpe", "conformer_ctc_bpe")
SENTENCES = ["please press the pound key", "call the extension again", "the call", "press one to enter a number", "no"]


def members(case: str) -> dict[str, bytes]:
    with tarfile.open(GOLDEN / case / "model.nemo") as archive:
        return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}


def golden_tokenizer(case: str) -> Tokenizer:
    files = members(case)
    config = yaml.safe_load(files["model_config.yaml"])
    if "tokenizer" not in config:
        return CharTokenizer(config["labels"])
    return build_tokenizer(
        config["tokenizer"], lambda path, source: SimpleNamespace(data=files[source[5:]], name=source)
    )


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    return train_model("bpe", 40)


def train_model(kind: str, vocab_size: int, **options) -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=buffer, model_type=kind, vocab_size=vocab_size,
        hard_vocab_limit=False, minloglevel=2, **{"bos_id": -1, "eos_id": -1} | options,
    )  # fmt: skip
    return buffer.getvalue()


def greedy_ids(predictions: np.ndarray, blank: int) -> list[int]:
    kept = predictions[np.insert(predictions[1:] != predictions[:-1], 0, True)]
    return [int(index) for index in kept if index != blank]


@pytest.mark.parametrize("case", CASES)
def test_golden_greedy_ids_decode_to_nvidias_transcripts(case):
    meta = json.loads((GOLDEN / case / "meta.json").read_text())
    arrays = np.load(GOLDEN / case / "io.npz")
    tokenizer = golden_tokenizer(case)
    compared = 0
    for text, ids, length, samples in zip(
        meta["transcribe"], arrays["predictions"], arrays["encoded_length"], arrays["in_audio_length"], strict=True
    ):
        if samples >= 16000:  # NVIDIA's transcribe() pads what is shorter than a second, the stored ids are unpadded
            assert tokenizer.decode(greedy_ids(ids[:length], tokenizer.vocab_size)) == text
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("case", CASES)
def test_golden_vocabulary_is_the_decoders(case):
    config = yaml.safe_load(members(case)["model_config.yaml"])
    assert golden_tokenizer(case).vocabulary == config["decoder"]["vocabulary"]


@pytest.mark.parametrize("case", CASES)
def test_golden_targets_are_the_encoded_reference_texts(case):
    meta = json.loads((GOLDEN / case / "meta.json").read_text())
    arrays = np.load(GOLDEN / case / "io.npz")
    tokenizer = golden_tokenizer(case)
    for text, ids, length in zip(
        meta["reference_texts"], arrays["in_targets"], arrays["in_target_length"], strict=True
    ):
        assert tokenizer.encode(text)[:length] == ids[:length].tolist()


@pytest.mark.parametrize("case", CASES[1:])
def test_companion_files_are_spelled_as_nvidias(case):
    files = members(case)
    tokenizer = golden_tokenizer(case)
    assert tokenizer.vocab_txt() == next(data for name, data in files.items() if name.endswith("_vocab.txt"))
    assert tokenizer.spe_vocab() == next(data for name, data in files.items() if name.endswith("tokenizer.vocab"))


def test_char_tokenizer_matches_whole_word_labels():
    tokenizer = CharTokenizer([" ", "a", "b", "<noise>"])
    assert tokenizer.encode("a <noise> ab") == [1, 0, 3, 0, 1, 2]
    assert tokenizer.decode([1, 0, 3, 0, 1, 2]) == "a <noise> ab"


def test_char_tokenizer_drops_unknown_characters_or_names_them():
    tokenizer = CharTokenizer([" ", "a", "b"])
    assert tokenizer.encode("a?é b") == [1, 0, 2]
    with pytest.raises(UnknownTextError, match="'\\?' 'é' outside the vocabulary") as caught:
        tokenizer.encode("a?é? b", unknown="error")
    assert caught.value.characters == ["?", "é"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"), [([], "empty list"), (["a", ""], "empty label"), (["a", "b", "a"], "'a' stands")]
)
def test_char_tokenizer_refuses_labels_that_are_no_vocabulary(labels, message):
    with pytest.raises(ValueError, match=message):
        CharTokenizer(labels)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_sentence_piece_equals_the_library(kind):
    model = train_model(kind, 20 if kind == "char" else 40)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = SentencePieceTokenizer(model)
    for text in [*SENTENCES, "the  key ", "", "zebra ☃"]:
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.tokens(tokenizer.encode(text)) == [oracle.id_to_piece(i) for i in oracle.encode(text)]
        assert tokenizer.decode(oracle.encode(text)) == oracle.decode(oracle.encode(text))


def test_sentence_piece_names_what_it_cannot_spell(model_bytes):
    tokenizer = SentencePieceTokenizer(model_bytes)
    assert tokenizer.unk_id in tokenizer.encode("call ☃")
    with pytest.raises(UnknownTextError, match="'☃'"):
        tokenizer.encode("call ☃", unknown="error")


def test_sentence_piece_reports_special_ids():
    plain = SentencePieceTokenizer(train_model("bpe", 40))
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (None, None, None)
    special = SentencePieceTokenizer(train_model("bpe", 43, bos_id=1, eos_id=2, pad_id=3))
    assert (special.bos_id, special.eos_id, special.pad_id) == (1, 2, 3)


def test_tokenizers_survive_pickling(model_bytes):
    for tokenizer in (CharTokenizer("ab "), SentencePieceTokenizer(model_bytes)):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.vocabulary == tokenizer.vocabulary
        assert copy.encode("ab") == tokenizer.encode("ab")
        assert isinstance(copy, Tokenizer)


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 64])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePieceTokenizer(data)


def test_aggregate_gives_each_language_its_own_range(model_bytes):
    english, chars = SentencePieceTokenizer(model_bytes), CharTokenizer("¿ñ ¡aeiou")
    both = AggregateTokenizer({"en": english, "es": chars})
    assert both.vocabulary == english.vocabulary + chars.vocabulary
    assert both.encode("the call", "en") == english.encode("the call")
    assert both.encode("ñ a", "es") == [english.vocab_size + i for i in chars.encode("ñ a")]
    mixed = both.encode("the call", "en") + both.encode("ñ a", "es")
    assert both.decode(mixed) == " the callñ a"
    assert [both.lang_of(i) for i in (0, english.vocab_size - 1, english.vocab_size)] == ["en", "en", "es"]


def test_nvidias_names_of_the_methods_give_the_same(model_bytes):
    english, chars = SentencePieceTokenizer(model_bytes), CharTokenizer("teh cal")
    both = AggregateTokenizer({"en": english, "es": chars})
    for tokenizer, lang in ((english, None), (chars, None), (both, "es")):
        ids = tokenizer.encode("the call", lang)
        assert tokenizer.text_to_ids("the call", lang) == ids
        assert tokenizer.ids_to_text(np.array(ids)) == "the call"
        assert tokenizer.text_to_tokens("the call", lang) == tokenizer.ids_to_tokens(ids) == tokenizer.tokens(ids)
        assert tokenizer.tokens_to_text(tokenizer.tokens(ids)).strip() == "the call"
        with pytest.raises(ValueError, match="token: '§' is no piece of the vocabulary"):
            tokenizer.tokens_to_ids(["§"])


def test_aggregate_needs_a_language_that_it_has(model_bytes):
    both = AggregateTokenizer({"en": SentencePieceTokenizer(model_bytes)})
    with pytest.raises(ValueError, match="lang: missing"):
        both.encode("the call")
    with pytest.raises(ValueError, match="lang: 'fr' is none of the tokenizer's: en"):
        both.encode("the call", "fr")


def fetch_from(files: dict[str, bytes], seen: dict[str, str] | None = None):
    def fetch(path: str, source: str) -> SimpleNamespace:
        if seen is not None:
            seen[path] = source
        if source not in files:
            raise FileNotFoundError(source)
        return SimpleNamespace(name=source, data=files[source])

    return fetch


def test_build_reads_a_folder_or_the_named_files(model_bytes):
    seen: dict[str, str] = {}
    folder = {"spm/tokenizer.model": model_bytes}
    built = build_tokenizer({"dir": "spm", "type": "bpe"}, fetch_from(folder, seen))
    assert built.vocab_size == SentencePieceTokenizer(model_bytes).vocab_size
    assert seen == {
        "tokenizer.model_path": "spm/tokenizer.model",
        "tokenizer.vocab_path": "spm/vocab.txt",
        "tokenizer.spe_tokenizer_vocab": "spm/tokenizer.vocab",
    }
    named = {"dir": "/gone", "type": "bpe", "model_path": "nemo:1_tokenizer.model", "vocab_path": "nemo:2_vocab.txt"}
    seen.clear()
    build_tokenizer(named, fetch_from({"nemo:1_tokenizer.model": model_bytes}, seen))
    assert seen["tokenizer.model_path"] == "nemo:1_tokenizer.model"
    assert seen["tokenizer.vocab_path"] == "nemo:2_vocab.txt"


@pytest.mark.parametrize("kind", ["agg", "multilingual"])
def test_build_makes_an_aggregate_of_the_languages(kind, model_bytes):
    seen: dict[str, str] = {}
    section = {"type": kind, "langs": {"en": {"dir": "en", "type": "bpe"}, "es": {"dir": "es", "type": "bpe"}}}
    files = {"en/tokenizer.model": model_bytes, "es/tokenizer.model": model_bytes}
    built = build_tokenizer(section, fetch_from(files, seen))
    assert built.vocab_size == 2 * SentencePieceTokenizer(model_bytes).vocab_size
    assert seen["tokenizer.langs.es.model_path"] == "es/tokenizer.model"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dir": "spm"}, "tokenizer.type: None"),
        ({"dir": "spm", "type": "bpee"}, "tokenizer.type: "),
        ({"dir": "spm", "type": "wpe"}, "tokenizer.type: .*not supported"),
        ({"type": "bpe"}, "tokenizer.dir: None"),
        ({"dir": "???", "type": "bpe"}, "tokenizer.dir: "),
        ({"dir": "spm", "type": "bpe", "model_path": "???"}, "tokenizer.model_path: "),
        ({"type": "agg"}, "tokenizer.langs: None"),
        ({"type": "agg", "langs": {"en": {"type": "bpe"}}}, "tokenizer.langs.en.dir: None"),
        ({"dir": "bad", "type": "bpe"}, "tokenizer.model_path: .*no SentencePiece model"),
        ({"dir": "spm", "type": "bpe", "special_tokens": ["<x>"]}, "tokenizer.special_tokens: "),
        ({"dir": "spm", "type": "bpe", "custom_tokenizer": {"_target_": "x"}}, "tokenizer.custom_tokenizer: "),
    ],
)
def test_build_names_what_is_wrong_in_the_section(section, message, model_bytes):
    files = {"spm/tokenizer.model": model_bytes, "bad/tokenizer.model": b"not a model"}
    with pytest.raises(ConfigError, match=message):
        build_tokenizer(section, fetch_from(files))


def test_build_without_a_model_file_says_which():
    with pytest.raises(FileNotFoundError, match=r"spm/tokenizer\.model"):
        build_tokenizer({"dir": "spm", "type": "bpe"}, fetch_from({}))


@pytest.mark.parametrize(
    ("text", "parser", "expected"),
    [
        ("  Hello, World! ", "en", "hello world"),
        ("It's 5% & more", "en", "it's 5 percent and more"),
        ("Café", "en", "cafe"),
        ("Don’t — stop: a-b", "en", "don't stop a b"),
        ("Hello, World!", "base", "hello, world!"),
        ("Ёлка, да!", "ru", "елка да"),
    ],
)
def test_normalize_transcript(text, parser, expected):
    assert normalize_transcript(text, list("abcdefghijklmnopqrstuvwxyz '"), parser) == expected
