"""Line charts over steps, as inline SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxlm.train.figures import figure
from jaxlm.train.page import Html, element, join

Point = tuple[float, float]

BUCKETS = 300
"""Horizontal places that a line may use: about one for each point of its width."""
LINE_HEIGHT = 14
LETTER = 8.2
"""Room for a letter of a tick, in the larger writing of a phone."""
MARGIN = 14
"""What is left free at the sides, where nothing stands."""


@dataclass(frozen=True)
class Series:
    """A named line. ``style`` 0..3 picks colour and dashes; faint: without a label."""

    name: str
    points: Sequence[Point]
    style: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear map from values to places on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    size: tuple[int, int] = (440, 250),
    from_zero: bool = False,
    ceiling: float | None = None,
    note: str = "",
) -> Html:
    """A figure with a legend, direct labels, axes of round numbers and a hover readout.

    ``ceiling`` is a value that the axis must not pass, as 1 for a share. Every series
    needs at least one point; a single point is drawn as a dot.
    """
    named = [each for each in series if not each.faint]
    x, y, ticks = _scales(series, size, from_zero, ceiling, direct=len(named) > 1)
    identity = "chart-" + "-".join(title.lower().split())
    hover = {
        "series": [
            {"name": each.name, "points": downsample(each.points)} for each in named
        ],
        **{"low": x.low, "high": x.high, "left": x.start, "right": x.end},
    }
    drawing = element(
        "svg",
        element("title", title, id=f"{identity}-title"),
        element("desc", _describe(named), id=f"{identity}-desc"),
        _axes(x, y, ticks),
        [_line(each, x, y) for each in series],
        _direct_labels(named, x, y) if len(named) > 1 else None,
        element("line", class_="guide", y1=y.end, y2=y.start, visibility="hidden"),
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
        data_series=json.dumps(hover, separators=(",", ":")),
    )
    caption = element("figcaption", element("h3", title), _legend(named))
    return element("figure", caption, drawing, element("p", note, class_="readout"))


def downsample(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """At most ``2 * buckets + 2`` points, with the least and greatest of every bucket.

    So a spike stays visible however long the run. First and last points are kept.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    kept = [points[0]]
    edges = [round(n * len(points) / buckets) for n in range(buckets + 1)]
    for start, stop in pairwise(edges):
        bucket = points[start:stop]
        ends = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
        kept += sorted(ends - {kept[-1]})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def smooth(points: Sequence[Point], span: float) -> list[Point]:
    """An exponential average over about ``span`` points, without start-up bias."""
    keep, total, weight, smoothed = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append((step, total / weight))
    return smoothed


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers, from ``low`` or below to ``high`` or above.

    Neighbours lie 1, 2 or 5 times a power of ten apart (Heckbert, 1990).
    """
    if not high > low:
        low, high = (low - abs(low) / 10, low + abs(low) / 10) if low else (0.0, 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    limits = ((1, 1.5), (2, 3), (5, 7), (10, math.inf))
    gap = power * next(factor for factor, limit in limits if rough / power < limit)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [
        round(n * gap, 12 - math.floor(math.log10(gap))) for n in range(first, last + 1)
    ]


def tick_text(value: float, gap: float) -> str:
    """A tick as text, with as many decimals as tell it from its neighbours."""
    if value == 0:
        return "0"
    if gap < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if gap >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:,.{max(0, -math.floor(math.log10(gap) + 1e-9))}f}".replace("-", "−")


def _scales(series, size, from_zero, ceiling, direct):
    steps = [step for each in series for step, _ in each.points]
    values = [value for each in series for _, value in each.points]
    count = 5 if size[1] > 200 else 4
    ticks = nice_ticks(min(values + [0.0] * from_zero), max(values), count)
    if ceiling is not None:
        ticks = [tick for tick in ticks if tick <= ceiling]
    gap = ticks[1] - ticks[0]
    widest = max(len(tick_text(tick, gap)) for tick in ticks)
    names = max(len(each.name) for each in series if not each.faint) if direct else 0
    # Below the ticks at the left stands "step".
    left = MARGIN + LETTER * max(widest, 4)
    right = size[0] - (12 + 8.4 * names if direct else MARGIN)
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - 1, high + 1
    x = Scale(low, high, round(left, 1), round(right, 1))
    return x, Scale(ticks[0], max(ticks[-1], *values), size[1] - 26, 12), ticks


def _axes(x: Scale, y: Scale, ticks: Sequence[float]) -> Html:
    parts = []
    for tick in ticks:
        place, text = y(tick), tick_text(tick, ticks[1] - ticks[0])
        parts += [
            element("line", class_="grid", x1=x.start, x2=x.end, y1=place, y2=place),
            element("text", text, x=x.start - 8, y=place + 4, text_anchor="end"),
        ]
    room = max(2, int((x.end - x.start) / 55))
    steps = [tick for tick in nice_ticks(x.low, x.high, room) if tick == int(tick)]
    gap = max(1, steps[1] - steps[0]) if len(steps) > 1 else 1
    below = y.start + 19
    for tick in steps:
        text, place = tick_text(tick, gap), x(tick)
        half = LETTER * len(text) / 2
        if tick >= x.low and x.start - MARGIN < place - half and place <= x.end:
            over = max(0, place + half - x.end - MARGIN)
            parts.append(
                element("text", text, x=place - over, y=below, text_anchor="middle")
            )
    parts.append(
        element("text", "step", x=x.start - MARGIN, y=below, text_anchor="end")
    )
    return join(parts)


def _line(series: Series, x: Scale, y: Scale) -> Html:
    points = downsample(series.points)
    path = "M" + "L".join(f"{x(step):g} {y(value):g}" for step, value in points)
    faint = " faint" if series.faint else ""
    parts = [element("path", class_=f"line{faint}", d=path)] if len(points) > 1 else []
    if len(points) <= 40 and not series.faint:
        parts += [
            element("circle", class_="dot", cx=x(step), cy=y(value), r=3)
            for step, value in points
        ]
    return element("g", *parts, class_=f"s{series.style}")


def _direct_labels(series: Sequence[Series], x: Scale, y: Scale) -> Html:
    """Names where the lines end, moved apart so that none hides another."""
    ends = sorted((y(each.points[-1][1]), each.style, each.name) for each in series)
    places = [place + 4 for place, _, _ in ends]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + LINE_HEIGHT)
    excess = max(0.0, places[-1] - y.start)
    return join(
        element(
            "g",
            element(
                "text", name, class_="name", x=x.end + 8, y=round(place - excess, 1)
            ),
            class_=f"s{style}",
        )
        for place, (_, style, name) in zip(places, ends, strict=True)
    )


def _legend(series: Sequence[Series]) -> Html:
    entries = []
    for each in series:
        swatch = element(
            "svg",
            element(
                "g",
                element("path", class_="line", d="M1 4L23 4"),
                class_=f"s{each.style}",
            ),
            viewBox="0 0 24 8",
            aria_hidden="true",
        )
        last = element("b", figure(float(each.points[-1][1])))
        if len(series) > 1:
            entries.append(element("li", swatch, each.name, " ", last))
        else:
            entries.append(element("li", "last ", last))
    return element("ul", *entries, class_="legend")


def _describe(series: Sequence[Series]) -> str:
    sentences = []
    for each in series:
        (first, start), (last, end) = each.points[0], each.points[-1]
        values = [float(value) for _, value in each.points]
        sentences.append(
            f"{each.name}: {figure(float(start))} at step {first:,} to"
            f" {figure(float(end))} at step {last:,}, least {figure(min(values))},"
            f" greatest {figure(max(values))}."
        )
    return " ".join(sentences)
