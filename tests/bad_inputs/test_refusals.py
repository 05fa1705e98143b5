"""Every malformed input: exit code 2, one message with the place, in seconds."""

from __future__ import annotations

import pytest

from tests.bad_inputs import (
    configs,
    data_files,
    models,
    runs,
    tokenizers,
    weights,
)

CASES = [
    case
    for table in (configs, data_files, models, tokenizers, weights, runs)
    for case in table.CASES
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_input_is_refused_in_one_line(refusal, case, tmp_path):
    message = refusal(case)
    for word in case.words:
        assert word.replace("{folder}", str(tmp_path / "inputs")) in message


def test_there_are_many_cases_and_none_twice():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    # Besides those that are made of the fields of the config.
    assert len(names) - len(configs.CASES) >= 150


@pytest.mark.parametrize("kind", ["wrong type", "misspelt"])
def test_every_field_of_the_config_has_a_case_of_each_kind(kind):
    named = [case.name for case in configs.CASES if case.name.endswith(f": {kind}")]
    assert named == [f"{key}: {kind}" for key in configs.LEAVES]
