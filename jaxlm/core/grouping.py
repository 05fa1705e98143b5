"""The grouping of depth: the same layers as one stack, or as several.

The leaves of a stack have a leading axis of layers and are named after these, as
``backbone/layers/mlp/up/kernel``, or ``backbone/layers[0:4]/...`` beside
``backbone/layers[4:6]/...``. A checkpoint of one grouping is read into any other.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.trees import flatten, parse_layers, unflatten


def stack_names(stacks: Sequence[int]) -> list[tuple[str, range]]:
    """The name of each stack and the layers in it, from the numbers of layers.

    One stack is called ``layers``; several are ``layers[0:8]``, ``layers[8:12]``.
    """
    if len(stacks) == 1:
        return [("layers", range(stacks[0]))]
    names, start = [], 0
    for count in stacks:
        stop = start + count
        names.append((f"layers[{start}:{stop}]", range(start, stop)))
        start = stop
    return names


def named(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their path, through tuples and named tuples too."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def ungrouped(name: str) -> tuple[str, slice]:
    """A leaf's name had its layers been one stack, and which of these it holds."""
    parts = name.split("/")
    for place, part in enumerate(parts):
        ends = parse_layers(part)
        if ends is not None:
            parts[place] = "layers"
            return "/".join(parts), slice(*ends)
    return name, slice(None)


def regroup(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The leaves of a tree under ``names``, which group its layers in another way.

    Stacks are cut and joined along their first axis; what is alike passes through.

    Raises:
      ValueError: the names are not those of the same leaves and layers.
    """
    whole = _joined(flatten(tree))
    flat: dict[str, Any] = {}
    asked: dict[str, list[int]] = {stack: [] for stack in whole}
    for name in names:
        stack, part = ungrouped(name)
        if stack not in whole:
            raise ValueError(f"{name} is not among {', '.join(whole)}")
        layers, leaf = whole[stack]
        if part == slice(None):
            flat[name], wanted = leaf, list(range(len(layers)))
        else:
            wanted = list(range(part.start, part.stop))
            place = layers.index(wanted[0]) if wanted[0] in layers else 0
            flat[name] = leaf[place : place + len(wanted)]
        asked[stack] += wanted
    for stack, (layers, _) in whole.items():
        if sorted(asked[stack]) != layers:
            raise ValueError(
                f"{stack}: {len(layers)} layers are not those of {asked[stack]}"
            )
    return unflatten(flat)


def regroup_like(tree: Any, like: Any) -> Any:
    """The leaves of any tree in the structure of another, whose layers lie otherwise.

    ``tree`` holds arrays, or shapes with shardings as ``regroup_abstract`` takes them.
    Returns ``tree`` itself where the names are the same.

    Raises:
      ValueError: as ``regroup``.
    """
    ours, names = named(tree), list(named(like))
    if set(ours) == set(names):
        return tree
    abstract = isinstance(next(iter(ours.values())), jax.ShapeDtypeStruct)
    made = flatten((regroup_abstract if abstract else regroup)(ours, names))
    return jax.tree.unflatten(jax.tree.structure(like), [made[name] for name in names])


def join_stacks(tree: Any) -> Any:
    """The arrays of any tree with neighbouring stacks of layers as one.

    Tuples and named tuples are kept. Stacks need not all have the same leaves, nor a
    leaf all layers: moments are of what a phase trains.
    """
    if isinstance(tree, tuple):
        parts = [join_stacks(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if not isinstance(tree, Mapping):
        return tree
    stacks: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    flat, joined = flatten(tree), {}
    for name, leaf in flat.items():
        stack, layers = ungrouped(name)
        if layers == slice(None):
            joined[name] = join_stacks(leaf)
        else:
            stacks[stack].append((layers.start, layers.stop, name))
    for stack, found in stacks.items():
        found.sort()
        gaps = [
            after
            for after, (before, here) in enumerate(itertools.pairwise(found), 1)
            if before[1] != here[0]
        ]
        for first, end in itertools.pairwise([0, *gaps, len(found)]):
            start, stop = found[first][0], found[end - 1][1]
            part = f"layers[{start}:{stop}]" if start or gaps else "layers"
            leaves = [flat[name] for _, _, name in found[first:end]]
            name = stack.split("/")
            name[name.index("layers")] = part
            joined["/".join(name)] = _end_to_end(leaves)
    return unflatten(joined)


def _end_to_end(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]


def _joined(flat: Mapping[str, Any]) -> dict[str, tuple[list[int], Any]]:
    """By its name in one stack, the layers that a leaf has, in order, and the leaf.

    They need not be all: moments are of the layers that a phase trains. What is in no
    stack counts as one layer.
    """
    parts: dict[str, list[tuple[range, Any]]] = defaultdict(list)
    for name, leaf in flat.items():
        stack, layers = ungrouped(name)
        start = layers.start or 0
        depth = leaf.shape[0] if "layers" in stack.split("/") else 1
        parts[stack].append((range(start, start + depth), leaf))
    joined = {}
    for stack, found in parts.items():
        found.sort(key=lambda pair: pair[0].start)
        numbers = [number for layers, _ in found for number in layers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{stack}: its stacks overlap")
        joined[stack] = numbers, _end_to_end([leaf for _, leaf in found])
    return joined


def regroup_abstract(
    abstract: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """``regroup`` of shapes and dtypes with shardings.

    A stack that is cut in another way has its layers whole on every device: their
    number need not divide over those of the rule.

    Raises:
      ValueError: as ``regroup``.
    """
    names = list(names)
    flat = flatten(abstract)
    shapes = flatten(jax.eval_shape(lambda tree: regroup(tree, names), abstract))
    shardings = {ungrouped(name)[0]: leaf.sharding for name, leaf in flat.items()}

    def sharding(name: str) -> Any:
        if name in flat:
            return flat[name].sharding
        stack = shardings[ungrouped(name)[0]]
        if not isinstance(stack, NamedSharding):
            return stack
        return NamedSharding(stack.mesh, PartitionSpec(None, *stack.spec[1:]))

    return unflatten(
        {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(name))
            for name, leaf in shapes.items()
        }
    )
