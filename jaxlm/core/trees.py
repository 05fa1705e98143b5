"""Named trees: nested dicts whose leaves are called by their path.

A name's parts stand between slashes: ``backbone/layers[8:12]/attention/query/kernel``.
A stack of layers is called ``layers``, or by its slice where depth is cut in several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

BACKBONE = "backbone"
"""The first part of all names of the pretrained model, below a task's head."""
_LAYERS = re.compile(r"layers(?:\[(-?\d+)?:(-?\d+)?\])?")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": x}} -> {"a/b": x}``; tuples and arrays are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x} -> {"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def has_part(name: str, wanted: str, layers: int) -> bool:
    """Whether ``wanted`` stands in a name: as parts of it, one after another.

    ``attention/query`` is in ``layers/attention/query/kernel``. In a part ``*`` stands
    for any letters. ``layers[4:6]`` is in the names of a stack all of whose layers are
    among these, of ``layers`` in the model; ends count as in Python's slices.
    """
    parts, asked = name.split("/"), wanted.split("/")
    return any(
        all(
            _same_part(*pair, layers)
            for pair in zip(parts[start:], asked, strict=False)
        )
        for start in range(len(parts) - len(asked) + 1)
    )


def parse_layers(part: str) -> tuple[int | None, int | None] | None:
    """The ends written in ``layers[4:6]``, both None in ``layers``; None in others."""
    found = _LAYERS.fullmatch(part)
    if not found:
        return None
    start, stop = (None if end is None else int(end) for end in found.groups())
    return start, stop


def layer_slice(start: int | None, stop: int | None, layers: int) -> range:
    """The layers between two ends, as Python's slices count them.

    Raises:
      ValueError: there are none, or an end is beyond the model's.
    """
    found = range(layers)[start:stop]
    beyond = any(end is not None and abs(end) > layers for end in (start, stop))
    if not found or beyond:
        raise ValueError(f"layers[{start}:{stop}] of {layers} layers")
    return found


def _same_part(part: str, wanted: str, layers: int) -> bool:
    mine, asked = parse_layers(part), parse_layers(wanted)
    if mine is None or asked is None:
        return fnmatchcase(part, wanted)
    outer, inner = layer_slice(*asked, layers), layer_slice(*mine, layers)
    return outer.start <= inner.start and inner.stop <= outer.stop
