"""Weights by a family's table: named leaves, each device its own part by byte range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.grouping import ungrouped
from jaxlm.core.safetensors import Tensors
from jaxlm.core.trees import flatten, unflatten
from jaxlm.core.types import Params
from jaxlm.models.checkpoint import Checkpoint
from jaxlm.models.families import Weight
from jaxlm.models.ties import stored_rows
from jaxlm.models.vocabulary import LEAVES, read_grown


def load_weights(
    checkpoint: Checkpoint,
    shapes: Params,
    shardings: Params,
    head: str | None = None,
    *,
    seed: int = 0,
) -> Params:
    """Read a model's parameters, each device its own part by byte range.

    ``shapes`` and ``shardings`` are the model's trees (see ``Model``), its backbone
    under ``backbone``. ``head`` is the kind of head that the checkpoint is to give
    besides (see ``Family.heads``). Leaves come as f32; those that no table names, a new
    task's head, are left out. New tokens are drawn by ``seed``.

    Raises:
      UserError: missing, unexpected and misshapen names, in one message; or a
        name that holds NaN or infinity.
    """
    files = checkpoint.weights
    if files is None:
        raise ValueError("a random: checkpoint has no weights to load")
    theirs = {checkpoint.family.canonical(name): name for name in files.names}
    wanted = _wanted(checkpoint, flatten(shapes), head)
    _check_names(checkpoint, files, theirs, wanted, head)
    flat_shardings = flatten(shardings)
    loaded = {}
    for ours, source in wanted.items():
        read = _reader(checkpoint.directory, files, theirs, source)
        if source.tokens is not None and source.their_shape != source.shape:
            read = partial(
                read_grown,
                ours,
                shape=source.shape,
                old=source.tokens,
                config=checkpoint.config,
                seed=seed,
                read=read,
            )
        loaded[ours] = _place(source.shape, flat_shardings[ours], read)
    return unflatten(loaded)


def _place(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array from its parts, one after another: no more than one is held twice.

    A part that several devices hold is read once.
    """
    wanted = sharding.addressable_devices_indices_map(shape)
    groups: dict[Any, list[Any]] = {}
    for device, index in wanted.items():
        key = tuple((part.start, part.stop) for part in index or ())
        groups.setdefault(key, []).append(device)
    placed: dict[Any, jax.Array] = {}
    for devices in groups.values():
        value = read(wanted[devices[0]] or ())
        for device in devices:
            placed[device] = jax.block_until_ready(jax.device_put(value, device))
        del value
    return jax.make_array_from_single_device_arrays(
        shape, sharding, [placed[device] for device in wanted]
    )


@dataclass(frozen=True)
class Source:
    """Where one of our leaves comes from: their names along the axis of layers.

    ``heads`` is how many there are, where ours lie side by side within each. ``tokens``
    is how many rows theirs has, of a leaf with one for each token.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    row: Weight
    stacked: bool
    heads: int
    tokens: int | None = None

    @property
    def each(self) -> tuple[int, ...]:
        """Our shape of one layer."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def their_shape(self) -> tuple[int, ...]:
        if self.tokens is not None:
            return self.tokens, *self.shape[1:]
        *rest, last = self.each
        shape = (*rest, last * self.row.part[1])
        return shape[::-1] if self.row.transpose else shape

    def read(
        self, index: tuple[slice, ...], read: Callable[[Any], np.ndarray]
    ) -> np.ndarray:
        """A slice of our leaf of one layer; ``read`` gives one of theirs."""
        which, parts = self.row.part
        if parts == 1:
            return self._turned(read(self._turned_index(index)))
        *rest, last = index
        start, stop, _ = last.indices(self.each[-1])
        if not self.row.by_head:
            offset = which * self.each[-1]
            their = (*rest, slice(start + offset, stop + offset))
            return self._turned(read(self._turned_index(their)))
        # What every head of the slice has, of which one part is ours.
        size = self.each[-1] // self.heads
        first, end = start // size, -(-stop // size)
        their = (*rest, slice(first * parts * size, end * parts * size))
        value = self._turned(read(self._turned_index(their)))
        value = value.reshape(*value.shape[:-1], end - first, parts, size)
        mine = value[..., which, :].reshape(*value.shape[:-3], -1)
        return mine[..., start - first * size : stop - first * size]

    def join(self, parts: dict[int, np.ndarray]) -> np.ndarray:
        """Theirs, of one layer, from all of ours that it holds, by their number."""
        mine = [np.asarray(parts[which]) for which in range(self.row.part[1])]
        if self.row.by_head:
            size = self.each[-1] // self.heads
            mine = [each.reshape(*each.shape[:-1], -1, 1, size) for each in mine]
            value = np.concatenate(mine, axis=-2)
            value = value.reshape(*value.shape[:-3], -1)
        else:
            value = np.concatenate(mine, axis=-1) if len(mine) > 1 else mine[0]
        return self._turned(value)

    def _turned(self, value: np.ndarray) -> np.ndarray:
        return value.T if self.row.transpose else value

    def _turned_index(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        return index[::-1] if self.row.transpose else index


def _wanted(
    checkpoint: Checkpoint, shapes: dict[str, Any], head: str | None
) -> dict[str, Source]:
    """The family's table, filled in for this model's stacks."""
    config = checkpoint.config
    language = (config.decoder or config).language
    tokens = checkpoint.family.to_config(checkpoint.hf).vocab_size
    tied = language is None or language.tied
    table = checkpoint.family.table(head, tied=tied)
    if checkpoint.weights is not None:
        table = stored_rows(checkpoint.family, table, tied, checkpoint.weights)
    wanted = {}
    for ours, leaf in shapes.items():
        name, part = ungrouped(ours)
        row = table.get(name)
        if row is None:
            continue
        stacked = "layers" in name.split("/")
        numbers = range(*part.indices(part.stop or leaf.shape[0])) if stacked else [0]
        names = tuple(row.theirs.format(layer=number) for number in numbers)
        old = tokens if name in LEAVES else None
        wanted[ours] = Source(leaf.shape, names, row, stacked, config.heads, old)
    return wanted


def their_tensors(
    checkpoint: Checkpoint, params: Params, head: str | None = None
) -> dict[str, np.ndarray]:
    """A model's leaves under a checkpoint's names, as ``load_weights`` reads them.

    ``params`` is a tree of arrays whose backbone is under ``backbone``. Names are those
    of ``Family.canonical``; a leaf of ours that no table names is an error.
    """
    fetched = lazy_tensors(checkpoint, params, head)
    return {name: fetch() for name, (_, fetch) in fetched.items()}


def lazy_tensors(
    checkpoint: Checkpoint, params: Params, head: str | None = None
) -> dict[str, tuple[Source, Callable[[], np.ndarray]]]:
    """``their_tensors``, each fetched from its devices when it is asked for."""
    flat = flatten(params)
    sources = _wanted(checkpoint, flat, head)
    if unknown := [name for name in flat if name not in sources]:
        raise ValueError(f"no table of {checkpoint.family.model_type} has {unknown}")
    found: dict[str, tuple[Source, dict[int, tuple[str, int]]]] = {}
    for ours, source in sources.items():
        for place, name in enumerate(source.names):
            _, parts = found.setdefault(name, (source, {}))
            parts[source.row.part[0]] = ours, place

    def fetch(name: str) -> np.ndarray:
        source, parts = found[name]
        mine = {
            which: np.asarray(flat[ours][place] if source.stacked else flat[ours])
            for which, (ours, place) in parts.items()
        }
        if source.tokens is not None:  # without padding
            mine = {0: mine[0][: checkpoint.config.vocab_size]}
        return source.join(mine)

    return {name: (source, partial(fetch, name)) for name, (source, _) in found.items()}


def stored_tensors(
    checkpoint: Checkpoint, shapes: Params, head: str | None = None
) -> dict[str, tuple[str, Source]]:
    """By the names in a checkpoint's files, what a model of these shapes reads.

    With each, its canonical name.

    Raises:
      UserError: as ``load_weights``, of names and shapes.
    """
    files = checkpoint.weights
    if files is None:
        raise ValueError("a random: checkpoint has no weights")
    theirs = {checkpoint.family.canonical(name): name for name in files.names}
    wanted = _wanted(checkpoint, flatten(shapes), head)
    _check_names(checkpoint, files, theirs, wanted, head)
    return {
        theirs[name]: (name, source)
        for source in wanted.values()
        for name in source.names
    }


MOST_LISTED = 10
"""Of a wrong architecture thousands of names do not fit."""


def listed(names: list[str]) -> str:
    """Names for a message: the first of them, and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _check_names(
    checkpoint: Checkpoint,
    files: Tensors,
    theirs: dict[str, str],
    wanted: dict[str, Source],
    head: str | None,
) -> None:
    needed = {name: source for source in wanted.values() for name in source.names}
    family, hf = checkpoint.family, checkpoint.hf
    missing = [name for name in needed if name not in theirs]
    spelt = [family.written(name, needed[name].row, hf, head) for name in missing]
    unexpected = [
        theirs[name]
        for name in theirs
        if name not in needed and not checkpoint.family.ignores(name)
    ]
    misshapen = []
    for name, source in needed.items():
        if name in theirs:
            shape = files.shape(theirs[name])
            if shape != source.their_shape:
                misshapen.append(
                    f"{theirs[name]} {list(shape)} (config.json asks for"
                    f" {list(source.their_shape)})"
                )
    twice = [
        f"{name} and {theirs[checkpoint.family.canonical(name)]}"
        for name in files.names
        if theirs[checkpoint.family.canonical(name)] != name
    ]
    no_floats = [
        f"{theirs[name]} ({files.dtype(theirs[name])})"
        for name in needed
        if name in theirs
        and not jnp.issubdtype(files.dtype(theirs[name]), jnp.floating)
    ]
    kinds = {
        "missing": spelt,
        "unexpected": unexpected,
        "misshapen": misshapen,
        "not floats": no_floats,
        "the same weight twice": twice,
    }
    found = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if any(name.startswith("pooler.") for name in missing):
        found.append("a run with config.task.pooling=mean needs no pooler")
    if found:
        raise UserError(
            f"{checkpoint.directory}: the weights do not fit config.json; "
            + "; ".join(found)
        )


def _reader(
    place: Path, files: Tensors, theirs: dict[str, str], source: Source
) -> Callable[[Any], np.ndarray]:
    """Read the slice of our leaf that one device holds."""

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        return source.read(index, lambda their: checked(name, their))

    def checked(name: str, index: tuple[slice, ...]) -> np.ndarray:
        with np.errstate(over="ignore"):  # of f64: to infinity, which is refused
            value = files.read(theirs[name], index)
            value = value.astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            raise UserError(
                f"{place}: {theirs[name]} contains NaN or infinity (as float32); fetch"
                " the model again, or take another"
            )
        return value

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not source.stacked:
            return part(source.names[0], index)
        names = source.names[index[0]]
        # One layer at a time into its place: a stack is never held twice here.
        each = (
            len(range(*cut.indices(size)))
            for cut, size in zip(index[1:], source.each, strict=True)
        )
        stack = np.empty((len(names), *each), np.float32)
        for place, name in enumerate(names):
            stack[place] = part(name, index[1:])
        return stack

    return read
