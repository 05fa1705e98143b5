"""What a workdir holds, whose it is, and what a second start makes of it."""

import fcntl
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxlm.core import config as configs
from jaxlm.core.errors import UserError
from jaxlm.experiment.training import train
from jaxlm.experiment.workdir import OURS, claim, empty
from tests.small_runs import ONE_LAYER, config, lines, losses, quietly

pytestmark = pytest.mark.usefixtures("compiled_once")
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
    made = config(train__steps=1, mesh__data=1)
    train(made, tmp_path, overwrite=True, say=said.append)
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


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for workdir in ("runs/a/b", "mine/c"):
        with pytest.raises(UserError), claim(tmp_path / workdir, config(), False):
            raise UserError("the data is empty")
    assert [str(each.name) for each in tmp_path.rglob("*")] == ["mine"]


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


def test_changed_labels_are_refused_rather_than_mixed(tmp_path):
    records = [
        {"id": "1", "tokens": ["Ada", "slept"], "labels": ["B-PER", "O"]},
        {"id": "2", "tokens": ["Rome", "burned"], "labels": ["B-LOC", "O"]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    workdir = tmp_path / "run"
    changes = {"data__train": str(path), "train__steps": 1, "mesh__data": 1}
    changes["model__pretrained"] = ONE_LAYER
    train(config(**changes), workdir, say=quietly)
    path.write_text(path.read_text().replace("B-LOC", "B-CITY"))
    (workdir / "status.json").unlink()
    with pytest.raises(UserError, match="labels changed .*CITY"):
        train(config(**changes), workdir, say=quietly)


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
