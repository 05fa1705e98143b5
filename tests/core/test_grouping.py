"""Depth as one stack or several: names, cutting and joining."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.grouping import (
    join_stacks,
    named,
    regroup,
    regroup_abstract,
    regroup_like,
    stack_names,
)
from jaxlm.core.mesh import make_mesh

CUT = ["backbone/layers[0:2]/kernel", "backbone/layers[2:5]/kernel", "head/bias"]
AGAIN = [
    "backbone/layers[0:1]/kernel",
    "backbone/layers[1:4]/kernel",
    "backbone/layers[4:5]/kernel",
    "head/bias",
]
WHOLE = ["backbone/layers/kernel", "head/bias"]


@pytest.fixture
def deep():
    """Parameters of five layers whose rows say which layer they are."""
    rows = jnp.arange(5.0)[:, None] * jnp.ones(4)[None]
    return {"backbone": {"layers": {"kernel": rows}}, "head": {"bias": jnp.zeros(3)}}


def test_stacks_are_named_after_their_layers():
    assert stack_names((3,)) == [("layers", range(3))]
    assert stack_names((1, 2)) == [
        ("layers[0:1]", range(1)),
        ("layers[1:3]", range(1, 3)),
    ]


def test_regrouping_cuts_at_layers_and_passes_the_rest(deep):
    there = regroup(regroup(deep, CUT), AGAIN)
    assert set(there["backbone"]) == {"layers[0:1]", "layers[1:4]", "layers[4:5]"}
    middle = there["backbone"]["layers[1:4]"]["kernel"]
    assert middle[:, 0].tolist() == [1, 2, 3]
    assert there["head"]["bias"] is deep["head"]["bias"]


def test_stacks_are_joined_by_layer_and_not_by_the_order_of_their_names(deep):
    many = {f"backbone/layers[{n}:{n + 1}]/kernel": jnp.full((1, 2), n) for n in (1, 0)}
    tree = {"backbone": {name.split("/")[1]: {"kernel": many[name]} for name in many}}
    joined = regroup(tree, ["backbone/layers/kernel"])
    assert joined["backbone"]["layers"]["kernel"][:, 0].tolist() == [0, 1]


def test_regrouping_there_and_back_returns_every_bit(deep):
    back = regroup(regroup(deep, AGAIN), WHOLE)
    assert jax.tree.structure(back) == jax.tree.structure(deep)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, deep)))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["backbone/layers[0:2]/kernel", "head/bias"], "5 layers are not those of"),
        (["backbone/layers[0:7]/kernel", *CUT[1:]], "5 layers are not those of"),
        (["backbone/layers[0:3]/kernel", *CUT[1:]], "5 layers are not those of"),
        ([*CUT, "other/bias"], "other/bias is not among"),
        (CUT[:2], "head/bias"),
    ],
)
def test_names_of_another_model_are_refused(deep, names, words):
    with pytest.raises(ValueError, match=words):
        regroup(deep, names)


def test_stacks_that_overlap_are_refused(deep):
    tree = {**deep["backbone"], "layers[3:5]": {"kernel": jnp.ones((2, 4))}}
    with pytest.raises(ValueError, match="overlap"):
        regroup(tree, ["layers/kernel"])


def test_a_stack_that_is_cut_keeps_its_sharding_but_for_its_layers(deep):
    mesh = make_mesh({"data": 5, "fsdp": 1})[0]

    def abstract(leaf):
        spec = PartitionSpec(*("data", "fsdp")[2 - leaf.ndim :])
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    cut = regroup_abstract(jax.tree.map(abstract, deep), CUT)
    part = cut["backbone"]["layers[2:5]"]["kernel"]
    assert part.shape == (3, 4)
    assert part.sharding.spec == PartitionSpec(None, "fsdp")
    assert cut["head"]["bias"].sharding.spec == PartitionSpec("fsdp")


class Moments(NamedTuple):
    """As an optimizer's, but with fields that are not in the order of letters."""

    second: dict
    first: dict


def moments_of(*stacks):
    """Of the layers that a phase trains, which hold their numbers."""
    tree = {
        f"layers[{start}:{stop}]": {"kernel": jnp.arange(start, stop)[:, None] * 1.0}
        for start, stop in stacks
    }
    return {"optimizer": (Moments(tree, tree), jnp.int32(3))}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ([(4, 6)], [(4, 5), (5, 6)]),
        ([(0, 2), (4, 6)], [(0, 1), (1, 2), (4, 5), (5, 6)]),
    ],
)
def test_moments_of_some_layers_are_regrouped_both_ways(here, there):
    one, other = moments_of(*here), moments_of(*there)
    for tree, like in ((one, other), (other, one)):
        found = regroup_like(tree, like)
        assert jax.tree.structure(found) == jax.tree.structure(like)
        expected = named(like)
        for name, leaf in named(found).items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_moments_of_other_layers_are_refused():
    with pytest.raises(ValueError, match="are not those of"):
        regroup_like(moments_of((4, 6)), moments_of((3, 4), (4, 5)))


def rows(first, last):
    return jnp.arange(float(first), last)[:, None] * jnp.ones((1, 3))


def test_neighbouring_stacks_are_joined_in_the_order_of_their_layers():
    tree = {f"layers[{n}:{n + 1}]": {"kernel": rows(n, n + 1)} for n in range(12)}
    joined = join_stacks({"body": tree, "bias": jnp.ones(2)})
    assert set(joined) == {"body", "bias"}
    assert set(joined["body"]) == {"layers"}
    assert joined["body"]["layers"]["kernel"][:, 0].tolist() == list(range(12))


def test_joined_stacks_keep_the_numbers_of_layers_that_are_not_all():
    tree = {
        "layers[2:4]": {"kernel": rows(2, 4), "bias": rows(2, 4)},
        "layers[4:5]": {"kernel": rows(4, 5)},
        "layers[7:8]": {"kernel": rows(7, 8), "bias": rows(7, 8)},
    }
    joined = join_stacks(tree)
    assert {name: set(part) for name, part in joined.items()} == {
        "layers[2:5]": {"kernel"},
        "layers[2:4]": {"bias"},
        "layers[7:8]": {"kernel", "bias"},
    }
    assert joined["layers[2:5]"]["kernel"][:, 0].tolist() == [2, 3, 4]


def test_joining_stacks_changes_no_name_but_that_of_the_stack():
    tree = {"sublayers": {"layers[1:2]": {"layers_scale": rows(1, 2)}}}
    joined = join_stacks(tree)
    assert set(joined["sublayers"]["layers[1:2]"]) == {"layers_scale"}


def test_joining_stacks_keeps_the_tuples_of_moments():
    joined = join_stacks(moments_of((0, 1), (1, 3)))
    moments, count = joined["optimizer"]
    assert (type(moments), int(count)) == (Moments, 3)
    for part in moments:
        assert part["layers"]["kernel"][:, 0].tolist() == [0, 1, 2]
