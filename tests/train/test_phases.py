"""Phases as written: where they cut a model, when they begin, what they train."""

import pytest

from jaxlm.core.schema import ConfigError
from jaxlm.train.phases import cuts, make_phases, parse_phases

NAMES = (
    "backbone/embeddings/tokens/table",
    "backbone/layers[0:4]/attention/query/kernel",
    "backbone/layers[0:4]/attention/query/bias",
    "backbone/layers[4:6]/attention/query/kernel",
    "backbone/layers[4:6]/attention/query/bias",
    "classifier/kernel",
    "classifier/bias",
)
ENDS = (10, 20, 30)


def phases(*texts, names=NAMES, ends=ENDS):
    return make_phases(parse_phases(texts), names, 6, ends)


def test_nothing_written_is_one_phase_that_trains_all():
    run = phases()
    assert run.begins == (0,)
    assert run.trainable == (frozenset(NAMES),)


def test_gradual_unfreezing_is_several_phases():
    run = phases("head@1epoch", "head + layers[4:6] @ 5 steps", "all")
    assert run.begins == (0, 10, 15)
    head = {"classifier/kernel", "classifier/bias"}
    top = {name for name in NAMES if "layers[4:6]" in name}
    assert [*run.trainable] == [head, head | top, set(NAMES)]


@pytest.mark.parametrize(
    ("text", "count"),
    [("bias", 3), ("bias+head", 4), ("embeddings", 1), ("layers/attention", 4)],
)
def test_a_phase_trains_what_its_names_choose(text, count):
    assert len(phases(text).trainable[0]) == count


def test_a_state_belongs_to_the_phase_of_its_last_step():
    run = phases("head@10steps", "bias@1step", "all")
    steps = (0, 1, 10, 11, 12, 30)
    assert [run.at(step) for step in steps] == [0, 0, 0, 1, 2, 2]


def test_a_phase_of_epochs_ends_where_an_epoch_does():
    assert phases("head@2epochs", "all").begins == (0, 20)
    assert phases("head@15steps", "bias@1epoch", "all").begins == (0, 15, 20)


def test_a_tree_is_split_in_two_that_share_no_leaf():
    tree = {
        "backbone": {"embeddings": {"tokens": {"table": 1}}},
        "classifier": {"kernel": 2},
    }
    names = ("backbone/embeddings/tokens/table", "classifier/kernel")
    run = phases("head", names=names)
    assert run.split(tree, 0) == (
        {"classifier": {"kernel": 2}},
        {"backbone": {"embeddings": {"tokens": {"table": 1}}}},
    )
    assert phases("all", names=names).split(tree, 0) == (tree, {})


@pytest.mark.parametrize(
    ("texts", "edges"),
    [
        (("all",), ()),
        (("head@1epoch", "layers/mlp"), ()),
        (("layers[4:6]",), (4,)),
        (("layers[-2:]@1epoch", "layers[1:3]/mlp@1epoch", "all"), (1, 3, 4)),
        (("layers[0:6]",), ()),
    ],
)
def test_a_model_is_cut_where_layers_are_chosen_apart(texts, edges):
    assert cuts(parse_phases(texts), 6) == edges


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("",), "'' is not allowed"),
        (("head@",), "WHAT@LENGTH"),
        (("head@0epochs", "all"), "'head@0epochs' is not allowed"),
        (("head@1.5epochs", "all"), "head@1epoch or"),
        (("head@3", "all"), "'head@3' is not allowed"),
        (("head@1week", "all"), "'head@1week' is not allowed"),
        (("head++bias",), "'head\\+\\+bias' is not allowed"),
        (("layers[1]",), "'layers\\[1\\]' is not allowed"),
        (("head", "all"), "'head' is not allowed before another phase"),
        (("head@1epoch", "all@1epoch"), "as the last phase.*leave out its length"),
    ],
)
def test_what_is_not_written_as_a_phase_is_refused(texts, words):
    with pytest.raises(ConfigError, match=words) as raised:
        parse_phases(texts)
    assert raised.value.key == "train.phases"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("haed",), "'haed' in 'haed' names no parameter; nearest: head"),
        (("head+embedings",), "nearest: embeddings; all, head, or parts"),
        (("layers[4:6]/key",), "'layers\\[4:6\\]/key' in"),
        (("head@30steps", "all"), "leaves nothing for 'all'"),
        (("head@3epochs", "all"), "lasts to the end of the run, step 30"),
        (("head@9epochs", "all"), "is too long"),
        (("head@20steps", "bias@1epoch", "all"), "'bias@1epoch' is too long"),
    ],
)
def test_phases_that_do_not_fit_the_run_are_refused(texts, words):
    with pytest.raises(ConfigError, match=words):
        phases(*texts)


@pytest.mark.parametrize("text", ["layers[4:7]", "layers[6:]", "layers[3:3]/mlp"])
def test_layers_that_the_model_has_not_are_refused_with_their_number(text):
    with pytest.raises(ConfigError, match=r"the model has 6 layers, layers\[0:6\]"):
        cuts(parse_phases((text,)), 6)
