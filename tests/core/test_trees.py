"""Names of parameters: paths there and back, and which a part chooses."""

import pytest

from jaxlm.core.trees import flatten, has_part, layer_slice, parse_layers, unflatten

QUERY = "backbone/layers[4:6]/attention/query/kernel"
WHOLE = "backbone/layers/mlp_norm/scale"


def test_a_tree_and_its_names_say_the_same():
    tree = {"a": {"b": 1, "c": {"d": (2, 3)}}, "e": 4}
    assert flatten(tree) == {"a/b": 1, "a/c/d": (2, 3), "e": 4}
    assert unflatten(flatten(tree)) == tree


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (QUERY, "query"),
        (QUERY, "attention/query"),
        (QUERY, "layers"),
        (QUERY, "layers/attention"),
        (QUERY, "layers[4:6]/attention/query/kernel"),
        (QUERY, "layers[2:]"),
        (QUERY, "layers[-2:]"),
        (QUERY, "layers[:]"),
        (QUERY, "layers/*/query"),
        (WHOLE, "layers[0:6]"),
        (WHOLE, "*_norm"),
        (WHOLE, "*norm/scale"),
    ],
)
def test_parts_that_stand_in_a_name_one_after_another(name, wanted):
    assert has_part(name, wanted, 6)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (QUERY, "que"),
        (QUERY, "attention/kernel"),
        (QUERY, "query/attention"),
        (QUERY, "kernel/kernel"),
        (QUERY, "layers[5:6]"),
        (QUERY, "layers[0:4]"),
        (QUERY, "layers[:-2]"),
        (WHOLE, "layers[0:5]"),
        (WHOLE, "norm"),
        ("classifier/kernel", "layers"),
        ("kernel", "classifier/kernel"),
    ],
)
def test_parts_that_do_not(name, wanted):
    assert not has_part(name, wanted, 6)


def test_the_ends_of_a_slice_are_read_as_written():
    assert parse_layers("layers[-2:]") == (-2, None)
    assert parse_layers("layers") == (None, None)
    assert parse_layers("players[0:2]") is None


@pytest.mark.parametrize("ends", [(6, None), (0, 7), (-7, None), (3, 3), (4, 2)])
def test_a_slice_without_layers_or_beyond_them_is_refused(ends):
    with pytest.raises(ValueError, match="of 6 layers"):
        layer_slice(*ends, 6)
