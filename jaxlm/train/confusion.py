"""A confusion matrix as a heat map, and as a table of its most frequent mistakes.

Matrices are lists of rows; rows are true labels, columns predicted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxlm.train.figures import figure
from jaxlm.train.page import Html, element

Matrix = Sequence[Sequence[int]]

LONGEST_NAME = 24
SHOWN = 30
"""The least side of a cell, in pixels, that has room for its count."""
MOST_CONFUSED = 10


@dataclass(frozen=True)
class Grid:
    """Where cells lie, each ``cell`` wide, to the right of and below the names."""

    count: int
    cell: int
    left: float
    top: float

    def place(self, row: int, column: int) -> tuple[float, float]:
        """The upper left corner of a cell."""
        return self.left + column * self.cell, self.top + row * self.cell


def heat_map(labels: Sequence[str], matrix: Sequence[Sequence[float]]) -> Html:
    """A confusion matrix; rows are true labels, shades are shares of their row.

    Drawn at its natural size, for a box that scrolls. Small ones show their counts.
    """
    count = len(labels)
    cell = 46 if count <= 10 else 30 if count <= 25 else 15
    names = [
        label if len(label) <= LONGEST_NAME else label[: LONGEST_NAME - 1] + "…"
        for label in labels
    ]
    longest = (8 if cell >= SHOWN else 6.5) * max(map(len, names))
    left, top = max(round(longest) + 10, 56), round(longest * 0.75) + 40
    grid = Grid(count, cell, left, top)
    side = count * cell
    # The last column's name leans over the right edge.
    width, height = grid.left + side + round(longest * 0.75), grid.top + side + 2
    return element(
        "svg",
        element("title", "Confusion matrix", id="confusion-title"),
        element("desc", _describe_matrix(labels, matrix), id="confusion-desc"),
        element("text", "predicted →", class_="axis", x=left, y=14),
        element("text", "true ↓", class_="axis", x=0, y=top - 8),
        element(
            "rect", class_="ground", x=grid.left, y=grid.top, width=side, height=side
        ),
        [_heat_row(row, labels, matrix[row], grid) for row in range(count)],
        [_heat_names(n, name, grid) for n, name in enumerate(names)],
        _heat_rules(grid),
        class_="heat",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby="confusion-title confusion-desc",
    )


def most_confused(
    labels: Sequence[str], matrix: Sequence[Sequence[int]]
) -> Html | None:
    """The pairs of a true and another label that occur most, or None."""
    mistakes = [
        (count, count / sum(counts), labels[row], labels[column])
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    if not mistakes:
        return None
    rows = [
        element(
            "tr",
            element("th", true, scope="row"),
            element("td", predicted, class_="text"),
            element("td", figure(count)),
            element("td", f"{share:.1%}"),
        )
        for count, share, true, predicted in sorted(mistakes, reverse=True)[
            :MOST_CONFUSED
        ]
    ]
    names = {"true": None, "predicted": "text", "times": None, "of all true": None}
    heads = [element("th", each, scope="col", class_=names[each]) for each in names]
    caption = element("caption", "Most frequent mistakes")
    head = element("thead", element("tr", *heads))
    return element("table", caption, head, element("tbody", *rows))


def _describe_matrix(labels, matrix) -> str:
    total = sum(map(sum, matrix))
    right = sum(matrix[n][n] for n in range(len(labels)))
    return f"{len(labels)} labels; {right:,} of {total:,} on the diagonal are right."


def _heat_row(
    row: int, labels: Sequence[str], counts: Sequence[float], grid: Grid
) -> list[Html]:
    total, parts = sum(counts) or 1, []
    for column, count in enumerate(counts):
        if not count:
            continue
        x, y = grid.place(row, column)
        # Square root: a mistake made once in a hundred should still be seen.
        shade = math.sqrt(count / total)
        tip = f"true {labels[row]}, predicted {labels[column]}: {count:,}"
        parts.append(
            element(
                "rect",
                element("title", f"{tip} ({count / total:.1%} of the row)"),
                class_="right" if row == column else "wrong",
                fill_opacity=f"{shade:.2f}",
                **{"x": x, "y": y, "width": grid.cell, "height": grid.cell},
            )
        )
        if grid.cell >= SHOWN:
            middle = {"x": x + grid.cell // 2, "y": y + grid.cell // 2 + 4}
            text = f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
            parts.append(element("text", text, class_="count", **middle))
    return parts


def _heat_names(n: int, name: str, grid: Grid) -> list[Html]:
    """The name of row n, and that of column n, which leans to the right."""
    small = "small" if grid.cell < SHOWN else None
    x, y = grid.place(n, n)
    middle, lean = grid.cell // 2 + 4, 60 if grid.cell < SHOWN else 42
    place = f"translate({x + middle} {grid.top - 7}) rotate(-{lean})"
    left = {"x": grid.left - 7, "y": y + middle, "text_anchor": "end"}
    return [
        element("text", name, class_=small, **left),
        element("text", name, class_=small, transform=place),
    ]


def _heat_rules(grid: Grid) -> list[Html]:
    (right, bottom), rules = grid.place(grid.count, grid.count), []
    for n in range(1, grid.count):
        x, y = grid.place(n, n)
        rules += [
            element("line", class_="rule", y1=y, y2=y, x1=grid.left, x2=right),
            element("line", class_="rule", x1=x, x2=x, y1=grid.top, y2=bottom),
        ]
    return rules
