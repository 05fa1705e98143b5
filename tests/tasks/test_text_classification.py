"""Text classification: one label for a text, in one window or several."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import UserError
from jaxlm.data.windows import Windowing
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.text_classification import TextClassification
from tests.odd_words import WORDS

LABELS = ("bad", "fair", "good")


def record(text, label=None, **fields):
    made = {"id": "1", "source": "a.csv:2", "text": text, **fields}
    return made if label is None else made | {"label": label}


@pytest.fixture(scope="module")
def make_task(tiny):
    def make(room=64, stride=16, overflow="split", pooling="cls"):
        windowing = Windowing(room, stride, overflow)
        return TextClassification(LABELS, tiny.tokenizer, windowing, pooling)

    return make


@pytest.fixture(scope="module")
def task(make_task):
    return make_task()


def logs(*probabilities):
    return np.log(np.array(probabilities, np.float32))


def test_the_label_set_is_the_sorted_labels_of_the_labelled():
    records = [record("a", "x"), record("b"), record("c", "d"), record("d", "x")]
    assert TextClassification.label_set(records) == ["d", "x"]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_config_says_what_is_pooled(tiny, pooling):
    config = TaskConfig(name="text_classification", pooling=pooling)
    made = TextClassification.make(
        config, LABELS, tiny.tokenizer, Windowing(8, 2, "split")
    )
    assert made.pooler == (pooling == "cls")


def test_a_short_text_is_one_framed_window_of_weight_one(task):
    [window] = task.encode(record("It was good .", "good"), 5)
    frame, ids = task.tokenizer.frame, task.tokenizer.text("It was good .")
    assert window.tokens["tokens"].tolist() == [*frame.before, *ids, *frame.after]
    assert (window.example["label"], window.example["weight"]) == (2, 1)
    assert window.host["index"] == 5


def test_a_long_text_counts_once_however_many_windows_it_has(make_task):
    windows = list(make_task(room=6, stride=2).encode(record("a " * 30, "bad"), 0))
    assert len(windows) > 3
    assert sum(window.example["weight"] for window in windows) == pytest.approx(1)
    assert {int(window.example["label"]) for window in windows} == {0}
    assert not any(window.host["truncated"] for window in windows)


def test_truncation_is_flagged(make_task):
    task = make_task(room=6, stride=2, overflow="truncate")
    [window] = task.encode(record("a " * 9, "bad"), 0)
    assert window.host["truncated"]
    assert window.length == 8


def test_an_unlabelled_text_has_no_weight(task):
    [window] = task.encode(record("a"), 0)
    assert (window.example["label"], window.example["weight"]) == (-1, 0)


def test_a_text_of_no_tokens_is_a_window_all_the_same(task):
    [window] = task.encode(record("\u200b", "bad"), 0)
    assert window.length == task.tokenizer.frame.length


def test_an_unknown_label_is_refused_with_its_source(task):
    with pytest.raises(UserError, match=r"^a\.csv:2: unknown label 'awful'.*bad, fair"):
        list(task.encode(record("a", "awful"), 0))


def test_a_record_without_text_is_refused_with_its_source(task):
    with pytest.raises(UserError, match=r"^b\.jsonl:4: no text"):
        list(task.encode({"id": "1", "source": "b.jsonl:4", "tokens": ["a"]}, 0))


def test_a_pair_of_texts_is_refused_rather_than_cut_in_half(task):
    with pytest.raises(UserError, match=r"^a\.csv:2: text_pair is not supported"):
        list(task.encode(record("a", "bad", text_pair="b"), 0))


def test_windows_are_combined_by_the_mean_of_their_log_probabilities(task):
    pieces = [logs(0.8, 0.1, 0.1), logs(0.2, 0.1, 0.7)]
    prediction = task.combine(record("a", "good"), pieces)
    mean = np.sqrt([0.8 * 0.2, 0.1 * 0.1, 0.1 * 0.7])
    found = [prediction["probabilities"][label] for label in LABELS]
    np.testing.assert_allclose(found, mean / mean.sum(), atol=1e-6)
    assert prediction["predicted"] == "bad"
    assert prediction["label"] == "good"


@given(words=WORDS, room=st.integers(1, 12), data=st.data())
def test_windows_that_agree_predict_the_same_however_many(make_task, words, room, data):
    stride = data.draw(st.integers(0, room - 1))
    task, example = make_task(room, stride), record(" ".join(words), "fair")
    ids, frame = task.tokenizer.text(example["text"]).tolist(), task.tokenizer.frame
    windows = list(task.encode(example, 0))
    assert sum(window.example["weight"] for window in windows) == pytest.approx(1)
    seen = []
    for window in windows:
        inner = window.tokens["tokens"].tolist()
        inner = inner[len(frame.before) : len(inner) - len(frame.after)]
        seen += inner[stride:] if seen else inner
    assert seen == ids
    pieces = [task.decode({"scores": logs(0.2, 0.5, 0.3)}, each) for each in windows]
    assert task.combine(example, pieces) == task.combine(example, pieces[:1])


def test_probabilities_are_listed_from_the_greatest(task):
    prediction = task.combine(record("a"), [logs(0.2, 0.5, 0.3)])
    assert list(prediction["probabilities"]) == ["fair", "good", "bad"]
    assert "label" not in prediction


def test_a_certain_window_gives_no_nan(task):
    pieces = [np.array([0.0, -1e4, -1e4], np.float32)]
    prediction = task.combine(record("a"), pieces)
    assert prediction["probabilities"] == {"bad": 1.0, "fair": 0.0, "good": 0.0}


def test_a_prediction_is_plain_json(task):
    prediction = task.combine(record("a", "bad"), [logs(0.2, 0.5, 0.3)])
    assert json.loads(json.dumps(prediction)) == prediction


def test_confusion_has_true_labels_in_rows(task):
    example = record("a", "good")
    prediction = task.combine(example, [logs(0.2, 0.5, 0.3)])
    labels, matrix = task.confusion([prediction], [example])
    assert matrix.sum() == matrix[labels.index("good"), labels.index("fair")] == 1
    assert task.score([prediction], [example])["accuracy"] == 0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_loss_and_gradients_equal_padded_ones(make_task, check_packing, pooling):
    task = make_task(room=18, stride=4, pooling=pooling)
    sizes = {3: "bad", 30: "good", 5: "fair", 1: "bad", 7: "good"}
    words = "the old man was unbelievably good of course".split()
    check_packing(
        task,
        [
            record(" ".join(words[place * size % 8] for place in range(size)), label)
            for size, label in sizes.items()
        ],
    )
