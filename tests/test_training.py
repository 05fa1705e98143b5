"""Whole runs on eight fake devices: layouts agree, and what a run is given counts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import make_mesh
from jaxlm.experiment.prepare import describe, describe_on_disk, prepare
from jaxlm.experiment.training import train
from jaxlm.experiment.wiring import make_parts
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.tasks.token_classification import TokenClassification
from tests.small_runs import CLASSIFY, NER, STEPS, config, lines, losses, quietly

pytestmark = pytest.mark.usefixtures("compiled_once")


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
    from jaxlm.experiment import ahead

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

    original = ahead.task_objective
    monkeypatch.setattr(ahead, "task_objective", broken)
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


# One word has several labels, so that its place counts; words of several tokens stand
# before others, so that a label on a wrong token shows.
TAGGED = [
    ("Jordan saw Unbelievably Jordan leave Jordan", "B-PER O O B-PER O B-LOC"),
    ("New Jordan beat Washingtonian Jordan Jordan", "B-ORG I-ORG O O B-LOC B-PER"),
]
TEXTS = [
    ("it was a good film", "good"),
    ("it was a bad film , wasn't it ?", "bad"),
]
MEMORISED = {
    NER: [
        {"id": tokens, "tokens": tokens.split(), "labels": labels.split()}
        for tokens, labels in TAGGED
    ],
    CLASSIFY: [{"id": text, "text": text, "label": label} for text, label in TEXTS],
}


@pytest.mark.parametrize("file", MEMORISED)
def test_two_examples_are_memorised_at_batch_size_one(tmp_path, file):
    made = config(
        file, mesh__data=1, data__packing=False, train__batch_size=1,
        train__steps=40, model__dropout=0.0, optimizer__learning_rate=3e-3,
        evaluate__every_epochs=99,
    )  # fmt: skip
    examples = MEMORISED[file]
    data = dataclasses.replace(made.data, train=examples, test=examples)
    metrics = train(dataclasses.replace(made, data=data), tmp_path, say=quietly)
    assert metrics["accuracy"] == metrics["macro_f1"] == 1
    assert [line["accuracy"] for line in lines(tmp_path)[-2:]] == [1, 1]
    assert metrics["loss"] < 0.2  # as sure as one is of what is known by heart


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
