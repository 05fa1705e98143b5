"""Which devices take part in a collective, and which axes of the mesh these are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np

from jaxlm.planning.hlo import Instruction

_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_ORDER = re.compile(r"device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\)")


def groups_of(each: Instruction, devices: int) -> np.ndarray | None:
    """i64[groups, members], by place in the mesh; None where it has no groups.

    XLA writes them out, as an iota that is reshaped and transposed, or as axes of a
    mesh of its own.
    """
    if found := _LISTED.search(each.rest):
        return _listed(found[1])
    if found := _IOTA.search(each.rest):
        return _iota(found[1], found[2], found[3])
    if found := _MESH.search(each.rest):
        return _of_mesh(found[1], found[2], found[3])
    if "replica_groups={}" in each.rest:  # all
        return np.arange(devices)[None]
    return None


def pairs_of(each: Instruction) -> np.ndarray | None:
    """i64[pairs, 2]: who sends to whom in a ``collective-permute``."""
    found = _PAIRS.search(each.rest)
    return _listed(found[1]) if found else None


def _numbers(text: str | None) -> list[int]:
    return [int(each) for each in (text or "").split(",") if each]


def _listed(text: str) -> np.ndarray:
    return np.array([_numbers(each) for each in re.findall(r"\{([\d,]*)\}", text)])


def _iota(shape: str, source: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(source))).reshape(_numbers(source))
    if order:
        ids = ids.transpose(_numbers(order))
    return ids.reshape(_numbers(shape))


def _of_mesh(sizes: str, order: str, chosen: str) -> np.ndarray:
    """``mesh['a'=4,'b'=16] {'b'}``: a group for each place along the other axes.

    ``'b':(2)4`` is a part of an axis: 4 of it, 2 of it being further out. ``order`` is
    that of the devices on that mesh, where it is not their own: ``device_ids=...``.
    """
    axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", sizes)}
    total = math.prod(axes.values())
    ids = np.arange(total)
    if written := _ORDER.search(order):
        if written[1]:
            shape = _numbers(written[1])
            turned = _numbers(written[2]) or list(range(len(shape)))
            ids = ids.reshape(shape).transpose(turned).ravel()
        else:
            ids = np.array(_numbers(written[3]))
    parts: list[tuple[int, bool]] = []  # size, and whether it is of the groups
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in axes.items():
        mine = sorted(
            (int(outer or 1), int(inner or size))
            for each, outer, inner in wanted
            if each == name
        )
        done = 1
        for outer, inner in mine:
            parts += [(outer // done, False), (inner, True)]
            done = outer * inner
        parts.append((size // done, False))
    grid = ids.reshape([size for size, _ in parts])
    inside = [place for place, (_, mine) in enumerate(parts) if mine]
    outside = [place for place, (_, mine) in enumerate(parts) if not mine]
    members = math.prod(parts[place][0] for place in inside)
    return grid.transpose(outside + inside).reshape(-1, members)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The axes of the mesh that a collective runs over: ``fsdp`` or ``data+fsdp``.

    ``some`` where its groups are no whole axes.
    """
    names = [name for name, size in mesh.items() if size > 1]
    shape = [mesh[name] for name in names]
    ids = np.arange(math.prod(shape)).reshape(shape)
    first = frozenset(groups[0].tolist())
    for count in range(1, len(names) + 1):
        for chosen in combinations(range(len(names)), count):
            if math.prod(shape[axis] for axis in chosen) != len(first):
                continue
            places = np.argwhere(ids == groups[0][0])[0]
            index = tuple(
                slice(None) if axis in chosen else places[axis]
                for axis in range(len(names))
            )
            if frozenset(np.ravel(ids[index]).tolist()) == first:
                return "+".join(names[axis] for axis in chosen)
    return "none" if len(first) < 2 else "some"


def axes_of_pairs(pairs: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The axes along which a ``collective-permute`` sends."""
    places = list(product(*(range(size) for size in mesh.values())))
    moved: Sequence[str] = [
        name
        for axis, name in enumerate(mesh)
        if any(places[a][axis] != places[b][axis] for a, b in pairs.tolist())
    ]
    return "+".join(moved) or "none"
