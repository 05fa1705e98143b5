"""Every scheme becomes IOB2 and keeps its entities, also where it is broken."""

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


def in_iob1(kind, size, joins):
    return [f"{'B' if joins else 'I'}-{kind}"] + [f"I-{kind}"] * (size - 1)


def in_iob2(kind, size, joins):
    return [f"B-{kind}"] + [f"I-{kind}"] * (size - 1)


def ended(single, inside, last):
    """A scheme that also tells the last word of an entity, and those of one word."""

    def write(kind, size, joins):
        middle = [f"{inside}-{kind}"] * (size - 2)
        whole = [f"B-{kind}", *middle, f"{last}-{kind}"]
        return whole if size > 1 else [f"{single}-{kind}"]

    return write


WRITERS = {
    "IOB1": ("iob1", in_iob1),
    "IOB2": ("iob2", in_iob2),
    "IO": ("io", lambda kind, size, joins: [f"I-{kind}"] * size),
    "bare": ("io", lambda kind, size, joins: [kind] * size),
    "BIOES": ("bioes", ended("S", "I", "E")),
    "BILOU": ("bioes", ended("U", "I", "L")),
    "BMES": ("bioes", ended("S", "M", "E")),
}


@st.composite
def sentences(draw, joined=True):
    """Entities of a sentence as (type, start, stop), and its number of words.

    ``joined``: one of the same type may follow at once, which IO cannot say.
    """
    stop, found = 0, []
    for kind in draw(st.lists(TYPES, max_size=5)):
        same = bool(found) and found[-1][0] == kind
        start = stop + draw(st.integers(0 if joined or not same else 1, 2))
        stop = start + draw(st.integers(1, 4))
        found.append((kind, start, stop))
    return found, stop + draw(st.integers(0, 2))


def write(sentence, writer):
    entities, words = sentence
    labels, before = ["O"] * words, ("", 0, 0)
    for kind, start, stop in entities:
        joins = (kind, start) == (before[0], before[2])
        labels[start:stop] = writer(kind, stop - start, joins)
        before = kind, start, stop
    return labels


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.data())
def test_entities_written_in_any_scheme_are_written_in_iob2(name, data):
    scheme, writer = WRITERS[name]
    texts = data.draw(st.lists(sentences(joined=scheme != "io"), max_size=4))
    written = [write(each, writer) for each in texts]
    expected = [write(each, in_iob2) for each in texts]
    assert normalise(written, scheme) == normalise(written) == expected
    assert [spans(labels) for labels in expected] == [each[0] for each in texts]


@pytest.mark.parametrize("name", ["IOB1", "IOB2", "BIOES", "BILOU", "BMES"])
@given(data=st.data())
def test_prefixes_alone_are_entities_of_one_type(name, data):
    scheme, writer = WRITERS[name]
    texts = data.draw(st.lists(sentences(), max_size=4))
    # Of one type, so that neighbours join.
    texts = [([("_", *ends) for _, *ends in found], words) for found, words in texts]
    written = [
        [label.removesuffix("-_") for label in write(each, writer)] for each in texts
    ]
    assert normalise(written, scheme) == [write(each, in_iob2) for each in texts]


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes", "auto"])
@given(labels=st.lists(IOB2_LABELS))
def test_a_broken_sentence_becomes_valid_with_the_entities_of_seqeval(scheme, labels):
    [normal] = normalise([labels], scheme)
    expected = [(kind, start, last + 1) for kind, start, last in get_entities(labels)]
    assert normal == write((expected, len(labels)), in_iob2)


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


@pytest.mark.parametrize(
    ("scheme", "kinds"), [("io", "SL"), ("io", "BL"), ("io", "IS"), ("auto", "SL")]
)
def test_types_of_one_letter_are_types(scheme, kinds):
    [normal] = normalise([[*kinds, "O"]], scheme)
    assert normal == [*(f"B-{kind}" for kind in kinds), "O"]
