"""What the launchers share: commands that are run or only shown, and one-line errors.

Launchers need Python's standard library alone, so that they start on a machine that
has neither jax nor jaxlm installed: ``python -m launch.tpu_vm --help``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""Allowed by Cloud TPU, Slurm and Kubernetes alike, with room for what they append."""


class Refusal(Exception):
    """One line on what a user can mend: what it is, what is allowed, the remedy."""


class Failed(Exception):
    """A command of another program that failed."""

    def __init__(self, command: Sequence[str], code: int, reason: str = ""):
        self.code, reason = code, " ".join(reason.split())
        shown = f"{' '.join(command[:5])} failed (exit code {code})"
        super().__init__(f"{shown}: {reason}" if reason else shown)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are a Refusal; no flag is abbreviated."""

    def __init__(self, **named) -> None:
        named.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **named)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; --help lists the flags")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int = 0
    out: str = ""
    err: str = ""


class Shell:
    """Runs commands; with ``dry_run`` it prints them and runs none.

    What is printed can be pasted in a shell; what is no command is a comment.
    """

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def say(self, text: str) -> None:
        """Tell the user something."""
        print(f"# {text}" if self.dry_run else text, flush=True)

    def run(
        self, command: Sequence[str], *, text: str = "", shown: str | None = None
    ) -> None:
        """Run a command, perhaps with ``text`` to read; its output is the user's.

        ``shown`` is printed by a dry run in place of a text that holds secrets; in it,
        a shell replaces ``$NAME``.

        Raises:
          Failed: its exit code is not 0.
        """
        if self.dry_run:
            here = "" if not text else _here(text) if shown is None else _filled(shown)
            print(shlex.join(command) + here, flush=True)
            return
        # Without a text it may ask the user: gcloud does, as before it deletes.
        done = _started(lambda: subprocess.run(command, text=True, input=text or None))
        if done.returncode:
            raise Failed(command, done.returncode)

    def stream(self, command: Sequence[str]) -> int:
        """Run a command whose output is the user's; gives its exit code, 0 when dry."""
        try:
            self.run(command)
        except Failed as failed:
            return failed.code
        return 0

    def ask(self, command: Sequence[str]) -> Answer:
        """Run a command and keep what it says; when dry, an empty answer."""
        if self.dry_run:
            print(shlex.join(command), flush=True)
            return Answer()
        done = _started(
            lambda: subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        )
        return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())


def _here(text: str, quote: str = "'") -> str:
    """``text`` as a here-document, ended by a line that it does not have."""
    end = "END"
    while end in text.splitlines():
        end += "_"
    return f" <<{quote}{end}{quote}\n{text.removesuffix(chr(10))}\n{end}"


def _filled(text: str) -> str:
    """``text`` as a here-document in which a shell replaces ``$NAME``."""
    return _here(text, quote="")


def _started(call: Callable[[], subprocess.CompletedProcess]):
    try:
        return call()
    except FileNotFoundError as error:
        raise Refusal(
            f"{error.filename}: no such program here; install it, or see what would be"
            " run with --dry-run"
        ) from error


def checked(pattern: re.Pattern[str], allowed: str) -> Callable[[str], str]:
    """An argparse type: text that ``pattern`` matches whole; ``allowed`` says which."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: {allowed}")
        return text

    return check


name = checked(
    NAME, "at most 40 of a-z, 0-9 and -, a letter first, no - last; such as ner-2"
)
token = checked(
    re.compile(r"[\w./:@%+=,\[\]-]+"), "letters, digits and ./:@%+=,[]-, no spaces"
)


def whole(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``minimum``."""

    def check(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {minimum}"
            )
        return int(text)

    return check


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def start(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a launcher's ``main`` with the command line, and end the process.

    Exit codes: 0 done, 1 a program that was called failed, 2 something that the user
    can mend, 130 interrupted, 141 nobody reads what is printed; or what ``main`` gives.
    """
    try:
        for argument in sys.argv[1:]:
            if not _is_unicode(argument):
                raise Refusal(f"{argument!r} is not UTF-8")
        code = main(sys.argv[1:]) or 0
        print(end="", flush=True)
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # Python flushes once more at its end: to nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
