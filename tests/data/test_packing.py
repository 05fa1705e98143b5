"""Windows laid into rows, and cut out again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.types import Features
from jaxlm.data.packing import collate, cut
from jaxlm.data.plan import pack


def window(*ids, label=0):
    return Features(
        tokens={
            "tokens": np.array(ids, np.int32),
            "labels": np.array(ids, np.int32) * 10,
        },
        example={"label": np.int32(label), "weight": np.float32(label / 2)},
    )


ROWS = [[window(1, 2, 3, label=5), window(4, 5, label=6)], [window(6, label=7)]]
SIZES = {"length": 6, "segments": 2, "batch_size": 3}
FILLS = {"labels": -1, "label": -9}


@pytest.fixture
def batch():
    return collate(ROWS, like=ROWS[0][0], fills=FILLS, **SIZES)


EXPECTED = {
    "tokens": [[1, 2, 3, 4, 5, 0], [6, 0, 0, 0, 0, 0], [0] * 6],
    "labels": [[10, 20, 30, 40, 50, -1], [60, -1, -1, -1, -1, -1], [-1] * 6],
    "mask": [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
    "segments": [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0], [0] * 6],
    "positions": [[0, 1, 2, 0, 1, 0], [0] * 6, [0] * 6],
    "starts": [[0, 3], [0, 0], [0, 0]],
    "example_mask": [[1, 1], [1, 0], [0, 0]],
    "label": [[5, 6], [7, -9], [-9, -9]],
    "weight": [[2.5, 3], [3.5, 0], [0, 0]],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_field_of_a_packed_batch_is(batch, name):
    assert batch[name].tolist() == EXPECTED[name]


def test_a_batch_has_these_fields_and_no_other(batch):
    assert set(batch) == set(EXPECTED)


def test_fields_keep_the_dtypes_of_the_windows(batch):
    kinds = {name: value.dtype for name, value in batch.items()}
    assert kinds["weight"] == np.float32
    assert kinds["mask"] == kinds["example_mask"] == np.bool_
    for name in ("tokens", "labels", "segments", "positions", "starts", "label"):
        assert kinds[name] == np.int32


def test_no_rows_make_a_batch_of_padding():
    batch = collate([], like=ROWS[0][0], fills=FILLS, **SIZES)
    assert not batch["mask"].any()
    assert (batch["labels"] == -1).all()


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4))
def test_cutting_is_the_inverse_of_collating(lengths):
    rows = [[window(*range(1, n + 1), label=n) for n in row] for row in lengths]
    batch = collate(
        rows, like=window(1), fills=FILLS, length=20, segments=4, batch_size=4
    )
    outputs = {
        "tokens/tokens": batch["tokens"],
        "tokens/labels": batch["labels"],
        "example/label": batch["label"],
        "example/weight": batch["weight"],
    }
    for number, row in enumerate(rows):
        start = 0
        for place, each in enumerate(row):
            part = cut(outputs, number, place, start, each.length)
            for name, value in {**each.tokens, **each.example}.items():
                assert np.array_equal(part[name], value)
            start += each.length


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.randoms())
def test_a_batch_says_by_itself_where_every_window_lies(lengths, random):
    ids = iter(range(1, 1 + sum(lengths)))  # no token twice
    windows = [window(*(next(ids) for _ in range(n)), label=n) for n in lengths]
    order = list(range(len(windows)))
    random.shuffle(order)
    rows = pack(np.array(lengths), np.array(order), 12)
    batch = collate(
        [[windows[index] for index in row] for row in rows],
        like=windows[0], fills=FILLS, length=12, segments=13, batch_size=len(rows) + 1,
    )  # fmt: skip
    found = []
    for row, (segments, starts) in enumerate(
        zip(batch["segments"], batch["starts"], strict=True)
    ):
        for place in range(segments.max()):
            [inside] = np.nonzero(segments == place + 1)
            assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
            assert starts[place] == inside[0]
            assert batch["positions"][row][inside].tolist() == list(range(len(inside)))
            assert batch["label"][row][place] == len(inside)
            found.append(batch["tokens"][row][inside].tolist())
        assert batch["example_mask"][row].tolist() == [
            place < segments.max() for place in range(13)
        ]
    assert sorted(found) == [each.tokens["tokens"].tolist() for each in windows]
    assert (batch["mask"] == (batch["segments"] > 0)).all()
    for name, padding in {"tokens": 0, "labels": -1, "positions": 0}.items():
        assert (batch[name][~batch["mask"]] == padding).all()
