"""Pretrained weights: a source string to named parameters, born on their devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.files import read_json
from jaxlm.core.grouping import stack_names
from jaxlm.core.safetensors import WeightFiles, open_weights
from jaxlm.core.sources import locate
from jaxlm.core.trees import flatten, unflatten
from jaxlm.core.types import Params
from jaxlm.models.config import TransformerConfig
from jaxlm.models.families import FAMILIES, Family

RANDOM = "random:"
BUILT_IN = {"tiny": Path(__file__).parent / "tiny"}


@dataclass(frozen=True)
class Checkpoint:
    """A model in the Hugging Face layout: config.json, weights, tokenizer.

    ``weights`` is None for ``random:`` sources, whose parameters are all new.
    """

    directory: Path
    family: Family
    config: TransformerConfig
    hf: dict[str, Any]
    weights: WeightFiles | None


def open_checkpoint(source: str) -> Checkpoint:
    """Find a source and read its config.json; of the weights only the names.

    Raises:
      UserError: no such source, no config.json, another architecture, or broken files.
    """
    random = source.startswith(RANDOM)
    place = source.removeprefix(RANDOM)
    if random and place in BUILT_IN:
        directory = BUILT_IN[place]
    else:
        try:
            directory = locate(place)
        except UserError as problem:
            built_in = ", ".join(f"{RANDOM}{name}" for name in BUILT_IN)
            hint = f"; built in is {built_in}" if random or place in BUILT_IN else ""
            raise UserError(f"config.model.pretrained: {problem}{hint}") from problem
    family, config, hf = read_config(directory)
    return Checkpoint(
        directory, family, config, hf, None if random else open_weights(directory)
    )


def read_config(directory: Path) -> tuple[Family, TransformerConfig, dict[str, Any]]:
    """The family, our config and the raw dict of a directory's config.json."""
    path = directory / "config.json"
    if not path.exists():
        raise UserError(f"{directory}: no config.json; a model's directory has one")
    hf = read_json(path)
    kind = hf.get("model_type") if isinstance(hf, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{path}: model_type {kind!r} is not supported; allowed:"
            f" {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    try:
        config = family.to_config(hf)
        check_config(config)
    except UserError as problem:
        raise UserError(f"{directory}/{problem}") from problem
    return family, config, hf


def check_config(config: TransformerConfig) -> None:
    """Refuse sizes that do not fit one another."""
    if config.width % config.heads:
        raise UserError(
            f"config.json: hidden_size={config.width} does not divide by"
            f" num_attention_heads={config.heads}"
        )


def load_weights(checkpoint: Checkpoint, shapes: Params, shardings: Params) -> Params:
    """Read the backbone's parameters, each device its own part by byte range.

    ``shapes`` and ``shardings`` are the backbone's trees (see ``Model``). Leaves come
    as f32.

    Raises:
      UserError: all missing, unexpected and misshapen names, in one message; or a
        name that holds NaN or infinity.
    """
    files = checkpoint.weights
    if files is None:
        raise ValueError("a random: checkpoint has no weights to load")
    theirs = {checkpoint.family.canonical(name): name for name in files.names}
    wanted = _wanted(checkpoint, flatten(shapes))
    _check_names(checkpoint, files, theirs, wanted)
    flat_shardings = flatten(shardings)
    loaded = {}
    for ours, parts in wanted.items():
        read = _reader(checkpoint.directory, files, theirs, parts)
        loaded[ours] = jax.make_array_from_callback(
            parts.shape, flat_shardings[ours], read
        )
    return unflatten(loaded)


@dataclass(frozen=True)
class _Parts:
    """Where one of our leaves comes from: their names along the axis of layers."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    transpose: bool
    stacked: bool

    @property
    def their_shape(self) -> tuple[int, ...]:
        each = self.shape[1:] if self.stacked else self.shape
        return each[::-1] if self.transpose else each


def _wanted(checkpoint: Checkpoint, shapes: dict[str, Any]) -> dict[str, _Parts]:
    """The family's table, filled in for this model's stacks."""
    table = {weight.ours: weight for weight in checkpoint.family.weights}
    layers = dict(stack_names(checkpoint.config.stacks))
    wanted = {}
    for ours, leaf in shapes.items():
        stack, _, rest = ours.partition("/")
        weight = table[f"layers/{rest}" if stack in layers else ours]
        numbers = layers.get(stack, ())
        names = tuple(weight.theirs.format(layer=number) for number in numbers)
        wanted[ours] = _Parts(
            leaf.shape, names or (weight.theirs,), weight.transpose, bool(names)
        )
    return wanted


def _check_names(
    checkpoint: Checkpoint,
    files: WeightFiles,
    theirs: dict[str, str],
    wanted: dict[str, _Parts],
) -> None:
    needed = {name: parts for parts in wanted.values() for name in parts.names}
    missing = [name for name in needed if name not in theirs]
    unexpected = [
        theirs[name]
        for name in theirs
        if name not in needed and not checkpoint.family.ignores(name)
    ]
    misshapen = []
    for name, parts in needed.items():
        if name in theirs:
            shape = files.shape(theirs[name])
            if shape != parts.their_shape:
                misshapen.append(
                    f"{theirs[name]} {list(shape)} (config.json asks for"
                    f" {list(parts.their_shape)})"
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
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": misshapen,
        "not floats": no_floats,
        "the same weight twice": twice,
    }
    found = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if any(name.startswith("pooler.") for name in missing):
        found.append("config.task.pooling=mean needs no pooler")
    if found:
        raise UserError(
            f"{checkpoint.directory}: the weights do not fit config.json; "
            + "; ".join(found)
        )


def _reader(
    place: Path, files: WeightFiles, theirs: dict[str, str], parts: _Parts
) -> Callable[[Any], np.ndarray]:
    """Read the slice of our leaf that one device holds."""

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        index = index[::-1] if parts.transpose else index
        with np.errstate(over="ignore"):  # of f64: to infinity, which is refused
            value = files.read(theirs[name], index).astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(
                f"{place}: {theirs[name]} contains NaN or infinity (as float32); fetch"
                " the model again, or take another"
            )
        return value.T if parts.transpose else value

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not parts.stacked:
            return part(parts.names[0], index)
        return np.stack([part(name, index[1:]) for name in parts.names[index[0]]])

    return read
