"""`nemo-asr tokenizer`: makes a SentencePiece tokenizer from the texts of manifests or of text files.

    nemo-asr tokenizer --manifest train.json --out tokenizer --vocab-size 128
    nemo-asr tokenizer manifest=train.json out=tokenizer vocab_size=128 lower=true
    nemo-asr train --config-name fastconformer_ctc_bpe model.tokenizer.dir=tokenizer …

The folder then holds tokenizer.model, tokenizer.vocab and vocab.txt, as NVIDIA's toolkit wants them. The same texts
and options give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_asr.data.manifest import ManifestError, ManifestRules, read_manifest
from nemo_asr.text.sentence_piece import SentencePieceTokenizer
from nemo_asr.text.tokenizer import UnknownTextError

TYPES = ("bpe", "unigram", "char")
DEFAULT_VOCAB_SIZE = 1024
LONGEST_PIECE = 16
LONGEST_LINE_BYTES = 4192 * 16
"""SentencePiece leaves out longer lines; its own default of 4192 bytes would drop long transcripts unseen."""

KEYS = ("manifest", "text", "out", "vocab_size", "type", "character_coverage", "symbols", "max_piece_length")
SWITCHES = ("lower", "split_digits", "byte_fallback", "start_end_tokens")

_TOO_LARGE = re.compile(r"set it to a value <= (\d+)|value <=\s*(\d+)", re.IGNORECASE)
_TOO_SMALL = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")


class TokenizerError(ValueError):
    """A tokenizer that cannot be trained; the message is for the person at the command line."""


def main(argv: list[str]) -> int:
    """Runs the command with the given arguments (without its name); returns the exit status."""
    options = _parser().parse_args([flag for argument in argv for flag in _flags(argument)])
    try:
        texts = list(_texts(options.manifest, options.text))
        model = train_tokenizer(
            texts,
            vocab_size=options.vocab_size,
            kind=options.type,
            lower=options.lower,
            character_coverage=options.character_coverage,
            split_digits=options.split_digits,
            byte_fallback=options.byte_fallback,
            start_end_tokens=options.start_end_tokens,
            user_defined_symbols=options.symbols,
            max_piece_length=options.max_piece_length,
        )
    except (TokenizerError, ManifestError) as error:
        print(f"nemo-asr tokenizer: {error}", file=sys.stderr)
        return 1
    written = write_tokenizer(model, options.out)
    print(f"{written.vocab_size} pieces from {len(texts)} texts in {options.out}")
    return 0


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    kind: str = "bpe",
    lower: bool = False,
    character_coverage: float = 1.0,
    split_digits: bool = False,
    byte_fallback: bool = False,
    start_end_tokens: bool = False,
    user_defined_symbols: Iterable[str] = (),
    max_piece_length: int = LONGEST_PIECE,
) -> bytes:
    """Trains a SentencePiece model and returns its bytes.

    Args:
        texts: transcripts.
        vocab_size: number of pieces, `<unk>` among them.
        kind: bpe, unigram or char.
        lower: texts are lower-cased, here and whenever the tokenizer encodes.
        character_coverage: share of the characters that get a piece; 1.0 is all of them.
        split_digits: every digit is a piece of its own.
        byte_fallback: unknown characters are spelled by their bytes.
        start_end_tokens: adds <s> and </s>.
        user_defined_symbols: pieces that are never split.
        max_piece_length: characters of the longest piece.

    Raises:
        TokenizerError: no text, or a vocabulary that the texts do not give.
    """
    import sentencepiece

    lines = [text for text in texts if text.strip()]
    if not lines:
        raise TokenizerError("there is no text to train from")
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=buffer,
            vocab_size=vocab_size,
            model_type=kind,
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc_cf" if lower else "nmt_nfkc",
            split_digits=split_digits,
            byte_fallback=byte_fallback,
            bos_id=1 if start_end_tokens else -1,
            eos_id=2 if start_end_tokens else -1,
            user_defined_symbols=list(user_defined_symbols),
            max_sentence_length=LONGEST_LINE_BYTES,
            max_sentencepiece_length=max_piece_length,
            num_threads=1,  # the order in which threads finish would tell in unigram scores
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TokenizerError(_explain(str(error), vocab_size, kind)) from error
    if kind == "char" and character_coverage == 1.0 and not byte_fallback:
        _check_characters(SentencePieceTokenizer(buffer.getvalue()), lines, vocab_size)
    return buffer.getvalue()


def write_tokenizer(model: bytes, folder: Path) -> SentencePieceTokenizer:
    """Writes tokenizer.model, tokenizer.vocab and vocab.txt into a folder, which is made if need be."""
    tokenizer = SentencePieceTokenizer(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer.vocab").write_bytes(tokenizer.spe_vocab())
    (folder / "vocab.txt").write_bytes(tokenizer.vocab_txt())
    return tokenizer


def _texts(manifest: str | None, text_files: list[Path] | None) -> Iterator[str]:
    if manifest is not None:
        # Only the texts matter: the audio need not be on this machine.
        entries = read_manifest(manifest, ManifestRules(tarred=True, need_duration=False))
        if not entries:
            raise TokenizerError(f"{manifest}: holds no utterance")
        yield from (entry.text for entry in entries)
    for path in text_files or ():
        try:
            yield from path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _check_characters(tokenizer: SentencePieceTokenizer, lines: Iterable[str], vocab_size: int) -> None:
    """SentencePiece drops the rarest characters of a `char` vocabulary that is too small, and says nothing."""
    for line in lines:
        try:
            tokenizer.encode(line, unknown="error")
        except UnknownTextError as error:
            missing = " ".join(map(repr, error.characters))
            raise TokenizerError(f"--vocab-size: {vocab_size} is too small: no piece is left for {missing}") from None


def _explain(message: str, vocab_size: int, kind: str) -> str:
    """SentencePiece's message in a sentence that says what to change."""
    if found := _TOO_LARGE.search(message):
        largest = found.group(1) or found.group(2)
        return f"--vocab-size: {vocab_size} is too large: these texts give a {kind} vocabulary of at most {largest}"
    if found := _TOO_SMALL.search(message):
        return (
            f"--vocab-size: {vocab_size} is too small: these texts have characters for at least {found.group(2)} pieces"
        )
    return f"SentencePiece: {' '.join(message.split())}"


def _flags(argument: str) -> list[str]:
    """`vocab_size=64`, as the other commands spell it, as `--vocab-size=64`; switches are `lower=true` or `=false`."""
    key, _, value = argument.partition("=")
    flag = "--" + key.replace("_", "-")
    if key in KEYS and value:
        return [f"{flag}={value}"]
    if key in SWITCHES and value.lower() in ("true", "false"):
        return [flag] if value.lower() == "true" else []
    return [argument]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nemo-asr tokenizer", description=__doc__.split("\n\n")[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", metavar="A.json[,B.json]", help="manifests whose texts are taken")
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="text files, one text a line")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the three files")
    parser.add_argument("--vocab-size", type=int, default=DEFAULT_VOCAB_SIZE, help="number of pieces (%(default)s)")
    parser.add_argument("--type", choices=TYPES, default="bpe", help="kind of SentencePiece model (%(default)s)")
    parser.add_argument("--lower", action="store_true", help="lower-case, here and whenever it encodes")
    parser.add_argument("--character-coverage", type=float, default=1.0, help="share of characters kept (%(default)s)")
    parser.add_argument("--split-digits", action="store_true", help="every digit is a piece")
    parser.add_argument("--byte-fallback", action="store_true", help="spell unknown characters by their bytes")
    parser.add_argument("--start-end-tokens", action="store_true", help="add <s> and </s>")
    parser.add_argument("--symbols", nargs="+", default=(), metavar="PIECE", help="pieces that are never split")
    parser.add_argument(
        "--max-piece-length", type=int, default=LONGEST_PIECE, help="characters of the longest piece (%(default)s)"
    )
    return parser
