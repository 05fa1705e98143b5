"""Doors that are given malformed inputs, and what must hold of every refusal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bad_inputs.cases import NER, QUICK, Case
from tests.bad_inputs.harmless import write_oddities

SECONDS = 10.0
"""Of computing, the import of jax included: other processes' share is not counted."""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, links not followed."""
    return {
        str(path): path.read_bytes() if path.stat().st_size < 2**20 else None
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def refusal(call, tmp_path, request):
    """Give a case to its door; the message, after all that holds of each was checked.

    Exit code 2, one line, no traceback (see ``Answer.error``), in seconds, and neither
    the workdir nor anything beside it is made, changed or lost.
    """

    def refusal(case: Case) -> str:
        folder = tmp_path / "inputs"
        folder.mkdir()
        given = case.make(folder)
        if case.door == "main":
            workdir = tmp_path / "work"
            start = [case.config, *QUICK] if case.config else []
            given = [*start, f"--workdir={workdir}", *given]
        else:
            workdir = request.getfixturevalue("run")
            given = [f"--workdir={workdir}", *given]
        before = contents(tmp_path) | contents(workdir)
        began = time.process_time()
        answer = call(case.door, *given)
        assert time.process_time() - began < SECONDS
        assert "Traceback" not in answer.out + answer.err
        assert contents(tmp_path) | contents(workdir) == before
        assert case.door != "main" or not workdir.exists()
        return answer.error

    return refusal


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of one step on all that is odd and harmless, trained by its door."""
    from jaxlm import main

    folder = tmp_path_factory.mktemp("odd")
    source, workdir = write_oddities(folder), folder / "run"
    wide = "--config.data.max_length=128"  # or it has more windows than a test needs
    start = [NER, *QUICK, wide, f"--config.data.train={source}"]
    main.main([*start, f"--workdir={workdir}"])
    return workdir
