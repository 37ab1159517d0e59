"""`nemo-asr train | transcribe | evaluate | tokenizer`: one module a command, imported when it is called."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "train a model from a config, with Hydra's overrides (needs nemo-asr[train])",
    "transcribe": "text of audio files, or of a manifest's",
    "evaluate": "word and character error rate of a model on a manifest",
    "tokenizer": "make a SentencePiece tokenizer from a manifest or from text",
}

_USAGE = "usage: nemo-asr COMMAND [options]\n\n" + "\n".join(
    f"  {name:<11} {summary}" for name, summary in COMMANDS.items()
)


def main() -> int:
    """Runs the command named on the command line; returns the exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE + "\n\nnemo-asr COMMAND --help says more.")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from nemo_asr import __version__

        print(f"nemo-asr {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"nemo-asr: {arguments[0]}: no such command; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"nemo_asr.commands.{arguments[0]}")
    return int(command.main(arguments[1:]) or 0)
