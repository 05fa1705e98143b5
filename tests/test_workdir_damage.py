"""Damage in a workdir beside its checkpoints: one error or no harm, no wrong result."""

import shutil

import pytest

from jaxlm.core.errors import UserError
from jaxlm.experiment.runs import Run
from jaxlm.experiment.training import train
from tests.damages import DAMAGES, deleted, emptied, flipped, truncated
from tests.small_runs import ONE_LAYER, config, quietly
from tools.soak import arrays

pytestmark = pytest.mark.usefixtures("compiled_once")
STEPS = 4
SMALL = {
    "model__pretrained": ONE_LAYER,
    "data__train": "sample:ner[:16]",
    "data__validation": "sample:ner[:8]",
    "data__test": "sample:ner[:4]",
    "train__steps": STEPS,
    "train__batch_size": 4,
    "mesh__data": 1,
}
TEXT = ["Ada Lovelace left Paris for Rome in spring ."]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, and what it says of itself and of a text."""
    workdir = tmp_path_factory.mktemp("finished")
    metrics = train(config(**SMALL), workdir, say=quietly)
    run = Run(workdir)
    return workdir, metrics, run.metrics, run.predict(TEXT)


def damaged_copies(workdir, folder, damage):
    """A copy of the workdir for each file of it in turn, that file damaged."""
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if path.is_file() and name.parts[0] not in ("checkpoints", "tensorboard"):
            copy = folder / "run"
            shutil.copytree(workdir, copy)
            damage(copy / name)
            yield copy, str(name)
            shutil.rmtree(copy)


def one_line(problem, copy):
    assert "\n" not in str(problem) and str(copy) in str(problem), problem


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_of_a_finished_run_gives_a_wrong_result(
    finished, tmp_path, damage
):
    """Shown again by jaxlm.main, and read by evaluate, predict and the library."""
    workdir, metrics, shown, _ = finished
    refused = set()
    for copy, name in damaged_copies(workdir, tmp_path, damage):
        gone = damage is deleted and name.startswith(("results/", "status"))
        for look, wanted in ((again, metrics), (lambda c: Run(c).metrics, shown)):
            try:
                found = look(copy)
            except UserError as problem:
                refused.add(name)
                one_line(problem, copy)
            else:
                lost = set(found) <= {"step", "split"}
                # All figures; of the checksum's own key, a flip makes one more.
                assert wanted.items() <= found.items() or (gone and lost), name
    if damage in (emptied, truncated, flipped):
        wanted = {"config.json", "status.json", f"results/test-{metrics['step']}.json"}
        wanted |= {f"model/{each}.json" for each in ("config", "tokenizer", "labels")}
        assert wanted <= refused


def again(workdir):
    if not (workdir / "status.json").exists():  # then it ends anew; see below
        raise UserError(f"{workdir}: not finished")
    return train(config(**SMALL), workdir, say=quietly)


def damaged_halfway(workdir, copy, name, damage):
    """A run that was killed after its last step, a file of which is then damaged."""
    shutil.copytree(workdir, copy)
    (copy / "status.json").unlink()
    for path in (copy / "results").glob("test-*"):
        path.unlink()
    damage(copy / name)


@pytest.mark.parametrize("damage", [emptied, flipped, deleted])
@pytest.mark.parametrize(
    "name", ["config.json", "data.json", "metrics.jsonl", "model/labels.json"]
)
def test_a_run_goes_on_after_damage_to_the_same_result_or_an_error(
    finished, tmp_path, name, damage
):
    workdir, metrics, _, _ = finished
    copy, said = tmp_path / "run", []
    damaged_halfway(workdir, copy, name, damage)
    try:
        found = train(config(**SMALL), copy, say=said.append)
    except UserError as problem:
        assert damage is not deleted or name == "config.json"
        return one_line(problem, copy)
    assert found["f1"] == metrics["f1"] and found["loss"] == metrics["loss"]
    assert arrays(copy, STEPS) == arrays(workdir, STEPS)
    if name == "metrics.jsonl" and damage is not flipped:
        assert any("has no training line of step" in line for line in said)


@pytest.mark.parametrize("name", ["config", "tokenizer", "labels"])
def test_a_description_that_changed_is_refused_until_it_is_said_to_be_right(
    finished, tmp_path, name
):
    workdir, _, _, predicted = finished
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "model" / f"{name}.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=rf"{name}\.json: is not as the run wrote it"):
        Run(tmp_path / "run")
    (tmp_path / "run" / "model" / "digests.json").unlink()
    assert Run(tmp_path / "run").predict(TEXT) == predicted
