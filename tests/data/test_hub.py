"""Data sets of the datasets library: from disk, and from a hub that stands in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.data import hub as hub_sets
from jaxlm.data.sources import load
from tests.data.conftest import refusal

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table():
    import datasets

    names = datasets.ClassLabel(names=["O", "B-X"])
    features = {
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(names),
    }
    rows = {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def hub(table, monkeypatch):
    """A hub that has one table under every name, and notes what it was asked."""
    import datasets

    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options["split"], options["revision"]))
        assert set(options) == {"split", "revision"}
        return table

    monkeypatch.setattr(hub_sets, "_unreached", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_saved_table_is_read_with_its_label_names(table, tmp_path):
    table.save_to_disk(tmp_path / "saved")
    [item] = load(str(tmp_path / "saved"), "train")
    assert item == {
        "id": "0",
        "tokens": ["a", "b"],
        "labels": ["O", "B-X"],
        "source": f"{tmp_path / 'saved'}:1",
    }


def test_a_saved_dictionary_is_read_by_split(table, tmp_path):
    import datasets

    saved = tmp_path / "saved"
    datasets.DatasetDict(train=table, dev=table).save_to_disk(saved)
    assert len(load(str(saved), "train")) == len(load(f"{saved}/dev", "train")) == 1
    message = refusal(str(saved), "validation")
    assert "has no split 'validation'; there are: train, dev; name a split's" in message


def test_a_damaged_saved_table_is_refused(table, tmp_path):
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    assert "cannot be loaded as a save_to_disk" in refusal(str(tmp_path / "saved"))


def test_class_labels_become_their_names(tmp_path):
    import datasets

    label = datasets.ClassLabel(names=["ham", "spam"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"text": ["a", "b"], "label": [1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.with_format("numpy").save_to_disk(tmp_path / "saved")
    records = load(str(tmp_path / "saved"), "train")
    assert [item["label"] for item in records] == ["spam", "ham"]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf:name", ("name", None, "test", None)),
        ("hf:org/name:train[:10%]", ("org/name", None, "train[:10%]", None)),
        ("hf:org/name/sub@v1.0:dev", ("org/name", "sub", "dev", "v1.0")),
        (
            "hf:o/n@refs/convert/parquet:train[:1]",
            ("o/n", None, "train", "refs/convert/parquet"),
        ),
    ],
)
def test_hub_names_are_taken_apart(hub, source, asked):
    [item] = load(source, "test")
    assert hub == [asked]
    assert item["labels"] == ["O", "B-X"] and item["source"].startswith("hf:")


def test_a_revision_that_is_a_number_is_no_weight(hub):
    load("hf:org/name@1.0", "train")
    load("hf:org/name@1.0:train@2,hf:org/other@3", "train")
    assert [names[0] for names in hub] == ["org/name", "org/name", "org/other"]
    assert [names[3] for names in hub] == ["1.0", "1.0", None]


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c/d", "hf:a@b@c", "hf:a b"])
def test_a_hub_name_that_cannot_be_read_is_refused(source):
    assert "is not understood; write hf:org/name:split" in refusal(source)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            RuntimeError("Dataset scripts are no longer supported"),
            "Parquet copy: hf:a/b@",
        ),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "the hub is unreachable"),
        (ValueError("Unknown split 'dev'.\nShould be one of"), "check the name"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(monkeypatch, error, remedy):
    import datasets

    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(hub_sets, "_unreached", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("hf:a/b:dev")
    assert message.startswith("hf:a/b:dev: data set 'a/b' cannot be loaded: ")
    assert remedy in message


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, tmp_path):
    """It is its cache then that answers, or says at once that it has none."""
    import datasets
    from huggingface_hub import HfApi, constants

    seen = []

    def dataset_info(self, name, *, revision, timeout):
        raise ConnectionError("Name or service not known")

    def load_dataset(*_, **__):
        seen.append((constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("Couldn't reach 'a/b' on the Hub (Offline)")

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("hf:a/b")
    assert "Name or service not known; the hub is unreachable" in message
    assert seen == [(True, True)]
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == before


def test_a_cached_copy_is_used_offline_and_said_so(monkeypatch, hub, capsys):
    problem = ConnectionError("no route to host")
    monkeypatch.setattr(hub_sets, "_unreached", lambda *_: problem)
    assert load("hf:org/name@v1", "train")
    said = capsys.readouterr().err
    assert "hf:org/name@v1: the hub is not reached (no route to host)" in said
    assert "of whichever revision" in said


def test_a_hub_that_refuses_is_a_hub_that_is_reached(monkeypatch):
    from huggingface_hub import HfApi

    class Refused(Exception):
        response = "429 Too Many Requests"

    def dataset_info(self, name, *, revision, timeout):
        raise Refused("you have reached your limit")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    assert hub_sets._unreached("org/Connect4", None) is None


def test_a_hub_that_is_switched_off_is_said_so(tmp_path):
    code = (
        "from jaxlm.data.sources import load\n"
        "from jaxlm.core.errors import UserError\n"
        "try: load('hf:org/name', 'train')\n"
        "except UserError as error: print(error)"
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "the hub is unreachable (or HF_HUB_OFFLINE is set)" in done.stdout, done
