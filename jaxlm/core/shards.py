"""A model's weights to safetensors files: shards, one tensor in memory at a time.

The layout of transformers: ``model.safetensors``, or files
``model-00001-of-0000N.safetensors`` and an index of which holds which tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json
from jaxlm.core.safetensors import DTYPES, INDEX, SINGLE

NAMES = {dtype: name for name, dtype in DTYPES.items()}
UNITS = {"": 1, "B": 1}
UNITS |= {f"{unit}B": 1000**power for power, unit in enumerate("KMGT", start=1)}
UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}


class Outgoing(NamedTuple):
    """A tensor to be written; ``read`` gets it when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_size(text: str | int) -> int:
    """``5GB``, ``300MiB`` or a number of bytes.

    Raises:
      UserError: it is none, or less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    unit = UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit and len(found[1]) < 20 else 0
    if size < 1:
        raise UserError(
            f"{text!r} is no size of a file; a number and KB, MB, GB, TB, KiB, MiB, GiB"
            " or TiB, such as 5GB"
        )
    return size


def plan_shards(tensors: Sequence[Outgoing], limit: int) -> list[list[Outgoing]]:
    """The tensors of each file, of at most ``limit`` bytes or one tensor, in order."""
    shards: list[list[Outgoing]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def write_shards(
    folder: Path,
    tensors: Sequence[Outgoing],
    limit: int,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the files of a model, and the index where they are several."""
    shards = plan_shards(tensors, limit)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = SINGLE if len(shards) == 1 else name
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
        size = sum(tensor.bytes for tensor in shard)
        say(f"{name}: {len(shard):,} tensors, {size:,} bytes")
        write_file(folder / name, shard)
    if len(shards) > 1:
        total = sum(tensor.bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic_write_json(folder / INDEX, index)


def write_file(path: Path, tensors: Sequence[Outgoing]) -> None:
    """Write one file; whoever calls sees to it that nobody reads half of it.

    The widest dtypes come first, so that each tensor is aligned to its own.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.bytes],
        }
        start += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            value = np.asarray(tensor.read(), order="C")
            if (value.dtype, value.shape) != (tensor.dtype, tensor.shape):
                raise ValueError(
                    f"{tensor.name}: {value.dtype}{list(value.shape)} came for"
                    f" {tensor.dtype}{list(tensor.shape)}"
                )
            file.write(value.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
