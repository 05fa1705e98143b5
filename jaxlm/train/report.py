"""One self-contained page about a run: curves, final tables, confusion, throughput."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.files import atomic_write_text
from jaxlm.train.charts import Point, Series, line_chart, smooth
from jaxlm.train.confusion import heat_map, most_confused
from jaxlm.train.figures import (
    MISSING,
    change,
    duration,
    figure,
    last_known,
    scores,
    signed,
    words,
)
from jaxlm.train.page import Html, element, page, scroll_box, section
from jaxlm.train.recorded import read_confusion, read_metrics, read_results, read_status
from jaxlm.train.score_tables import SPLITS, final_scores, first_and_best, per_label

Lines = Sequence[Mapping[str, Any]]

SMALL = (320, 190)
SPANS = 50
"""A smoothed line averages over about this part of its points."""


def write_report(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Write report.html from what the run has recorded so far.

    ``config`` is the resolved config, nested or flat, with whatever else should stand
    under "Run" (such as ``versions``). Nothing else need exist: what is missing is left
    out of the page. Raises UserError where a record is broken.
    """
    workdir = Path(workdir)
    lines, results = read_metrics(workdir), read_results(workdir)
    status = read_status(workdir) or {}
    name = workdir.resolve().name
    text = page(
        f"{name} · jaxlm",
        element(
            "main",
            _header(name, config, status),
            _tiles(lines, results, status),
            _curves(lines),
            final_scores(results, status.get("best")),
            per_label(results, status.get("best")),
            _confusion(workdir, results, status.get("best")),
            _run_facts(config, status, lines),
        ),
        element("footer", f"Written by jaxlm. {_moment(status)}"),
    )
    path = workdir / "report.html"
    # Lone surrogates in a label cannot be written as UTF-8.
    atomic_write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def _header(name: str, config: Mapping, status: Mapping) -> Html:
    flat = dict(_flatten(config))
    parts = (
        flat.get("task.name"),
        flat.get("model.pretrained"),
        flat.get("data.train"),
    )
    about = [
        words(str(part)) if n == 0 else str(part)
        for n, part in enumerate(parts)
        if part
    ]
    state = status.get("state")
    reason = status.get("reason")
    return element(
        "header",
        element("h1", name),
        element(
            "p",
            element("span", state, class_=f"state {state}") if state else None,
            " · ".join(about),
            class_="soft subtitle",
        ),
        element("p", reason, class_="reason") if reason else None,
    )


def _tiles(lines: Lines, results: Lines, status: Mapping) -> Html:
    tiles = []
    for split in SPLITS:
        before, after = first_and_best(results, split, status.get("best"))
        if after and scores(after) and not tiles:
            name, value = next(iter(scores(after).items()))
            moved = change(before.get(name), value)
            beside = f"{signed(moved)} from step 0" if moved is not None else ""
            tiles.append((f"{words(name)}, {split}", figure(value), beside))
    train = _of(lines, "train")
    if (loss := last_known(train, "loss")) is not None:
        tiles.append(("loss, train", figure(loss), "last line"))
    if (step := status.get("step", last_known(lines, "step"))) is not None:
        total = status.get("total_steps")
        tiles.append(("steps", figure(step), f"of {figure(total)}" if total else ""))
    if (seconds := _seconds(status, train)) is not None:
        tiles.append(("duration", duration(seconds), ""))
    if speeds := [speed for _, speed in _points(train, "tokens_per_second")]:
        middle = sorted(speeds)[len(speeds) // 2]
        tiles.append(("tokens/s, train", figure(round(middle)), "median"))
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, element("small", beside) if beside else None),
            )
            for name, value, beside in tiles
        ),
        class_="tiles",
    )


def _curves(lines: Lines) -> Html | None:
    train = _of(lines, "train")
    large = _loss_chart(lines), _score_chart(lines)
    small = (
        _small_chart("Learning rate", train, "learning_rate"),
        _small_chart("Gradient norm", train, "gradient_norm"),
        _small_chart("Tokens per second", train, "tokens_per_second"),
    )
    rows = [
        element("div", *charts, class_=kind)
        for charts, kind in ((large, "charts"), (small, "charts small"))
        if any(charts)
    ]
    return section("Curves", *rows) if rows else None


def _loss_chart(lines: Lines) -> Html | None:
    train = _points(_of(lines, "train"), "loss")
    validation = _points(_of(lines, "validation"), "loss")
    series, notes = _smoothed("train", train), []
    if len(series) > 1:
        notes.append(f"train smoothed over about {len(train) // SPANS} lines")
    if validation:
        series.append(Series("validation", validation, style=1))
        step, least = min(validation, key=lambda point: point[1])
        notes.append(f"least validation {figure(float(least))} at step {step:,}")
    if not series:
        return None
    return line_chart("Loss", series, from_zero=True, note="; ".join(notes))


def _smoothed(name: str, points: Sequence[Point]) -> list[Series]:
    """A line; where it has many points, their average before the faint points."""
    if not points:
        return []
    span = len(points) // SPANS
    if span < 2:
        return [Series(name, points)]
    return [Series(name, points, faint=True), Series(name, smooth(points, span))]


def _score_chart(lines: Lines) -> Html | None:
    """Up to four validation scores, or else the training accuracy."""
    validation, series, title = _of(lines, "validation"), [], "Validation scores"
    names = scores({name: 0.0 for line in validation for name in scores(line)})
    for name in names:
        points = _points(validation, name)
        # A loss-like score would press the shares together at the bottom.
        if (
            points
            and all(0 <= value <= 1 for _, value in points)
            and "loss" not in name
        ):
            series.append(Series(words(name), points, style=len(series)))
    note = ""
    if series:
        step, best = max(series[0].points, key=lambda point: point[1])
        note = f"best {series[0].name} {figure(float(best))} at step {step:,}"
    elif points := _points(_of(lines, "train"), "accuracy"):
        title, series = "Training accuracy", [Series("accuracy", points)]
    if not series:
        return None
    return line_chart(title, series[:4], ceiling=1.0, note=note)


def _small_chart(title: str, lines: Lines, field: str) -> Html | None:
    points = _points(lines, field)
    if not points:
        return None
    # A schedule is exact: an average would only lag behind it.
    exact = field == "learning_rate"
    series = (
        [Series(words(field), points)] if exact else _smoothed(words(field), points)
    )
    return line_chart(title, series, size=SMALL, from_zero=True)


def _confusion(workdir: Path, results: Lines, best: int | None) -> Html | None:
    for split in SPLITS:
        _, after = first_and_best(results, split, best)
        found = read_confusion(workdir, split, after["step"]) if after else None
        if found and found["labels"]:
            labels = [str(label) for label in found["labels"]]
            title = f"Confusion, {split} at step {figure(after['step'])}"
            key = element(
                "p",
                element("span", class_="key"),
                "right",
                element("span", class_="key off"),
                "mistaken; a shade is the share of its row",
                class_="soft",
            )
            chart = scroll_box(heat_map(labels, found["matrix"]), "confusion matrix")
            mistakes = most_confused(labels, found["matrix"])
            if mistakes:
                mistakes = scroll_box(mistakes, "most frequent mistakes")
            return section(title, key, element("div", chart, mistakes, class_="pair"))
    return None


def _run_facts(config: Mapping, status: Mapping, lines: Lines) -> Html:
    shown = {**status, "reason": None, "updated": _moment(status)}
    facts = {
        words(name): value for name, value in shown.items() if value not in (None, "")
    }
    if (seconds := _seconds(status, _of(lines, "train"))) is not None:
        facts.pop("seconds", None)
        facts["duration"] = duration(seconds)
    groups: dict[str, dict[str, Any]] = {"status": facts} if facts else {}
    for key, value in _flatten(config):
        group, dot, name = key.partition(".")
        groups.setdefault(group if dot else "experiment", {})[name or group] = value
    if not groups:
        return section("Run", element("p", "Nothing has been recorded yet."))
    tables = [_fact_table(words(name), values) for name, values in groups.items()]
    return section("Run", element("div", *tables, class_="columns"))


def _fact_table(name: str, facts: Mapping[str, Any]) -> Html:
    rows = [
        element("tr", element("th", key, scope="row"), element("td", _fact(value)))
        for key, value in facts.items()
    ]
    return element(
        "div", element("h3", name), element("table", element("tbody", *rows))
    )


def _fact(value: Any) -> str:
    if value is None:
        return "none"
    if value in ("", [], ()):
        return MISSING
    if isinstance(value, list | tuple):
        whole = ", ".join(map(str, value))
        return whole if len(whole) <= 400 else f"{whole[:400]}… ({len(value)} in all)"
    # Not figure(): a config value is shown as the user would write it.
    return str(value)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of(lines: Lines, split: str) -> Lines:
    return [line for line in lines if line.get("split") == split]


def _points(lines: Lines, field: str) -> list[Point]:
    found = [(line["step"], line.get(field)) for line in lines]
    return [(step, value) for step, value in found if value is not None]


def _moment(status: Mapping) -> str:
    """When the status was written: ``2026-03-14 15:09:26 UTC``."""
    return str(status.get("updated", "")).replace("T", " ").replace("+00:00", " UTC")


def _seconds(status: Mapping, train: Lines) -> float | None:
    return status.get("seconds", last_known(train, "seconds"))
