"""`nemo-asr transcribe` and `nemo-asr evaluate` on a golden model, by flags and by NVIDIA's key=value."""

import json
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from nemo_asr.commands import evaluate, transcribe
from nemo_asr.commands.options import TextProcessingConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "conformer_ctc_bpe"
MODEL = str(GOLDEN / "model.nemo")
META = json.loads((GOLDEN / "meta.json").read_text())
REFERENCES = META["reference_texts"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with the case's audio and a manifest of it."""
    folder = tmp_path_factory.mktemp("clips")
    with np.load(GOLDEN / "io.npz") as arrays:
        rows = zip(arrays["in_audio"], arrays["in_audio_length"], REFERENCES, strict=True)
        entries = []
        for number, (audio, length, text) in enumerate(rows):
            soundfile.write(folder / f"{number}.wav", audio[:length], 16000, subtype="PCM_16")
            entry = {
                "audio_filepath": f"{number}.wav",
                "duration": int(length) / 16000,
                "text": text,
                "speaker": number,
            }
            entries.append(json.dumps(entry) + "\n")
    (folder / "manifest.json").write_text("".join(entries))
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_file_prints_its_text(clips, capsys):
    assert transcribe.main([MODEL, str(clips / "1.wav")]) == 0
    assert capsys.readouterr().out == META["transcribe"][1] + "\n"


def test_several_files_print_their_names_and_texts(clips, capsys):
    paths = [str(clips / f"{number}.wav") for number in (2, 0)]
    assert transcribe.main([MODEL, *paths, "--batch-size", "1"]) == 0
    texts = [META["transcribe"][number] for number in (2, 0)]
    assert capsys.readouterr().out.splitlines() == [f"{path}\t{text}" for path, text in zip(paths, texts, strict=True)]


def test_overrides_alone_are_enough(clips, tmp_path, capsys):
    output = tmp_path / "new" / "out.json"
    overrides = [f"model_path={MODEL}", f"audio_dir={clips}", f"output_filename={output}", "batch_size=2", "cuda=-1"]
    assert transcribe.main([*overrides, "amp=false", "multitask_decoding.strategy=greedy", "random_seed=3"]) == 0
    assert [line["pred_text"] for line in read_lines(output)] == META["transcribe"]
    assert "without effect here: multitask_decoding.strategy=greedy random_seed=3" in capsys.readouterr().err


def test_a_manifest_keeps_its_lines_and_gains_texts_and_times(clips, tmp_path, capsys):
    output = tmp_path / "out.json"
    arguments = [MODEL, "--manifest", str(clips / "manifest.json"), "--output", str(output), "--timestamps"]
    assert transcribe.main(arguments) == 0
    lines = read_lines(output)
    assert [line["pred_text"] for line in lines] == META["transcribe"]
    assert [line["speaker"] for line in lines] == [0, 1, 2]
    assert all(Path(line["audio_filepath"]).is_file() for line in lines)
    for line, expected in zip(lines, META["transcribe_timestamps"], strict=True):
        assert {kind: line[kind] for kind in ("char", "word", "segment")} == {
            kind: expected["timestamp"][kind] for kind in ("char", "word", "segment")
        }
    printed = capsys.readouterr()
    assert "     0.00      0.00  o\n" in printed.out
    wer = jiwer.wer(REFERENCES, META["transcribe"])
    assert f"WER {wer:.2%}" in printed.err


def test_predictions_can_be_appended_under_a_models_name(clips, capsys):
    output = clips / "appended.json"
    arguments = [MODEL, f"dataset_manifest={clips / 'manifest.json'}", f"output_filename={output}", "append_pred=true"]
    assert transcribe.main([*arguments, "pred_name_postfix=small"]) == 0
    lines = read_lines(output)
    assert [line["pred_text_small"] for line in lines] == META["transcribe"]
    assert lines[0]["audio_filepath"] == "0.wav", "the output stands beside the manifest"
    assert transcribe.main([*arguments, "overwrite_transcripts=false"]) == 0
    assert "nothing is done" in capsys.readouterr().err
    output.unlink()


def test_json_lines_go_to_standard_output(clips, capsys):
    assert transcribe.main([MODEL, str(clips / "0.wav"), "--json", "--timestamps"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pred_text"] == META["transcribe"][0]
    assert record["word"] == META["transcribe_timestamps"][0]["timestamp"]["word"]


def test_a_pretrained_model_comes_from_its_repository(clips, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or MODEL)
    assert transcribe.main([str(clips / "0.wav"), "pretrained_name=nvidia/stt_small"]) == 0
    assert asked == [("nvidia/stt_small", "stt_small.nemo")]
    assert capsys.readouterr().out == META["transcribe"][0] + "\n"


def test_decoding_options_are_taken_from_the_command_line(clips, capsys):
    arguments = [MODEL, str(clips / "0.wav"), "--json", "--timestamps", "ctc_decoding.ctc_timestamp_type=word"]
    assert transcribe.main(arguments) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"audio_filepath", "pred_text", "word"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MODEL], "audio_dir: None names no audio: give files, audio_dir or dataset_manifest"),
        ([], "audio_dir: None names no audio"),
        (["audio_dir=."], "audio_dir: '.' holds no file *.wav"),
        ([MODEL, "CLIP", "amp_dtype=float8"], "amp_dtype: 'float8' is none of float16, bfloat16"),
        (["CLIP", "pretrained_name=gone"], "pretrained_name: 'gone' is neither a file nor a repository"),
        ([MODEL, "gone.wav"], "gone.wav: there is no such audio file"),
        (["gone.nemo", "CLIP"], "gone.nemo"),
        (["CLIP", "CLIP"], "0.wav"),
        ([MODEL, "--manifest", "gone.json"], "gone.json: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(clips, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    clip = str(clips / "0.wav")
    assert transcribe.main([clip if argument == "CLIP" else argument for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [("batchsize=3", "nearest valid key: batch_size"), ("batch_size=many", "batch_size: 'many' must be an int")],
)
def test_a_mistyped_override_is_named(clips, override, message):
    with pytest.raises(SystemExit, match=message):
        transcribe.main([MODEL, str(clips / "0.wav"), override])


def test_evaluate_reports_rates_speed_and_utterances(clips, tmp_path, capsys):
    report, output = tmp_path / "report.json", tmp_path / "scored.json"
    arguments = [MODEL, "--manifest", str(clips / "manifest.json"), "--report", str(report), "--output", str(output)]
    assert evaluate.main([*arguments, "--show", "1", "scores_per_sample=true"]) == 0
    found = json.loads(report.read_text())
    words = jiwer.process_words(REFERENCES, META["transcribe"])
    assert found["wer"] == pytest.approx(words.wer)
    assert found["cer"] == pytest.approx(jiwer.cer(REFERENCES, META["transcribe"]))
    assert [found[name] for name in ("substitutions", "deletions", "insertions")] == [
        words.substitutions, words.deletions, words.insertions,
    ]  # fmt: skip
    rounding = 0.0006 / found["audio_s"]  # the report gives milliseconds
    assert found["real_time_factor"] == pytest.approx(found["seconds"] / found["audio_s"], abs=rounding)
    assert [item["pred_text"] for item in found["utterances"]] == META["transcribe"]
    assert read_lines(output) == found["utterances"]
    assert found["utterances"][0]["wer"] == pytest.approx(jiwer.wer(REFERENCES[0], META["transcribe"][0]))
    assert f"said   {REFERENCES[0]}\nheard  {META['transcribe'][0]}\n" in capsys.readouterr().out


def manifest_of(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_evaluate_scores_a_manifest_that_has_predictions_already(tmp_path, capsys):
    manifest = manifest_of(
        tmp_path / "pred.json",
        {"audio_filepath": "nowhere.wav", "text": "One, two three.", "pred_text": "one two free"},
        {"audio_filepath": "nowhere.wav", "text": "Four", "pred_text": "four"},
    )
    assert evaluate.main(["--manifest", manifest]) == 0
    assert capsys.readouterr().out.startswith("WER 75.00 %")
    processing = ["text_processing.do_lowercase=true", "text_processing.rm_punctuation=true"]
    assert evaluate.main([f"dataset_manifest={manifest}", "only_score_manifest=true", *processing]) == 0
    assert capsys.readouterr().out.startswith("WER 25.00 %")


@pytest.mark.parametrize(("tolerance", "status"), [("0.5", 0), ("0.2", 1)])
def test_a_rate_above_the_tolerance_is_a_failure(tmp_path, tolerance, status):
    manifest = manifest_of(tmp_path / "pred.json", {"text": "one two three", "pred_text": "one two"})
    assert evaluate.main(["--manifest", manifest, f"tolerance={tolerance}"]) == status


@pytest.mark.parametrize(
    ("line", "message"),
    [({"text": "one"}, "pred.json:1: pred_text: missing"), ({"pred_text": "one"}, "pred.json:1: text: missing")],
)
def test_a_line_that_cannot_be_scored_is_named(tmp_path, capsys, line, message):
    assert evaluate.main(["--manifest", manifest_of(tmp_path / "pred.json", line)]) == 1
    assert message in capsys.readouterr().err


def test_missing_true_texts_are_found_before_the_model_is_loaded(tmp_path, clips, capsys):
    manifest = manifest_of(tmp_path / "m.json", {"audio_filepath": str(clips / "0.wav"), "duration": 1.0})
    assert evaluate.main(["gone.nemo", "--manifest", manifest]) == 1
    assert "m.json:1: text: missing" in capsys.readouterr().err


def test_separated_punctuation_counts_as_words():
    process = evaluate.text_processor(TextProcessingConfig(separate_punctuation=True))
    assert process("Well, yes.") == "Well , yes ."


def test_lines_may_name_their_audio_otherwise_and_have_no_words(tmp_path, clips, capsys):
    lines = [{"wav": str(clips / "0.wav"), "text": ""}, {"wav": str(clips / "1.wav"), "text": REFERENCES[1]}]
    manifest = manifest_of(tmp_path / "m.json", *lines)
    assert transcribe.main([MODEL, "--manifest", manifest]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == f"{clips / '0.wav'}\t{META['transcribe'][0]}"
    wer = jiwer.wer(["", REFERENCES[1]], META["transcribe"][:2])
    assert f"WER {wer:.2%}" in printed.err


def test_a_line_of_a_manifest_ends_where_json_lines_do(tmp_path, capsys):
    texts = ["one\u2028two three", "four\x85five"]
    lines = ({"audio_filepath": "-", "text": text, "pred_text": text} for text in texts)
    manifest = tmp_path / "m.json"
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert evaluate.main(["--manifest", str(manifest)]) == 0
    assert capsys.readouterr().out.startswith("WER 0.00 %   CER 0.00 %   5 words")


def test_the_commands_need_no_lightning(clips):
    script = (
        "import sys; from nemo_asr.commands import transcribe, evaluate\n"
        f"assert transcribe.main([{MODEL!r}, {str(clips / '0.wav')!r}]) == 0\n"
        f"assert evaluate.main([{MODEL!r}, '--manifest', {str(clips / 'manifest.json')!r}]) == 0\n"
        "costly = {'lightning', 'pytorch_lightning', 'tensorboard', 'torchaudio', 'nemo_expmgr.model'}\n"
        "assert not costly & set(sys.modules), costly & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize("extra", [[], ["--timestamps"]])
def test_records_and_words_have_confidences_where_the_decoding_asks_for_them(clips, capsys, extra):
    asked = "ctc_decoding.confidence_cfg.preserve_word_confidence=true"
    command = [f"model_path={MODEL}", f"audio=[{clips / '1.wav'}]", asked]
    assert transcribe.main([*command, "json=true", *extra]) == 0
    record = json.loads(capsys.readouterr().out)
    confidences = record["word_confidence"]
    assert len(confidences) == len(record["pred_text"].split()) > 3
    assert len(record["token_confidence"]) > len(confidences)
    assert ("word" in record) == bool(extra)
    if extra:
        assert [entry["confidence"] for entry in record["word"] if entry["word"]] == confidences
        assert transcribe.main([*command, *extra]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        assert [row[2] for row in rows if len(row) == 4] == [f"{confidence:.3f}" for confidence in confidences]
