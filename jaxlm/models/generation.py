"""How sequences are generated, and what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from jaxlm.core.errors import UserError


def _option(default: Any, what: str) -> Any:
    return field(default=default, metadata={"help": what})


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    """Whether a value is an integer from ``least`` to ``most``."""
    return lambda value: (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and least <= int(value) <= most
    )


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    """Whether a value is a finite number of which a condition holds."""
    return lambda value: (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and holds(float(value))
    )


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a condition holds for each of several values."""
    return lambda value: isinstance(value, tuple | list) and all(map(holds, value))


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, Real) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


LIMIT = 2**31 - 1
"""The largest i32, as devices count; memory ends before."""
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (_whole(1, LIMIT), f"1 to {LIMIT}"),
    "temperature": (
        _number(lambda value: value == 0 or 1e-6 <= value <= 1e6),
        "0 (the most likely token), or 1e-6 to 1e6",
    ),
    "top_k": (_whole(0, LIMIT), f"0 (all) to {LIMIT}"),
    "top_p": (_number(lambda value: 0 < value <= 1), "above 0, at most 1"),
    "min_p": (_number(lambda value: 0 <= value < 1), "0 or more, below 1"),
    "repetition_penalty": (_number(lambda value: 1e-6 <= value <= 1e6), "1e-6 to 1e6"),
    "samples": (_whole(1, LIMIT), f"1 to {LIMIT}"),
    "beams": (_whole(1, LIMIT), f"1 to {LIMIT}"),
    # A length of i32 to this power is still an f32.
    "length_penalty": (_number(lambda value: -4 <= value <= 4), "-4 to 4"),
    "stop_tokens": (
        lambda value: value is None or _all(_whole(0, LIMIT))(value),
        f"several of 0 to {LIMIT}, or None",
    ),
    "stop": (_all(_text), "several strings, none of them empty"),
    "seed": (_whole(0, 2**32 - 1), f"0 to {2**32 - 1}"),
}
"""By option, what it may be: the limits of numbers on a device."""


@dataclass(frozen=True)
class Generation:
    """How sequences are generated.

    ``temperature`` 0 is greedy; above, tokens are drawn, of those that ``top_k`` (0:
    all), ``top_p`` and ``min_p`` leave (``jaxlm.models.sampling.restrict``). A prompt
    has ``samples`` sequences, or as many of its ``beams``, best first; a beam's score
    is its log-probability over ``length ** length_penalty``. A sequence ends with a
    token of ``stop_tokens`` (None: those of the checkpoint), before a string of
    ``stop``, or after ``max_new_tokens``. The same ``seed`` draws the same for the
    prompt of the same number, whatever the others are.

    Raises:
      UserError: a value that is not allowed.
    """

    max_new_tokens: int = _option(128, "the longest that a sequence may become")
    temperature: float = _option(0.0, "0: the most likely token; above: drawn at it")
    top_k: int = _option(0, "draw of so many most likely tokens; 0: of all")
    top_p: float = _option(1.0, "draw of the fewest tokens that have this probability")
    min_p: float = _option(0.0, "draw of tokens with this share of the likeliest's")
    repetition_penalty: float = _option(1.0, "above 1: what was said is less likely")
    samples: int = _option(1, "sequences of each prompt")
    beams: int = _option(1, "sequences that a beam search follows")
    length_penalty: float = _option(1.0, "above 0: beams may be longer, below: shorter")
    stop_tokens: tuple[int, ...] | None = _option(
        None, "a token that ends a sequence, not the checkpoint's own; may be repeated"
    )
    stop: tuple[str, ...] = _option((), "a text before which to end; may be repeated")
    seed: int = _option(0, "the same seed draws the same")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            holds, what = ALLOWED[each.name]
            if not holds(value):
                raise UserError(f"{each.name}={_shown(value)} is not allowed; {what}")
        if self.beams > 1 and self.temperature:
            raise UserError(
                f"beams={self.beams} with temperature={self.temperature}: a beam search"
                " draws nothing; take temperature=0, or samples instead of beams"
            )
        if self.samples > 1 and not self.temperature and self.samples > self.beams:
            raise UserError(
                f"samples={self.samples} without temperature would all be the same; set"
                " temperature, or as many beams"
            )


@dataclass(frozen=True)
class Generated:
    """One sequence of a prompt.

    ``tokens`` are the new ones, with that which ended it; ``logprobs`` their
    log-probabilities by the model (empty for beams), ``score`` their sum, or a beam's
    score. ``finish``: ``stop`` (a token or a string) or ``length``. ``text`` is None
    where the model has no tokenizer.
    """

    tokens: list[int]
    score: float
    finish: str
    text: str | None = None
    logprobs: list[float] = field(default_factory=list)
