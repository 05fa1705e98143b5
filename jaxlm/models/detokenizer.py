"""Tokens to text, which may grow: what of it is there to stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How sentencepiece names a token of one byte."""
BROKEN = "\ufffd"
"""What stands for bytes that are no letter, or not yet."""


class Detokenizer:
    """Texts of tokens, without special ones, by a tokenizer of transformers."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @cached_property
    def special(self) -> dict[str, int]:
        """The tokens that no text has."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {str(token): number for number, token in added if token.special}

    @cached_property
    def passing(self) -> frozenset[int]:
        """The tokens at a text's end that may yet change it, or are not seen in it.

        Bytes that stand together become letters together: one that fits no letter
        breaks those before it, too.
        """
        names = self.tokenizer.get_vocab().items()
        of_bytes = {number for name, number in names if BYTE.fullmatch(name)}
        return frozenset(of_bytes | set(self.special.values()))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Nothing is cleaned up: no token takes a space away."""
        return self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def settled(self, tokens: Sequence[int]) -> str:
        """The part of the text that no token which comes next can change."""
        count = len(tokens)
        while count and tokens[count - 1] in self.passing:
            count -= 1
        return self.text(tokens[:count]).rstrip(BROKEN)
