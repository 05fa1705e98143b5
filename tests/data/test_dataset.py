"""Records and the windows that they were encoded to."""

import numpy as np

from jaxlm.core.types import Features
from jaxlm.data.dataset import by_example, encode


def encode_one(record, index):
    """Windows of at most three letters; of the word ``cut`` only the first."""
    word = record["word"]
    stop = 3 if record["cut"] else len(word)
    for place in range(0, stop, 3):
        letters = np.array([ord(letter) for letter in word[place : place + 3]])
        host = {"index": index, "window": place // 3, "truncated": record["cut"]}
        yield Features(tokens={"tokens": letters}, host=host)


RECORDS = [
    {"word": word, "cut": word == "cutoff"} for word in ("abcdefg", "cutoff", "x")
]


def test_windows_and_lengths_follow_the_order_of_records():
    data = encode(RECORDS, encode_one)
    assert data.lengths.tolist() == [3, 3, 1, 3, 1]
    assert [window.host["index"] for window in data.windows] == [0, 0, 0, 1, 2]
    assert data.tokens == 11


def test_truncated_examples_are_counted():
    assert encode(RECORDS, encode_one).truncated == 1


def test_a_digest_changes_with_the_data_and_with_nothing_else():
    data = encode(RECORDS, encode_one)
    assert data.digest == encode(RECORDS, encode_one).digest
    assert data.digest != encode(RECORDS[1:], encode_one).digest
    assert data.digest != encode(RECORDS[::-1], encode_one).digest


def one_field(name, value):
    """A data set of one window with one per-example field."""
    window = Features(
        tokens={"tokens": np.array([7])}, example={name: value}, host={"index": 0}
    )
    return encode([{}], lambda record, index: [window])


def test_a_digest_changes_with_a_name_a_dtype_or_a_shape_of_equal_bytes():
    digests = {
        one_field("label", np.zeros(2, np.int32)).digest,
        one_field("other", np.zeros(2, np.int32)).digest,
        one_field("label", np.zeros(2, np.float32)).digest,
        one_field("label", np.zeros((1, 2), np.int32)).digest,
    }
    assert len(digests) == 4


def test_no_records_make_an_empty_data_set():
    data = encode([], encode_one)
    assert (data.tokens, data.truncated, len(data.lengths)) == (0, 0, 0)


def test_windows_are_grouped_by_their_example():
    windows = encode(RECORDS, encode_one).windows
    shuffled = [windows[place] for place in (4, 0, 3, 1, 2)]
    assert list(by_example(shuffled)) == [(0, [1, 3, 4]), (1, [2]), (2, [0])]
