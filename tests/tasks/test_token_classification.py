"""Token classification: a label for every word, whatever becomes of the word."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import UserError
from jaxlm.data.packing import collate, cut
from jaxlm.data.plan import pack
from jaxlm.data.windows import Windowing
from jaxlm.data.words import split_words
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.token_classification import TokenClassification
from tests.odd_words import ODD, WORDS

TYPES = ("LOC", "PER")
DROPPED = "\u200b"


def record(tokens, labels=None, **fields):
    made = {"id": "1", "source": "a.conll:1", "tokens": list(tokens), **fields}
    return made if labels is None else made | {"labels": list(labels)}


def random_record(words, seed=0):
    random = np.random.default_rng(seed)
    lexicon = ["George", "unbelievably", "of", "Köln", ",", "Washington", "x"]
    labels = ["O", "B-LOC", "B-PER"]
    return record(random.choice(lexicon, words), random.choice(labels, words))


ROOMS = st.integers(1, 12).flatmap(
    lambda room: st.tuples(st.just(room), st.integers(0, room - 1))
)


@pytest.fixture(scope="module")
def make_task(tiny):
    def make(room=64, stride=16, overflow="split"):
        return TokenClassification(
            TYPES, tiny.tokenizer, Windowing(room, stride, overflow)
        )

    return make


@pytest.fixture(scope="module")
def task(make_task):
    return make_task()


def predict(task, example, guess=None):
    """Decode and combine with a model that says ``guess`` of the labels it is shown.

    Tokens without a label, such as those that another window owns, get a wrong one.
    """
    pieces = []
    for window in task.encode(example, 0):
        labels = window.tokens["labels"]
        outputs = {
            "label": np.where(labels >= 0, labels, 1).astype(np.int32),
            "score": np.full(len(labels), 0.75, np.float32),
        }
        pieces.append(task.decode(outputs, window))
    return task.combine(example, pieces)


def test_labels_are_outside_and_a_pair_for_each_type(task):
    assert task.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_the_label_set_is_the_sorted_types_of_the_labelled():
    records = [record("ab", ["B-PER", "O"]), record("c"), record("d", ["I-LOC"])]
    assert TokenClassification.label_set(records) == ["LOC", "PER"]


def test_the_config_makes_the_task(tiny):
    made = TokenClassification.make(
        TaskConfig(), TYPES, tiny.tokenizer, Windowing(8, 2, "split")
    )
    assert made.labels[1:] == ["B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_only_the_first_token_of_a_word_has_its_label(task):
    [window] = task.encode(record(["Unbelievably", "Köln"], ["O", "B-LOC"]), 3)
    words = task.tokenizer.words(["Unbelievably", "Köln"]).words.tolist()
    assert words.count(0) > 1
    expected = [-1] * window.length
    expected[1], expected[1 + words.index(1)] = 0, 1
    assert window.tokens["labels"].tolist() == expected
    assert window.host["index"] == 3


def test_windows_stand_in_the_frame_of_the_tokenizer(make_task):
    frame = make_task().tokenizer.frame
    for window in make_task(room=8, stride=2).encode(random_record(30), 0):
        ids = window.tokens["tokens"].tolist()
        assert (ids[0], ids[-1]) == (*frame.before, *frame.after)
        assert window.length <= 10
        assert (
            window.tokens["labels"].dtype == window.tokens["tokens"].dtype == np.int32
        )


@pytest.mark.parametrize(("room", "stride"), [(5, 0), (8, 2), (9, 8), (16, 5)])
def test_a_label_is_counted_once_however_an_example_is_split(make_task, room, stride):
    example = random_record(40)
    windows = list(make_task(room, stride).encode(example, 0))
    assert len(windows) > 3
    counted = [n for each in windows for n in each.tokens["labels"].tolist() if n >= 0]
    assert counted == [make_task().numbers[label] for label in example["labels"]]


@pytest.mark.parametrize(("room", "stride"), [(5, 0), (8, 2), (9, 8), (16, 5)])
def test_split_predictions_are_stitched_for_every_word(make_task, room, stride):
    example = random_record(40)
    prediction = predict(make_task(room, stride), example)
    assert prediction["predicted"] == example["labels"]
    assert prediction["scores"] == [0.75] * 40


def tokens_of(task, words):
    """The tokens of each word alone."""
    return [task.tokenizer.words([word]).ids.tolist() for word in words]


@given(words=WORDS, room=ROOMS, data=st.data())
def test_every_word_has_one_labelled_token_or_none_at_all(make_task, words, room, data):
    task = make_task(*room)
    labels = [data.draw(st.sampled_from(task.labels)) for _ in words]
    spoken, labelled = [], []
    for window in task.encode(record(words, labels), 0):
        tokens, numbers = window.tokens["tokens"], window.tokens["labels"]
        places = window.host["places"]
        assert places.tolist() == np.flatnonzero(numbers >= 0).tolist()
        spoken += window.host["words"].tolist()
        labelled += zip(tokens[places].tolist(), numbers[places].tolist(), strict=True)
    each = enumerate(tokens_of(task, words))
    first = {word: tokens[0] for word, tokens in each if tokens}
    assert spoken == list(first)
    assert labelled == [
        (token, task.numbers[labels[word]]) for word, token in first.items()
    ]


@given(examples=st.lists(WORDS, min_size=1, max_size=4), room=ROOMS)
def test_predictions_of_packed_windows_are_those_of_their_tokens(
    make_task, examples, room
):
    task = make_task(*room)
    records = [record(words) for words in examples]
    windows = [
        window
        for index, each in enumerate(records)
        for window in task.encode(each, index)
    ]
    length = max(window.length for window in windows) * 2
    lengths = np.array([window.length for window in windows])
    rows = pack(lengths, np.arange(len(windows)), length)
    batch = collate(
        [[windows[index] for index in row] for row in rows],
        like=windows[0], fills=task.fills, length=length,
        segments=max(map(len, rows)), batch_size=len(rows),
    )  # fmt: skip
    # A model that looks at the token alone, so that windows agree.
    outputs = {
        "tokens/label": batch["tokens"] % len(task.labels),
        "tokens/score": batch["tokens"] / 2**16,
    }
    pieces = {}
    for number, row in enumerate(rows):
        for place, index in enumerate(row):
            start = batch["starts"][number, place]
            part = cut(outputs, number, place, start, windows[index].length)
            pieces[index] = task.decode(part, windows[index])
    for index, each in enumerate(records):
        own = [n for n, window in enumerate(windows) if window.host["index"] == index]
        prediction = task.combine(each, [pieces[n] for n in own])
        first = [tokens[:1] for tokens in tokens_of(task, each["tokens"])]
        assert prediction["predicted"] == [
            task.labels[one[0] % len(task.labels)] if one else "O" for one in first
        ]
        assert prediction["scores"] == [
            round(one[0] / 2**16, 6) if one else 0 for one in first
        ]


@given(words=st.integers(1, 60), room=ROOMS)
def test_a_word_is_predicted_by_the_window_that_sees_most_around_it(
    make_task, words, room
):
    task, (size, stride) = make_task(*room), room
    example = record(["a"] * words)  # a token each
    windows = list(task.encode(example, 0))
    pieces = [
        task.decode(
            {
                "label": np.zeros(each.length, np.int32),
                "score": np.full(each.length, number),
            },
            each,
        )
        for number, each in enumerate(windows)
    ]
    starts = [number * (size - stride) for number in range(len(windows))]
    for word, owner in enumerate(task.combine(example, pieces)["scores"]):
        # Nothing is missing beyond the ends of the example.
        context = [
            min(
                word - start if start else words,
                start + size - 1 - word if start + size < words else words,
            )
            for start in starts
        ]
        # Of two windows that share an odd number of words, either may have the middle.
        assert context[owner] >= max(context) - 1


def test_truncation_is_flagged_and_the_rest_is_outside(make_task):
    task = make_task(room=6, stride=2, overflow="truncate")
    example = record("a b c d e f g h".split(), ["B-PER"] * 8)
    [window] = task.encode(example, 0)
    assert window.host["truncated"]
    assert predict(task, example)["predicted"] == ["B-PER"] * 6 + ["O"] * 2


def test_splitting_truncates_nothing(make_task):
    windows = make_task(room=6, stride=2).encode(random_record(30), 0)
    assert not any(window.host["truncated"] for window in windows)


def test_a_word_that_the_tokenizer_drops_is_outside_and_counted(task):
    example = record(["George", DROPPED, "of"], ["B-PER", "B-LOC", "O"])
    prediction = predict(task, example)
    assert prediction["predicted"] == ["B-PER", "O", "O"]
    assert prediction["scores"] == [0.75, 0.0, 0.75]
    scores = task.score([prediction], [example])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["LOC/support"] == 1


def test_an_example_of_dropped_words_alone_is_outside(task):
    example = record([DROPPED, DROPPED], ["B-LOC", "O"])
    [window] = task.encode(example, 0)
    assert window.tokens["labels"].tolist() == [-1, -1]
    assert predict(task, example)["predicted"] == ["O", "O"]


def test_entities_have_word_offsets_their_least_score_and_text(task):
    example = record(["a", "New", "York", "b"], ["O", "B-LOC", "I-LOC", "O"])
    entity = {"label": "LOC", "start": 1, "stop": 3, "score": 0.75, "text": "New York"}
    assert predict(task, example)["entities"] == [entity]


def test_entities_of_running_text_have_character_offsets(task):
    text = "In  New\tYork."
    offsets = [(0, 2), (4, 7), (8, 12), (12, 13)]
    words = [text[start:stop] for start, stop in offsets]
    labels = ["O", "B-LOC", "I-LOC", "O"]
    example = record(words, labels, text=text, offsets=offsets)
    [entity] = predict(task, example)["entities"]
    assert (entity["start_char"], entity["stop_char"]) == (4, 12)
    assert entity["text"] == "New\tYork"


@given(
    text=st.text(max_size=40) | st.lists(st.sampled_from(ODD)).map(" ".join),
    data=st.data(),
)
def test_entities_lie_in_the_running_text_that_they_name(task, text, data):
    found = split_words(text)
    words, offsets = [each[0] for each in found], [each[1:] for each in found]
    labels = [data.draw(st.sampled_from(task.labels)) for _ in words]
    prediction = predict(task, record(words, labels, text=text, offsets=offsets))
    end = 0
    for entity in prediction["entities"]:
        start, stop = entity["start_char"], entity["stop_char"]
        assert end <= start < stop <= len(text)
        assert entity["text"] == text[start:stop]
        inside = "".join(words[entity["start"] : entity["stop"]])
        assert "".join(entity["text"].split()) == "".join(inside.split())
        end = stop


def test_an_unlabelled_record_has_no_weight_and_a_prediction(task):
    example = record(["George", "of"])
    [window] = task.encode(example, 0)
    assert (window.tokens["labels"] == -1).all()
    prediction = predict(task, example)
    assert len(prediction["predicted"]) == 2
    assert "labels" not in prediction


def test_a_prediction_is_plain_json(task):
    prediction = predict(task, random_record(9))
    assert json.loads(json.dumps(prediction)) == prediction


def test_an_unknown_label_is_refused_with_its_source(task):
    with pytest.raises(UserError, match=r"^a\.conll:1: unknown label 'B-ORG'.*B-LOC"):
        list(task.encode(record(["a"], ["B-ORG"]), 0))


def test_a_record_without_words_is_refused_with_its_source(task):
    with pytest.raises(UserError, match=r"^b\.jsonl:4: no words"):
        list(task.encode({"id": "1", "source": "b.jsonl:4", "text": "a"}, 0))


def test_confusion_counts_every_word_with_true_labels_in_rows(task):
    example = record(["George", DROPPED, "of"], ["B-PER", "B-LOC", "O"])
    labels, matrix = task.confusion([predict(task, example)], [example])
    assert labels == task.labels
    assert matrix.sum() == 3
    assert matrix[labels.index("B-LOC"), labels.index("O")] == 1


def test_packed_loss_and_gradients_equal_padded_ones(make_task, check_packing):
    task = make_task(room=18, stride=4)
    sizes = (3, 30, 5, 1, 7)
    check_packing(task, [random_record(size, size) for size in sizes])
