"""What looks malformed and is not: accepted, and read as the clean file is."""

from __future__ import annotations

import json

import pytest

from jaxlm.data.sources import load
from tests.bad_inputs.harmless import CLEAN, LONG, SAME, SAME_TABLE, TABLE, WORDS


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return [
        {field: record[field] for field in record if field != "source"}
        for record in load(str(path), "train")
    ]


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_an_odd_conll_file_reads_as_the_clean_one(tmp_path, content):
    clean = read(tmp_path, "clean.conll", CLEAN)
    assert read(tmp_path, "odd.conll", content) == clean
    assert [record["tokens"] for record in clean] == [["Ada", "left"], ["New", "York"]]


@pytest.mark.parametrize("content", SAME_TABLE.values(), ids=SAME_TABLE)
def test_an_odd_csv_file_reads_as_the_clean_one(tmp_path, content):
    clean = read(tmp_path, "clean.csv", TABLE)
    assert read(tmp_path, "odd.csv", content) == clean
    assert [record["label"] for record in clean] == ["x", "y"]


def test_a_sentence_of_100_000_words_is_one_record(tmp_path):
    [record] = read(tmp_path, "a.conll", LONG)
    assert len(record["tokens"]) == len(record["labels"]) == WORDS


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.conll").write_bytes(CLEAN)
    # Two links are two ways on at every turn: without end rather than forty times.
    for name in ("one", "two"):
        (inner / name).symlink_to(tmp_path)
    assert len(load(f"{tmp_path}/**/*.conll", "train")) == 2


def test_a_run_is_trained_on_all_of_them_by_its_door(run):
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    # The windows of the long sentence overlap, so that it has more tokens than words.
    assert json.loads((run / "data.json").read_text())["train"]["tokens"] > WORDS
