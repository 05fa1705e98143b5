"""Entity precision, recall and F1 as CoNLL's scorer and seqeval count them.

An entity is right only where its type, first and last word all are. The figures equal
those of seqeval's default mode to the last digit, with a zero division giving 0.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.data.tags import spans
from jaxlm.tasks.class_metrics import Scores, divide, flat_scores, table


def entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Scores:
    """Flat metrics of tag sequences, one sequence for each sentence.

    ``f1``, ``precision``, ``recall`` (micro), the same with ``macro_`` and
    ``weighted_``, ``PER/f1`` ... ``PER/support`` for each type that occurs, and
    ``accuracy``, the share of words with the right tag. Sequences need not be valid
    IOB2: an ``I-`` that nothing opened opens an entity. Raises ValueError where the
    lengths differ.
    """
    match, guess, support = Counter[str](), Counter[str](), Counter[str]()
    words = right = 0
    for tags, guessed in zip(true, predicted, strict=True):
        words += len(tags)
        right += sum(a == b for a, b in zip(tags, guessed, strict=True))
        real, found = set(spans(list(tags))), set(spans(list(guessed)))
        support.update(kind for kind, _, _ in real)
        guess.update(kind for kind, _, _ in found)
        match.update(kind for kind, _, _ in real & found)
    types = sorted(support.keys() | guess.keys())
    counts = [
        np.array([counter[kind] for kind in types], np.int64)
        for counter in (match, guess, support)
    ]
    scores = flat_scores(types, *counts, micro="", f1=_f1)
    return {**scores, "accuracy": right / words if words else 0.0}


def entity_report(scores: Mapping[str, float | int]) -> str:
    """The table of ``entity_scores``, as seqeval's ``classification_report``."""
    names = [name for name in scores if name.endswith("/support")]
    types = sorted(name.removesuffix("/support") for name in names)
    return table(scores, types, first={"": "micro avg"})


def _f1(match: np.ndarray, guess: np.ndarray, support: np.ndarray) -> np.ndarray:
    """F1 by way of the two rates, as seqeval; scikit-learn's last bit differs."""
    precision, recall = divide(match, guess), divide(match, support)
    # Not `divide`: the sum of two rates may lie between 0 and 1.
    total = np.where(precision + recall == 0, 1.0, precision + recall)
    return 2 * precision * recall / total
