"""A disk that is full at the worst moments: what was saved stays, and a reason is said.

The disk is real, a small tmpfs, and so is what the system says when it is full.
"""

import json
import os
import shutil
import subprocess

import pytest

from jaxlm.core.door import machine_trouble
from jaxlm.experiment import ending
from jaxlm.experiment.training import train
from jaxlm.train.checkpoints import Checkpoints
from jaxlm.train.events import Events
from jaxlm.train.records import RunRecords
from jaxlm.train.saving import NotSaved, Saving
from tests.conftest import LEFTOVERS
from tests.small_runs import ONE_LAYER, config, quietly
from tools.soak import arrays, files, lines

pytestmark = [pytest.mark.usefixtures("compiled_once"), *LEFTOVERS]
STEPS = 8
SMALL = {
    "model__pretrained": ONE_LAYER,
    "data__train": "sample:ner[:24]",
    "data__validation": "sample:ner[:8]",
    "train__steps": STEPS,
    "train__batch_size": 4,
    "evaluate__every_steps": 4,
    "checkpoint__every_steps": 2,
    "mesh__data": 1,
}
FULL = "No space left on device"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Disk:
    """A file system of a few megabytes that can be filled up."""

    def __init__(self, folder):
        self.folder, self._rest = folder, folder / "rest"

    def fill(self):
        with open(self._rest, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as problem:
                assert os.strerror(problem.errno) == FULL

    def free(self):
        self._rest.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size=8m,uid={os.getuid()}", "tmpfs"]
    for who in ([], ["sudo", "-n"]):
        if shutil.which((who or mount)[0]) is None:
            continue
        done = subprocess.run([*who, *mount, folder], capture_output=True, text=True)
        if done.returncode == 0:
            yield Disk(folder)
            subprocess.run([*who, "umount", "--lazy", folder], check=True)
            return
    pytest.skip("no tmpfs can be mounted here: a full disk is not tested")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that had all the space it wanted."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config(**SMALL), workdir, say=quietly)
    return workdir


@pytest.fixture(autouse=True)
def saved_at_once(monkeypatch):
    """In the background, a save would meet a disk that is full for something else."""
    begin = Saving.begin
    monkeypatch.setattr(
        Saving, "begin", lambda self, *given: (begin(self, *given), self.settle())
    )


def full_at(disk, monkeypatch, owner, name, number):
    """The disk is full during the n-th call of a function, and not after it."""
    original, calls = getattr(owner, name), []

    def called(*given, **named):
        calls.append(name)
        if len(calls) != number:
            return original(*given, **named)
        disk.fill()
        try:
            return original(*given, **named)
        finally:
            disk.free()

    monkeypatch.setattr(owner, name, called)


def status(workdir):
    return json.loads((workdir / "status.json").read_text())


def assert_same(workdir, whole):
    assert status(workdir)["state"] == "finished"
    assert arrays(workdir, STEPS) == arrays(whole, STEPS)
    assert lines(workdir) == lines(whole)
    assert files(workdir).keys() == files(whole).keys()


@pytest.mark.parametrize(
    ("owner", "name", "number", "file", "resumed"),
    [
        (Checkpoints, "save", 3, "checkpoints/6", 4),
        (RunRecords, "write_predictions", 2, "predictions/validation-4.jsonl", 2),
        slow(Checkpoints, "save", 4, "checkpoints/8", 6),
        slow(RunRecords, "write_results", 2, "results/validation-4.confusion.json", 2),
        slow(RunRecords, "write_status", 3, "status.json", 4),
    ],
)
def test_a_full_disk_stops_a_run_that_then_goes_on_to_the_same_bits(
    whole, disk, monkeypatch, owner, name, number, file, resumed
):
    workdir = disk.folder / "run"
    with monkeypatch.context() as patch:
        full_at(disk, patch, owner, name, number)
        with pytest.raises((OSError, NotSaved)) as caught:
            train(config(**SMALL), workdir, say=quietly)
    reason = machine_trouble(caught.value) or str(caught.value)
    assert f"{workdir}/{file}: " in reason and FULL in reason and "again" in reason
    assert status(workdir)["state"] == "failed" and FULL in status(workdir)["reason"]
    said = []
    train(config(**SMALL), workdir, say=said.append)
    assert f"resuming from step {resumed} of {STEPS}" in said
    assert_same(workdir, whole)


@pytest.mark.parametrize(
    ("owner", "name", "number", "file"),
    [
        (Checkpoints, "save", 3, "checkpoints/6"),
        slow(RunRecords, "write_status", 3, "status.json"),
    ],
)
def test_a_run_that_is_to_go_on_says_what_is_missing_and_ends_the_same(
    whole, disk, monkeypatch, owner, name, number, file
):
    workdir, said = disk.folder / "run", []
    full_at(disk, monkeypatch, owner, name, number)
    train(config(**SMALL, checkpoint__on_error="go_on"), workdir, say=said.append)
    told = [line for line in said if FULL in line]
    assert len(told) == 1 and f"{workdir}/{file} is not " in told[0]
    assert "training goes on" in told[0]
    assert_same(workdir, whole)


def test_a_run_that_goes_on_still_needs_its_last_checkpoint(whole, disk, monkeypatch):
    workdir, said = disk.folder / "run", []
    made = config(**SMALL, checkpoint__on_error="go_on")
    save, steps = Checkpoints.save, []

    def full_from_the_third(self, *given):
        steps.append(len(steps))
        if len(steps) == 3:
            disk.fill()
        return save(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full_from_the_third)
        with pytest.raises(NotSaved, match="checkpoints/8: cannot be saved: No space"):
            train(made, workdir, say=said.append)
    told = [line for line in said if FULL in line]
    assert sum("checkpoints/6" in line for line in told) == 1
    assert any(f"{workdir}/predictions/validation-8.jsonl" in line for line in told)
    disk.free()
    train(made, workdir, say=said.append)
    assert f"resuming from step 4 of {STEPS}" in said
    assert_same(workdir, whole)


def test_a_disk_that_stays_full_does_not_hide_the_reason(disk, monkeypatch):
    """status.json, too, cannot be written any more."""
    workdir, said = disk.folder / "run", []
    write = RunRecords.write_results

    def full(self, *given):
        disk.fill()
        return write(self, *given)

    monkeypatch.setattr(RunRecords, "write_results", full)
    with pytest.raises(
        OSError, match=f"{FULL}: '.*results/validation-0.confusion.json'"
    ):
        train(config(**SMALL), workdir, say=said.append)
    assert f"{workdir}/status.json is not written: {FULL}" in said


def test_a_report_that_cannot_be_written_ends_no_run(whole, disk, monkeypatch):
    workdir, said = disk.folder / "run", []
    with monkeypatch.context() as patch:
        full_at(disk, patch, ending, "write_report", 1)
        train(config(**SMALL), workdir, say=said.append)
    assert f"report: not written ({workdir}/report.html: {FULL}); the same" in said[-1]
    assert_same(workdir, whole)
    assert not (workdir / "report.html").exists()
    train(config(**SMALL), workdir, say=quietly)
    assert (workdir / "report.html").exists()


def test_event_files_that_cannot_be_written_end_no_run(whole, disk, monkeypatch):
    """Nor do they hang one, as the thread of tensorboardX does."""
    workdir, said, add = disk.folder / "run", [], Events.add

    def full(self, *given):
        disk.fill()
        try:
            add(self, *given)
        finally:
            disk.free()

    monkeypatch.setattr(Events, "add", full)
    train(config(**SMALL), workdir, say=said.append)
    told = [line for line in said if FULL in line]
    assert len(told) == 1 and "tensorboard is not written" in told[0]
    assert_same(workdir, whole)


def test_no_line_of_metrics_is_torn(disk):
    """They are appended to until the page is full, and more is wanted."""
    disk.fill()
    (disk.folder / "metrics.jsonl").touch()
    with RunRecords(disk.folder) as records, pytest.raises(OSError, match=FULL):
        disk.free()
        records.append(1, "train", note=0.5)
        disk.fill()
        for step in range(2, 1000):
            records.append(step, "train", loss=0.5)
    text = (disk.folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") and len(records.read()) == len(text.splitlines())


def test_lines_of_a_run_that_goes_on_wait_for_space(disk):
    said = []
    with RunRecords(disk.folder, go_on=True, say=said.append) as records:
        records.append(1, "train", loss=0.5)
        disk.fill()
        for step in range(2, 200):
            records.append(step, "train", loss=0.5)
        assert 1 < len(records.read()) < 199
        disk.free()
        records.append(200, "train", loss=0.5)
        assert [line["step"] for line in records.read()] == list(range(1, 201))
    assert sum("metrics.jsonl is not written" in line for line in said) == 1
