"""The training door, and mistakes at every door: one line, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jaxlm import main
from jaxlm.core import config as configs
from jaxlm.core import schema
from jaxlm.core.errors import UserError
from jaxlm.experiment import ExperimentConfig
from tests.doors.conftest import NER, ROOT, SHARED

TINY = f"--config={ROOT}/configs/ner.py:tiny"
FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
SPECS = [*FILES, *(f"{name}:tiny" for name in FILES), "ner.py:conll2003",
         "ner.py:article"]  # fmt: skip


def test_explain_prints_every_key_with_value_origin_and_help(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    answer = call("main", TINY, "--explain", "--config.train.steps=7")
    assert answer.code == 0 and answer.err == ""
    section, rows = "", {}
    for line in answer.out.splitlines():
        if line.startswith("config"):
            section = line.removeprefix("config").removeprefix(".")
        elif line.startswith("  ") and line[2] != " ":
            name, rest = line.split(maxsplit=1)
            rows[f"{section}.{name}".removeprefix(".")] = rest
    leaves = schema.leaves(ExperimentConfig)
    # Values and origins longer than their column go on in a row below.
    assert set(leaves) <= set(rows)
    for key, leaf in leaves.items():
        assert leaf.rule.help and leaf.rule.help[:40] in rows[key], key
    assert rows["train.steps"].startswith("7 ")
    assert "command line" in rows["train.steps"]
    assert "configs/ner.py:tiny" in "".join(answer.out.split())
    assert "default" in rows["train.accumulation"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_and_variant_resolves(spec):
    resolved = configs.resolve(ExperimentConfig, str(ROOT / "configs" / spec), [])
    small = resolved.config.model.pretrained in ("random:tiny", "random:gpt-tiny")
    new = "pretrain" in spec and ":" not in spec  # a very small new model, too
    assert small == ("tiny" in spec or new)


def test_an_unknown_variant_is_answered_with_those_there_are(call):
    error = call("main", TINY.replace("tiny", "tny")).error
    assert "nearest: tiny" in error and "conll2003" in error


def test_the_default_workdir_is_named_after_config_and_variant():
    assert str(main.default_workdir("configs/ner.py")) == "runs/ner"
    assert str(main.default_workdir("configs/ner.py:tiny")) == "runs/ner-tiny"


def test_a_missing_config_is_asked_for(call):
    assert "--config is missing" in call("main").error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--wrkdir=x"], "nearest: --workdir"),
        (["--workdir=/proc/nowhere/run"], "/proc/nowhere/run"),
    ],
)
def test_a_mistake_in_training_is_one_line(call, tmp_path, arguments, reason):
    answer = call("main", TINY, f"--workdir={tmp_path}", *SHARED, *arguments)
    assert reason in answer.error
    assert list(tmp_path.iterdir()) == []


def test_the_start_says_each_source_and_counts_an_example_of_two_windows_once(
    call, tmp_path
):
    path = tmp_path / "long.jsonl"
    words = ["Ada", *["sleeps"] * 11]
    line = json.dumps({"tokens": words, "labels": ["B-PER", *["O"] * 11]})
    path.write_text(f"{line}\n" * 4)
    answer = call(
        "main", TINY, *SHARED, f"--workdir={tmp_path / 'run'}",
        f"--config.data.train={path}", f"--config.data.validation={path}[:2]",
        "--config.data.test=", "--config.data.max_length=12", "--config.train.steps=1",
        "--config.evaluate.every_steps=1",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert f"train      {path}: 4 examples" in answer.out
    assert f"validation {path}[:2]: 2 examples" in answer.out
    assert "examples_per_step 4.0" in answer.out


@pytest.mark.parametrize("door", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config.train.steps=3"], "reads the config of --workdir"),
        (["--sstep=last"], "nearest: --step"),
        (["--step=many"], "allowed: best, last"),
        (["--workdir=/proc/nowhere/run"], "no such file"),
        (["--workdir="], "is empty"),
    ],
)
def test_a_mistake_at_a_reading_door_is_one_line(
    call, ner_run, door, arguments, reason
):
    text = ["--text=a"] * (door == "predict")
    answer = call(door, f"--workdir={ner_run}", *text, *arguments)
    assert reason in answer.error


@pytest.mark.parametrize("door", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("train", "stepz", 3, "nearest: config.train.steps"),
        ("train", "steps", "many", "a whole number"),
        ("data", "max_length", 1, "at least 8"),
    ],
)
def test_a_broken_config_of_a_run_is_one_line(
    call, ner_copy, door, section, key, value, reason
):
    document = json.loads((ner_copy / "config.json").read_text())
    document["config"][section][key] = value
    (ner_copy / "config.json").write_text(json.dumps(document))
    text = ["--text=a"] * (door == "predict")
    assert reason in call(door, f"--workdir={ner_copy}", *text).error


def test_a_split_that_does_not_exist_is_refused(call, ner_run):
    assert "train" in call("evaluate", f"--workdir={ner_run}", "--split=dev").error


def test_predict_asks_for_a_text_or_an_input(call, ner_run):
    assert "--text" in call("predict", f"--workdir={ner_run}").error


def test_a_workdir_of_another_config_is_refused_with_the_keys(call, ner_copy):
    answer = call(
        "main", TINY, *SHARED, *NER, f"--workdir={ner_copy}", "--config.seed=5"
    )
    assert "config.seed was 0, now 5" in answer.error
    assert "--overwrite" in answer.error
    assert (ner_copy / "checkpoints" / "160").is_dir()


def test_an_unwritable_workdir_is_one_line_for_evaluation(call, ner_copy):
    (ner_copy / "results").rename(ner_copy / "old")
    (ner_copy / "results").write_text("")
    assert "results" in call("evaluate", f"--workdir={ner_copy}").error


def test_overwrite_says_what_it_deletes_and_leaves_what_is_not_its_own(call, ner_copy):
    (ner_copy / "notes.txt").write_text("mine")
    short = ["--config.train.steps=2", "--config.data.test=", "--overwrite"]
    answer = call("main", TINY, *SHARED, *NER, *short, f"--workdir={ner_copy}")
    assert answer.code == 0, answer.err
    said = next(line for line in answer.out.splitlines() if "deletes" in line)
    for name in ("config.json", "checkpoints", "results", "metrics.jsonl"):
        assert str(ner_copy / name) in said
    assert (ner_copy / "notes.txt").read_text() == "mine"
    assert [path.name for path in (ner_copy / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize("door", ["main", "evaluate", "predict"])
def test_debug_shows_the_traceback(call, door):
    answer = call(door, "--workdir=/proc/nowhere/run", "--flag", "--debug")
    assert answer.code == 2 and "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: --flag")


def test_a_wrong_flag_of_a_real_process_exits_with_2_and_one_line():
    command = [sys.executable, "-m", "jaxlm.main", "--config=configs/ner.py", "--x=1"]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --x") and done.stderr.count("\n") == 1


def test_errors_are_user_errors_for_those_who_call_main_themselves():
    with pytest.raises(UserError, match="--config is missing"):
        main.main([])
