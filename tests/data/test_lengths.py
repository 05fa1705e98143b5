"""The table of lengths: what is measured, and what is kept of it on disk."""

import os
import shutil

import numpy as np
import pytest
import tokenizers

import jaxlm
from jaxlm.core.types import Features
from jaxlm.data import lengths
from jaxlm.data.lengths import Table, cache_file, measure, read_table, write_table

DIGEST = "d" * 64
TABLE = Table(np.array([3, 9, 4, 5], np.int32), np.array([0, 0, 1, 2]), truncated=1)
ARRAYS = {
    "digest": np.array(DIGEST),
    "lengths": TABLE.lengths,
    "examples": TABLE.examples,
    "truncated": np.int64(1),
}


def window(length, **host):
    return Features(tokens={"tokens": np.zeros(length, np.int32)}, host=host)


def equal(left, right):
    return (
        np.array_equal(left.lengths, right.lengths)
        and np.array_equal(left.examples, right.examples)
        and left.truncated == right.truncated
    )


def test_every_window_is_measured_and_known_by_its_record():
    cut = {"truncated": True}
    table = measure([[window(3), window(9)], [window(4, **cut)], [window(5)]])
    assert equal(table, TABLE)
    assert (table.lengths.dtype, table.examples.dtype) == (np.int32, np.int64)


def test_a_record_knows_where_its_windows_begin_and_end():
    assert TABLE.starts.tolist() == [0, 2, 3, 4]


def test_no_records_have_an_empty_table():
    table = measure([])
    assert (len(table.lengths), table.starts.tolist()) == (0, [0])


def test_a_record_without_a_window_is_refused():
    with pytest.raises(ValueError, match="record 1 was encoded to no window"):
        measure([[window(3)], []])


def test_a_table_is_kept_in_the_cache_under_its_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    file = cache_file(DIGEST)
    version = f"jaxlm-{jaxlm.__version__}-tokenizers-{tokenizers.__version__}"
    assert file == tmp_path / "lengths" / version / f"{DIGEST}.npz"
    write_table(file, DIGEST, TABLE)
    assert equal(read_table(file, DIGEST, 3), TABLE)
    assert os.listdir(file.parent) == [file.name]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(lengths, "cache_directory", homeless)
    assert cache_file(DIGEST) is None


def test_a_table_that_was_never_measured_is_none_without_a_word(tmp_path, capsys):
    assert read_table(tmp_path / "a.npz", DIGEST, 3) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kept", [0, 1, 200, 900, -1])
def test_a_file_that_is_cut_short_is_none_and_said(tmp_path, capsys, kept):
    file = tmp_path / "a.npz"
    write_table(file, DIGEST, TABLE)
    file.write_bytes(file.read_bytes()[:kept])
    assert read_table(file, DIGEST, 3) is None
    said = capsys.readouterr().err
    assert said.startswith(f"{file}: not the lengths of this data set")
    assert said.endswith("measured again\n")


def test_a_flipped_bit_is_seen_or_changes_nothing(tmp_path):
    file = tmp_path / "a.npz"
    write_table(file, DIGEST, TABLE)
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        found = read_table(file, DIGEST, 3)
        assert found is None or equal(found, TABLE)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": np.array("e" * 64)},
        {"lengths": TABLE.lengths[:3]},
        {"lengths": -TABLE.lengths},
        {"lengths": TABLE.lengths.astype(np.float32)},
        {"lengths": np.array([None] * 4)},
        {"examples": np.array([0, 0, 1, 3])},
        {"examples": np.array([0, 0, 1, 1])},
        {"examples": np.array([0, 1, 0, 2])},
        {"truncated": np.int64(4)},
        {"truncated": np.array([1])},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_file_of_other_content_is_none_and_said(tmp_path, capsys, change):
    file = tmp_path / "a.npz"
    np.savez(file, **(ARRAYS | change))
    assert read_table(file, DIGEST, 3) is None
    assert "measured again" in capsys.readouterr().err


def test_a_file_that_lacks_an_array_or_is_one_is_none(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, digest=ARRAYS["digest"])
    assert read_table(file, DIGEST, 3) is None
    np.save(tmp_path / "a.npy", TABLE.lengths)
    shutil.move(tmp_path / "a.npy", file)
    assert read_table(file, DIGEST, 3) is None


def test_a_table_that_cannot_be_kept_is_no_error(tmp_path):
    (tmp_path / "lengths").write_text("a file where the folder should be")
    write_table(tmp_path / "lengths" / "a.npz", DIGEST, TABLE)
    (tmp_path / "a.npz").mkdir()
    write_table(tmp_path / "a.npz", DIGEST, TABLE)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "lengths"]
