"""PyTorch's ``.bin`` files: read by ``torch.load`` as plain tensors, or not at all.

A pickle can run code when it is opened. ``weights_only=True`` is the one way in: torch
then rebuilds tensors and refuses whatever else the pickle names. torch is no dependency
of this package, and nothing but this file asks for it, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import Slice, read_index

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
OLDEST = (2, 6)
"""Before it ``weights_only`` could be got around (CVE-2025-32434)."""
CONVERT = (
    "convert it once, where you trust it, with transformers: m ="
    " AutoModel.from_pretrained(FOLDER); m.save_pretrained(FOLDER)"
)
EXTENDED = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Types of torch that NumPy has not, and ours of the same bits."""


class PickleFiles:
    """The tensors of ``.bin`` files, as ``WeightFiles`` gives those of safetensors.

    Files are mapped, not read: pages are touched by ``read`` alone.
    """

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors = dict(tensors)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        kind = str(self._tensors[name].dtype).removeprefix("torch.")
        return EXTENDED.get(kind) or np.dtype(kind)

    def read(self, name: str, slice: Slice | None = None) -> np.ndarray:
        """A tensor, or the part that basic indexing names, in memory of its own."""
        dtype, part = self.dtype(name), self._tensors[name]
        part = part.detach().resolve_conj().resolve_neg()
        part = part if slice is None else part[slice]
        if dtype in EXTENDED.values():
            torch = importlib.import_module("torch")
            part = part.view({1: torch.int8, 2: torch.int16}[dtype.itemsize])
            return np.array(part.numpy(), order="C").view(dtype)
        return np.array(part.numpy(), order="C")


def has_pickles(folder: Path) -> bool:
    """Whether a model's folder has ``.bin`` weights."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def open_pickles(folder: Path) -> PickleFiles:
    """The weights of a folder's ``pytorch_model.bin``, or of those its index names.

    Raises:
      UserError: torch is not installed or too old, or a file is no plain weights.
    """
    if (folder / SINGLE).is_file():
        return PickleFiles(_load(folder / SINGLE))
    place = read_index(folder / INDEX, ".bin")
    shards = {shard: _load(folder / shard) for shard in sorted(set(place.values()))}
    absent = [name for name, shard in place.items() if name not in shards[shard]]
    if absent:
        raise UserError(
            f"{folder / INDEX}: tensor {absent[0]!r} is not in {place[absent[0]]!r}"
            + (f", nor are {len(absent) - 1} others in theirs" if absent[1:] else "")
        )
    return PickleFiles({name: shards[shard][name] for name, shard in place.items()})


def _load(path: Path) -> dict[str, Any]:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # of many kinds, by what the file is
        reason = str(problem).strip().partition("\n")[0].rstrip(". ")
        if "_use_new_zipfile_serialization" in reason:
            reason = "not in the format of torch 1.6 and later"
        raise UserError(
            f"{path}: torch refuses it as weights ({reason[:200]}); a pickle can run"
            f" code, and nothing but plain tensors is read from one; {CONVERT}"
        ) from problem
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and _is_plain(torch, value)
        for name, value in found.items()
    ):
        raise UserError(
            f"{path}: is not an object of names to plain tensors, as a model's weights"
            f" are; {CONVERT}"
        )
    return found


def _is_plain(torch: Any, value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    kind = str(value.dtype).removeprefix("torch.")
    return not value.is_quantized and (kind in EXTENDED or hasattr(np, kind))


def _torch(path: Path) -> Any:
    """The module, which is imported by name: see the top of this file."""
    if find_spec("torch") is None:
        raise UserError(
            f"{path}: a pickle, which can run code, and is read by torch alone"
            " (weights_only), which is not installed: pip install torch, or"
            f" {CONVERT}"
        )
    torch = importlib.import_module("torch")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST:
        raise UserError(
            f"{path}: a pickle, which can run code, and torch {torch.__version__} does"
            f" not keep it from that; at least {'.'.join(map(str, OLDEST))}, or"
            f" {CONVERT}"
        )
    return torch
