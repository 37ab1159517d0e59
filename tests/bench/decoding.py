"""What beam search, a language model and boosted phrases do for a weak recogniser, on bundled speech.

    hatch run bench decoding                            # trains six recognisers, or takes those that are there
    hatch run bench decoding --fresh                    # trains them anew
    hatch run bench decoding --prediction lstm --seeds 1    # only one of them

The recognisers are hybrids of transducer and CTC, trained for a few epochs on the 130 training clips, so that they err
often: some with a prediction network that sees one token, some with an LSTM, each from several seeds, since one alone
may be lucky.  The language model is a 3-gram of the same clips' transcripts.  All is tried on 33 clips that were not
trained on, and errors are summed over the seeds.

Word error rates: of greedy and beam searches, alone, with a bonus for each token (`beam_beta`), with the 3-gram, with
both, and with the transducer's own language model taken off (`ilm_weight`).  The weights are chosen on every second
clip and judged on the others, and the other way round, so that no clip is judged by weights that it had a say in.  A
3-gram makes every token cost something, and blanks nothing: without the bonus words go missing, the more the higher
its weight.  And a transducer has a language model of its own, its prediction network.  The LSTM knows the transcripts
better than a 3-gram of them does (the costs of a token say so), which then has less to add.

Phrases: each word that a search finds too rarely is boosted alone; how many of its occurrences are found (recall), and
how many times is it heard where it was not said, at several weights?
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _trained_model import SPEECH, trained_model

HELD_OUT = ("heldout_repeated.jsonl", "heldout_sentences.jsonl")
BEAM = 8
WEIGHTS, BONUSES, INNER_WEIGHTS = (0.1, 0.3, 0.6), (0.4, 0.8, 1.2, 1.6, 2.0), (0.1, 0.2)
PHRASE_WEIGHTS = (0.1, 0.2, 0.4, 1.0)
PHRASES = 8
CONFIG = "fastconformer_hybrid_transducer_ctc_bpe"
OVERRIDES = ("model.aux_ctc.ctc_loss_weight=0.5", "model.optim.lr=0.3", "model.optim.sched.warmup_steps=100")
PREDICTION = {
    "stateless": (
        "model.decoder._target_=nemo.collections.asr.modules.StatelessTransducerDecoder",
        *("+model.decoder.context_size=1", "~model.decoder.random_state_sampling", "~model.decoder.blank_as_pad"),
    ),
    "lstm": (),
}

Keys = dict[str, Any]


class Search(NamedTuple):
    """A row of the table: a search, and which of the keys it is tried with; each way to set them is one."""

    title: str
    strategy: str
    has_bonus: bool = False
    has_ngram: bool = False
    has_inner: bool = False

    def ways(self) -> Iterator[Keys]:
        beam = {} if self.strategy.startswith("greedy") else {"beam_size": BEAM, "beam_beta": 0.0}
        grid = {
            "beam_beta": BONUSES if self.has_bonus else (),
            "ngram_lm_alpha": WEIGHTS if self.has_ngram else (),
            "ilm_weight": INNER_WEIGHTS if self.has_inner else (),
        }
        asked = {key: values for key, values in grid.items() if values}
        for values in itertools.product(*asked.values()):
            yield {**beam, **dict(zip(asked, values, strict=True))}


def beam_rows(strategy: str) -> list[Search]:
    return [
        Search(strategy, strategy),
        Search(f"{strategy}, bonus", strategy, has_bonus=True),
        Search(f"{strategy}, 3-gram", strategy, has_ngram=True),
        Search(f"{strategy}, 3-gram, bonus", strategy, has_bonus=True, has_ngram=True),
    ]


GREEDY = [Search("greedy", "greedy_batch"), Search("greedy, 3-gram", "greedy_batch", has_ngram=True)]
INNER = Search("malsd_batch, 3-gram, bonus, own off", "malsd_batch", has_bonus=True, has_ngram=True, has_inner=True)
SEARCHES = {
    "rnnt": [*GREEDY, *beam_rows("malsd_batch"), INNER, *beam_rows("maes")],
    "ctc": [*GREEDY, *beam_rows("beam_batch")],
}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SPEECH / name).read_text(encoding="utf-8").splitlines()]


class Recogniser:
    """A trained network and the 3-gram in its tokens; encoder outputs of the held-out clips, so that only the search is
    repeated, and what was said in them."""

    def __init__(self, model: Path, ngram: Path) -> None:
        import soundfile
        import torch

        from nemo_asr import load_model
        from nemo_asr.decoding.ngram import train

        self.network: Any = load_model(model)
        self.ngram = ngram
        train([row["text"] for row in read("train.jsonl")], self.network.tokenizer, ngram, order=3)
        rows = [row for name in HELD_OUT for row in read(name)]
        self.said = [row["text"] for row in rows]
        signals = [torch.from_numpy(soundfile.read(SPEECH / row["audio_filepath"], dtype="float32")[0]) for row in rows]
        batch = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
        with torch.inference_mode():
            self.encoded = self.network.encode(batch, torch.tensor(list(map(len, signals))))

    def set(self, head: str, strategy: str, **keys: Any) -> None:
        """Sets the search of one head, `rnnt` or `ctc`; the language model is the 3-gram."""
        lm = {"ngram_lm_model": str(self.ngram)} if "ngram_lm_alpha" in keys else {}
        section = {"strategy": strategy, "greedy" if strategy.startswith("greedy") else "beam": {**keys, **lm}}
        if head == "rnnt":
            self.network.set_decoding(section, strict=True)
        else:
            self.network.set_ctc_decoding(section, strict=True)
        self.network.use_decoder(head)

    def heard(self, bias: Any = None) -> list[str]:
        import torch

        with torch.inference_mode():
            found = self.network.decode(*self.encoded, timestamps=False, keep_log_probs=False, bias=bias)
        return [hypothesis.text for hypothesis in found]

    def token_costs(self, texts: Sequence[str]) -> tuple[float, float]:
        """What a token of the texts costs the 3-gram, and the transducer's own language model, in nats."""
        import torch

        from nemo_asr.decoding.ngram.model import load_ngram

        tokenizer, decoder, joint = self.network.tokenizer, self.network.decoder, self.network.joint
        model = load_ngram(self.ngram, tokenizer.vocabulary)
        costs: list[tuple[float, float]] = []
        for text in texts:
            tokens = torch.tensor([tokenizer.encode(text)])
            with torch.inference_mode():
                output, _ = decoder.predict(tokens[:, :-1])
                inner = joint.internal_language_model(joint.project_prednet(output))[0]
            state = model.start_states(1)
            for token, own in zip(tokens[0], inner, strict=True):
                costs.append((-float(model.scores(state)[0, token]), -float(own[token])))
                state = model.advance(state, token[None])
        of_ngram, of_own = (sum(column) / len(costs) for column in zip(*costs, strict=True))
        return of_ngram, of_own


def compare_searches(recognisers: Sequence[Recogniser]) -> None:
    count = f"{len(recognisers)} x {len(recognisers[0].said)}"
    print(
        f"\nword error rate on {count} clips not trained on, of it deletions, and how long a search took; beam {BEAM}; "
        "the weights of each half of the clips were chosen on the other:"
    )
    for head, rows in SEARCHES.items():
        for search in rows:
            print(judged(recognisers, head, search), flush=True)


def judged(recognisers: Sequence[Recogniser], head: str, search: Search) -> str:
    """The line of a search: each half of the clips with the weights that are best for the other."""
    from nemo_asr.metrics.wer import EditCounts, count_edits

    halves = slice(0, None, 2), slice(1, None, 2)
    ways = list(search.ways())
    edits = [[EditCounts()] * len(recognisers[0].said) for _ in ways]
    started = time.process_time()
    for row, keys in zip(edits, ways, strict=True):
        for recogniser in recognisers:
            recogniser.set(head, search.strategy, **keys)
            pairs = zip(recogniser.heard(), recogniser.said, strict=True)
            row[:] = [before + count_edits(*pair) for before, pair in zip(row, pairs, strict=True)]
    seconds = (time.process_time() - started) / len(ways) / len(recognisers)
    sums = [[sum(row[half], EditCounts()) for row in edits] for half in halves]
    best = [min(range(len(ways)), key=lambda way: counts[way].errors) for counts in sums]
    total = sums[0][best[1]] + sums[1][best[0]]
    shown = {"ngram_lm_alpha": "weight", "beam_beta": "bonus", "ilm_weight": "own"}
    chosen = [
        " ".join(f"{name} {ways[way][key]}" for key, name in shown.items() if ways[way].get(key)) for way in best[::-1]
    ]
    return (
        f"  {head:5} {search.title:35} {100 * total.rate:5.1f} %  {100 * total.rates[1]:5.1f} %  {seconds:5.2f} s CPU"
        f"   {' | '.join(filter(None, chosen))}"
    )


def spotted(said: Sequence[str], texts: Sequence[str], word: str) -> tuple[int, int, int]:
    """How often a word was said, how often it was found where it was said, and heard where it was not."""
    counts = [(text.split().count(word), other.split().count(word)) for text, other in zip(said, texts, strict=True)]
    spoken = sum(count for count, _ in counts)
    return spoken, sum(map(min, counts)), sum(max(0, found - count) for count, found in counts)


def compare_phrases(recognisers: Sequence[Recogniser]) -> None:
    count = f"{len(recognisers)} x {PHRASES} x {len(recognisers[0].said)}"
    print(
        f"\n{PHRASES} words of the clips that a search misses, each boosted alone: found of those said, "
        f"and heard where not said in {count} clips, by weight"
    )
    searches = [("rnnt", "greedy_batch"), ("rnnt", "malsd_batch"), ("ctc", "greedy_batch"), ("ctc", "beam_batch")]
    for head, strategy in searches:
        for recogniser in recognisers:
            recogniser.set(head, strategy, **({} if strategy == "greedy_batch" else {"beam_size": BEAM}))
        rows = [counts for recogniser in recognisers for counts in phrase_counts(recogniser)]
        line = [f"  {head:5} {strategy:13}"]
        for weight, *columns in zip((0.0, *PHRASE_WEIGHTS), *rows, strict=True):
            said, found, elsewhere = map(sum, zip(*columns, strict=True))
            line.append(f"{weight}: {found}/{said}, {elsewhere:3}")
        print("   ".join(line), flush=True)


def phrase_counts(recogniser: Recogniser) -> list[list[tuple[int, int, int]]]:
    """For each word that the search misses what `spotted` says without boosting, and with each of the weights."""
    from nemo_asr.decoding.fusion import Bias

    said, plain = recogniser.said, recogniser.heard()
    words = Counter(word for text in said for word in text.split() if len(word) > 4)
    missed = [word for word, count in words.most_common() if spotted(said, plain, word)[1] < count][:PHRASES]
    biases = {word: [Bias([word], boosting_tree_alpha=weight) for weight in PHRASE_WEIGHTS] for word in missed}
    return [
        [spotted(said, plain, word), *(spotted(said, recogniser.heard(bias), word) for bias in biases[word])]
        for word in missed
    ]


def compare(name: str, folder: Path, seeds: int, epochs: int) -> None:
    """Everything, for the recognisers with one of the prediction networks."""
    recognisers = []
    for seed in range(1, seeds + 1):
        place = folder / name / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        model = trained_model(place, CONFIG, epochs, *OVERRIDES, *PREDICTION[name], f"++seed={seed}")
        recognisers.append(Recogniser(model, place / "3gram.arpa"))
    print(f"\n== prediction network: {name}")
    for part in ("train.jsonl", *HELD_OUT):
        costs = [recogniser.token_costs([row["text"] for row in read(part)]) for recogniser in recognisers]
        ngram, own = (sum(column) / seeds for column in zip(*costs, strict=True))
        print(f"  a token of {part} costs the 3-gram {ngram:.2f} nats, the transducer's own model {own:.2f}")
    compare_searches(recognisers)
    compare_phrases(recognisers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("nemo_experiments/bench"), help="where everything is kept")
    parser.add_argument("--fresh", action="store_true", help="train anew")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--prediction", choices=PREDICTION, help="only the recogniser with this prediction network")
    parser.add_argument("--seeds", type=int, default=3, help="how many recognisers of each kind")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    for name in [arguments.prediction] if arguments.prediction else PREDICTION:
        if arguments.fresh:
            shutil.rmtree(arguments.dir / name, ignore_errors=True)
        compare(name, arguments.dir.resolve(), arguments.seeds, arguments.epochs)


if __name__ == "__main__":
    main()
