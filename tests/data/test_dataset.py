"""Records, their lengths, and windows that are made when they are asked for."""

import threading

import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.types import Features
from jaxlm.data import dataset
from jaxlm.data.dataset import Dataset, bytes_of
from jaxlm.data.lengths import cache_file


def encode_one(record, index):
    """Windows of at most three letters; of the word ``cut`` only the first."""
    word = record["word"]
    stop = 3 if record["cut"] else len(word)
    for place in range(0, stop, 3):
        letters = np.array([ord(letter) for letter in word[place : place + 3]])
        host = {"index": index, "window": place // 3, "truncated": record["cut"]}
        yield Features(tokens={"tokens": letters}, host=host)


RECORDS = [
    {"word": word, "cut": word == "cutoff", "source": f"{word}.txt:1"}
    for word in ("abcdefg", "cutoff", "x")
]
WORDS = ["abc", "def", "g", "cut", "x"]


class Counting:
    """``encode_one`` that notes which records it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, record, index):
        self.asked.append(index)
        return encode_one(record, index)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    return tmp_path / "lengths"


def word(window):
    return "".join(map(chr, window.tokens["tokens"]))


def test_windows_and_lengths_follow_the_order_of_records():
    data = Dataset(RECORDS, encode_one)
    assert data.lengths.tolist() == [3, 3, 1, 3, 1]
    assert data.table.examples.tolist() == [0, 0, 0, 1, 2]
    assert [window.host["index"] for window in data.windows] == [0, 0, 0, 1, 2]
    assert list(map(word, data.windows)) == WORDS
    assert data.tokens == 11


def test_windows_are_a_sequence():
    windows = Dataset(RECORDS, encode_one).windows
    assert len(windows) == 5
    assert word(windows[-2]) == "cut"
    with pytest.raises(IndexError):
        windows[5]


def test_truncated_examples_are_counted():
    assert Dataset(RECORDS, encode_one).truncated == 1


def test_no_records_make_an_empty_data_set():
    data = Dataset([], encode_one)
    assert (data.tokens, data.truncated, len(data.lengths)) == (0, 0, 0)


def test_small_data_is_encoded_only_once():
    counting = Counting()
    data = Dataset(RECORDS, counting)
    assert list(map(word, [*data.windows, *data.windows])) == WORDS * 2
    assert counting.asked == [0, 1, 2]


def test_the_records_encoded_last_are_kept_up_to_a_bound(monkeypatch):
    window = next(iter(encode_one(RECORDS[2], 2)))
    monkeypatch.setattr(dataset, "KEPT_BYTES", int(2.5 * bytes_of(window)))
    counting = Counting()
    data = Dataset(RECORDS, counting)
    assert word(data.windows[3]) + word(data.windows[4]) == "cutx"
    assert counting.asked == [0, 1, 2]
    assert word(data.windows[1]) == "def"  # three windows, that do not fit at all
    assert word(data.windows[4]) == "x"
    assert counting.asked == [0, 1, 2, 0, 2]


def test_a_window_is_weighed_with_all_that_it_is_made_of():
    small, large = (
        Features({"tokens": np.zeros(size, np.int32)}, host={"words": np.zeros(size)})
        for size in (10, 1010)
    )
    assert bytes_of(small) > 500  # objects cost more than the few numbers in them
    assert bytes_of(large) - bytes_of(small) == 1000 * (4 + 8)


def test_threads_may_ask_for_windows_at_once(monkeypatch):
    monkeypatch.setattr(dataset, "KEPT_BYTES", 20_000)
    records = [{"word": chr(65 + n % 50) * 4, "cut": False} for n in range(200)]
    data = Dataset(records, encode_one)
    wrong = []

    def read(seed):
        for place in np.random.default_rng(seed).integers(0, 400, 2000).tolist():
            expected = records[place // 2]["word"][: 1 if place % 2 else 3]
            if word(data.windows[place]) != expected:
                wrong.append(place)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    encoded = data.windows._encoded
    assert encoded._bytes == sum(size for _, size in encoded._kept.values()) <= 20_000


def test_an_error_of_the_task_is_not_the_end_of_the_windows():
    def broken(record, index):
        return encode_one(record, index) if index < 1 else [][0]

    with pytest.raises(IndexError):
        Dataset(RECORDS, broken)
    Dataset(RECORDS, encode_one, cached=True)
    data = Dataset(RECORDS, broken, cached=True)
    with pytest.raises(IndexError):
        list(data.windows)


def test_a_cached_table_spares_encoding(cache):
    Dataset(RECORDS, encode_one, encoding="a", cached=True)
    assert [file.name for file in cache.glob("*/*")] == [
        f"{Dataset(RECORDS, encode_one, encoding='a').content}.npz"
    ]
    counting = Counting()
    data = Dataset(RECORDS, counting, encoding="a", cached=True)
    assert (data.lengths.tolist(), data.truncated) == ([3, 3, 1, 3, 1], 1)
    assert counting.asked == []
    assert word(data.windows[3]) == "cut"
    assert counting.asked == [1]


def test_another_encoding_has_a_table_of_its_own(cache):
    for encoding in ("a", "b"):
        counting = Counting()
        Dataset(RECORDS, counting, encoding=encoding, cached=True)
        assert counting.asked == [0, 1, 2]
    assert len(list(cache.glob("*/*.npz"))) == 2


def test_nothing_is_cached_unless_asked_for(cache):
    Dataset(RECORDS, encode_one)
    assert not cache.exists()


def test_a_damaged_table_is_measured_again_and_mended(capsys):
    data = Dataset(RECORDS, encode_one, cached=True)
    file = cache_file(data.content)
    file.write_bytes(b"PK nothing")
    for expected in ([0, 1, 2], []):
        counting = Counting()
        found = Dataset(RECORDS, counting, cached=True)
        assert found.lengths.tolist() == data.lengths.tolist()
        assert counting.asked == expected
    assert capsys.readouterr().err.count("measured again") == 1


def test_a_cache_that_cannot_be_written_is_no_error(cache):
    cache.write_text("a file where the folder should be")
    assert Dataset(RECORDS, encode_one, cached=True).tokens == 11


@pytest.mark.parametrize(("place", "changed"), [(1, "abcdefgh"), (2, "abcdef")])
def test_a_stale_table_is_named_and_how_to_mend_it(place, changed):
    def of_today(record, index):
        return encode_one(record | {"word": changed} if index == 0 else record, index)

    file = cache_file(Dataset(RECORDS, encode_one, cached=True).content)
    data = Dataset(RECORDS, of_today, cached=True)
    with pytest.raises(UserError) as caught:
        list(data.windows)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and message.endswith("; delete the file")
    assert "abcdefg.txt:1" in message and "\n" not in message


def test_a_task_that_encodes_by_chance_is_refused(monkeypatch):
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    lengths = iter([2, 1])

    def by_chance(record, index):
        return [Features({"tokens": np.zeros(next(lengths), np.int32)})]

    data = Dataset(RECORDS[:1], by_chance)
    with pytest.raises(ValueError, match="abcdefg.txt:1: each time encoded to other"):
        data.windows[0]


def digest(records=RECORDS, encoding=""):
    return Dataset(records, encode_one, encoding=encoding).digest


def test_a_digest_changes_with_the_content_the_order_and_the_encoding():
    assert digest() == digest()
    first, *rest = RECORDS
    others = {
        digest(),
        digest(RECORDS[1:]),
        digest(RECORDS[::-1]),
        digest([first | {"word": "abcdefh"}, *rest]),
        digest([first | {"label": "abcdefg"}, *rest]),
        digest(encoding="a"),
    }
    assert len(others) == 6


def test_a_digest_changes_with_the_lengths_that_a_version_makes():
    def longer(record, index):
        yield from encode_one(record, index)
        yield from encode_one(record, index)

    same = Dataset(RECORDS, longer)
    assert same.content == Dataset(RECORDS, encode_one).content
    assert same.digest != digest()


def test_a_digest_is_deaf_to_where_records_are_from_and_to_the_order_of_fields():
    moved = [
        {"id": "7", "source": "b", "cut": each["cut"], "word": each["word"]}
        for each in RECORDS
    ]
    assert digest(moved) == digest()


def test_a_digest_tells_words_apart_however_they_are_joined():
    def digest_of(*words):
        window = Features({"tokens": np.zeros(1)})
        return Dataset([{"tokens": list(words)}], lambda *_: [window]).digest

    assert len({digest_of("a", "b"), digest_of("a b"), digest_of('a", "b')}) == 3
