"""The tables of final scores in a report: each split's, and each label's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxlm.train.figures import figure, is_score, score_changes, signed, words
from jaxlm.train.page import Html, element, scroll_box, section
from jaxlm.train.recorded import Results, first_and_last

SPLITS = ("test", "validation", "train")
"""Which split's details are shown, the first that has any."""


def first_and_best(
    results: Results, split: str, best: int | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A split's result of step 0, if there is another, and that of the best step.

    The last one stands in where the run has no best checkpoint yet, or it was not
    scored on this split; either is empty where there is none.
    """
    first, last = first_and_last(results, split)
    of_best = [
        result
        for result in results
        if result["split"] == split and result["step"] == best
    ]
    after = of_best[0] if of_best else last
    return ({} if after is first else first), after


def final_scores(results: Results, best: int | None) -> Html | None:
    """Every split's scores, those of step 0 beside the best checkpoint's."""
    bodies = []
    for split in sorted({result["split"] for result in results}):
        before, after = first_and_best(results, split, best)
        start = element("th", "step 0" if before else "", scope="col")
        head = element(
            "tr",
            element("th", split, scope="col"),
            start,
            element("th", f"step {figure(after['step'])}", scope="col"),
            element("th", "change", scope="col"),
        )
        rows = [_score_row(*row) for row in score_changes(before, after)]
        if rows:
            table = element("table", element("thead", head), element("tbody", *rows))
            bodies.append(scroll_box(table, f"scores of {split}"))
    if not bodies:
        return None
    return section("Scores", element("div", *bodies, class_="pair"))


def _score_row(name, before, after, moved) -> Html:
    smaller_is_better = any(part in name for part in ("loss", "perplexity", "bits"))
    tone = None
    if moved:
        tone = "better" if (moved > 0) != smaller_is_better else "worse"
    return element(
        "tr",
        element("th", words(name), scope="row"),
        element("td", figure(before)),
        element("td", figure(after), class_="strong"),
        element("td", signed(moved), class_=tone),
    )


def per_label(results: Results, best: int | None) -> Html | None:
    """The scores that belong to one label or entity type, the most frequent first."""
    for split in SPLITS:
        _, after = first_and_best(results, split, best)
        table: dict[str, dict[str, Any]] = {}
        for key, value in after.items():
            label, slash, name = key.rpartition("/")
            if slash and is_score(value):
                table.setdefault(label, {})[name] = value
        if table:
            title = f"By label, {split} at step {figure(after['step'])}"
            return section(title, _label_table(table))
    return None


def _label_table(table: Mapping[str, Mapping[str, Any]]) -> Html:
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    labels = sorted(table, key=lambda label: -(table[label].get("support") or 0))
    rows = []
    for label in labels:
        cells = [_label_cell(name, table[label].get(name)) for name in columns]
        rows.append(element("tr", element("th", label, scope="row"), *cells))
    heads = [element("th", words(name), scope="col") for name in ["label", *columns]]
    return scroll_box(
        element(
            "table", element("thead", element("tr", *heads)), element("tbody", *rows)
        ),
        "scores of each label",
        tall=len(rows) > 20,
    )


def _label_cell(name: str, value: Any) -> Html:
    if name == "support":
        return element("td", figure(None if value is None else round(value)))
    if name != "f1" or value is None:
        return element("td", figure(value))
    width = f"width: {100 * min(max(value, 0), 1):.1f}%"
    bar = element("span", element("i", style=width), class_="bar", aria_hidden="true")
    return element("td", bar, figure(value))
