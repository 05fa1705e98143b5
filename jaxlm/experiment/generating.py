"""A language model answers inputs: text in, generated text out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.generate import Generator
from jaxlm.models.generation import Generated, Generation
from jaxlm.models.pretrained import load
from jaxlm.models.prompts import Prompt, check_messages
from jaxlm.models.suggestions import passed_over

ROWS = 8
"""Sequences that are generated at a time."""


def answer(
    source: str,
    inputs: Iterator[dict[str, Any]],
    generation: Generation,
    *,
    chat: bool = False,
    pretty: bool = False,
) -> None:
    """Print what a model generates: as it comes for a person, JSONL for a program.

    An input has ``text``, or ``messages`` (a conversation); with ``chat`` a text is
    what a user says.

    Raises:
      UserError: the model cannot be loaded or cannot generate, or an input is wrong.
    """
    if sys.stderr.isatty():
        print(f"loading {source}", file=sys.stderr)
    generator = Generator(load(source))
    _ = generator.tokenizer  # said now where there is none
    if told := passed_over(generator.model, generation):
        print(
            f"note: options are those of the call; {source} suggests otherwise:"
            f" {', '.join(told)}",
            file=sys.stderr,
        )
    at_once = 1 if pretty else max(1, ROWS // generation.samples)
    first = 0
    wrong: UserError | None = None
    while wrong is None:
        chunk, wrong = taken(inputs, at_once)
        if not chunk:
            break
        if pretty:
            prompt = as_prompt(chunk[0], chat)
            show(generator, chunk[0], prompt, generation, first)
        else:
            answer_all(generator, chunk, generation, first, chat)
        first += len(chunk)
    if wrong:
        raise wrong


def taken(
    inputs: Iterator[dict[str, Any]], count: int
) -> tuple[list[dict[str, Any]], UserError | None]:
    """The next inputs, and what is wrong with the one after them."""
    chunk: list[dict[str, Any]] = []
    try:
        for each in islice(inputs, count):
            chunk.append(each)
    except UserError as problem:
        return chunk, problem
    return chunk, None


def answer_all(
    generator: Generator,
    chunk: list[dict[str, Any]],
    generation: Generation,
    first: int,
    chat: bool,
) -> None:
    """Print a line for each of some inputs; of several the good ones before a bad."""
    names = [each["source"] for each in chunk]
    try:
        prompts = [as_prompt(each, chat) for each in chunk]
        sequences = generator.run(prompts, generation, first=first, names=names)
    except UserError:
        if len(chunk) == 1:
            raise
        for number, each in enumerate(chunk, start=first):
            answer_all(generator, [each], generation, number, chat)
        return
    for each, found in zip(chunk, sequences, strict=True):
        print(json.dumps(as_json(each, found), ensure_ascii=False))
    sys.stdout.flush()


def as_prompt(given: dict[str, Any], chat: bool) -> Prompt:
    """The prompt of an input record."""
    if given.get("messages") is not None:
        check_messages(given["messages"], given["source"])
        return given["messages"]
    text = given.get("text")
    if not isinstance(text, str):
        raise UserError(
            f"{given['source']}: no text; a language model reads text (a string) or"
            " messages"
        )
    return [{"role": "user", "content": text}] if chat else text


def as_json(given: dict[str, Any], found: list[Generated]) -> dict[str, Any]:
    """A prediction: the best text, and every sequence with its score."""
    prompt = {name: given[name] for name in ("text", "messages") if name in given}
    return {
        "id": given["id"],
        **prompt,
        "generated": found[0].text,
        "sequences": [
            {
                "text": each.text,
                "tokens": each.tokens,
                "score": round(each.score, 6),
                "logprobs": [round(value, 6) for value in each.logprobs],
                "finish": each.finish,
            }
            for each in found
        ],
    }


def show(
    generator: Generator,
    given: dict[str, Any],
    prompt: Prompt,
    generation: Generation,
    first: int,
) -> None:
    """A prompt dimmed and its sequences, the only one while it is generated."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    said = given["text"] if "text" in given else given["messages"][-1]["content"]
    console.print(Text(said, style="dim"), end="" if isinstance(prompt, str) else "\n")
    names = [given["source"]]
    if generation.samples > 1 or generation.beams > 1:
        for each in generator.run([prompt], generation, None, first, names)[0]:
            console.print(Text(f"\n[{each.score:.2f}] ", style="bold"), end="")
            console.print(Text(each.text or ""))
        return

    def piece(_: int, text: str) -> None:
        console.print(Text(text), end="", soft_wrap=True)
        console.file.flush()

    generator.run([prompt], generation, piece, first, names)
    console.print()
