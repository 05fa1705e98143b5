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


@pytest.mark.parametrize(
    "shard", ["../one.safetensors", "/one.safetensors", "a\\one.safetensors", "one.bin"]
)
def test_shards_beyond_the_folder_are_refused(tmp_path, shard):
    write_shards(tmp_path, {"one.safetensors": {"a": np.arange(3)}}, {"a": shard})
    with pytest.raises(UserError, match="must be a .safetensors file beside the index"):
        open_weights(tmp_path)


def test_an_absent_shard_is_named(tmp_path):
    write_shards(tmp_path, {}, {"a": "one.safetensors"})
    with pytest.raises(UserError, match=r"shard 'one\.safetensors' is absent"):
        open_weights(tmp_path)


def test_a_tensor_absent_from_its_shard_is_named(tmp_path):
    shards = {"one.safetensors": {"a": np.arange(3)}}
    write_shards(tmp_path, shards, dict.fromkeys("abc", "one.safetensors"))
    with pytest.raises(UserError, match=r"'b' is not in 'one.*nor are 1 others"):
        open_weights(tmp_path)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_weight_map_is_refused(tmp_path, index):
    (tmp_path / ours.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="weight_map must be an object"):
        open_weights(tmp_path)


def test_pickles_are_refused_with_the_way_to_convert(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="never read.*save_pretrained"):
        open_weights(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors.*check the folder"):
        open_weights(tmp_path)


BROKEN = {
    "empty file": (b"", "0 bytes cannot hold the header"),
    "cut in the length": (b"\1\0", "cut off"),
    "length beyond the file": (pack({}, length=1000), "cut off"),
    "enormous length": (pack({}, length=2**63), "cut off"),
    "no json": (pack(b"{"), "not JSON"),
    "no utf-8": (pack(b'{"\xff":1}'), "not JSON"),
    "too deep": (pack(b"[" * 100_000), "not JSON"),
    "no object": (pack([]), "must be a JSON object"),
    "name twice": (pack(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry": (pack({"a": 1}), "'a' must have exactly"),
    "missing key": (pack({"a": {"dtype": "U8", "shape": []}}), "'a' must have exactly"),
    "dtype": (pack({"a": tensor(0, 1, "F7")}, b"1"), "'a' has dtype 'F7'"),
    "dtype list": (pack({"a": {**tensor(0, 1), "dtype": []}}, b"1"), "'a' has dtype"),
    "shape": (pack({"a": tensor(0, 1, shape=[-1])}, b"1"), "'a' has shape"),
    "true shape": (pack({"a": tensor(0, 1, shape=[True])}, b"1"), "'a' has shape"),
    "float shape": (pack({"a": tensor(0, 1, shape=[1.0])}, b"1"), "'a' has shape"),
    "backwards": (pack({"a": tensor(1, 0, shape=[1])}, b"1"), "'a' has data_offsets"),
    "negative": (pack({"a": tensor(-1, 0)}, b"1"), "'a' has data_offsets"),
    "size": (pack({"a": tensor(0, 1, "F32", [1])}, b"1"), r"'a' has 1 bytes.*takes 4"),
    "huge shape": (pack({"a": tensor(0, 0, shape=[2**62, 4])}), "'a' has 0 bytes"),
    "truncated": (pack({"a": tensor(0, 9)}, b"12345678"), "'a' ends at byte .*cut off"),
    "overlap": (pack({"a": tensor(0, 2), "b": tensor(1, 3)}, b"123"), "'b' overlaps"),
    "hole": (
        pack({"a": tensor(0, 1), "b": tensor(2, 3)}, b"123"),
        "'b' follows a hole",
    ),
    "hole at the start": (pack({"a": tensor(1, 2)}, b"12"), "'a' follows a hole"),
    "trailing": (pack({"a": tensor(0, 1)}, b"12"), "1 bytes after the last"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_fault(tmp_path, content, message):
    path = tmp_path / ours.SINGLE
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_weights(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


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
