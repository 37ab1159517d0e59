"""`nemo-asr tokenizer` on the bundled manifests, with sentencepiece as the judge."""

import json
from pathlib import Path

import pytest
import sentencepiece

from nemo_asr.commands.tokenizer import TokenizerError, main, train_tokenizer, write_tokenizer
from nemo_asr.text import SentencePieceTokenizer

SPEECH = Path(__file__).parent.parent / "data" / "speech"
TRAIN, REPEATED = SPEECH / "train.jsonl", SPEECH / "heldout_repeated.jsonl"


def run(out: Path, *arguments: str, source: tuple[str, ...] = ("--manifest", str(TRAIN))) -> int:
    return main([*source, "--out", str(out), *arguments])


@pytest.mark.parametrize(("kind", "size"), [("bpe", 64), ("unigram", 64), ("char", 28)])
def test_it_writes_a_model_that_sentencepiece_reads(tmp_path, capsys, kind, size):
    assert run(tmp_path / "spm", "--vocab-size", "64", "--type", kind) == 0
    assert capsys.readouterr().out == f"{size} pieces from 130 texts in {tmp_path / 'spm'}\n"
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm" / "tokenizer.model"))
    assert len(judge) == size
    assert (judge.unk_id(), judge.bos_id(), judge.eos_id(), judge.pad_id()) == (0, -1, -1, -1)
    for line in REPEATED.read_text().splitlines():
        text = json.loads(line)["text"]
        assert judge.decode(judge.encode(text)) == text
    pieces = [line.split("\t")[0] for line in (tmp_path / "spm" / "tokenizer.vocab").read_text().splitlines()]
    assert pieces == [judge.id_to_piece(i) for i in range(size)]
    assert len((tmp_path / "spm" / "vocab.txt").read_text().splitlines()) == size - 1


def test_the_same_texts_give_the_same_bytes(tmp_path):
    for kind in ("bpe", "unigram"):
        for name in "ab":
            assert run(tmp_path / kind / name, "--vocab-size", "48", "--type", kind) == 0
        for file in ("tokenizer.model", "tokenizer.vocab", "vocab.txt"):
            assert (tmp_path / kind / "a" / file).read_bytes() == (tmp_path / kind / "b" / file).read_bytes()


def test_text_files_and_several_manifests_are_taken(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("press one\npress two\n")
    (tmp_path / "b.txt").write_text("\ncall two\n")
    files = ("--text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert run(tmp_path / "t", "--vocab-size", "20", source=files) == 0
    both = ("--manifest", f"{TRAIN},{REPEATED}")
    assert run(tmp_path / "m", "--vocab-size", "40", source=both) == 0
    assert "from 149 texts" in capsys.readouterr().out


def test_the_audio_of_a_manifest_need_not_be_there(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"audio_filepath": "gone.wav", "text": "press one or two"}) + "\n")
    assert run(tmp_path / "spm", "--vocab-size", "14", source=("--manifest", str(tmp_path / "m.json"))) == 0


@pytest.mark.parametrize(("kind", "most"), [("bpe", 1165), ("unigram", 232)])
def test_a_vocabulary_too_large_is_told_the_largest(tmp_path, capsys, kind, most):
    assert run(tmp_path / "spm", "--vocab-size", "5000", "--type", kind) == 1
    assert capsys.readouterr().err == (
        f"nemo-asr tokenizer: --vocab-size: 5000 is too large: these texts give a {kind} vocabulary of at most {most}\n"
    )
    assert not (tmp_path / "spm").exists()
    assert run(tmp_path / "spm", "--vocab-size", str(most), "--type", kind) == 0


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_small_is_told_the_smallest(tmp_path, capsys, kind):
    assert run(tmp_path / "spm", "--vocab-size", "10", "--type", kind) == 1
    assert (
        "--vocab-size: 10 is too small: these texts have characters for at least 28 pieces" in capsys.readouterr().err
    )


def test_a_character_vocabulary_too_small_is_told_what_is_left_out(tmp_path, capsys):
    assert run(tmp_path / "spm", "--vocab-size", "27", "--type", "char") == 1
    assert "no piece is left for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no utterance"),
        ('{"audio_filepath": "a.wav", "text": " "}\n', "there is no text to train from"),
        ('{"audio_filepath": "a.wav"}\n', "m.json:1: text: missing"),
        ("{\n", "m.json:1: is not JSON"),
    ],
)
def test_a_manifest_without_text_is_one_line_of_error(tmp_path, capsys, content, message):
    (tmp_path / "m.json").write_text(content)
    assert run(tmp_path / "spm", source=("--manifest", str(tmp_path / "m.json"))) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_missing_files_are_one_line_of_error(tmp_path, capsys):
    for source in (("--manifest", "gone.json"), ("--text", "gone.txt")):
        assert run(tmp_path, source=source) == 1
        assert f"{source[1]}: cannot be read" in capsys.readouterr().err


def test_flags_and_overrides_say_the_same(tmp_path):
    assert run(tmp_path / "flags", "--vocab-size", "64", "--lower") == 0
    overrides = [
        f"manifest={TRAIN}",
        f"out={tmp_path / 'overrides'}",
        "vocab_size=64",
        "lower=true",
        "split_digits=false",
    ]
    assert main(overrides) == 0
    for name in ("tokenizer.model", "tokenizer.vocab", "vocab.txt"):
        assert (tmp_path / "flags" / name).read_bytes() == (tmp_path / "overrides" / name).read_bytes()


def test_options_reach_the_model(tmp_path):
    texts = ["Press 12 <star> now", "Call 345 <star> Again", "press 12", "call again now"]
    lower = SentencePieceTokenizer(train_tokenizer(texts, vocab_size=40, lower=True, split_digits=True))
    assert lower.decode(lower.encode("CALL Again")) == "call again"
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in lower.vocabulary)
    special = SentencePieceTokenizer(
        train_tokenizer(texts, vocab_size=45, start_end_tokens=True, user_defined_symbols=["<star>"])
    )
    assert (special.bos_id, special.eos_id) == (1, 2)
    assert "<star>" in special.tokens(special.encode("press <star>"))
    fallback = SentencePieceTokenizer(train_tokenizer(texts, vocab_size=300, byte_fallback=True))
    assert fallback.decode(fallback.encode("call ☃")) == "call ☃"
    short = SentencePieceTokenizer(train_tokenizer(texts, vocab_size=30, max_piece_length=2))
    assert max(map(len, short.vocabulary[1:])) == 2
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer([])


def test_a_folder_is_made_with_its_parents(tmp_path):
    model = train_tokenizer(["press one or two"], vocab_size=14)
    written = write_tokenizer(model, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "tokenizer.model").read_bytes() == written.model


def test_help_and_wrong_options_leave_by_argparse(tmp_path, capsys):
    for arguments, status in ((["--help"], 0), ([], 2), (["--text", "a", "--manifest", "b", "--out", "c"], 2)):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == status
    assert "--vocab-size" in capsys.readouterr().out
