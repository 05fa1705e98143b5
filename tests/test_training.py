"""Whole runs on eight fake devices: layouts agree, a workdir holds what it should."""

import dataclasses
import fcntl
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.core import config as configs
from jaxlm.core.config import resolve
from jaxlm.core.errors import UserError
from jaxlm.core.mesh import make_mesh
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.prepare import describe, describe_on_disk, prepare
from jaxlm.experiment.training import train
from jaxlm.experiment.wiring import make_parts
from jaxlm.experiment.workdir import OURS, claim, empty
from jaxlm.models.pretrained import open_checkpoint
from jaxlm.tasks.token_classification import TokenClassification

STEPS = 20
NER, CLASSIFY = "configs/ner.py:tiny", "configs/classify.py:tiny"
SMALL = {
    "data.train": "sample:ner[:60]",
    "data.validation": "",
    "data.test": "",
    "data.max_length": 32,
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.log_every_steps": 1,
    "optimizer.learning_rate": 1e-3,
    "evaluate.every_epochs": 1,
    "model.dropout": 0.1,
    "mesh.data": 8,
}
pytestmark = pytest.mark.usefixtures("compiled_once")


def config(file=NER, **changes):
    changes = {**SMALL, **{key.replace("__", "."): changes[key] for key in changes}}
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return resolve(ExperimentConfig, file, overrides).config


def quietly(text):
    """Say nothing."""


def lines(workdir, split="train"):
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["split"] == split]


def losses(workdir):
    return np.array([line["loss"] for line in lines(workdir)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of 20 steps on the first device alone; dropout and packing are on."""
    workdir = tmp_path_factory.mktemp("alone")
    train(config(mesh__data=1), workdir, say=quietly)
    return losses(workdir)


LAYOUTS = [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_twenty_steps_are_the_same_on_every_layout(alone, tmp_path, sizes):
    changes = {f"mesh__{axis}": size for axis, size in sizes.items()}
    train(config(**changes), tmp_path, say=quietly)
    found = losses(tmp_path)
    assert len(found) == STEPS
    assert (
        found[-1] < 0.8 * found[0]
    )  # something was learned, so an update was compared
    # Sums in another order; 20 steps of Adam carry the difference on.
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_two_microbatches_on_eight_devices_are_one_batch_on_one(tmp_path):
    found = {}
    for parts, accumulation in ((1, 1), (8, 2)):
        changes = {"mesh__data": parts, "train__accumulation": accumulation}
        workdir = tmp_path / str(parts)
        # Microbatches draw their own dropout, so it is off here.
        more = {"train__batch_size": 16, "train__steps": 6, "model__dropout": 0.0}
        train(config(**changes, **more), workdir, say=quietly)
        found[parts] = losses(workdir)
    np.testing.assert_allclose(found[8], found[1], rtol=1e-5)


WHOLE = {
    "data__validation": "sample:ner[:16]",
    "data__test": "sample:ner[:8]",
    "train__steps": "none",
    "train__epochs": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, whose epochs end with fewer rows; and what it said."""
    workdir, said = tmp_path_factory.mktemp("finished"), []
    metrics = train(config(**WHOLE), workdir, say=said.append)
    return workdir, metrics, "\n".join(said)


def test_a_run_leaves_what_the_design_says(finished):
    workdir, _, _ = finished
    last = max(line["step"] for line in lines(workdir))
    best = json.loads((workdir / "status.json").read_text())["best"]
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "config.json",
        "model",
        "checkpoints",
        "tensorboard",
        "report.html",
    }
    for split, step in [("validation", 0), ("validation", last), ("test", best)]:
        result = json.loads((workdir / "results" / f"{split}-{step}.json").read_text())
        assert (result["split"], result["step"]) == (split, step)
        predicted = (workdir / "predictions" / f"{split}-{step}.jsonl").read_text()
        assert len(predicted.splitlines()) == (16 if split == "validation" else 8)
    assert list((workdir / "tensorboard").glob("events.*"))
    assert [line["step"] for line in lines(workdir, "test")] == [0, best]


def test_the_status_of_a_finished_run(finished):
    workdir, metrics, said = finished
    status = json.loads((workdir / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] == status["total_steps"] == lines(workdir)[-1]["step"]
    assert status["best"] == metrics["step"]
    assert f"examples_per_step {status['examples_per_step']:.1f}," in said


def test_a_second_run_knows_its_steps_without_encoding(monkeypatch, tmp_path):
    first = prepare(config(), None, quietly)

    def fail(*arguments):
        raise AssertionError("a record was encoded")

    monkeypatch.setattr(TokenClassification, "encode", fail)
    said = []
    second = prepare(config(), tmp_path, said.append)
    describe(second, said.append)
    describe_on_disk(second, tmp_path)
    assert list(second.plan) == list(first.plan)
    with pytest.raises(AssertionError, match="a record was encoded"):
        second.data["train"].windows[0]


def test_lengths_are_those_of_the_tokenizer_the_labels_and_the_windows():
    changes = [
        {},
        {"data__max_length": 33},
        {"data__stride": 3},
        {"data__overflow": "truncate"},
        {"task__labels": "PER,LOC,ORG,MISC,LAW"},
    ]
    mesh, _ = make_mesh({"data": 8, "fsdp": 1, "tensor": 1, "context": 1})
    folder = open_checkpoint("random:tiny").directory
    parts = [
        make_parts(each, mesh, folder, each.task.labels or ("PER",))
        for each in (config(**change) for change in changes)
    ]
    assert len({each.encoding for each in parts}) == len(parts)
    again = make_parts(config(seed=7), mesh, folder, ("PER",))
    assert again.encoding == parts[0].encoding


def test_an_epoch_may_end_with_fewer_rows(finished):
    workdir, _, said = finished
    sizes = [line["epoch"] for line in lines(workdir)]
    assert sizes[-1] == 2.0
    assert np.isfinite(losses(workdir)).all()


def test_the_best_checkpoint_is_what_is_tested(finished):
    workdir, metrics, said = finished
    validation = {line["step"]: line["f1"] for line in lines(workdir, "validation")[1:]}
    best = max(validation, key=lambda step: (validation[step], -step))
    assert metrics["step"] == best
    assert f"best checkpoint: step {best}" in said


def test_a_finished_run_is_shown_again_and_not_redone(finished):
    workdir, metrics, _ = finished
    before = {
        path: path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name != "report.html"
    }
    said = []
    again = train(config(**WHOLE), workdir, say=said.append)
    after = {path: path.read_bytes() for path in before}
    assert after == before
    assert again["f1"] == metrics["f1"] and again["step"] == metrics["step"]
    assert "is finished" in said[-1]


def test_another_config_is_refused_with_the_keys_that_differ(finished):
    workdir, _, _ = finished
    other = config(**WHOLE, optimizer__learning_rate=0.5, seed=3)
    with pytest.raises(UserError) as caught:
        train(other, workdir, say=quietly)
    message = str(caught.value)
    assert "config.seed was 0, now 3" in message
    assert "config.optimizer.learning_rate was 0.001, now 0.5" in message
    assert "--overwrite" in message and "\n" not in message


def test_a_workdir_in_use_is_refused(finished):
    workdir, _, _ = finished
    with claim(workdir, config(**WHOLE), overwrite=False):
        with pytest.raises(UserError, match="another process"):
            train(config(**WHOLE), workdir, say=quietly)


def test_overwrite_says_what_it_deletes_and_leaves_the_rest(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    configs.write(tmp_path / "config.json", config(), configs.versions())
    said = []
    train(config(train__steps=1), tmp_path, overwrite=True, say=said.append)
    deleted = next(line for line in said if line.startswith("--overwrite deletes"))
    assert "checkpoints" in deleted and "metrics.jsonl" in deleted
    assert "notes" not in deleted and (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "checkpoints" / "7").exists()


def test_overwrite_deletes_nothing_where_the_new_run_cannot_begin(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    configs.write(tmp_path / "config.json", config(), configs.versions())
    broken = config(data__train="nowhere.conll")
    with pytest.raises(UserError, match=r"nowhere\.conll"):
        train(broken, tmp_path, overwrite=True, say=quietly)
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["model", "results", "checkpoints", "status.json"])
def test_a_directory_of_the_users_own_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"holds {name} but no config.json"):
        train(config(), tmp_path, overwrite=overwrite, say=quietly)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_overwrite_spares_a_config_that_no_run_wrote(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="is not the config of a run"):
        train(config(), tmp_path, overwrite=True, say=quietly)
    assert (tmp_path / "model").exists()


def test_an_interrupted_overwrite_leaves_nothing_to_resume(tmp_path, monkeypatch):
    """Whatever name it ends at: config.json stands until all else is gone."""
    for name in OURS:
        path = tmp_path / name
        path.write_text("{}") if "." in name else path.mkdir()
    order = []
    for each, remove in ((shutil, shutil.rmtree), (Path, Path.unlink)):

        def noted(path, *rest, remove=remove, **more):
            order.append(Path(path).name)
            return remove(path, *rest, **more)

        monkeypatch.setattr(each, remove.__name__, noted)
    empty(tmp_path, quietly)
    assert set(order[:2]) == {"status.json", "checkpoints"}
    assert order[-1] == "config.json" and sorted(order) == sorted(OURS)


def test_bookkeeping_may_change_when_a_run_goes_on(tmp_path):
    train(config(train__steps=1, mesh__data=1), tmp_path, say=quietly)
    (tmp_path / "status.json").unlink()
    changes = {
        "train__steps": 1,
        "mesh__data": 8,
        "model__scan": True,
        "model__remat": "block",
        "checkpoint__keep_last": 1,
        "data__workers": 1,
        "train__log_every_steps": 5,
    }
    said = []
    train(config(**changes), tmp_path, say=said.append)
    line = next(each for each in said if "goes on with another config" in each)
    assert "config.mesh.data was 1, now 8" in line and "\n" not in line
    assert "config.train.log_every_steps was 1, now 5" in line
    assert any("resuming from step 1" in each for each in said)


def test_a_claim_waits_for_one_who_only_asks(finished):
    workdir, _, _ = finished
    handle = os.open(workdir, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    timer = threading.Timer(0.3, os.close, [handle])
    timer.start()
    with claim(workdir, config(**WHOLE), overwrite=False):
        pass
    timer.join()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("status.json", "[]"),
        ("status.json", '{"state": "finished", "step": 3}'),
        ("data.json", "[]"),
        ("data.json", '{"train": 3}'),
        ("metrics.jsonl", "[]\n"),
        ("metrics.jsonl", '{"step": 1, "split": "train", "loss": "y"}\n'),
        ("metrics.jsonl", "[" * 9999 + "\n"),
    ],
)
def test_a_broken_file_of_a_run_is_one_line(finished, tmp_path, name, text):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    if name != "status.json":
        (workdir / "status.json").unlink()
    (workdir / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        train(config(**WHOLE), workdir, say=quietly)
    assert "\n" not in str(caught.value)


def test_a_resumed_run_counts_its_seconds_on(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "status.json").unlink()
    path = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    found = [{**each, "seconds": 1000.0} for each in found]
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    train(config(**WHOLE), workdir, say=quietly)
    assert json.loads((workdir / "status.json").read_text())["seconds"] >= 1000.0


def test_a_run_goes_on_from_before_a_damaged_checkpoint(tmp_path):
    changes = {"checkpoint__every_steps": 6, "mesh__data": 1}
    train(config(**changes), tmp_path, say=quietly)
    whole = losses(tmp_path)
    for path in (tmp_path / "checkpoints" / str(STEPS) / "params" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "status.json").unlink()  # as if it were not finished
    said = []
    train(config(**changes), tmp_path, say=said.append)
    text = "\n".join(said)
    assert f"checkpoint {STEPS} is damaged" in text and "resuming from step 18" in text
    assert (tmp_path / "damaged" / str(STEPS)).is_dir()
    np.testing.assert_array_equal(losses(tmp_path), whole)


def test_a_run_that_diverges_says_so_in_one_line(tmp_path, monkeypatch):
    from jaxlm.experiment import training

    def broken(task, apply):
        objective = original(task, apply)

        def losses(trainable, frozen, batch, key, step):
            found, measures = objective(trainable, frozen, batch, key, step)
            bad = jax.numpy.where(step >= 4, jax.numpy.nan, 1.0)
            return {
                name: each._replace(total=each.total * bad)
                for name, each in found.items()
            }, measures

        return losses

    original = training.task_objective
    monkeypatch.setattr(training, "task_objective", broken)
    changes = {"mesh__data": 1, "train__steps": 8, "checkpoint__every_steps": 2}
    with pytest.raises(UserError, match="the loss is nan by step 5") as caught:
        train(config(**changes), tmp_path, say=quietly)
    assert "learning_rate" in str(caught.value) and "\n" not in str(caught.value)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 5)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "2",
        "4",
    ]


def test_a_run_that_fails_says_how_far_it_came(tmp_path, monkeypatch):
    from jaxlm.experiment import training

    def failing(*_):
        def fail(state):
            raise RuntimeError("no more")

        return fail

    monkeypatch.setattr(training, "validate", failing)
    with pytest.raises(RuntimeError):
        train(config(mesh__data=1, train__steps=3), tmp_path, say=quietly)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 3)
    assert status["reason"] == "RuntimeError: no more"


def test_changed_labels_are_refused_rather_than_mixed(tmp_path):
    records = [
        {"id": "1", "tokens": ["Ada", "slept"], "labels": ["B-PER", "O"]},
        {"id": "2", "tokens": ["Rome", "burned"], "labels": ["B-LOC", "O"]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    workdir = tmp_path / "run"
    changes = {"data__train": str(path), "train__steps": 1, "mesh__data": 1}
    train(config(**changes), workdir, say=quietly)
    path.write_text(path.read_text().replace("B-LOC", "B-CITY"))
    (workdir / "status.json").unlink()
    with pytest.raises(UserError, match="labels changed .*CITY"):
        train(config(**changes), workdir, say=quietly)


def test_text_classification_trains_to_the_end(tmp_path):
    changes = {
        "data__train": "sample:topics[:40]",
        "data__validation": "sample:topics[:16]",
        "data__test": "sample:topics[:8]",
        "train__steps": 6,
    }
    metrics = train(config(CLASSIFY, **changes), tmp_path, say=quietly)
    assert 0 <= metrics["accuracy"] <= 1
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__max_length": 4096}, "config.data.max_length: 4096 is not allowed"),
        ({"mesh__data": 16}, "data=16"),
        ({"mesh__data": 1, "mesh__tensor": 8}, "config.mesh.tensor: 8"),
        ({"data__train": "sample:ner[:0]"}, "leaves nothing"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        train(config(**changes), tmp_path / "run", say=quietly)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("f1s", "'f1s' is not allowed; nearest: f1; auto is f1"),
        ("-PER/f2", "nearest: PER/f1"),
        ("tokens", "'tokens' is not allowed; one of auto, loss, precision, recall, f1"),
    ],
)
def test_a_metric_that_no_evaluation_gives_costs_no_old_run(tmp_path, metric, words):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    configs.write(tmp_path / "config.json", config(), configs.versions())
    made = config(evaluate__metric=metric, data__validation="")
    with pytest.raises(UserError, match=f"config.evaluate.metric: .*{words}"):
        train(made, tmp_path, overwrite=True, say=quietly)
    assert (tmp_path / "metrics.jsonl").exists()


def test_a_metric_that_validation_lacks_is_said(tmp_path, capsys):
    ada = {"id": "1", "tokens": ["Ada", "slept"], "labels": ["O", "O"]}
    made = config(mesh__data=1, train__steps=1, evaluate__metric="LOC/f1")
    made = dataclasses.replace(
        made, data=dataclasses.replace(made.data, validation=[ada])
    )
    train(made, tmp_path, say=quietly)
    assert "validation at step 1 has no LOC/f1" in capsys.readouterr().out


def test_more_rows_than_the_data_fill_are_not_made(tmp_path):
    made = config(mesh__data=1, train__steps=1, train__batch_size=2**20)
    assert train(made, tmp_path, say=quietly)["step"] == 1


def test_a_metric_of_validation_need_not_be_one_of_the_test_set(tmp_path):
    ada = {"id": "1", "tokens": ["Ada", "slept"], "labels": ["B-PER", "O"]}
    made = config(
        mesh__data=1, train__steps=1, data__validation="sample:ner[:4]",
        evaluate__metric="LOC/f1",
    )  # fmt: skip
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, test=[ada]))
    assert train(made, tmp_path, say=quietly)["step"] == 1


def test_records_in_memory_train_as_a_file_does(tmp_path):
    records = [
        {
            "id": str(n),
            "tokens": ["Ada", "saw", "Rome"],
            "labels": ["B-PER", "O", "B-LOC"],
        }
        for n in range(8)
    ]
    made = config(train__steps=1, mesh__data=1)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, train=records))
    assert train(made, tmp_path, say=quietly)["step"] == 1
