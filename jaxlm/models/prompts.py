"""Prompts: texts, token ids and conversations become token ids of a model."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.pretrained import Pretrained

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a conversation: ``{"role": ..., "content": ...}`` each."""
ALLOWED = 'a text, token ids, or messages {"role": ..., "content": ...}'


def encode(model: Pretrained, prompt: Prompt, where: str) -> list[int]:
    """Token ids of a prompt, which errors call ``where``.

    Raises:
      UserError: it is no prompt, or a conversation that the tokenizer has no template
        for.
    """
    if isinstance(prompt, str):
        return tokenized(model, prompt, where)
    if isinstance(prompt, Mapping | bytes) or not hasattr(prompt, "__iter__"):
        raise UserError(f"{where}: {shown(prompt)} is not allowed; {ALLOWED}")
    parts: list[Any] = list(prompt)
    if not any(isinstance(part, Mapping) for part in parts):
        return [as_token(part, where) for part in parts]
    check_messages(parts, where)
    try:
        text = model.tokenizer.apply_chat_template(
            parts, tokenize=False, add_generation_prompt=True
        )
    except Exception as problem:  # the template's own, jinja's, a missing one
        reason = str(problem).partition("\n")[0].strip()
        raise UserError(
            f"{where}: the chat template of {model.checkpoint.directory} cannot write"
            f" this conversation ({reason}); give the prompt as a text"
        ) from problem
    return tokenized(model, text, where, add_special_tokens=False)


def tokenized(model: Pretrained, text: str, where: str, **options: bool) -> list[int]:
    """The token ids of a text.

    Raises:
      UserError: it has half of a pair of UTF-16, as JSON may.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise UserError(
            f"{where}: character {problem.start + 1}, {text[problem.start]!r}, is half"
            " of a letter in UTF-16; a text has whole ones"
        ) from problem
    return list(model.tokenizer(text, **options)["input_ids"])


def as_token(value: Any, where: str) -> int:
    """A token id of any integer type.

    Raises:
      UserError: it is none; ``True`` is none either.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(
            f"{where}: {shown(value)} is no token id; a prompt is {ALLOWED}"
        ) from None


def check_messages(messages: Any, where: str) -> None:
    """Refuse what is no conversation.

    Raises:
      UserError: no message, or one without a role and a content that are strings.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: messages={shown(messages)} is not allowed; a list of objects"
            " with role and content"
        )
    for number, each in enumerate(messages):
        for name in ("role", "content"):
            if not isinstance(each, Mapping) or not isinstance(each.get(name), str):
                raise UserError(
                    f"{where}: message {number} is {shown(each)}; each needs role and"
                    " content, both strings"
                )


def check_ids(model: Pretrained, ids: list[int], new: int, where: str) -> None:
    """Refuse a prompt that the model cannot hold, with ``new`` tokens behind it.

    Raises:
      UserError: it is empty, not of the vocabulary, or too long.
    """
    config, directory = model.config, model.checkpoint.directory
    if not ids:
        raise UserError(f"{where}: no token; a prompt needs at least one")
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise UserError(
            f"{where}: tokens from {min(ids)} to {max(ids)}; the vocabulary of"
            f" {directory} has 0 to {config.vocab_size - 1}"
        )
    new = 0 if config.decoder else new
    # The last token is not read: it needs no position.
    if len(ids) + max(new - 1, 0) > config.max_positions:
        raise UserError(
            f"{where}: {len(ids)} tokens and {new} new ones are more than the"
            f" {config.max_positions} positions of {directory}; shorten the prompt, or"
            f" lower max_new_tokens={new}"
        )


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
