"""jaxlm as a library: the example of the docs, records in memory, and light imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from pandas import DataFrame

from jaxlm import api
from jaxlm.core import config as configs
from jaxlm.core import schema
from jaxlm.core.errors import UserError
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.runs import Run
from tests.doors.conftest import ROOT

SENTENCES = [
    {"tokens": ["Ada", "left", "Paris"], "labels": ["B-PER", "O", "B-LOC"]},
    {"tokens": ["Rome", "is", "old"], "labels": ["B-LOC", "O", "O"]},
]
TEXTS = [
    {"text": "a fine book", "label": "good"},
    {"text": "a dull one", "label": "bad"},
]


def small(task, records):
    """A config of two steps on records in memory."""
    config = api.config(task, tiny=True)
    config.data.train = config.data.validation = records
    config.data.test = []
    config.train.steps = 2
    config.mesh.data = 1
    config.evaluate.at_start = False
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return api.train(small("ner", SENTENCES), tmp_path_factory.mktemp("memory") / "run")


@pytest.mark.parametrize(("task", "file"), [("ner", "ner"), ("classify", "classify")])
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_configs_are_those_of_the_config_files(task, file, variant):
    spec = f"{ROOT}/configs/{file}.py:{variant}".rstrip(":")
    ours = schema.build(
        ExperimentConfig, api.config(task, tiny=bool(variant)).to_dict()
    )
    assert ours == configs.resolve(ExperimentConfig, spec, []).config


def test_a_task_has_its_full_name_too_and_another_is_refused():
    assert api.config("text_classification").task.name == "text_classification"
    with pytest.raises(UserError, match="no such task: 'nre'; one of ner,"):
        api.config("nre")


def test_a_key_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError, match="stepz"):
        api.config("ner").train.stepz = 3


def test_a_value_that_is_not_allowed_is_refused(tmp_path):
    config = small("ner", SENTENCES)
    config.train.batch_size = 0
    with pytest.raises(UserError, match="config.train.batch_size: 0 is not allowed"):
        api.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_records_in_memory_train_and_the_run_has_their_scores(run):
    assert isinstance(run, Run)
    assert run.metrics["split"] == "validation" and run.metrics["examples"] == 2
    assert Run(run.workdir).metrics == run.metrics


def test_records_in_memory_are_scored_and_so_are_files(run, tmp_path):
    metrics = api.evaluate(run, SENTENCES)
    assert metrics["examples"] == 2
    assert metrics["f1"] == run.metrics["f1"]
    (tmp_path / "a.conll").write_text("Ada B-PER\n\nsleeps O\n")
    found = api.evaluate(run.workdir, str(tmp_path / "a.conll"), step=2)
    assert found["examples"] == 2


def test_texts_words_and_records_are_predicted(run):
    found = api.predict(run, ["Ada left Paris.", ["Ada", "left"], SENTENCES[0]])
    assert [len(each["predicted"]) for each in found] == [4, 2, 3]
    assert "labels" not in found[2]
    assert api.predict(run.workdir, "Ada") == api.predict(run, ["Ada"], step="best")


def test_texts_with_labels_in_memory_train_too(tmp_path):
    run = api.train(small("classify", TEXTS), tmp_path / "run")
    (found,) = api.predict(run, ["a fine one"])
    assert set(found["probabilities"]) == {"good", "bad"}
    assert "accuracy" in api.evaluate(run, TEXTS)


def test_the_same_records_resume_and_others_are_refused(run):
    assert api.train(small("ner", SENTENCES), run.workdir).metrics == run.metrics
    with pytest.raises(UserError, match="config.data.train"):
        api.train(small("ner", SENTENCES[::-1]), run.workdir)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda run: api.evaluate(run), "data.test is empty"),
        (lambda run: api.evaluate(run, split="validation"), "records in memory"),
        (lambda run: api.evaluate(run, split="dev"), "no such split"),
        (lambda run: api.evaluate(run, [{"tokens": ["a"]}]), "record 0: no labels"),
        (lambda run: api.evaluate(run, []), "holds no examples"),
        (lambda run: api.evaluate(run, SENTENCES, step=9), "step=9"),
        (lambda run: api.evaluate(run, SENTENCES, step="all"), "step='all'"),
        (lambda run: api.predict(run, [{"txt": "a"}]), "input 1: has no text or"),
        (lambda run: api.predict(run, [{"id": [1], "text": "a"}]), "input 1: id [1]"),
        (lambda run: api.predict(run, None), "inputs must be a list of texts"),
        (lambda run: api.predict(run, DataFrame({"text": ["a"]})), "are a table"),
        (lambda run: api.predict("", ["a"]), "workdir is ''"),
        (lambda run: api.evaluate(run, SENTENCES, columns=5), "config.data.columns: 5"),
        (lambda run: api.train({}, run.workdir), "start from api.config"),
        (lambda run: api.train(api.config("ner"), None), "workdir is None"),
        (lambda run: api.config(["ner"]), "no such task: ['ner']"),
        (lambda run: api.predict(run, ["a", 7]), "input 2"),
        (lambda run: api.predict(run, [["a", 7]]), "tokens must be strings"),
        (lambda run: api.predict(run, [("a", 7)]), "tokens must be strings"),
        (lambda run: api.predict(run, [{"tokens": "ab"}]), "tokens must be strings"),
    ],
)
def test_mistakes_are_user_errors(run, call, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        call(run)


def python(code, folder, **environment):
    """Run code in a process of one device, without a network."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_importing_jaxlm_is_light(tmp_path):
    heavy = (
        "{'jax', 'flax', 'torch', 'tensorflow', 'transformers', 'numpy', 'datasets'}"
    )
    for line in ("import jaxlm", "from jaxlm import api; api.config('ner')"):
        done = python(
            f"{line}; import sys; print({heavy} & set(sys.modules))", tmp_path
        )
        assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("page", "call"), [("library.md", ""), ("configs.md", "get_config()")]
)
def test_the_example_of_a_page_runs(tmp_path, page, call):
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks, f"docs/{page} has no Python block"
    done = python("\n".join([*blocks, call]), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
