"""Stand-ins for gcloud, sbatch and kubectl, which note how they are called."""

import importlib
import io
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from launch import shell

ROOT = Path(__file__).parents[1]
NOTE = r"""#!/bin/bash
{ printf '%s\0' "${0##*/}" "$@"; printf '\2'; cat; printf '\3'; } >>"$NOTES"
exit "${FAILS:-0}"
"""
"""Notes its arguments and standard input, and fails if it is to."""


@dataclass(frozen=True)
class Done:
    """How a launcher ended, and what it called: (words, standard input) of each."""

    code: int
    out: str
    err: str
    calls: list[tuple[list[str], str]]


def stand_in(folder: Path, name: str, text: str = NOTE) -> None:
    """A program of this name in a folder."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def notes(path: Path) -> list[tuple[list[str], str]]:
    """What stand-ins noted in a file."""
    found = []
    for call in path.read_text().split("\3")[:-1]:
        words, _, text = call.partition("\2")
        found.append((words.split("\0")[:-1], text))
    return found


def launch(folder: Path, launcher: str, *arguments: str, **variables: str) -> Done:
    """Run a launcher in a checkout of configs, its programs before all others."""
    path = folder / "notes"
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/python").touch()
    path.write_text("")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "NOTES": str(path),
        **variables,
    }
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(f"launch.{launcher}").main
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch("sys.argv", [launcher, *arguments]),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        shell.start(main)
    return Done(end.value.code, out.getvalue(), err.getvalue(), notes(path))
