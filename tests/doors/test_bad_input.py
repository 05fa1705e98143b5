"""Bad data, models and workdirs: one clear error, and nothing saved is lost."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import save_file

from jaxlm.models.pretrained import BUILT_IN
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


@pytest.mark.parametrize(
    ("name", "content", "where", "reason"),
    [
        ("empty.jsonl", b"", "empty.jsonl", "empty"),
        ("empty.conll", b"\n\n", "empty.conll", "empty"),
        ("binary.conll", b"Ada B-PER\n\x00\x9f\xff\n", "binary.conll:2", ""),
        ("binary.jsonl", bytes(range(256)) * 9, "binary.jsonl", ""),
        ("binary.parquet", bytes(range(256)), "binary.parquet", ""),
        ("cut.jsonl", b'{"tokens":["a"],"labels":["O"]}\n{"tok', "cut.jsonl:2", ""),
        ("short.jsonl", b'{"tokens":["a"],"labels":[]}\n', "short.jsonl:1", ""),
        ("bare.conll", b"Ada B-PER\nleft O\n\nParis\n", "bare.conll:4", ""),
        ("tag.conll", b"Ada B-PER\nleft X_Y\n", "tag.conll:1", "X_Y"),
        ("text.jsonl", b'{"text":"a","label":"b"}\n', "text.jsonl:1", "labels"),
        ("plain.jsonl", b'{"tokens":["a"]}\n', "plain.jsonl:1", "labels"),
    ],
)
def test_an_unsound_data_file_is_named_with_its_line(
    train, tmp_path, name, content, where, reason
):
    path = tmp_path / name
    path.write_bytes(content)
    error = train(f"--config.data.train={path}")
    assert str(tmp_path / where) in error and reason in error


@pytest.mark.parametrize("split", ["validation", "test"])
def test_own_training_data_is_not_scored_on_the_sample_unasked(train, split):
    sample = f"--config.data.{split}=sample:ner[:9]"
    error = train("--config.data.train=own.conll", sample)
    assert f"config.data.{split}: still sample:ner[:9]" in error
    assert "own.conll" in error and "'' for none" in error


def test_an_unknown_label_in_validation_is_named(train, tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_text('{"tokens": ["a"], "labels": ["B-XYZ"]}\n')
    error = train(f"--config.data.validation={path}")
    assert f"{path}:1" in error and "B-XYZ" in error and "B-PER" in error


def test_an_unknown_label_in_other_data_is_named(call, ner_run, tmp_path):
    path = tmp_path / "v.jsonl"
    path.write_text('{"tokens": ["a"], "labels": ["O"]}\n{"tokens": ["a"], "labels": ["B-X"]}')  # fmt: skip  # noqa: E501
    error = call("evaluate", f"--workdir={ner_run}", f"--data={path}").error
    assert f"{path}:2" in error and "'B-X'" in error and "B-PER" in error


@pytest.mark.parametrize("source", ["no/such.jsonl", "sample:no", "*.nothing", " "])
def test_other_data_that_is_not_there_is_named(call, ner_run, source):
    error = call("evaluate", f"--workdir={ner_run}", f"--data={source}").error
    assert (source.strip() or "--data") in error


def test_a_sentence_longer_than_the_window_is_named_where_that_is_an_error(
    train, tmp_path
):
    path = tmp_path / "long.conll"
    path.write_text("Ada B-PER\n\n" + "word O\n" * 200)
    error = train(f"--config.data.train={path}", "--config.data.overflow=error")
    assert f"{path}:3" in error and "config.data.max_length" in error


@pytest.fixture
def model(tmp_path):
    """A folder like a pretrained model's, to be spoilt."""
    return shutil.copytree(BUILT_IN["tiny"], tmp_path / "model")


def test_corrupted_weights_are_named(train, model):
    (model / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{nope")
    error = train(f"--config.model.pretrained={model}")
    assert "model.safetensors" in error


def test_weights_that_end_too_early_are_named(train, model):
    import numpy as np

    path = model / "model.safetensors"
    save_file({"embeddings.word_embeddings.weight": np.zeros((2000, 64), "f4")}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in train(f"--config.model.pretrained={model}")


def test_missing_weights_are_listed_and_no_run_is_left_half_begun(
    train, model, tmp_path
):
    import numpy as np

    arrays = {"embeddings.word_embeddings.weight": np.zeros((7, 64), "f4")}
    save_file(arrays, model / "model.safetensors")
    error = train(f"--config.model.pretrained={model}")
    assert "missing" in error and "misshapen" in error


def test_a_folder_without_weights_is_named(train, model):
    assert str(model) in train(f"--config.model.pretrained={model}")


def test_another_architecture_is_named_with_those_allowed(train, model):
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    error = train(f"--config.model.pretrained=random:{model}")
    assert "'gpt2'" in error and "bert" in error


def test_a_broken_config_of_a_model_is_named(train, model):
    (model / "config.json").write_text('{"model_type": ')
    assert "config.json:1:" in train(f"--config.model.pretrained=random:{model}")


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


def test_what_was_saved_outlives_a_failing_second_start(call, ner_copy):
    before = {path: path.read_bytes() for path in ner_copy.rglob("*") if path.is_file()}
    lost = "--config.data.train=gone.jsonl"
    start = [TINY, *SHARED, *NER, f"--workdir={ner_copy}"]
    assert "gone.jsonl" in call("main", *start, lost).error
    assert "gone.jsonl" in call("main", *start, lost, "--overwrite").error
    after = {path: path.read_bytes() for path in ner_copy.rglob("*") if path.is_file()}
    assert after == before
    document = json.loads((ner_copy / "config.json").read_text())
    assert document["config"]["data"]["train"] != "gone.jsonl"
