"""Perplexity of a text by a language model, in windows that may overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.types import Batch
from jaxlm.models.pretrained import Pretrained, make_batch


class Window(NamedTuple):
    """Tokens ``start`` to ``stop`` of a text, of which the last ``scored`` count."""

    start: int
    stop: int
    scored: int


class Score(NamedTuple):
    """A sum of negative log-likelihoods in nats, and over how many tokens."""

    total: float = 0.0
    tokens: int = 0

    def __add__(self, other: Any) -> Score:
        return Score(self.total + other.total, self.tokens + other.tokens)

    @property
    def perplexity(self) -> float:
        """``exp(total / tokens)``; NaN of no tokens."""
        return math.exp(self.total / self.tokens) if self.tokens else math.nan


def windows(count: int, length: int, stride: int) -> list[Window]:
    """How ``count`` tokens are read: each scored once, but the first, which has none.

    A window begins ``stride`` tokens after the one before; of those that both have the
    earlier scored them. Without overlap ``stride`` is ``length``.
    """
    found, scored = [], 1
    for start in range(0, count, stride):
        stop = min(start + length, count)
        # The first token of a window has nothing before it.
        new = min(stop - scored, stop - start - 1)
        if new > 0:
            found.append(Window(start, stop, new))
        scored = stop
        if stop == count:
            break
    return found


def perplexity(
    model: Pretrained,
    tokens: Sequence[int],
    *,
    length: int,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """The score of a text's ``tokens``, read in windows of ``length``.

    Every token is predicted from those before it in its window, of which there are at
    least ``length - stride``; by default the windows do not overlap, and the first
    token of each is not scored. ``progress(done, windows)`` is called after each.

    Raises:
      UserError: a length or a stride that is not allowed, tokens that are not one text
        of two or more, or no causal language model.
    """
    return sum(
        (score for _, score in scores(model, tokens, length, stride, progress)), Score()
    )


def scores(
    model: Pretrained,
    tokens: Sequence[int],
    length: int,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    skip: int = 0,
) -> Iterator[tuple[Window, Score]]:
    """Each window with its own score, but the first ``skip``; see ``perplexity``."""
    stride = length if stride is None else stride
    where = model.checkpoint.directory
    if model.head != "language" or not model.config.causal:
        raise UserError(
            f"{where}: is not a causal language model; it has no perplexity"
        )
    if not 2 <= length <= model.config.max_positions:
        raise UserError(
            f"length={length} is not allowed; from 2 to the model's"
            f" {model.config.max_positions} positions"
        )
    if not 1 <= stride <= length:
        raise UserError(f"stride={stride} is not allowed; from 1 to length={length}")
    ids = np.asarray(tokens)
    if ids.ndim != 1 or len(ids) < 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(
            f"tokens: {ids.dtype}{list(ids.shape)} is not allowed; the tokens of one"
            " text, integers [N], two or more"
        )
    run = jax.jit(lambda params, batch, scored: _total(model, params, batch, scored))
    cut = windows(len(ids), length, stride)
    for number, window in enumerate(cut[skip:], start=skip + 1):
        part = ids[window.start : window.stop]
        row = np.zeros((1, length), np.int32)
        mask = np.zeros((1, length), bool)
        row[0, : len(part)], mask[0, : len(part)] = part, True
        scored = np.zeros((1, length - 1), np.float32)
        scored[0, len(part) - 1 - window.scored : len(part) - 1] = 1
        batch = make_batch(model.config, row, mask, str(where))
        total = run(model.params, batch, jnp.asarray(scored))
        yield window, Score(float(total), window.scored)
        if progress:
            progress(number, len(cut))


def _total(
    model: Pretrained, params: Any, batch: Batch, scored: jax.Array
) -> jax.Array:
    """The summed negative log-likelihood of the tokens that ``scored [1, S - 1]``."""
    logits = model.apply(params, batch)["logits"][:, :-1]
    chosen = jnp.take_along_axis(logits, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    return ((jax.nn.logsumexp(logits, axis=-1) - chosen) * scored).sum()
