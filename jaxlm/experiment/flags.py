"""The flags of a door that generates text: one for each field of ``Generation``."""

from __future__ import annotations

import argparse
from dataclasses import fields

from jaxlm.core.errors import UserError
from jaxlm.models.generation import Generation

REPEATED = {"stop": str, "stop_tokens": int}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-new-tokens``, ``--temperature`` and so on, and ``--chat``."""
    group = parser.add_argument_group("what --model generates, and how")
    group.add_argument(
        "--chat",
        action="store_true",
        help="texts are what a user says: put into the tokenizer's chat template",
    )
    for each in fields(Generation):
        what = each.metadata["help"]
        if each.name in REPEATED:
            kind, action = REPEATED[each.name], "append"
        else:
            kind, action = type(each.default), "store"
            what += f" (default: {each.default})"
        group.add_argument(_flag(each.name), type=kind, action=action, help=what)


def read_flags(known: argparse.Namespace) -> Generation:
    """What was given by flags; the defaults of ``Generation`` for the others.

    Raises:
      UserError: a value that is not allowed, or a flag that needs ``--model``.
    """
    given = {
        each.name: getattr(known, each.name)
        for each in fields(Generation)
        if getattr(known, each.name) is not None
    }
    if not known.model and (given or known.chat):
        flag = "--chat" if known.chat else _flag(next(iter(given)))
        raise UserError(f"{flag}: is for what --model generates, not for a run")
    for name in REPEATED:
        if name in given:
            given[name] = tuple(given[name])
    try:
        return Generation(**given)
    except UserError as problem:
        name = str(problem).partition("=")[0]
        flag = _flag(name) if name in given else name
        raise UserError(flag + str(problem).removeprefix(name)) from problem


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
