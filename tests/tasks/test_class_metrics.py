import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import UserError
from jaxlm.tasks.class_metrics import class_report, class_scores, confusion

metrics: Any = importlib.import_module("sklearn.metrics")  # its stubs are wrong

LABELS = ["negative", "neutral", "a rather longer label", "O"]
PAIRS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40
)


# Where no guess is right, scikit-learn prints supports as 1.0, by an accident.
SOME_RIGHT = PAIRS.filter(lambda pairs: any(a == b for a, b in pairs))


def measure(pairs):
    true, predicted = zip(*pairs, strict=True)
    return list(true), list(predicted), confusion(true, predicted, LABELS)


def of_sklearn(true, predicted, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class only
        expected = {
            "accuracy": metrics.accuracy_score(true, predicted),
            "matthews": metrics.matthews_corrcoef(true, predicted),
        }
        names = ("precision", "recall", "f1", "support")
        for average in ("micro", "macro", "weighted", None):
            values = metrics.precision_recall_fscore_support(
                true, predicted, labels=labels, average=average, zero_division=0
            )
            for name, value in zip(names, values, strict=True):
                if average is not None and name != "support":
                    expected[f"{average}_{name}"] = value
                elif average is None:
                    for label, figure in zip(labels, value, strict=True):
                        expected[f"{label}/{name}"] = figure
    return expected


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_every_figure_equals_sklearn_to_the_last_digit(pairs):
    true, predicted, matrix = measure(pairs)
    assert class_scores(matrix, LABELS) == of_sklearn(true, predicted, LABELS)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_scores_of_some_labels_equal_sklearn(pairs):
    true, predicted, matrix = measure(pairs)
    shown = LABELS[:3]
    assert class_scores(matrix, LABELS, shown) == of_sklearn(true, predicted, shown)


@settings(max_examples=100, deadline=None)
@given(SOME_RIGHT)
def test_the_report_is_the_text_of_sklearn(pairs):
    true, predicted, matrix = measure(pairs)
    expected = metrics.classification_report(
        true, predicted, labels=LABELS, digits=4, zero_division=0
    )
    assert "accuracy" in expected
    assert class_report(matrix, LABELS) == expected


@settings(max_examples=100, deadline=None)
@given(SOME_RIGHT)
def test_a_report_of_some_labels_is_the_text_of_sklearn(pairs):
    true, predicted, matrix = measure(pairs)
    shown = LABELS[:3]
    expected = metrics.classification_report(
        true, predicted, labels=shown, digits=4, zero_division=0
    )
    assert class_report(matrix, LABELS, shown=shown) == expected


def test_a_micro_report_of_all_labels_repeats_the_accuracy():
    true, predicted, matrix = measure([("O", "O"), ("neutral", "O"), ("O", "O")])
    plain = class_report(matrix, LABELS).splitlines()
    micro = class_report(matrix, LABELS, micro=True).splitlines()
    changed = [(a, b) for a, b in zip(plain, micro, strict=True) if a != b]
    assert [(a.split(), b.split()) for a, b in changed] == [
        (["accuracy", "0.6667", "3"], ["micro", "avg", *["0.6667"] * 3, "3"])
    ]


def test_a_micro_report_without_o_is_the_text_of_sklearn():
    true, predicted, matrix = measure([("O", "O"), ("neutral", "O"), ("O", "negative")])
    shown = LABELS[:3]
    expected = metrics.classification_report(
        true, predicted, labels=shown, digits=4, zero_division=0
    )
    assert "micro avg" in expected
    assert class_report(matrix, LABELS, micro=True, shown=shown) == expected


def test_rows_of_the_confusion_are_true_labels():
    matrix = confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b", "c"])
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_label_that_the_model_lacks_is_named():
    with pytest.raises(UserError, match=r"'maybe'.*yes, no"):
        confusion(["maybe"], ["yes"], ["yes", "no"])


def test_sequences_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="longer"):
        confusion(["a"], ["a", "a"], ["a"])


def test_no_examples_score_zero():
    scores = class_scores(confusion([], [], ["a", "b"]), ["a", "b"])
    assert set(scores.values()) == {0}


def test_matthews_survives_counts_whose_squares_overflow():
    matrix = np.array([[3_000_000_000, 0], [0, 3_000_000_000]])
    assert class_scores(matrix, ["a", "b"])["matthews"] == 1.0


def test_scores_are_plain_numbers():
    values = class_scores(np.eye(2, dtype=np.int64), ["a", "b"]).values()
    assert {type(value) for value in values} == {float, int}
