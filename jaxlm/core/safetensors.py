"""Safetensors files: weights read by name and by slice, headers never trusted.

The format is 8 bytes of header length, a JSON header of dtypes, shapes and byte ranges,
then the data (https://huggingface.co/docs/safetensors). A model is one such file, or
several with an index that says which file holds which tensor.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
MOST_AXES = 32

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}

Slice = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


class Tensors(Protocol):
    """Tensors on disk, by name, whatever format they are in; dtypes are NumPy's."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, name: str, slice: Slice | None = None) -> np.ndarray:
        """A tensor, or the part of it that basic indexing names."""
        ...


class Entry(NamedTuple):
    """Where one tensor lies: bytes ``start`` to ``stop`` of its file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class WeightFiles:
    """The tensors of a model on disk; nothing is read before ``read`` asks for it."""

    def __init__(self, entries: Mapping[str, Entry]):
        self._entries = dict(entries)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name].dtype

    def read(self, name: str, slice: Slice | None = None) -> np.ndarray:
        """A tensor, or the part of it that basic indexing names, in memory of its own.

        Only the pages of the file that the slice touches are read.
        """
        entry = self._entries[name]
        part = ... if slice is None else slice
        if entry.start == entry.stop:
            return np.zeros(entry.shape, entry.dtype)[part]
        # As unsigned integers: extension dtypes cannot be copied from unaligned bytes.
        raw = np.memmap(
            entry.file,
            dtype=f"<u{entry.dtype.itemsize}",
            mode="r",
            offset=entry.start,
            shape=entry.shape,
        )
        return np.array(raw[part], order="C").view(entry.dtype)


def open_weights(path: str | os.PathLike[str]) -> WeightFiles:
    """Check and index the weights of a model folder, or of one ``.safetensors`` file.

    Raises UserError naming the file, the tensor and the fault.
    """
    path = Path(path)
    if path.is_file():
        return WeightFiles(read_header(path))
    if (path / SINGLE).is_file():
        return WeightFiles(read_header(path / SINGLE))
    if (path / INDEX).is_file():
        return WeightFiles(_read_shards(path / INDEX))
    for name in (SINGLE, INDEX):
        if (path / name).is_symlink():
            raise UserError(
                f"{path / name}: a broken link, to {os.readlink(path / name)}; mend it,"
                " or fetch the model again"
            )
    raise UserError(
        f"{path}: no {SINGLE} or {INDEX}, and no pytorch_model.bin or one *.gguf; check"
        " the folder, or fetch the model again"
    )


def has_safetensors(folder: Path) -> bool:
    """Whether a model's folder has weights that ``open_weights`` reads."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file atomically.

    ``metadata`` is added to ``{"format": "pt"}``, which transformers insists on.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    # save_file takes raw pointers: a transposed view would be written in wrong order.
    dense = {name: _dense(tensor) for name, tensor in tensors.items()}
    try:
        save_file(dense, temporary, {"format": "pt", **(metadata or {})})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _dense(tensor: np.ndarray) -> np.ndarray:
    # Not ascontiguousarray, which turns a scalar into a vector of one.
    return np.asarray(tensor, order="C")


def read_header(file: Path) -> dict[str, Entry]:
    """The entries of one safetensors file, in the order of their bytes."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        prefix = handle.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or 8 + length > size:
            raise UserError(f"{file}: {_why_no_header(prefix, size)}")
        if length > MAX_HEADER_BYTES:
            raise UserError(
                f"{file}: header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        header = _parse_header(file, handle.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise UserError(f"{file}: __metadata__ must be a JSON object of strings")
    entries = [
        (name, _parse_entry(file, name, value, 8 + length))
        for name, value in header.items()
    ]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    _check_layout(file, entries, 8 + length, size)
    return dict(entries)


def _why_no_header(prefix: bytes, size: int) -> str:
    """What a file is whose first bytes are no length of a header in it."""
    # PyTorch's files are archives (zip), and before torch 1.6 were bare pickles.
    # The second test is for a length: of a header that was cut off.
    is_pickle = prefix[:1] == b"\x80" and prefix[1:2] in b"\2\3\4\5"
    if prefix.startswith(b"PK\3\4") or (is_pickle and any(prefix[2:4])):
        return (
            "is a pickle of PyTorch by another name, which can run code, and is not"
            " read: fetch the model's safetensors, or call it pytorch_model.bin"
        )
    return (
        f"{size} bytes cannot hold the header; the file is cut off or is not"
        " safetensors: fetch it again"
    )


def _parse_header(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise UserError(f"{file}: the header names {name!r} twice")
            found[name] = value
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{file}: the header must be a JSON object")
    return header


def _parse_entry(file: Path, name: str, value: Any, data_start: int) -> Entry:
    where = f"{file}: tensor {name!r}"
    if not isinstance(value, dict) or value.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        raise UserError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise UserError(
            f"{where} has dtype {value['dtype']!r}; known are {', '.join(DTYPES)}"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_sizes(shape):
        raise UserError(f"{where} has shape {shape!r}; must be integers of 0 or more")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where} has data_offsets {offsets!r}; must be [start, stop]")
    start, stop = offsets
    expected = math.prod(shape) * dtype.itemsize
    if stop - start != expected:
        raise UserError(
            f"{where} has {stop - start} bytes, but {value['dtype']}{shape} takes "
            f"{expected}"
        )
    # Of no bytes, or of ones without end, it would pass, and NumPy has no such array.
    whole = math.prod(size for size in shape if size) * dtype.itemsize
    if whole >= 2**63 or len(shape) > MOST_AXES:
        raise UserError(
            f"{where} has shape {str(shape)[:200]}, which no tensor has; fetch the"
            " model again"
        )
    return Entry(file, dtype, tuple(shape), data_start + start, data_start + stop)


def _are_sizes(value: Any) -> bool:
    # `type`, not isinstance: JSON's true would pass for an integer.
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_layout(
    file: Path, entries: list[tuple[str, Entry]], data_start: int, size: int
) -> None:
    """Tensors must tile the data exactly: what overlaps or hides is not read."""
    end = data_start
    for name, entry in entries:
        if entry.stop > size:
            raise UserError(
                f"{file}: tensor {name!r} ends at byte {entry.stop}, but the file has "
                f"{size}; it is cut off: fetch it again"
            )
        if entry.start != end:
            fault = "overlaps another" if entry.start < end else "follows a hole"
            raise UserError(f"{file}: tensor {name!r} {fault} at byte {entry.start}")
        end = entry.stop
    if end != size:
        raise UserError(f"{file}: {size - end} bytes after the last tensor")


def read_index(index: Path, ending: str) -> dict[str, str]:
    """The file of every tensor by an index, all of them there, beside it.

    Raises:
        UserError: the index is broken, or a shard absent or of another ``ending``.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise UserError(f"{index}: weight_map must be an object of tensor to file name")
    if not weight_map:
        raise UserError(f"{index}: weight_map is empty; fetch the model again")
    for shard in sorted(set(weight_map.values())):
        # A plain name, rather than `inside`: the hub's cache links files to its blobs.
        if not shard.endswith(ending) or "/" in shard or "\\" in shard:
            raise UserError(
                f"{index}: shard {shard!r} must be a {ending} file beside the index"
            )
        if not (index.parent / shard).is_file():
            raise UserError(
                f"{index}: shard {shard!r} is absent; fetch the model again"
            )
    return weight_map


def _read_shards(index: Path) -> dict[str, Entry]:
    weight_map = read_index(index, ".safetensors")
    shards = {
        shard: read_header(index.parent / shard)
        for shard in sorted(set(weight_map.values()))
    }
    absent = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if absent:
        raise UserError(
            f"{index}: tensor {absent[0]!r} is not in {weight_map[absent[0]]!r}"
            + (f", nor are {len(absent) - 1} others in theirs" if absent[1:] else "")
        )
    return {name: shards[shard][name] for name, shard in weight_map.items()}
