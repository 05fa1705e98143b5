"""Masked language modelling: some tokens from all others (BERT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.types import Batch
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.models.layers import mixed
from jaxlm.models.places import places_of
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.language_modeling import LanguageModeling

HIDDEN, CHANGED = 0.8, 0.1
"""Of the chosen tokens: how many become the mask, and how many a random token."""


class MaskedLanguageModeling(LanguageModeling):
    """Chosen tokens from what is left of their text (Devlin et al., 2019, section 3.1).

    ``dice i32[B, S]``: a random number of every token, -1 of special ones, which are
    never chosen. It and the step's key decide what is chosen: each token by itself with
    the probability ``mask_rate``, another choice at every step, on any layout the same.
    Of a row in which four standard deviations more than the mean would be chosen, some
    3 in 100,000, so many are. Without a key, as in evaluation, the choice is always the
    same. Logits are those of the chosen tokens alone, wherever a row is on one device.
    """

    name, loss = "masked_lm", "mlm"
    fills = {"dice": -1}

    def __init__(
        self,
        tokenizer: Tokenizer,
        windowing: Windowing,
        mask: int,
        mask_rate: float = 0.15,
    ):
        super().__init__(tokenizer, windowing)
        self.mask, self.mask_rate, self.asked_share = mask, mask_rate, mask_rate
        self.vocab_size = tokenizer.vocab_size

    @classmethod
    def make(
        cls,
        config: TaskConfig,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        windowing: Windowing,
    ) -> MaskedLanguageModeling:
        """Build from the config and the tokenizer.

        Raises:
          UserError: the tokenizer has no mask.
        """
        if tokenizer.mask is None:
            raise UserError(
                f"{tokenizer.directory}: the tokenizer has no mask token, which"
                " masked_lm puts in the place of tokens; take an encoder's, whose"
                " tokenizer_config.json names mask_token"
            )
        return cls(tokenizer, windowing, tokenizer.mask, config.mask_rate)

    @staticmethod
    def stride(max_length: int) -> int:
        """Tokens that two rows of a text share by default."""
        return 0

    def fields(
        self, tokens: np.ndarray, span: range, seen: int, place: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """``dice``: by the text and the row alone, whatever else is in the batch."""
        dice = np.full(len(tokens), -1, np.int32)
        mine = span[seen:]
        random = np.random.default_rng(place)
        dice[mine.start : mine.stop] = random.integers(0, 2**31, len(mine), np.int32)
        return {"dice": dice}

    def check(self, config: Any) -> None:
        """Refuse what sees only the tokens before one."""
        if config.causal:
            raise UserError(
                "config.model.pretrained: is a decoder, whose tokens see only those"
                " before them; masked_lm needs an encoder, such as random:bert-base"
                " (causal_lm trains a decoder)"
            )
        super().check(config)

    def present(self, batch: Batch, key: jax.Array | None) -> Batch:
        """Choose tokens, hide them, and keep them as ``labels``; -1: not chosen.

        ``places i32[B, P]`` says where they are, if they can be much fewer than all.
        """
        tokens, dice = batch["tokens"], batch["dice"]
        place, kind, other = (mixed(dice, key, salt) for salt in range(3))
        chosen = (dice >= 0) & (place < share(self.mask_rate))
        room = most(tokens.shape[1], self.mask_rate)
        if room < tokens.shape[1]:
            chosen &= jnp.cumsum(chosen, axis=1) <= room
            batch = {**batch, "places": places_of(chosen, room)}
        random = (other % jnp.uint32(self.vocab_size)).astype(tokens.dtype)
        changed = jnp.where(kind < share(HIDDEN + CHANGED), random, tokens)
        shown = jnp.where(kind < share(HIDDEN), self.mask, changed)
        return {
            **batch,
            "tokens": jnp.where(chosen, shown, tokens),
            "labels": jnp.where(chosen, tokens, -1),
        }


def most(length: int, rate: float) -> int:
    """How many tokens of a row are chosen at most, each with the probability ``rate``.

    A multiple of 8, as devices like it.
    """
    mean = length * rate
    return min(length, -(-math.ceil(mean + 4 * math.sqrt(mean * (1 - rate))) // 8) * 8)


def share(rate: float) -> jax.Array:
    """Below which number a share of all u32 lies."""
    return jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
