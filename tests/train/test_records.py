"""What a run writes down, and how it is read back."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.train.recorded import (
    first_and_last,
    read_confusion,
    read_metrics,
    read_results,
    read_status,
)
from jaxlm.train.records import RunRecords


@pytest.fixture
def records(tmp_path):
    with RunRecords(tmp_path) as records:
        yield records


def steps(records, split="train"):
    return [line["step"] for line in records.read() if line["split"] == split]


def event_tags(workdir):
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.session_log.status == 1:
                found.append((event.step, "START", None))
    return found


def test_a_line_is_on_disk_as_soon_as_it_is_appended(records, tmp_path):
    records.append(100, "train", loss=0.5)
    line = {"step": 100, "split": "train", "loss": 0.5}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == line


def test_values_that_are_not_finite_become_null(records, tmp_path):
    records.append(1, "train", loss=float("nan"), gradient_norm=np.float32("inf"))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert records.read()[0] == {
        "step": 1,
        "split": "train",
        "loss": None,
        "gradient_norm": None,
    }


def test_event_files_carry_the_same_scalars(records, tmp_path):
    records.append(3, "validation", f1=0.5, loss=float("nan"), **{"PER/f1": 0.25})
    records.close()
    assert event_tags(tmp_path) == [
        (3, "validation/f1", 0.5),
        (3, "validation/PER/f1", 0.25),
    ]


def test_rewind_drops_later_lines_of_training_and_validation(records):
    for step in (1, 2, 3):
        records.append(step, "train", loss=1.0)
        records.append(step, "validation", loss=1.0)
    records.append(3, "test", loss=1.0)
    records.rewind(2)
    records.append(3, "train", loss=0.5)
    assert steps(records) == [1, 2, 3]
    assert steps(records, "validation") == [1, 2]
    assert steps(records, "test") == [3]


def test_rewind_tells_tensorboard_to_hide_the_same_steps(records, tmp_path):
    records.append(3, "train", loss=1.0)
    records.rewind(2)
    records.append(3, "train", loss=0.5)
    records.close()
    assert event_tags(tmp_path) == [
        (3, "train/loss", 1.0),
        (3, "START", None),
        (3, "train/loss", 0.5),
    ]


def test_rewind_before_the_first_line_is_allowed(records):
    records.rewind(0)
    assert records.read() == []


def test_a_half_written_last_line_is_left_out_by_readers(records, tmp_path):
    records.append(1, "train", loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "spl')
    assert steps(records) == [1]


@pytest.mark.parametrize("half", ['{"step": 2, "spl', '{"text": "\\u00e9'])
def test_appending_after_a_half_written_line_mends_the_file(tmp_path, half):
    whole = '{"step": 1, "split": "train"}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + half)
    with RunRecords(tmp_path) as records:
        records.append(2, "train", loss=1.0)
    assert steps(records) == [1, 2]


def test_a_whole_last_line_without_its_line_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}')
    with RunRecords(tmp_path) as records:
        records.append(2, "train", loss=1.0)
    assert steps(records) == [1, 2]


@pytest.mark.parametrize(
    "broken", ["broken", "[]", "3", '{"step": 1}', '{"step": "1", "split": "train"}']
)
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    whole = '{"step": 1, "split": "train"}\n'
    (tmp_path / "metrics.jsonl").write_text(f"{whole}{broken}\n{whole}")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(tmp_path)


def test_status_is_read_back_with_process_and_time(records, tmp_path):
    records.write_status("failed", 12, 125, reason="loss is NaN", device="cpu")
    status = read_status(tmp_path)
    assert status["state"] == "failed" and status["reason"] == "loss is NaN"
    assert status["device"] == "cpu" and status["total_steps"] == 125
    assert {"pid", "host", "updated"} <= status.keys()


def test_facts_of_a_run_stand_in_every_status(tmp_path):
    facts = {"examples_per_step": 3.5}
    with RunRecords(tmp_path, facts=facts) as records:
        for state in ("running", "failed"):
            records.write_status(state, 12, 125, reason="loss is NaN")
            assert read_status(tmp_path)["examples_per_step"] == 3.5


def test_a_run_that_has_not_begun_has_no_status(tmp_path):
    assert read_status(tmp_path) is None


def test_results_are_read_back_in_order_of_split_and_step(records, tmp_path):
    records.write_results("validation", 100, {"f1": 0.5})
    records.write_results("validation", 20, {"f1": 0.25})
    records.write_results("test", 100, {"f1": float("nan")})
    assert read_results(tmp_path) == [
        {"step": 100, "split": "test", "f1": None},
        {"step": 20, "split": "validation", "f1": 0.25},
        {"step": 100, "split": "validation", "f1": 0.5},
    ]


def test_confusion_stands_beside_its_result(records, tmp_path):
    confusion = {"labels": ["a", "b"], "matrix": np.eye(2, dtype=np.int32)}
    records.write_results("test", 5, {"accuracy": 1.0, "confusion": confusion})
    assert read_results(tmp_path) == [{"step": 5, "split": "test", "accuracy": 1.0}]
    found = read_confusion(tmp_path, "test", 5)
    assert found == {"labels": ["a", "b"], "matrix": [[1, 0], [0, 1]]}


def test_first_and_last_pair_step_0_with_the_last_step(records, tmp_path):
    for step in (0, 10, 20):
        records.write_results("test", step, {"f1": step / 100})
    records.write_results("validation", 20, {"f1": 0.5})
    results = read_results(tmp_path)
    first, last = first_and_last(results, "test")
    assert (first["step"], last["step"]) == (0, 20)
    assert first_and_last(results, "validation")[0] == {}
    assert first_and_last(results, "train") == ({}, {})


def test_predictions_are_one_json_object_a_line(records):
    predictions = ({"id": str(n), "label": "é"} for n in range(2))
    path = records.write_predictions("test", 7, predictions)
    assert path.name == "test-7.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {"id": "1", "label": "é"}


def test_predictions_that_fail_midway_leave_no_file(records, tmp_path):
    def failing():
        yield {"id": "1"}
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        records.write_predictions("test", 7, failing())
    assert not list(tmp_path.glob("predictions/*"))


def test_reporting_imports_neither_jax_nor_torch():
    code = (
        "import sys; import jaxlm.train.progress, jaxlm.train.records,"
        " jaxlm.train.report; print({'jax', 'torch', 'tensorflow'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"state": 3, "step": 1}', '{"state": "running", "step": "x"}']
)
def test_a_status_of_another_shape_is_one_line(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json: "):
        read_status(tmp_path)


def test_a_result_of_another_shape_is_one_line(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "test-5.json").write_text("[]")
    with pytest.raises(UserError, match=r"test-5\.json: is not a JSON object"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "test-1.json",
            '{"f1": "high"}',
            "f1 is 'high', not a number; delete",
        ),
        ("test-1.json", '{"f1"', "broken JSON: .*; delete the file"),
        ("test-1.confusion.json", '{"labels": 5}', "not a confusion matrix; delete"),
        (
            "test-1.confusion.json",
            '{"labels": ["a"], "matrix": [["b"]]}',
            "not a confusion matrix; delete",
        ),
    ],
)
def test_a_result_of_other_values_is_one_line(tmp_path, name, text, words):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        read_results(tmp_path)
        read_confusion(tmp_path, "test", 1)


def test_records_of_a_further_process_write_nothing(tmp_path):
    with RunRecords(tmp_path, enabled=False) as records:
        records.append(1, "train", loss=1.0)
        records.rewind(0)
        records.write_results("test", 1, {"f1": 0.5, "confusion": {"labels": []}})
        records.write_predictions("test", 1, [{"id": "1"}])
        records.write_status("running", 1, 2)
    assert list(tmp_path.iterdir()) == []
