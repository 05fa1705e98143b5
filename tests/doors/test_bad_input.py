"""Bad data, models and workdirs: one clear error, and nothing saved is lost."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from tests.bad_inputs.weights import query
from tests.doors.conftest import NER, ROOT, SHARED

TINY = f"--config={ROOT}/configs/ner.py:tiny"
ALONE = ("--config.data.validation=", "--config.data.test=")


@pytest.fixture
def train(call, tmp_path):
    """Train with overrides in an empty workdir, and expect one line."""

    def train(*overrides):
        workdir = tmp_path / "work"
        start = [TINY, *SHARED, *ALONE, *overrides, f"--workdir={workdir}"]
        return call("main", *start).error

    return train


@pytest.mark.parametrize("split", ["validation", "test"])
def test_own_training_data_is_not_scored_on_the_sample_unasked(train, split):
    sample = f"--config.data.{split}=sample:ner[:9]"
    error = train("--config.data.train=own.conll", sample)
    assert f"config.data.{split}: still sample:ner[:9]" in error
    assert "own.conll" in error and "'' for none" in error


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub and nothing of it in the cache."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "data"))


@pytest.mark.filterwarnings("ignore:Using the latest cached")
def test_a_model_of_the_hub_while_offline_says_so(train, offline):
    error = train("--config.model.pretrained=hf:google-bert/bert-base-cased")
    assert "hf:google-bert/bert-base-cased" in error and "cache" in error


def test_data_of_the_hub_while_offline_says_so(train, offline):
    error = train("--config.data.train=hf:nobody/nothing:train")
    assert "hf:nobody/nothing" in error and "HF_HUB_OFFLINE" in error


def test_a_damaged_checkpoint_is_named_and_left_alone(call, ner_copy):
    folder = ner_copy / "checkpoints" / "160" / "params"
    spoilt = [path for path in folder.rglob("*") if path.is_file()]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for door, more in (("evaluate", []), ("predict", ["--text=a"])):
        error = call(door, f"--workdir={ner_copy}", "--step=160", *more).error
        assert "checkpoints/160" in error and "--step" in error
    assert all(path.exists() for path in spoilt)
    assert call("evaluate", f"--workdir={ner_copy}", "--step=120").code == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "labels.json"])
@pytest.mark.parametrize("content", [None, "{", "[]", "7"])
def test_a_damaged_description_of_the_model_is_named(call, ner_copy, name, content):
    path = ner_copy / "model" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    error = call("predict", f"--workdir={ner_copy}", "--text=a").error
    assert str(ner_copy / "model") in error


@pytest.mark.parametrize("door", ["evaluate", "predict"])
def test_a_workdir_without_a_run_is_named(call, tmp_path, door):
    more = ["--text=a"] * (door == "predict")
    assert str(tmp_path) in call(door, f"--workdir={tmp_path}", *more).error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("door", ["evaluate", "predict"])
def test_a_run_without_checkpoints_is_named(call, ner_copy, door):
    shutil.rmtree(ner_copy / "checkpoints")
    more = ["--text=a"] * (door == "predict")
    error = call(door, f"--workdir={ner_copy}", *more).error
    assert "no checkpoint" in error
    assert not (ner_copy / "checkpoints").exists()


@pytest.mark.parametrize("door", ["main", "evaluate", "predict"])
def test_a_workdir_that_is_a_file_is_named_and_left_alone(call, tmp_path, door):
    path = tmp_path / "file"
    path.write_text("mine")
    more = {"main": [TINY, *SHARED], "predict": ["--text=a"]}.get(door, [])
    assert str(path) in call(door, f"--workdir={path}", *more).error
    assert path.read_text() == "mine"


def test_what_was_saved_outlives_a_failing_second_start(call, ner_copy, tmp_path):
    before = {path: path.read_bytes() for path in ner_copy.rglob("*") if path.is_file()}
    lost = "--config.data.train=gone.jsonl"
    start = [TINY, *SHARED, *NER, f"--workdir={ner_copy}"]
    assert "gone.jsonl" in call("main", *start, lost).error
    assert "gone.jsonl" in call("main", *start, lost, "--overwrite").error
    unsound, _ = query(math.nan)(tmp_path)
    assert "contains NaN" in call("main", *start, unsound, "--overwrite").error
    after = {path: path.read_bytes() for path in ner_copy.rglob("*") if path.is_file()}
    assert after == before
    document = json.loads((ner_copy / "config.json").read_text())
    assert document["config"]["data"]["train"] != "gone.jsonl"
