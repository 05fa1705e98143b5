"""From the outside: exit code 2 and one line, of real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bad_inputs import data_files, runs, weights
from tests.bad_inputs.cases import NER, QUICK, ROOT, Case

CASES = {case.name: case for case in [*data_files.CASES, *weights.CASES, *runs.CASES]}
CHOSEN = [
    "conll: a column too few",
    "parquet: a bomb of rows",
    "weights: NaN",
    "evaluate: an unknown label",
    "predict: broken JSON",
    "predict: half a text",
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_process_exits_with_2_and_one_line(request, tmp_path, name):
    case: Case = CASES[name]
    given = case.make(tmp_path)
    if case.door == "main":
        given = [NER, *QUICK, f"--workdir={tmp_path / 'work'}", *given]
    else:
        given = [f"--workdir={request.getfixturevalue('run')}", *given]
    command = [sys.executable, "-m", f"jaxlm.{case.door}", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in case.words:
        assert word.replace("{folder}", str(tmp_path)) in done.stderr
    assert not (tmp_path / "work").exists()
