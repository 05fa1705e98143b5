"""How sequences are generated, and what they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxlm.core.errors import UserError


def _option(default: Any, what: str) -> Any:
    return field(default=default, metadata={"help": what})


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
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p < 1, "0 or more, below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "samples": (self.samples >= 1, "1 or more"),
            "beams": (self.beams >= 1, "1 or more"),
            "stop": (all(self.stop), "no empty string"),
        }
        for name, (holds, what) in allowed.items():
            if not holds:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not allowed; {what}"
                )
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
