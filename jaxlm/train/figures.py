"""How scores, counts and times are chosen and written for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"
LEADING = ("f1", "perplexity", "accuracy", "macro_f1", "precision", "recall", "loss")
"""Scores that every table shows first, in this order."""
BOOKKEEPING = frozenset(
    ("step", "epoch", "examples", "truncated", "tokens", "tokens_per_second", "seconds")
)


def scores(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a whole split, the leading ones first.

    Left out are counts, times, what belongs to one label (``PER/f1``) and the means
    over words beside those over entities (``word_macro_f1``). None is a
    score that was not finite.
    """
    own = {
        name: value
        for name, value in metrics.items()
        if name not in BOOKKEEPING
        and "/" not in name
        and not name.startswith("word_")
        and is_score(value)
    }
    ordered = [name for name in LEADING if name in own]
    return {name: own[name] for name in [*ordered, *own]}


def score_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, float | None, float | None, float | None]]:
    """Rows ``(name, before, after, after - before)`` over the scores of either."""
    first, last = scores(before), scores(after)
    return [
        (name, first.get(name), last.get(name), change(first.get(name), last.get(name)))
        for name in scores({**first, **last})
    ]


def change(before: float | None, after: float | None) -> float | None:
    """How far a score moved; None where either end is unknown."""
    return None if before is None or after is None else after - before


def is_score(value: Any) -> bool:
    """Whether a value is a number, or the null that a number became."""
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )


def figure(value: Any) -> str:
    """``0.4312``, ``12,345``, ``2e-5``; anything but a number as it is."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A change, with its sign: ``+0.2113``."""
    return MISSING if value is None else f"{value:+.4f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """``00:31``, ``12:05`` or ``3:12:05``."""
    if seconds is None:
        return MISSING
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def words(name: str) -> str:
    """A field's name as words: ``macro_f1`` becomes ``macro f1``."""
    return name.replace("_", " ")


def last_known(lines: Iterable[Mapping[str, Any]], name: str) -> Any:
    """The newest value of a field that is not null, or None."""
    known = [line[name] for line in lines if line.get(name) is not None]
    return known[-1] if known else None
