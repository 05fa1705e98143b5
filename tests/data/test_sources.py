"""Source strings: records, samples, paths, slices and mixtures of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.data import sources
from jaxlm.data.sources import describe, load, mix
from tests.data.conftest import refusal

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def letters(tmp_path):
    """Two files of ten records, a0..a9 and b0..b9."""
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(10)])
    return tmp_path


def texts(records):
    return [item["text"] for item in records]


# Records in memory


def test_records_in_memory_are_completed():
    rows = [{"words": ("a", "b"), "tags": ["I-X", "I-X"]}, {"id": "z", "tokens": ["c"]}]
    rows[1]["labels"] = ["O"]
    assert load(rows, "train") == [
        {
            "id": "0",
            "tokens": ["a", "b"],
            "labels": ["B-X", "I-X"],
            "source": "record 0",
        },
        {"id": "z", "tokens": ["c"], "labels": ["O"], "source": "record 1"},
    ]
    assert rows[0]["tags"] == ["I-X", "I-X"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "the list of records: holds no examples"),
        (["a"], "record 0: must be a dict, not 'a'"),
        ([{"text": "a"}, {"txt": "b"}], "record 1: no column of tokens or text"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], "record 1: has no 'label', but"),
        (
            [{"text": "a"}, {"tokens": ["b"]}],
            "record 0: has no 'tokens', but record 1 has",
        ),
        (
            [{"tokens": ["a"], "labels": ["X-Y"]}],
            "record 0: label 'X-Y' has the unknown",
        ),
        ([{"tokens": ["a"], "labels": [3]}], "record 0: label '3' is a number"),
        ({"text": "a"}, "a data source must be a string or a list of dicts"),
        (None, "a data source must be a string or a list"),
    ],
)
def test_unsound_records_in_memory_are_refused(rows, problem):
    assert refusal(rows).startswith(problem)


def test_scheme_and_columns_reach_the_records():
    rows = [{"t": ["a", "b"], "l": ["X-RAY", "O"]}]
    [item] = load(rows, "train", columns="tokens=t,labels=l", scheme="io")
    assert item["labels"] == ["B-X-RAY", "O"]


# Ids


def test_equal_ids_number_the_whole_set(letters):
    write(letters / "c.jsonl", [{"id": "x", "text": "c"}])
    write(letters / "d.jsonl", [{"id": "x", "text": "d"}])
    kept = load(str(letters / "c.jsonl"), "train")
    numbered = load(str(letters / "[cd].jsonl"), "train")
    assert [item["id"] for item in kept] == ["x"]
    assert [item["id"] for item in numbered] == ["0", "1"]


# Samples


@pytest.fixture
def sample(tmp_path, monkeypatch):
    for split in ("train", "validation", "test"):
        row = {"id": split, "register": "news", "text": "Ann ran", "tokens": ["Ann"]}
        write(tmp_path / f"{split}.jsonl", [row | {"labels": ["B-PER"]}])
    monkeypatch.setattr(sources, "SAMPLE", tmp_path)


def test_the_entity_sample_has_tokens(sample):
    [item] = load("sample:ner", "validation")
    assert (item["id"], item["tokens"], item["labels"]) == (
        "validation",
        ["Ann"],
        ["B-PER"],
    )


def test_the_topic_sample_has_texts_and_registers(sample):
    [item] = load("sample:topics:test", "train", columns="text=other")
    assert (item["id"], item["text"], item["label"]) == ("test", "Ann ran", "news")


@pytest.mark.parametrize(
    "source", ["sample:pos", "sample:ner:dev", "sample:ner:test:x", "sample:"]
)
def test_an_unknown_sample_is_refused_with_those_there_are(source):
    assert "use one of sample:ner, sample:topics" in refusal(source)


# Paths


def test_globs_are_read_in_order(letters):
    (letters / "c.jsonl").mkdir()
    records = load(str(letters / "*.jsonl"), "train")
    assert len(records) == 20 and texts(records)[9:11] == ["a9", "b0"]
    assert records[10]["source"] == f"{letters / 'b.jsonl'}:1"


def test_a_file_whose_name_looks_like_a_glob_is_read(letters):
    write(letters / "x[1].jsonl", [{"text": "odd"}])
    assert texts(load(str(letters / "x[1].jsonl"), "train")) == ["odd"]


def test_home_is_expanded(letters, monkeypatch):
    monkeypatch.setenv("HOME", str(letters))
    assert len(load("~/a.jsonl", "train")) == 10


def test_documents_are_counted_on_over_files(tmp_path):
    for name in "ab":
        text = "-DOCSTART- O\n\nx O\n\n-DOCSTART- O\n\ny O\n"
        (tmp_path / f"{name}.conll").write_text(text)
    records = load(str(tmp_path / "*.conll"), "train")
    assert [item["document"] for item in records] == [0, 1, 2, 3]


def test_the_scheme_is_that_of_all_files_together(tmp_path):
    (tmp_path / "a.conll").write_text("x B-A\ny I-A\n")
    (tmp_path / "b.conll").write_text("x A\n")
    assert "b.conll:1: label 'A' does not start" in refusal(str(tmp_path / "*.conll"))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "a data source is empty"),
        ("~\0", r"'~\x00': a path cannot hold a NUL"),
        ("none/*.csv", "none/*.csv: no file has a name like that"),
        ("none.csv", "none.csv: cannot be read: No such file"),
        (".", ".: is a directory; name a file, or a glob"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(source, problem):
    assert refusal(source).startswith(problem)


# Slices


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("[:2]", ["a0", "a1"]),
        ("[8:]", ["a8", "a9"]),
        ("[3:4]", ["a3"]),
        ("[-1:]", ["a9"]),
        ("[:8][6:]", ["a6", "a7"]),
    ],
)
def test_sources_are_sliced(letters, end, expected):
    assert texts(load(f"{letters}/a.jsonl{end}", "train")) == expected


def test_a_slice_keeps_the_ids_of_the_whole(letters):
    assert [item["id"] for item in load(f"{letters}/a.jsonl[8:]", "t")] == ["8", "9"]


def test_an_empty_slice_is_refused(letters):
    message = refusal(f"{letters}/a.jsonl[10:20]")
    assert message.endswith("[10:20]: leaves nothing of 10 records")


def test_a_source_without_end_is_refused():
    assert "at most 4,096" in refusal("sample:ner" + "[:9]" * 2000)


# Mixtures


def test_mixtures_keep_their_shares_throughout(letters):
    mixed = texts(load(f"{letters}/a.jsonl@0.7, {letters}/b.jsonl@0.3", "train"))
    assert [name[0] for name in mixed[:10]].count("a") == 7
    assert mixed[:4] == ["a0", "b0", "a1", "a2"]


def test_a_mixture_ends_when_the_source_in_turn_is_used_up(letters):
    mixed = texts(load(f"{letters}/a.jsonl@2,{letters}/b.jsonl@1", "train"))
    assert len(mixed) == len(set(mixed))
    assert [name for name in mixed if name[0] == "a"] == [f"a{i}" for i in range(10)]
    assert len(mixed) in (15, 16)


def test_shares_are_never_off_by_a_whole_record():
    sets = [[{"text": name}] * 300 for name in "abc"]
    weights = [0.5, 0.3, 0.2]
    mixed = texts(mix(sets, weights))
    for length in range(len(mixed) + 1):
        for name, weight in zip("abc", weights, strict=True):
            assert abs(mixed[:length].count(name) - weight * length) < 1


def test_equal_weights_take_turns():
    sets = [[{"text": name}] * 30 for name in "abc"]
    assert "".join(texts(mix(sets, [0.1, 0.1, 0.1]))) == "abc" * 30


def test_slices_bind_to_parts_and_to_mixtures(letters):
    part = load(f"{letters}/a.jsonl[:2]@1,{letters}/b.jsonl@1", "train")
    whole = load(f"{letters}/a.jsonl@1,{letters}/b.jsonl@1[:3]", "train")
    assert texts(part) == ["a0", "b0", "a1", "b1"]
    assert texts(whole) == ["a0", "b0", "a1"]


def test_mixed_records_have_unique_ids(letters):
    mixed = load(f"{letters}/a.jsonl@1,{letters}/b.jsonl@1", "train")
    assert [item["id"] for item in mixed] == [str(place) for place in range(20)]


def test_a_comma_in_a_name_is_no_mixture(letters):
    write(letters / "x,y.jsonl", [{"text": "odd"}])
    assert texts(load(str(letters / "x,y.jsonl"), "train")) == ["odd"]


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_a_weight_that_is_not_positive_is_refused(letters, weight):
    source = f"{letters}/a.jsonl@{weight},{letters}/b.jsonl@1"
    assert f"weight {weight} of" in refusal(source)


def test_a_part_without_a_weight_is_pointed_out(letters):
    source = f"{letters}/a.jsonl,{letters}/b.jsonl@1"
    assert "in a mixture every part needs a weight" in refusal(source)


def test_kinds_of_records_do_not_mix(letters):
    write(letters / "c.jsonl", [{"tokens": ["c"]}])
    source = f"{letters}/a.jsonl@1,{letters}/c.jsonl@1"
    assert "all records of a data set need the same fields" in refusal(source)


# Lightness and summaries


def test_heavy_libraries_wait_until_they_are_needed():
    code = (
        "import sys, jaxlm.data.sources\n"
        "heavy = {'jax', 'flax', 'transformers', 'datasets', 'pyarrow', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done


def test_token_records_are_described_by_their_entities():
    rows = [{"tokens": ["a", "b", "c"], "labels": ["B-X", "I-X", "B-Y"]}] * 2
    assert describe(rows) == "2 examples, 6 tokens, 4 entities: X 2, Y 2"


def test_text_records_are_described_by_their_labels():
    rows = [{"text": "a", "label": str(n % 12)} for n in range(25)]
    expected = "25 examples, 12 labels: 0 3, 1 2, 10 2, 11 2, 2 2, 3 2, 4 2, 5 2, 6 2, "
    assert describe(rows) == expected + "7 2, 2 more"


def test_records_without_labels_are_described():
    assert describe([{"text": "a"}]) == "1 examples, 1 characters"


@pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}"
)
def test_a_real_mixture_is_loaded():
    parts = "wnut17/wnut17train.conll@1", "wikigold/wikigold.conll.txt[:1000]@1"
    mixed = load(",".join(f"{SHARED}/ner/{part}" for part in parts), "train")
    assert len(mixed) == 2001  # wnut17 had the last turn
    assert sum("document" in item for item in mixed) == 1000
