"""What all doors share: flags, one-line errors, exit codes; without jax, so quickly.

Exit codes: 0 done, 2 something that the user can mend, 75 a process of several is gone
(start all again), 130 interrupted (143 by SIGTERM), 141 the reader of our output went
away. Any other exception is a bug and keeps its traceback (exit 1).
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.core.errors import OS_ERROR, Lost, UserError
from jaxlm.core.pages import ask_for_huge_pages
from jaxlm.core.schema import nearest

OVERRIDE = "--config."
SPARING = (
    "what needs less when training: a lower config.train.batch_size or"
    " config.evaluate.batch_size, a higher config.train.accumulation,"
    " config.model.remat=block"
)
FULL = (errno.ENOSPC, errno.EDQUOT)
FREE = "; free some space, then start again"
TROUBLE = (
    *FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
    errno.ESTALE,
)  # fmt: skip
"""Errors that a user's file or disk is to blame for, rather than our code."""

COLLECT_EVERY = 100_000
"""New objects between two searches for garbage. With Python's default it looks, while
jax and the model are loaded and traced, again and again at what is there to stay."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are a UserError, one line without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def parse(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The door's own flags, and the ``--config.key=value`` arguments untouched.

        Raises:
            UserError: an unknown flag, a missing one or a bad value.
        """
        for argument in arguments:
            try:
                argument.encode()
            except UnicodeEncodeError:
                self.error(f"{argument!r} is not UTF-8")
        overrides, own = split_overrides(arguments)
        for argument in own:  # first, or a misspelt flag is reported as a missing one
            flag = argument.partition("=")[0]
            if len(flag) > 2 and flag.startswith("--"):
                if flag not in self._option_string_actions:
                    self.error(self._unknown(flag))
        known, unknown = self.parse_known_args(own)
        if unknown:
            self.error(f"{unknown[0]!r}: no such argument")
        if overrides and "--config" not in self._option_string_actions:
            self.error(f"{overrides[0]}: this door reads the config of --workdir")
        return known, overrides

    def _unknown(self, flag: str) -> str:
        if "." in flag and "--config" in self._option_string_actions:
            near = f"--config.{flag.lstrip('-')}"
        else:
            words = {each.lstrip("-"): each for each in self._option_string_actions}
            near = words.get(nearest(flag.lstrip("-"), words) or "")
        hint = f"; nearest: {near}" if near else ""
        return f"{flag}: no such flag{hint}"


def make_parser(description: str, *, config: bool = False, model: str = "") -> Parser:
    """A parser with the shared flags, to which a door adds its own.

    Args:
        description: what the door does.
        config: whether the door takes ``--config`` and ``--explain`` and overrides
            (its --workdir is then optional, for ``--explain`` needs none); otherwise
            ``--workdir`` is required and the config is read from there.
        model: what ``--model`` is for, where the door takes one in place of a run.
    """
    parser = Parser(
        description=description,
        allow_abbrev=False,
        epilog="--config.KEY=VALUE sets a key of the config; --explain lists all keys."
        if config
        else None,
    )
    if config:
        parser.add_argument(
            "--config",
            type=_filled,
            metavar="FILE[:VARIANT]",
            help="config file, such as configs/ner.py:tiny",
        )
        parser.add_argument(
            "--explain",
            action="store_true",
            help="print every key, its value and where that came from; do nothing else",
        )
    run: Any = parser
    if model:
        run = parser.add_mutually_exclusive_group(required=True)
        what = f"{model}: a directory, hf:org/name or pypi:name==version"
        run.add_argument("--model", type=_filled, metavar="SOURCE", help=what)
    needed = {} if model else {"required": not config}
    run.add_argument("--workdir", type=_filled, help="directory of the run", **needed)
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of every error"
    )
    return parser


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--config.key=value`` arguments (or ``--config.key value``), and the rest."""
    overrides: list[str] = []
    rest: list[str] = []
    waiting = False
    for argument in arguments:
        if argument.startswith(OVERRIDE):
            overrides.append(argument)
            waiting = "=" not in argument
        elif waiting and not argument.startswith("--"):
            overrides.append(argument)
            waiting = False
        else:
            rest.append(argument)
            waiting = False
    return overrides, rest


def start(main: Callable[[list[str]], None]) -> None:
    """``run`` a program that ends at once where it fails.

    Python would wait for what is still compiled in another thread, for nobody, and
    whoever told the process to stop would kill it meanwhile.
    """
    try:
        run(main)
    except SystemExit as end:
        if not isinstance(end.code, int) or end.code == 0:
            raise
        code = end.code
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(main: Callable[[list[str]], None]) -> None:
    """Call a door's ``main`` with the command line; end the process if it fails."""
    ask_for_huge_pages()
    gc.set_threshold(COLLECT_EVERY)
    arguments = sys.argv[1:]
    closed = sys.stdout is None  # as `>&-` leaves it
    sys.stdout, sys.stderr = (
        open(os.devnull, "w") if stream is None else stream
        for stream in (sys.stdout, sys.stderr)
    )
    try:
        if closed:
            raise UserError("standard output is closed; give it a file, or /dev/null")
        main(arguments)
        sys.stdout.flush()
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(f"error: {' '.join(str(error).split())}", 2)
    except Lost as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(f"error: {' '.join(str(error).split())}", error.code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        reason = machine_trouble(error)
        if reason is None:
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        _fail(f"error: {reason}", 2)


def machine_trouble(error: Exception) -> str | None:
    """One line about a file or the memory that failed; None for what is a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        if error.errno not in (FULL if error.filename is None else TROUBLE):
            return None
        remedy = FREE if error.errno in FULL else ""
        return f"{error.filename or 'disk'}: {error.strerror}{remedy}"
    if isinstance(error, MemoryError):
        return f"out of memory; {SPARING}"
    if "RESOURCE_EXHAUSTED" not in text:  # by its words, as jax is not imported here
        return None
    if found := OS_ERROR.search(text):  # TensorStore's word for a full disk, too
        return f"{os.strerror(int(found[1]))} ({text[:160]})"
    return f"out of memory ({text[:160]}); {SPARING}"


def writable_directory(path: str | Path) -> Path:
    """The directory at ``path``, made where it is missing, and tried by a file in it.

    Raises:
        UserError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{path}: a file stands where a directory is needed; name another"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; name another directory"
        ) from error


def _filled(text: str) -> str:
    """Refuses ``--workdir=$UNSET``, which would mean the current directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
