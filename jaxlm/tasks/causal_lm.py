"""Causal language modelling: each token from those before it (GPT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.types import Batch
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.language_modeling import LanguageModeling


class CausalLanguageModeling(LanguageModeling):
    """The next token of every token (Radford et al., 2019).

    ``labels i32[B, S]``: the token that follows; -1 at the last of a row, and where an
    earlier row of the same text predicts it. Rows share one token by default, so that
    each token of a text but its first is predicted once. A text ends with the
    tokenizer's end of texts.
    """

    name, loss = "causal_lm", "lm"
    fills = {"labels": -1}

    @classmethod
    def make(
        cls,
        config: TaskConfig,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        windowing: Windowing,
    ) -> CausalLanguageModeling:
        """Build from the config and the tokenizer."""
        return cls(tokenizer, windowing)

    @staticmethod
    def stride(max_length: int) -> int:
        """Tokens that two rows of a text share by default."""
        return 1

    @property
    def ending(self) -> tuple[int, ...]:
        """The end of texts, where the frame does not have it already."""
        end = self.tokenizer.end
        return () if end is None or end in self.tokenizer.frame.after else (end,)

    def frame(self, first: bool, last: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where a text begins and ends, and nowhere else."""
        frame = self.tokenizer.frame
        return frame.before * first, frame.after * last

    def fields(
        self, tokens: np.ndarray, span: range, seen: int, place: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """``labels``; of what was seen only the last token predicts something new."""
        labels = np.append(tokens[1:], np.int32(-1))
        labels[: max(span.start + seen - 1, 0) if seen else 0] = -1
        return {"labels": labels}

    def check(self, config: Any) -> None:
        """Refuse what sees the tokens that it is to predict."""
        if not config.causal:
            raise UserError(
                "config.model.pretrained: is an encoder, whose tokens see those after"
                " them; causal_lm needs a decoder, such as random:gpt2 (masked_lm"
                " trains an encoder)"
            )
        super().check(config)

    def present(self, batch: Batch, key: jax.Array | None) -> Batch:
        """The batch as it is."""
        return batch
