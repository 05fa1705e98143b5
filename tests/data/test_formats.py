import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from jaxlm.core.errors import UserError
from jaxlm.data.columns import parse_columns
from jaxlm.data.formats import FORMATS, guess, read
from jaxlm.data.tags import normalise, spans

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}"
)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(path, columns="", format="auto"):
    return list(read(path, format, parse_columns(columns)))


def refusal(path, columns="", format="auto"):
    with pytest.raises(UserError) as caught:
        read_all(path, columns, format)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


# CoNLL


def test_conll_takes_first_and_last_column(tmp_path):
    path = write(
        tmp_path, "a.conll", "EU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\nHi X Y O"
    )
    assert read_all(path) == [
        {
            "tokens": ["EU", "rejects"],
            "labels": ["B-ORG", "O"],
            "source": f"{path}:1",
        },
        {"tokens": ["Hi"], "labels": ["O"], "source": f"{path}:4"},
    ]


def test_conll_columns_may_be_placed(tmp_path):
    path = write(tmp_path, "a.conll", "1\tEU\tB-ORG\t_\n2\tsays\tO\t_\n")
    [item] = read_all(path, "token=1,label=2")
    assert (item["tokens"], item["labels"]) == (["EU", "says"], ["B-ORG", "O"])


def test_conll_of_one_column_has_no_labels(tmp_path):
    [item] = read_all(write(tmp_path, "a.conll", "EU\nsays\n"))
    assert item["tokens"] == ["EU", "says"] and "labels" not in item


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfEU\tO\r\n\r\n", b"\n \nEU O  \n\t\n\n", b"EU O"]
)
def test_conll_survives_marks_line_ends_and_blanks(tmp_path, content):
    [item] = read_all(write(tmp_path, "a.conll", content))
    assert (item["tokens"], item["labels"]) == (["EU"], ["O"])


def test_conll_tokens_keep_unusual_white_space(tmp_path):
    [item] = read_all(write(tmp_path, "a.conll", "a\u00a0b O\n\u2028\u3000x O\n"))
    assert item["tokens"] == ["a\u00a0b", "\u2028\u3000x"]


def test_document_lines_number_documents(tmp_path):
    text = "-DOCSTART- -X- O\n\na X O\n\nb X O\n-DOCSTART-\nc X O\n"
    items = read_all(write(tmp_path, "a.conll", text))
    assert [(item["tokens"], item["document"]) for item in items] == [
        (["a"], 0),
        (["b"], 0),
        (["c"], 1),
    ]


def test_comments_are_lines_of_another_width(tmp_path):
    text = "# sent_id = 4\n# text = # a\n# O\na O\n\n# newpar id = 2\nb O\n"
    items = read_all(write(tmp_path, "a.conll", text))
    assert [item["tokens"] for item in items] == [["#", "a"], ["b"]]


# JSONL


def test_jsonl_usual_names_need_no_configuration(tmp_path):
    rows = [
        {"guid": 7, "words": ["a"], "ner_tags": ["O"]},
        {"sentence": "x", "sentence2": "y", "category": 3},
        {"Review": "x", "Sentiment": "good"},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    items = [item | {"source": 0} for item in read_all(write(tmp_path, "a.json", text))]
    assert items == [
        {"id": "7", "tokens": ["a"], "labels": ["O"], "source": 0},
        {"text": "x", "text_pair": "y", "label": "3", "source": 0},
        {"text": "x", "label": "good", "source": 0},
    ]


def test_labels_decide_between_tokens_and_text(tmp_path):
    row = {"text": "a b", "tokens": ["a", "b"], "label": "x"}
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    assert "text" in read_all(path)[0]
    assert "tokens" in read_all(path, "tokens=tokens")[0]
    path = write(tmp_path, "b.jsonl", json.dumps(row | {"tags": ["O", "O"]}))
    assert "tokens" in read_all(path)[0]
    assert "text" in read_all(path, "label=label")[0]


# CSV and TSV


def test_reading_csv_leaves_the_limit_of_the_process_as_it_was(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a" * 200_000 + ",x\nb,y\n")
    before = csv.field_size_limit()
    for record in read(path):
        assert csv.field_size_limit() == before and record["text"]


def test_csv_fields_may_be_quoted_over_lines(tmp_path):
    text = 'text,label\r\n"a ""b"",\r\nc",x\r\n\r\nd,y\r\n'
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbf" + text.encode())
    assert read_all(path) == [
        {"text": 'a "b",\r\nc', "label": "x", "source": f"{path}:2"},
        {"text": "d", "label": "y", "source": f"{path}:5"},
    ]


def test_tsv_keeps_quotes(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"a\tx\n')
    assert read_all(path)[0]["text"] == '"a'


def test_numbered_columns_mean_no_header_line(tmp_path):
    items = read_all(write(tmp_path, "a.csv", "x,a b\ny,c\n"), "label=0,text=1")
    assert [(item["text"], item["label"]) for item in items] == [
        ("a b", "x"),
        ("c", "y"),
    ]


def test_an_empty_label_cell_is_no_label(tmp_path):
    [item] = read_all(write(tmp_path, "a.csv", "text,label\na,\n"))
    assert "label" not in item


def test_very_long_fields_are_read(tmp_path):
    [item] = read_all(write(tmp_path, "a.csv", f"text\n{'a' * 300_000}\n"))
    assert len(item["text"]) == 300_000


@pytest.mark.parametrize(
    "columns",
    ["text", "text=", "txt=a", "text=a,text=b", "text=a,tokens=b", "text=0,label=b"],
)
def test_columns_that_make_no_sense_are_refused(columns):
    with pytest.raises(UserError, match="data.columns="):
        parse_columns(columns)


# Parquet


def test_parquet_is_read(tmp_path):
    table = pyarrow.table({"tokens": [["a", "b"]], "tags": [["O", "B-X"]], "x": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    [item] = read_all(tmp_path / "a.parquet")
    assert item["source"] == f"{tmp_path / 'a.parquet'}:1"
    assert (item["tokens"], item["labels"]) == (["a", "b"], ["O", "B-X"])


def test_parquet_of_the_hub_names_its_labels(tmp_path):
    names = {"names": ["O", "B-X"], "_type": "ClassLabel"}
    features = {"ner_tags": {"feature": names, "_type": "Sequence"}}
    table = pyarrow.table({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a")
    assert read_all(tmp_path / "a")[0]["labels"] == ["O", "B-X"]


@pytest.mark.parametrize(
    "metadata",
    ["[]", "null", '{"info": 5}', '{"info": {"features": []}}',
     '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}'],
)  # fmt: skip
def test_parquet_metadata_of_another_form_is_passed_over(tmp_path, metadata):
    table = pyarrow.table({"text": ["a"], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet")[0]["label"] == "1"


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    arrays = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    table = pyarrow.Table.from_arrays(arrays, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith("FILE: two columns have the name")


# Any file


@pytest.mark.parametrize("name", ["a.conll", "a.jsonl", "a.csv", "a.tsv", "a", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    assert refusal(write(tmp_path, name, content)).startswith("FILE: is empty")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a O\ncaf\xe9 O\n", "FILE:2: is not UTF-8: byte 0xe9 at offset 3"),
        (b"a O\n\x00 O\n", "FILE:2: holds a NUL byte"),
        ("a O\n".encode("utf-16"), "FILE: is UTF-16; convert it: iconv"),
        (b"\x1f\x8b\x08junk", "FILE: is compressed with gzip; unpack it"),
        (b"PK\x03\x04junk", "FILE: is a zip archive; unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["a.conll", "a"])
def test_what_is_not_utf8_text_is_refused(tmp_path, content, problem, name):
    assert refusal(write(tmp_path, name, content)).startswith(problem)


@pytest.mark.parametrize("name", ["a.conll", "a.csv", "a.tsv", "a.jsonl"])
def test_lines_that_end_in_cr_alone_are_refused(tmp_path, name):
    path = write(tmp_path, name, b"Ada B-PER\rx O\r\rNew B-LOC\r")
    assert refusal(path).startswith("FILE: its lines end in CR alone")


def test_a_cr_inside_a_conll_line_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "a.conll", b"Ada B-PER\r\nx O\ry O\n")
    assert refusal(path).startswith("FILE:2: a CR inside a line")


def test_what_is_no_file_is_refused(tmp_path):
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    assert "is a directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.csv")
    assert "Too many levels" in refusal(loop)
    assert "File name too long" in refusal(tmp_path / ("a" * 300))
    assert "null" in refusal(Path("a\0b"))
    assert "not a regular file" in refusal(Path("/dev/null"))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "a.csv", "text\na\n")
    monkeypatch.setattr("builtins.open", denied)
    assert refusal(path) == "FILE: cannot be read: Permission denied"


def test_an_unknown_format_is_refused(tmp_path):
    path = write(tmp_path, "a.csv", "text\na\n")
    assert "data.format='xml' is not known; use auto, conll" in refusal(path, "", "xml")


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("train", "a\tO\nb\tB-X\n", "conll"),
        ("a.annotated", "# id = 1\na O\n\nb B-X\n", "conll"),
        ("a.txt", '\n{"text": "a"}\n', "jsonl"),
        ("a.IOB", "a\n", "conll"),
        ("a.tsv", "text\tlabel\na\tO\n", "tsv"),
        ("b.tsv", "a\tO\n\nb\tB-X\n", "conll"),
    ],
)
def test_the_format_is_guessed(tmp_path, name, content, format):
    assert guess(write(tmp_path, name, content)) == format


def test_a_format_that_cannot_be_guessed_is_asked_for(tmp_path):
    path = write(tmp_path, "a.txt", "ham\tGo until\nspam\tFree\n")
    assert "name it: --config.data.format=" in refusal(path)
    assert len(read_all(path, "label=0,text=1", "tsv")) == 2


PIECES = [b"a", b"O", b"B-X", b" ", b"\t", b"\n", b"\r", b",", b'"', b"# ", b"\xff"]
PIECES += [b"-DOCSTART-", b"text", b"label", b'{"text": "a"}', b"{", b"[", b"PAR1"]


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join),
    st.sampled_from(["auto", *FORMATS]),
    st.sampled_from(["", "text=0", "label=1", "text=label"]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, format, columns):
    path = write(tmp_path_factory.getbasetemp(), "any", content)
    try:
        for item in read_all(path, columns, format):
            assert item["source"].startswith(str(path))
            assert item.get("text") or item.get("tokens")
    except UserError as error:
        assert len(str(error).splitlines()) == 1


# Real files; the counts are those of shared/data/*/README.md


@needs_shared
@pytest.mark.parametrize(
    ("name", "sentences", "tokens", "entities"),
    [
        ("wnut17/wnut17train.conll", 3394, 62_730, 1975),
        ("wnut17/emerging.dev.conll", 1009, 15_733, 836),
        ("wnut17/emerging.test.annotated", 1287, 23_394, 1079),
        ("wikigold/wikigold.conll.txt", 1696, 39_007, 3558),
        ("sec_filings/FIN5.txt", 1164, None, 1168),
        ("sec_filings/FIN3.txt", 303, None, 318),
        ("weibo_zh/train", 1350, None, None),
        ("weibo_zh/dev", 270, None, None),
    ],
)
def test_real_entity_files_have_their_published_counts(
    name, sentences, tokens, entities
):
    items = read_all(SHARED / "ner" / name)
    labels = normalise([item["labels"] for item in items])
    assert len(items) == sentences
    assert tokens in (None, sum(len(item["tokens"]) for item in items))
    assert entities in (None, sum(len(spans(sentence)) for sentence in labels))


@needs_shared
def test_wikigold_has_145_documents():
    items = read_all(SHARED / "ner/wikigold/wikigold.conll.txt")
    assert {item["document"] for item in items} == set(range(145))


@needs_shared
def test_real_intents_are_read():
    items = read_all(SHARED / "intents/banking77/train.csv")
    assert len(items) == 10_003 and len({item["label"] for item in items}) == 77


@needs_shared
def test_real_messages_without_a_header_line_are_read():
    items = read_all(SHARED / "classification/sms_spam/sms.tsv", "label=0,text=1")
    assert Counter(i["label"] for i in items) == {"ham": 4827, "spam": 747}


def test_running_text_is_one_record_of_a_whole_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo O\nThree O\n")
    [found] = read(path, running=True)
    assert found == {"text": "One.\r\n\r\nTwo O\nThree O\n", "source": str(path)}
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert len(list(read(tmp_path / "rows.jsonl", running=True))) == 2


def test_a_text_that_is_too_long_is_told_how_to_be_split(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.data.formats.LONGEST", 2**20)
    path = tmp_path / "book.txt"
    path.write_text("word\n" * 300_000)
    with pytest.raises(UserError, match=r"book\.txt: 1,500,000 bytes.*split -C 1m"):
        list(read(path, "text"))


def test_a_text_of_blanks_is_empty(tmp_path):
    (tmp_path / "book.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"book\.txt: is empty"):
        list(read(tmp_path / "book.txt", "text"))
