"""The prediction door: texts in; spans with exact offsets, or labels, out."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from rich.console import Console

from jaxlm.experiment.runs import Run
from jaxlm.predict import show

HARD = [
    "Ada left Paris.",
    "  Ada\tleft   Paris \u00a0",
    "👩‍👩‍👧 Ada 👍🏽 in Paris 🇫🇷!",
    "Cafe\u0301 Zoe\u0308 in Zu\u0308rich",
    "東京へ行く Ada, 北京.",
    "\u202eAda\u202c \u200bParis\ufeff",
    "हिन्दी می\u200cخواهم 𝒜𝒹𝒶 \U0001f9d1\U0001f3fe",
]


def lines(answer):
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


@pytest.fixture
def typed(monkeypatch):
    """Give bytes to standard input."""

    def typed(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return typed


def check_offsets(text, prediction):
    assert prediction["text"] == text
    assert "".join(prediction["tokens"]) == "".join(
        character for character in text if not character.isspace()
    )
    for entity in prediction["entities"]:
        begin, end = entity["start_char"], entity["stop_char"]
        assert entity["text"] == text[begin:end]
        words = prediction["tokens"][entity["start"] : entity["stop"]]
        assert entity["text"].startswith(words[0]) and entity["text"].endswith(
            words[-1]
        )


def test_several_texts_come_out_as_jsonl_in_their_order(ner_run, call):
    answer = call("predict", f"--workdir={ner_run}", "--text=A b", "--text", "Paris.")
    first, second = lines(answer)
    assert (first["id"], first["text"]) == ("1", "A b")
    assert (second["id"], second["text"]) == ("2", "Paris.")


@pytest.mark.parametrize("text", HARD)
def test_offsets_index_the_text_exactly(ner_run, call, text):
    (found,) = lines(call("predict", f"--workdir={ner_run}", f"--text={text}"))
    check_offsets(text, found)


def test_entities_of_any_writing_have_exact_offsets(ner_run, monkeypatch):
    run = Run(ner_run)
    label = run.parts.task.labels.index("B-LOC")  # every word an entity
    infer = run.parts.task.infer

    def all_places(*arguments):
        outputs = infer(*arguments)
        return outputs | {"tokens/label": outputs["tokens/label"] * 0 + label}

    monkeypatch.setattr(run.parts.task, "infer", all_places)
    for text, found in zip(HARD, run.predict(HARD), strict=True):
        check_offsets(text, found)
        assert found["entities"]
        for entity, word in zip(found["entities"], found["tokens"], strict=False):
            assert text[entity["start_char"] : entity["stop_char"]] or word


def test_an_input_file_gives_a_line_for_each_line_that_holds_anything(
    ner_run, call, tmp_path
):
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffAda.\r\n\n \t\n\tParis 😀 left\nlast".encode())
    found = lines(call("predict", f"--workdir={ner_run}", f"--input={path}"))
    assert [(each["id"], each["text"]) for each in found] == [
        ("1", "Ada."),
        ("4", "\tParis 😀 left"),
        ("5", "last"),
    ]


def test_a_dash_reads_standard_input(ner_run, call, typed):
    typed(b"Ada left Paris.\n")
    (found,) = lines(call("predict", f"--workdir={ner_run}", "--input=-"))
    assert found["text"] == "Ada left Paris."


def test_ids_go_on_beyond_the_portions_that_are_predicted_at_a_time(
    ner_run, call, typed, monkeypatch
):
    monkeypatch.setattr("jaxlm.predict.CHUNK", 2)
    typed(b"a\nb\nc\nd\ne\n")
    found = lines(call("predict", f"--workdir={ner_run}", "--input=-"))
    assert [each["id"] for each in found] == ["1", "2", "3", "4", "5"]


def test_json_objects_hold_a_text_or_words_and_may_have_an_id(ner_run, call, typed):
    typed(
        b'{"id": "x", "text": "Ada left.", "labels": "none", "offsets": 3}\n'
        b'{"tokens": ["New York", "", "left"], "labels": ["B-XYZ", "O", "O"]}\n'
    )
    text, words = lines(call("predict", f"--workdir={ner_run}", "--input=-"))
    assert text["id"] == "x" and text["tokens"] == ["Ada", "left", "."]
    assert words["tokens"] == ["New York", "", "left"] and len(words["scores"]) == 3
    assert "labels" not in words and "text" not in words


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut o', "not a JSON object"),
        (b'{"txt": "a"}', "needs text"),
        (b'{"text": 3}', "text must be a string"),
        (b'{"tokens": ["a", 3]}', "tokens must be strings"),
        (b'{"tokens": "abc"}', "tokens must be strings"),
        (b'{"text": "\\ud83d"}', "Unicode"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_an_unsound_line_of_input_is_named(ner_run, call, typed, line, reason):
    typed(b"good\n" + line + b"\n")
    error = call("predict", f"--workdir={ner_run}", "--input=-").error
    assert error.startswith("standard input:2:") and reason in error


def test_an_input_file_that_is_not_there_is_named(ner_run, call, tmp_path):
    path = tmp_path / "no.txt"
    error = call("predict", f"--workdir={ner_run}", f"--input={path}").error
    assert str(path) in error and "No such file" in error


def test_an_empty_text_has_no_words(ner_run, call):
    (found,) = lines(call("predict", f"--workdir={ner_run}", "--text="))
    assert found["text"] == "" and found["tokens"] == [] and found["entities"] == []


def test_an_empty_input_gives_nothing(ner_run, call, typed):
    typed(b"\n\n")
    assert lines(call("predict", f"--workdir={ner_run}", "--input=-")) == []


def test_every_word_of_a_very_long_text_is_labelled(ner_run):
    text = "Ada left Paris for Rome . " * 400
    (found,) = Run(ner_run).predict([text])
    assert len(found["predicted"]) == len(found["tokens"]) == 2400
    assert min(found["scores"]) > 0
    check_offsets(text, found)


def test_words_records_and_texts_may_be_mixed_in_one_call(ner_run):
    given = [["Ada", "left"], {"tokens": ["Ada", "left"]}, "Ada left"]
    found = Run(ner_run).predict(given)
    assert [each["tokens"] for each in found] == [["Ada", "left"]] * 3
    assert found[0]["predicted"] == found[2]["predicted"]
    assert given[1] == {"tokens": ["Ada", "left"]}


def test_a_prediction_does_not_depend_on_its_neighbours(ner_run):
    run = Run(ner_run)
    (alone,) = run.predict(["Ada left Paris."])
    among = run.predict(["Rome, then " * 20, "Ada left Paris.", "x"])[1]
    assert among["predicted"] == alone["predicted"]
    assert among["scores"] == pytest.approx(
        alone["scores"], abs=1e-5
    )  # rounded to 1e-6


def test_probabilities_of_labels_sum_to_one_and_are_sorted(topics_run, call):
    texts = ("--text=The match ended 2-1.", "--text=", "--text=" + "long " * 300)
    for found in lines(call("predict", f"--workdir={topics_run}", *texts)):
        shares = list(found["probabilities"].values())
        assert sum(shares) == pytest.approx(1, abs=1e-5)  # 8 labels rounded to 1e-6
        assert shares == sorted(shares, reverse=True)
        assert found["predicted"] == next(iter(found["probabilities"]))


def test_step_chooses_the_checkpoint(ner_run, call):
    text = "--text=Ada left Paris."
    scores = [
        lines(call("predict", f"--workdir={ner_run}", text, f"--step={step}"))[0][
            "scores"
        ]
        for step in ("60", "last")
    ]
    assert scores[0] != scores[1]
    assert (
        "--step=all"
        in call("predict", f"--workdir={ner_run}", text, "--step=all").error
    )


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_terminal_shows_entities_in_colour(ner_run, call, terminal):
    text = "He flew from Paris [see 3] to London."
    assert (
        call("predict", f"--workdir={ner_run}", f"--text={text}", stdout=terminal).code
        == 0
    )
    shown = terminal.getvalue()
    assert "\x1b[1;" in shown and '"id"' not in shown
    assert text in re.sub(r"\x1b\[[\d;]*m", "", shown)


def test_a_terminal_shows_the_likeliest_labels_with_bars(topics_run, call, terminal):
    assert (
        call(
            "predict", f"--workdir={topics_run}", "--text=A goal!", stdout=terminal
        ).code
        == 0
    )
    assert len(terminal.getvalue().splitlines()) == 5 and "%" in terminal.getvalue()


def test_json_is_there_for_a_terminal_too(ner_run, call, terminal):
    assert (
        call(
            "predict", f"--workdir={ner_run}", "--text=Ada", "--json", stdout=terminal
        ).code
        == 0
    )
    assert json.loads(terminal.getvalue())["text"] == "Ada"


def test_a_terminal_shows_another_task_s_prediction_as_it_is(terminal):
    console = Console(file=terminal, force_terminal=False)
    show({"id": "1", "text": "fair", "predicted": 3.5}, None, console)
    assert json.loads(terminal.getvalue())["predicted"] == 3.5
