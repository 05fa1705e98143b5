import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tasks.entity_metrics import entity_report, entity_scores
from tests.tasks.conlleval import OUTSIDE, Tag, conlleval, starts

metrics: Any = importlib.import_module("seqeval.metrics")  # its types are wrong

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-micro_x", "I-micro_x"]
PAIRS = st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=8)
SENTENCES = st.lists(PAIRS, min_size=1, max_size=6)

TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
GUESS = [["B-PER", "I-PER", "O", "I-PER"], ["B-ORG", "B-ORG"]]


def split(sentences):
    return [[[pair[side] for pair in pairs] for pairs in sentences] for side in (0, 1)]


def of_seqeval(true, predicted):
    expected = {}
    for prefix, average in (
        ("", "micro"),
        ("macro_", "macro"),
        ("weighted_", "weighted"),
    ):
        for name in ("precision", "recall", "f1"):
            score = getattr(metrics, f"{name}_score")
            value = score(true, predicted, average=average, zero_division=0)
            expected[prefix + name] = float(value)
    expected["accuracy"] = metrics.accuracy_score(true, predicted)
    table = metrics.classification_report(
        true, predicted, output_dict=True, zero_division=0
    )
    for kind, row in table.items():
        if not kind.endswith(" avg"):
            for name, value in row.items():
                expected[f"{kind}/{name.removesuffix('-score')}"] = float(value)
    return expected


@settings(max_examples=300, deadline=None)
@given(SENTENCES)
def test_every_figure_equals_seqeval_to_the_last_digit(sentences):
    true, predicted = split(sentences)
    if any(tag != "O" for tags in true + predicted for tag in tags):
        assert entity_scores(true, predicted) == of_seqeval(true, predicted)


@settings(max_examples=100, deadline=None)
@given(SENTENCES)
def test_the_report_is_the_text_of_seqeval(sentences):
    true, predicted = split(sentences)
    if any(tag != "O" for tags in true + predicted for tag in tags):
        expected = metrics.classification_report(
            true, predicted, digits=4, zero_division=0
        )
        assert entity_report(entity_scores(true, predicted)) == expected


def rates(correct, guessed, found):
    """Precision, recall and F1, where conlleval has 100 times as much."""
    precision = correct / guessed if guessed else 0.0
    recall = correct / found if found else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def check_conlleval(true, predicted):
    scores, counts = entity_scores(true, predicted), conlleval(true, predicted)
    by_type = counts.correct, counts.guessed, counts.found
    expected = {"": rates(*(counter.total() for counter in by_type))}
    for kind in counts.guessed | counts.found:
        expected[f"{kind}/"] = rates(*(counter[kind] for counter in by_type))
        assert scores[f"{kind}/support"] == counts.found[kind]
    for prefix, figures in expected.items():
        names = [f"{prefix}{name}" for name in ("precision", "recall", "f1")]
        assert tuple(scores[name] for name in names) == figures
    assert {name for name in scores if name.endswith("/f1")} == {
        f"{prefix}f1" for prefix in expected if prefix
    }
    assert scores["accuracy"] == counts.right / counts.words


def valid(tags):
    """The same entities in IOB2, as conlleval finds them."""
    before: Tag = OUTSIDE
    found = []
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        first = starts(before, (prefix, kind))
        found.append(tag if prefix == "O" else f"{'B' if first else 'I'}-{kind}")
        before = prefix, kind
    return found


@pytest.mark.parametrize("repair", [list, valid], ids=["invalid", "valid"])
def test_thousands_of_random_sentences_score_as_with_conlleval(repair):
    random = np.random.default_rng(0)
    for _ in range(1000):
        true, predicted = [], []
        for words in random.integers(1, 12, 3):
            tags = random.choice(TAGS, words)
            kept = random.random(words) < 0.8  # so that some entities are right
            true.append(repair(tags.tolist()))
            guess = np.where(kept, true[-1], random.choice(TAGS, words))
            predicted.append(repair(guess.tolist()))
        check_conlleval(true, predicted)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["O", "I-PER", "I-PER"], 1),  # nothing opened it
        (["I-PER", "I-LOC", "O"], 2),
        (["B-PER", "I-LOC", "I-LOC"], 2),
        (["B-PER", "B-PER", "I-PER"], 2),
        (["I-PER", "O", "I-PER"], 2),
    ],
)
def test_broken_tags_hold_the_entities_that_conlleval_counts(tags, entities):
    assert conlleval([tags], [tags]).found.total() == entities
    scores = entity_scores([tags, ["I-PER"]], [tags, ["I-PER"]])
    supports = [scores[name] for name in scores if name.endswith("/support")]
    assert sum(supports) == entities + 1  # a sentence ends what is open
    assert scores["f1"] == 1
    check_conlleval([tags], [valid(tags)])


def test_an_entity_needs_its_type_and_both_ends():
    scores = entity_scores(TRUE, GUESS)
    assert (scores["precision"], scores["recall"]) == (0.5, 2 / 3)
    assert scores["LOC/f1"] == 0.0
    assert scores["PER/support"] == 1


def test_accuracy_counts_words():
    assert entity_scores(TRUE, GUESS)["accuracy"] == 4 / 6


def test_scores_without_any_entity_are_zero():
    scores = entity_scores([["O", "O"]], [["O", "O"]])
    assert (scores["f1"], scores["macro_f1"], scores["accuracy"]) == (0.0, 0.0, 1.0)


def test_a_report_without_any_entity_has_its_averages():
    lines = entity_report(entity_scores([["O"]], [["O"]])).splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["micro", "avg"],
        ["macro", "avg"],
        ["weighted", "avg"],
    ]


def test_no_sentences_score_zero():
    assert entity_scores([], [])["accuracy"] == 0.0


@pytest.mark.parametrize("predicted", [[["O"]], [["O"], ["O", "O"]]])
def test_sequences_of_other_lengths_are_refused(predicted):
    with pytest.raises(ValueError, match="argument 2"):
        entity_scores([["O"], ["O"]], predicted)


def test_scores_are_plain_numbers():
    values = entity_scores(TRUE, GUESS).values()
    assert {type(value) for value in values} == {float, int}
