"""Precision, recall and F1 of classes, from a confusion matrix.

The figures and the report equal scikit-learn's to the last digit, with a zero division
giving 0.0 and no warning; but where no guess at all is right, its report has supports
as ``1.0``, ours as ``1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxlm.core.errors import UserError

Scores = dict[str, float | int]
RATES = ("precision", "recall", "f1")


def confusion(
    true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """Count pairs: i64[L, L], a row for each true label, a column for each guess.

    Raises UserError for a label that is not among ``labels``, ValueError where the
    sequences differ in length.
    """
    places = {label: place for place, label in enumerate(labels)}
    unknown = (set(true) | set(predicted)) - places.keys()
    if unknown:
        raise UserError(
            f"labels {sorted(unknown)} are not among the model's: {', '.join(labels)}"
        )
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for row, column in zip(true, predicted, strict=True):
        matrix[places[row], places[column]] += 1
    return matrix


def class_scores(
    matrix: np.ndarray, labels: Sequence[str], shown: Sequence[str] | None = None
) -> Scores:
    """Flat metrics of a confusion matrix i64[L, L] whose rows are true labels.

    ``accuracy`` and ``matthews`` (the correlation coefficient) count every label;
    ``micro_``, ``macro_`` and ``weighted_`` ``precision``, ``recall`` and ``f1``
    average over the labels ``shown`` (by default all, where micro equals accuracy), as
    in a word report without ``O``. Each shown label adds ``label/precision`` ...
    ``label/support``.
    """
    names = list(labels if shown is None else shown)
    places = [list(labels).index(name) for name in names]
    counts = [np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)]
    scores: Scores = {
        "accuracy": float(divide(np.trace(matrix), matrix.sum())),
        "matthews": _matthews(matrix),
    }
    return scores | flat_scores(names, *(count[places] for count in counts))


def class_report(
    matrix: np.ndarray,
    labels: Sequence[str],
    micro: bool = False,
    shown: Sequence[str] | None = None,
) -> str:
    """The table of ``class_scores``, as scikit-learn's ``classification_report``.

    The first average is ``accuracy``. It is ``micro avg`` where a label that occurs is
    not shown, since the two then differ, and with ``micro=True``: of all labels, where
    scikit-learn never has that row, each of its figures is the accuracy.
    """
    names = list(labels if shown is None else shown)
    scores = class_scores(matrix, labels, names)
    hidden = [place for place, label in enumerate(labels) if label not in names]
    micro = micro or bool(matrix[hidden].any() or matrix[:, hidden].any())
    return table(scores, names, {"micro_": "micro avg"} if micro else {})


def table(
    scores: Mapping[str, float | int],
    names: Sequence[str],
    first: Mapping[str, str],
) -> str:
    """Lay out flat scores: a row for each name, then the averages.

    ``first`` maps the prefix of the first average to its title; if empty, that row
    shows ``accuracy`` alone.
    """
    width = max(map(len, [*names, "weighted avg"]))
    total = sum(int(scores[f"{name}/support"]) for name in names)

    def line(title: str, cells: Iterable[str], support: int | str) -> str:
        columns = "".join(f" {cell:>9}" for cell in (*cells, support))
        return f"{title:>{width}} {columns}\n"

    def row(title: str, prefix: str, support: int) -> str:
        return line(title, (f"{scores[prefix + rate]:.4f}" for rate in RATES), support)

    averages = {**first, "macro_": "macro avg", "weighted_": "weighted avg"}
    lines = [line("", ("precision", "recall", "f1-score"), "support"), "\n"]
    lines += [row(name, f"{name}/", int(scores[f"{name}/support"])) for name in names]
    lines.append("\n")
    if not first:
        lines.append(line("accuracy", ("", "", f"{scores['accuracy']:.4f}"), total))
    lines += [row(title, prefix, total) for prefix, title in averages.items()]
    return "".join(lines)


Ratio = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def flat_scores(
    names: Sequence[str],
    match: np.ndarray,
    guess: np.ndarray,
    support: np.ndarray,
    micro: str = "micro_",
    f1: Ratio | None = None,
) -> Scores:
    """Averages and each name's scores, from counts i64[N] of right, guessed and true.

    ``micro`` is the prefix of the micro average. ``f1`` maps the three counts to F1; by
    default 2 match / (guess + support).
    """

    def rates(*counts: np.ndarray) -> dict[str, np.ndarray]:
        precision, recall = divide(counts[0], counts[1]), divide(counts[0], counts[2])
        return dict(zip(RATES, (precision, recall, (f1 or _f1)(*counts)), strict=True))

    each = rates(match, guess, support)
    pooled = rates(*(count.sum(keepdims=True) for count in (match, guess, support)))
    scores: Scores = {micro + rate: float(value[0]) for rate, value in pooled.items()}
    scores |= {f"macro_{rate}": _mean(value) for rate, value in each.items()}
    scores |= {
        f"weighted_{rate}": _mean(value, support) for rate, value in each.items()
    }
    for place, name in enumerate(names):
        scores |= {
            f"{name}/{rate}": float(value[place]) for rate, value in each.items()
        }
        scores[f"{name}/support"] = int(support[place])
    return scores


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise f64 quotient; 0.0 where the denominator is 0."""
    return np.where(denominator == 0, 0.0, numerator / np.maximum(denominator, 1))


def _f1(match: np.ndarray, guess: np.ndarray, support: np.ndarray) -> np.ndarray:
    return divide(2 * match, guess + support)


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    if values.size == 0:
        return 0.0
    if weights is not None and not weights.any():
        weights = None
    return float(np.average(values, weights=weights))


def _matthews(matrix: np.ndarray) -> float:
    """Matthews correlation of many classes (Gorodkin, 2004); 0.0 where undefined."""
    # In f64: products of two squared counts overflow 64-bit integers.
    support, guess = matrix.sum(axis=1, dtype=float), matrix.sum(axis=0, dtype=float)
    total = support.sum()
    covariance = np.trace(matrix).astype(float) * total - support @ guess
    spread = (total**2 - guess @ guess) * (total**2 - support @ support)
    return float(covariance / np.sqrt(spread)) if spread else 0.0
