import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from jaxlm.core.errors import UserError
from jaxlm.data.tags import normalise, spans

TYPES = st.sampled_from(["PER", "ORG", "creative-work"])
IOB2_LABELS = st.one_of(
    st.just("O"), st.builds("{}-{}".format, st.sampled_from("BI"), TYPES)
)
BIOES_LABELS = st.one_of(
    st.just("O"), st.builds("{}-{}".format, st.sampled_from("BIES"), TYPES)
)


@given(st.lists(IOB2_LABELS))
def test_spans_are_those_of_seqeval(labels):
    expected = [(kind, start, last + 1) for kind, start, last in get_entities(labels)]
    assert spans(labels) == expected


@given(st.lists(BIOES_LABELS, min_size=1))
def test_normalised_bioes_has_the_entities_that_seqeval_reads(labels):
    [normal] = normalise([labels], "bioes")
    expected = [(kind, start, last + 1) for kind, start, last in get_entities(labels)]
    assert spans(normal) == expected


@given(st.lists(st.lists(IOB2_LABELS)))
def test_normalising_twice_changes_nothing_more(labels):
    once = normalise(labels, "iob2")
    assert normalise(once, "iob2") == once


def test_inside_after_another_type_starts_an_entity():
    labels = ["I-PER", "I-LOC", "O", "I-LOC"]
    assert spans(labels) == [("PER", 0, 1), ("LOC", 1, 2), ("LOC", 3, 4)]


@pytest.mark.parametrize(
    ("scheme", "written"),
    [
        ("iob1", ["I-A", "I-A", "B-A", "O", "I-B"]),
        ("iob2", ["B-A", "I-A", "B-A", "O", "B-B"]),
        ("bioes", ["B-A", "E-A", "S-A", "O", "S-B"]),
        ("bioes", ["B-A", "L-A", "U-A", "O", "U-B"]),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_every_scheme_becomes_iob2(scheme, written, told):
    expected = [["B-A", "I-A", "B-A", "O", "B-B"]]
    assert normalise([written], scheme if told else "auto") == expected


def test_bmes_becomes_iob2():
    assert normalise([["B-A", "M-A", "E-A"]]) == [["B-A", "I-A", "I-A"]]


@pytest.mark.parametrize("written", [["I-A", "I-A", "O", "I-B"], ["A", "A", "O", "B"]])
def test_io_merges_neighbours_of_one_type(written):
    assert normalise([written]) == [["B-A", "I-A", "O", "B-B"]]


def test_prefixes_without_types_get_a_type():
    assert normalise([["B", "I", "O"], ["B", "O", "O"]]) == [
        ["B-_", "I-_", "O"],
        ["B-_", "O", "O"],
    ]


def test_bare_types_may_hold_a_hyphen():
    assert normalise([["creative-work", "O"]]) == [["B-creative-work", "O"]]


def test_a_set_with_no_entities_is_kept():
    assert normalise([["O", "O"], []]) == [["O", "O"], []]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["B-PER", "LOC"], "'LOC' does not start with B-/I-"),
        (["B-PER", "X-LOC"], "'X-LOC' does not start with"),
        (["X-PER", "O"], "unknown prefix 'X-'"),
        (["PER-B", "PER-I"], "'PER-B' is not written as B-PER"),
        (["B_PER", "I_PER"], "'B_PER' is not written as B-PER"),
        (["B-", "O"], "names no entity type"),
        (["3", "O"], "'3' is a number"),
        (['"O"]}', "O"], "holds '\"'; is the file of another"),
        (["", "O"], "is empty"),
    ],
)
def test_a_label_outside_the_scheme_is_refused_with_its_sentence(labels, reason):
    with pytest.raises(UserError, match=reason) as caught:
        normalise([["O"], labels], sources=["a.conll:1", "a.conll:3"])
    assert str(caught.value).startswith("a.conll:3: label ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "label"),
    [("iob2", "E-PER"), ("io", "B-PER"), ("iob1", "PER"), ("bioes", "PER")],
)
def test_a_label_outside_the_scheme_that_was_told_is_refused(scheme, label):
    with pytest.raises(UserError, match=repr(label)):
        normalise([[label, "O"]], scheme)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="data.scheme='bilou' is not known"):
        normalise([["O"]], "bilou")


def test_io_accepts_types_that_look_prefixed():
    assert normalise([["X-RAY"]], "io") == [["B-X-RAY"]]
    assert normalise([["VITAMIN_B"]], "io") == [["B-VITAMIN_B"]]


def test_types_of_one_letter_are_types():
    assert normalise([["S", "L", "O"]], "io") == [["B-S", "B-L", "O"]]
