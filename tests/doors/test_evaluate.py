"""The evaluation door: results, predictions, reports, and watching a live run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import seqeval.metrics
import sklearn.metrics

from jaxlm.experiment.runs import Run, result_name, source_name
from jaxlm.train.recorded import read_status
from tests.doors.conftest import NER, ROOT, SHARED, STEPS, edit_config

SCALARS = (int, float, str, type(None))


def results(workdir, name):
    found = json.loads((workdir / "results" / f"{name}.json").read_text())
    assert found.pop("checksum")  # which differs as the times do
    return found


def predictions(workdir, name):
    lines = (workdir / "predictions" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(answer):
    """The steps of which an answer has a report."""
    lines = [line.split() for line in answer.out.splitlines()]
    return [int(words[1]) for words in lines if words[:1] == ["step"]]


def test_results_are_flat_and_name_step_split_loss_and_the_headline(ner_run, call):
    assert call("evaluate", f"--workdir={ner_run}", "--step=160").code == 0
    found = results(ner_run, "test-160")
    assert found["step"] == 160 and found["split"] == "test"
    assert found["loss"] > 0 and 0 < found["f1"] <= 1 and 0 < found["accuracy"] <= 1
    assert all(isinstance(value, SCALARS) for value in found.values())


def test_results_of_classification_name_accuracy(topics_run, call):
    assert call("evaluate", f"--workdir={topics_run}", "--step=160").code == 0
    found = results(topics_run, "test-160")
    assert 0 < found["accuracy"] < 1 and found["split"] == "test"
    assert all(isinstance(value, SCALARS) for value in found.values())


def test_entity_scores_are_those_of_seqeval_on_the_predictions(ner_run, call):
    answer = call("evaluate", f"--workdir={ner_run}", "--split=validation")
    (step,) = steps(answer)
    found = results(ner_run, f"validation-{step}")
    lines = predictions(ner_run, f"validation-{step}")
    true = [each["labels"] for each in lines]
    guessed = [each["predicted"] for each in lines]
    report = seqeval.metrics.classification_report(
        true, guessed, output_dict=True, zero_division=0
    )
    assert 0 < found["f1"] < 1
    for ours, row in (("", "micro avg"), ("macro_", "macro avg")):
        assert found[f"{ours}precision"] == report[row]["precision"]
        assert found[f"{ours}recall"] == report[row]["recall"]
        assert found[f"{ours}f1"] == report[row]["f1-score"]
    for kind in ("PER", "LOC", "ORG", "MISC"):
        assert found[f"{kind}/f1"] == report[kind]["f1-score"]
        assert found[f"{kind}/support"] == report[kind]["support"]
    shown = seqeval.metrics.classification_report(
        true, guessed, digits=4, zero_division=0
    )
    assert [line.split() for line in shown.split("\n") if line.strip()] == [
        line.split()
        for line in answer.out.partition("Entities\n")[2]
        .partition("Words\n")[0]
        .split("\n")
        if line.strip()
    ]


def test_the_word_report_is_that_of_sklearn_on_the_predictions(ner_run, call):
    answer = call("evaluate", f"--workdir={ner_run}")
    (step,) = steps(answer)
    lines = predictions(ner_run, f"test-{step}")
    types = json.loads((ner_run / "model" / "labels.json").read_text())
    labels = ["O", *(f"{mark}-{kind}" for kind in types for mark in "BI")]
    report = sklearn.metrics.classification_report(
        [label for each in lines for label in each["labels"]],
        [label for each in lines for label in each["predicted"]],
        labels=labels,
        digits=4,
        zero_division=0,
    )
    theirs = [line.split() for line in report.split("\n")]
    ours = [line.split() for line in answer.out.partition("Words\n")[2].split("\n")]
    for row in theirs:
        assert row in ours or row[0] == "accuracy"
    accuracy, support = next(row[1:] for row in theirs if row[:1] == ["accuracy"])
    assert ["micro", "avg", *[accuracy] * 3, support] in ours


def test_the_report_of_classification_is_that_of_sklearn(topics_run, call):
    answer = call("evaluate", f"--workdir={topics_run}", "--step=60")
    lines = predictions(topics_run, "test-60")
    true = [each["label"] for each in lines]
    guessed = [each["predicted"] for each in lines]
    labels = json.loads((topics_run / "model" / "labels.json").read_text())
    report = sklearn.metrics.classification_report(
        true, guessed, labels=labels, digits=4, zero_division=0
    )
    assert report in answer.out
    found = results(topics_run, "test-60")
    assert found["accuracy"] == sklearn.metrics.accuracy_score(true, guessed)
    assert found["macro_f1"] == sklearn.metrics.f1_score(
        true, guessed, labels=labels, average="macro", zero_division=0
    )


def test_the_scores_are_those_that_the_run_itself_wrote(ner_copy, call):
    name = f"test-{read_status(ner_copy)['best']}"
    before, lines = results(ner_copy, name), (ner_copy / "metrics.jsonl").read_bytes()
    assert call("evaluate", f"--workdir={ner_copy}").code == 0
    after = results(ner_copy, name)
    for volatile in ("seconds", "tokens_per_second"):
        del before[volatile], after[volatile]
    assert after == before
    assert (ner_copy / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("last", [160]), ("all", list(STEPS)), ("120", [120])],
)
def test_step_chooses_checkpoints(ner_run, call, wanted, expected):
    assert steps(call("evaluate", f"--workdir={ner_run}", f"--step={wanted}")) == (
        expected
    )


def test_without_a_step_the_best_by_validation_is_scored(ner_run, call):
    scores = {step: results(ner_run, f"validation-{step}")["f1"] for step in STEPS}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert steps(call("evaluate", f"--workdir={ner_run}")) == [best]


def test_an_absent_step_is_answered_with_those_that_are_there(ner_run, call):
    error = call("evaluate", f"--workdir={ner_run}", "--step=61").error
    assert "--step=61" in error and "60, 120, 160" in error


def test_any_other_data_is_scored_under_a_name_of_its_own(ner_run, call, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"tokens": ["Ada", "left"], "labels": ["B-PER", "O"]}\n')
    assert call("evaluate", f"--workdir={ner_run}", f"--data={path}").code == 0
    name = source_name(str(path))
    assert "mine.jsonl" in name
    (step,) = [int(p.stem.rpartition("-")[2]) for p in
               (ner_run / "results").glob(f"{name}-*[0-9].json")]  # fmt: skip
    assert results(ner_run, f"{name}-{step}")["split"] == name
    assert predictions(ner_run, f"{name}-{step}")[0]["labels"] == ["B-PER", "O"]


def test_a_split_of_other_data_is_scored_under_its_own_name(ner_run, call):
    data = "--data=sample:ner"
    assert call("evaluate", f"--workdir={ner_run}", data, "--step=60").code == 0
    asked = call("evaluate", f"--workdir={ner_run}", data, "--step=60", "--split=train")
    assert asked.code == 0
    name = source_name("sample:ner")
    assert results(ner_run, f"{name}-60")["examples"] == 100
    assert results(ner_run, f"{name}-train-60")["examples"] == 400


def test_other_data_is_read_by_flags_of_its_own(ner_run, call, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text('{"words": ["Ada", "left"], "marks": ["U-PER", "O"]}\n')
    reading = ["--format=jsonl", "--columns=tokens=words,labels=marks"]
    data = [f"--workdir={ner_run}", f"--data={path}", "--step=60"]
    assert call("evaluate", *data, *reading, "--scheme=bioes").code == 0
    name = f"{source_name(str(path))}-60"
    assert predictions(ner_run, name)[0]["labels"] == ["B-PER", "O"]
    assert "'U-PER'" in call("evaluate", *data, *reading, "--scheme=iob2").error


def test_other_data_does_not_inherit_the_columns_of_the_run(ner_copy, call, tmp_path):
    edit_config(ner_copy, data={"format": "jsonl", "columns": "tokens=words"})
    (tmp_path / "a.conll").write_text("Ada B-PER\n\nsleeps O\n")
    data = f"--data={tmp_path / 'a.conll'}"
    assert call("evaluate", f"--workdir={ner_copy}", data, "--step=60").code == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--columns=tokens=words"], "--columns describes --data, which is missing"),
        (["--data=a.conll", "--format=xml"], "'xml'"),
        (["--data=a.conll", "--scheme=bilou"], "'bilou'"),
    ],
)
def test_a_mistaken_reading_of_other_data_is_one_line(ner_run, call, flags, reason):
    assert reason in call("evaluate", f"--workdir={ner_run}", *flags).error


def test_names_of_sources_are_file_names_that_do_not_collide():
    assert source_name("x.conll") == "x.conll"
    assert source_name("sample:ner:test").startswith("sample-ner-test-")
    assert source_name("../data/x.conll") != source_name("data/x.conll")
    assert source_name("data/x.conll") != source_name("data-x.conll")
    assert source_name("a[:9]") != source_name("a[9:]")
    assert source_name("test") not in ("test", "validation", "train")
    assert len(source_name("a/" * 500)) < 100
    assert "/" not in source_name("../../*.jsonl")


def test_an_evaluation_is_named_by_its_data_and_the_split_that_was_asked_for():
    assert result_name(None, None) == result_name(None, "test") == "test"
    assert result_name("x.conll", None) == "x.conll"
    assert result_name("x.conll", "train") == "x.conll-train"
    assert result_name("x.conll-train", None) != "x.conll-train"
    first, second = ([{"tokens": [word]}] for word in "ab")
    assert result_name(first, "train") == result_name(first, None)
    assert result_name(first, None).startswith("records-")
    assert result_name(first, None) != result_name(second, None)


def test_every_word_counts_once_however_long_the_sentence(ner_run, call, tmp_path):
    words = [f"word{number}" for number in range(150)] + ["Paris"] * 150
    labels = ["O"] * 150 + ["B-LOC"] * 150
    path = tmp_path / "long.jsonl"
    path.write_text(
        json.dumps({"tokens": words, "labels": labels})
        + "\n"
        + json.dumps({"tokens": ["Ada"], "labels": ["B-PER"]})
    )
    assert call("evaluate", f"--workdir={ner_run}", f"--data={path}", "--step=60")
    long, short = predictions(ner_run, f"{source_name(str(path))}-60")
    assert len(long["predicted"]) == len(long["tokens"]) == 300
    assert min(long["scores"]) > 0 and len(short["predicted"]) == 1
    counts = results(ner_run, f"{source_name(str(path))}-60.confusion")["matrix"]
    assert sum(map(sum, counts)) == 301


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 2, "fsdp": 16, "tensor": 1, "context": 1},
        {"data": 8, "rules": {"layers": ["data"]}},
    ],
)
def test_a_machine_that_the_mesh_does_not_fit_gives_the_same(ner_copy, call, mesh):
    call("evaluate", f"--workdir={ner_copy}", "--step=60")
    before = results(ner_copy, "test-60")
    edit_config(ner_copy, mesh=mesh)
    answer = call("evaluate", f"--workdir={ner_copy}", "--step=60")
    assert answer.code == 0 and "does not fit here" in answer.out
    after = results(ner_copy, "test-60")
    assert after["f1"] == before["f1"]
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)  # order of sums


def test_data_that_was_in_memory_is_asked_for(ner_copy, call):
    edit_config(ner_copy, data={"test": {"records": 3, "sha256": "0" * 64}})
    assert "--data" in call("evaluate", f"--workdir={ner_copy}").error


@pytest.fixture
def live(tmp_path):
    """Start a training process; it is killed at the end of the test."""
    started = []

    def start(*overrides):
        workdir = tmp_path / "live"
        command = [sys.executable, "-m", "jaxlm.main", "--config=configs/ner.py:tiny"]
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}", *SHARED, *NER, *overrides],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        while not (workdir / "data.json").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        return workdir, process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_watch_scores_every_checkpoint_of_a_live_run_and_ends_with_it(live):
    workdir, process = live(
        "--config.checkpoint.every_steps=40", "--config.checkpoint.keep_last=9"
    )
    run = Run(workdir)
    seen = [
        step for step, _ in run.watch(run.dataset("test"), "watched", every_seconds=0.2)
    ]
    assert read_status(workdir)["state"] == "finished"
    assert seen == [40, 60, 80, 120, 160]
    assert all((workdir / f"results/watched-{step}.json").exists() for step in seen)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_watch_lives_with_a_run_that_deletes_as_it_goes(live):
    workdir, process = live(
        "--config.train.steps=40",
        "--config.checkpoint.every_steps=2",
        "--config.checkpoint.keep_last=1",
        "--config.checkpoint.keep_best=0",
    )
    run = Run(workdir, say=lambda _: None)
    watched = run.watch(run.dataset("test"), "watched", every_seconds=0.0)
    seen = [step for step, _ in watched]
    assert seen == sorted(set(seen)) and seen[-1] == 40
    assert process.wait(60) == 0


def test_watch_ends_with_a_run_that_was_killed(live):
    workdir, process = live(
        "--config.train.steps=100000", "--config.evaluate.every_steps=50"
    )
    run = Run(workdir)
    watching = run.watch(run.dataset("test"), "watched", every_seconds=0.2)
    next(watching)
    process.kill()
    # Not waited for yet: a launcher may leave its dead behind as zombies.
    for _, evaluation in watching:
        assert evaluation.metrics["loss"] > 0
    assert read_status(workdir)["state"] == "running"


def test_watch_skips_what_it_has_done(ner_copy, call):
    data = "--data=sample:ner:train[:8]"
    first = call("evaluate", f"--workdir={ner_copy}", "--watch", data)
    assert steps(first) == list(STEPS)
    name = source_name("sample:ner:train[:8]")
    path = ner_copy / "results" / f"{name}-120.json"
    path.unlink()
    again = call("evaluate", f"--workdir={ner_copy}", "--watch", data)
    assert steps(again) == [120]


def test_watch_survives_a_checkpoint_that_is_deleted_under_it(ner_copy):
    said = []
    run = Run(ner_copy, say=said.append)
    watching = run.watch(run.dataset("test"), "watched")
    assert next(watching)[0] == 60
    shutil.rmtree(ner_copy / "checkpoints" / "120")
    assert [step for step, _ in watching] == [160]
    assert len(said) == 1 and "120" in said[0] and "has deleted it" in said[0]


def test_watch_passes_over_a_checkpoint_that_is_damaged(ner_copy):
    said = []
    run = Run(ner_copy, say=said.append)
    for path in (ner_copy / "checkpoints" / "120" / "params" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    watching = run.watch(run.dataset("test"), "watched")
    assert [step for step, _ in watching] == [60, 160]
    assert len(said) == 1 and "120" in said[0] and "damaged" in said[0]


def test_watch_takes_no_step(ner_run, call):
    answer = call("evaluate", f"--workdir={ner_run}", "--watch", "--step=all")
    assert "--step" in answer.error
