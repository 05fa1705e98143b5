import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core import safetensors as ours
from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import open_weights, write

TENSORS = {
    "matrix": np.arange(24, dtype=np.float32).reshape(4, 6),
    "scalar": np.array(2.5, np.float64),
    "empty": np.zeros((0, 3), np.int64),
    "half": np.arange(5).astype(np.float16),
    "brain": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False, True]),
    "bytes": np.arange(3, dtype=np.uint8),
}


def pack(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start, stop, dtype="U8", shape=None):
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write_shards(folder, shards, weight_map=None):
    names = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        write(folder / file, tensors)
    index = {"metadata": {}, "weight_map": weight_map or names}
    (folder / ours.INDEX).write_text(json.dumps(index))


def equal(left, right):
    same = left.dtype == right.dtype and left.shape == right.shape
    return same and left.tobytes() == right.tobytes()


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / ours.SINGLE, TENSORS)
    weights = open_weights(tmp_path)
    assert set(weights.names) == set(TENSORS)
    for name, value in TENSORS.items():
        assert (weights.shape(name), weights.dtype(name)) == (value.shape, value.dtype)
        assert equal(weights.read(name), value)


def test_reads_equal_the_safetensors_library(tmp_path):
    plain = {name: value for name, value in TENSORS.items() if name != "brain"}
    safetensors.numpy.save_file(plain, tmp_path / ours.SINGLE)
    loaded = safetensors.numpy.load_file(tmp_path / ours.SINGLE)
    weights = open_weights(tmp_path)
    assert all(equal(weights.read(name), value) for name, value in loaded.items())


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    write(tmp_path / "a.safetensors", {"t": TENSORS["matrix"].T}, {"made": "here"})
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}
        assert equal(file.get_tensor("t"), np.array(TENSORS["matrix"].T, order="C"))


@pytest.mark.parametrize(
    "part", [2, slice(1, 3), (slice(None), 4), (..., slice(0, 6, 2)), (3, 5), ...]
)
def test_a_slice_is_read_as_numpy_cuts_it(tmp_path, part):
    write(tmp_path / ours.SINGLE, TENSORS)
    found = open_weights(tmp_path).read("matrix", part)
    assert equal(found, np.array(TENSORS["matrix"][part]))


def test_what_is_read_can_be_written_to(tmp_path):
    write(tmp_path / ours.SINGLE, TENSORS)
    weights = open_weights(tmp_path)
    weights.read("matrix")[0, 0] = 7
    assert weights.read("matrix")[0, 0] == 0


def test_unaligned_data_is_read(tmp_path):
    header = {"a": tensor(0, 1), "b": tensor(1, 5, "BF16", [2])}
    value = np.array([1.5, -2], ml_dtypes.bfloat16)
    (tmp_path / "a.safetensors").write_bytes(pack(header, b"\0" + value.tobytes()))
    assert equal(open_weights(tmp_path / "a.safetensors").read("b"), value)


def test_shards_are_read_through_their_index(tmp_path):
    shards = {
        "model-00001-of-00002.safetensors": {"a": np.arange(3)},
        "model-00002-of-00002.safetensors": {"b": np.arange(4), "c": np.arange(5)},
    }
    write_shards(tmp_path, shards)
    weights = open_weights(tmp_path)
    assert weights.names == ("a", "b", "c")
    assert weights.read("c").tolist() == [0, 1, 2, 3, 4]


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path):
    folder = tmp_path / "snapshot"
    write_shards(folder, {"one.safetensors": {"a": np.arange(3)}})
    (folder / "one.safetensors").rename(tmp_path / "blob")
    (folder / "one.safetensors").symlink_to(tmp_path / "blob")
    assert open_weights(folder).read("a").tolist() == [0, 1, 2]


def test_a_header_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "MAX_HEADER_BYTES", 10)
    write(tmp_path / ours.SINGLE, TENSORS)
    with pytest.raises(UserError, match="at most 10"):
        open_weights(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / ours.SINGLE
    write(path, TENSORS)
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_reads_within_the_file(
    tmp_path_factory, sound, data
):
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged)
    try:
        weights = open_weights(path)
    except UserError as error:
        assert "damaged.safetensors" in str(error)
    else:
        for name in weights.names:
            assert weights.read(name).shape == weights.shape(name)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / ours.SINGLE, TENSORS)
    assert list(tmp_path.iterdir()) == []
