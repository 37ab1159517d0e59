"""What beam search, a language model and boosted phrases do for a weak recogniser, on bundled speech.

    hatch run bench decoding             # trains the recogniser for three minutes, or takes the one that is there
    hatch run bench decoding --fresh     # trains it anew

The recogniser is a hybrid of transducer and CTC, trained for a few epochs on the 130 training clips, so that it errs
often; the language model is a 3-gram of these clips' transcripts.  Both are tried on clips that were not trained on:
word error rate of greedy search, of beam search, and of beam search with the 3-gram; then, for each word that greedy
search finds too rarely, how many of its occurrences are found (recall), and how many times it is heard where it was
not said, with and without that word boosted.  The weights were chosen by hand.

A transducer has a language model of its own, its prediction network, which after so little training knows these
sentences by heart; the 3-gram adds a price for each token, and with it deletions, so that its weight must be small.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _trained_model import SPEECH, trained_model

HELD_OUT = ("heldout_repeated.jsonl", "heldout_sentences.jsonl")
BEAM = 8
LM_WEIGHT = {"rnnt": 0.1, "ctc": 0.4}
PHRASE_WEIGHT = {"greedy_batch": 1.0, "malsd_batch": 0.4, "beam_batch": 1.0}
CONFIG = "fastconformer_hybrid_transducer_ctc_bpe"
OVERRIDES = ("model.aux_ctc.ctc_loss_weight=0.5", "model.optim.lr=0.3", "model.optim.sched.warmup_steps=100")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SPEECH / name).read_text(encoding="utf-8").splitlines()]


class Clips:
    """Encoder outputs of the held-out clips, so that only the search is repeated, and what was said in them."""

    def __init__(self, network: Any) -> None:
        import soundfile
        import torch

        rows = [row for name in HELD_OUT for row in read(name)]
        self.said = [row["text"] for row in rows]
        signals = [torch.from_numpy(soundfile.read(SPEECH / row["audio_filepath"], dtype="float32")[0]) for row in rows]
        batch = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
        with torch.inference_mode():
            self.encoded = network.encode(batch, torch.tensor(list(map(len, signals))))


def setting(network: Any, head: str, strategy: str, **keys: Any) -> None:
    """Sets the search of one head, `rnnt` or `ctc`."""
    name = "greedy" if strategy.startswith("greedy") else "beam"
    section = {"strategy": strategy, name: keys}
    if head == "rnnt":
        network.set_decoding(section, strict=True)
    else:
        network.set_ctc_decoding(section, strict=True)
    network.use_decoder(head)


def heard(network: Any, clips: Clips, bias: Any = None) -> tuple[list[str], float]:
    """Texts of all clips, and the search's CPU seconds."""
    import torch

    started = time.process_time()
    with torch.inference_mode():
        found = network.decode(*clips.encoded, timestamps=False, keep_log_probs=False, bias=bias)
    return [hypothesis.text for hypothesis in found], time.process_time() - started


def spotted(said: Sequence[str], texts: Sequence[str], word: str) -> tuple[int, int, int]:
    """How often a word was said, how often it was found where it was said, and heard where it was not."""
    counts = [(text.split().count(word), other.split().count(word)) for text, other in zip(said, texts, strict=True)]
    spoken = sum(count for count, _ in counts)
    return spoken, sum(map(min, counts)), sum(max(0, found - count) for count, found in counts)


def compare_searches(network: Any, clips: Clips, arpa: Path) -> None:
    from nemo_asr.metrics.wer import word_error_rate

    lm = {"ngram_lm_model": str(arpa)}
    searches: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
        "rnnt": [
            ("greedy", "greedy_batch", {}),
            ("greedy, 3-gram", "greedy_batch", lm),
            ("malsd_batch", "malsd_batch", {"beam_size": BEAM}),
            ("malsd_batch, 3-gram", "malsd_batch", {"beam_size": BEAM, **lm}),
            ("maes", "maes", {"beam_size": BEAM}),
            ("maes, 3-gram", "maes", {"beam_size": BEAM, **lm}),
        ],
        "ctc": [
            ("greedy", "greedy_batch", {}),
            ("greedy, 3-gram", "greedy_batch", lm),
            ("beam_batch", "beam_batch", {"beam_size": BEAM, "beam_beta": 0.0}),
            ("beam_batch, 3-gram", "beam_batch", {"beam_size": BEAM, **lm}),
        ],
    }
    print(f"\nword error rate on {len(clips.said)} clips not trained on: beam {BEAM}, 3-gram's weight {LM_WEIGHT}")
    for head, rows in searches.items():
        for title, strategy, keys in rows:
            weight = {"ngram_lm_alpha": LM_WEIGHT[head]} if "ngram_lm_model" in keys else {}
            setting(network, head, strategy, **keys, **weight)
            texts, seconds = heard(network, clips)
            print(f"  {head:5} {title:20} {100 * word_error_rate(texts, clips.said):5.1f} %   {seconds:6.2f} s CPU")


def compare_phrases(network: Any, clips: Clips) -> None:
    from nemo_asr.decoding.fusion import Bias

    words = Counter(word for text in clips.said for word in text.split() if len(word) > 4)
    print(f"\nwords of the clips, each boosted alone (weights {PHRASE_WEIGHT}): said, found, heard elsewhere")
    searches = [("rnnt", "greedy_batch"), ("rnnt", "malsd_batch"), ("ctc", "greedy_batch"), ("ctc", "beam_batch")]
    for head, strategy in searches:
        setting(network, head, strategy, **({} if strategy == "greedy_batch" else {"beam_size": BEAM}))
        plain, _ = heard(network, clips)
        missed = [word for word, count in words.most_common() if spotted(clips.said, plain, word)[1] < count][:8]
        before, after = Counter[str](), Counter[str]()
        for word in missed:
            boosted, _ = heard(network, clips, Bias(phrases=[word], boosting_tree_alpha=PHRASE_WEIGHT[strategy]))
            for counter, texts in ((before, plain), (after, boosted)):
                counter.update(dict(zip(("said", "found", "elsewhere"), spotted(clips.said, texts, word), strict=True)))
        print(
            f"  {head:5} {strategy:13} recall {before['found']}/{before['said']} -> {after['found']}/{after['said']}, "
            f"elsewhere {before['elsewhere']} -> {after['elsewhere']}   ({', '.join(missed)})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("nemo_experiments/bench"), help="where everything is kept")
    parser.add_argument("--fresh", action="store_true", help="train anew")
    parser.add_argument("--epochs", type=int, default=25)
    arguments = parser.parse_args()
    folder = arguments.dir.resolve()
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    model = trained_model(folder, CONFIG, arguments.epochs, *OVERRIDES)

    from nemo_asr import load_model
    from nemo_asr.decoding.ngram import train as train_ngram

    logging.disable(logging.WARNING)
    network: Any = load_model(model)
    started = time.process_time()
    train_ngram([row["text"] for row in read("train.jsonl")], network.tokenizer, folder / "3gram.arpa", order=3)
    print(f"3-gram of the training transcripts: {time.process_time() - started:.2f} s CPU")
    clips = Clips(network)
    compare_searches(network, clips, folder / "3gram.arpa")
    compare_phrases(network, clips)


if __name__ == "__main__":
    main()
