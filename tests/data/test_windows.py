"""Windows over long examples: each token owned once, and seen with context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import UserError
from jaxlm.data.windows import Window, Windowing


@st.composite
def cases(draw):
    room = draw(st.integers(1, 40))
    stride = draw(st.integers(0, room - 1))
    return room, stride, draw(st.integers(0, 300))


def cut(case):
    room, stride, length = case
    return Windowing(room, stride, "split").cut(length, "a.txt:1")


@given(cases())
def test_every_token_is_owned_exactly_once_and_in_order(case):
    owned = [place for each in cut(case) for place in range(each.first, each.last)]
    assert owned == list(range(case[2]))


@given(cases())
def test_a_window_contains_what_it_owns_and_owns_something(case):
    for window in cut(case):
        assert window.start <= window.first <= window.last <= window.stop
        assert window.first < window.last or case[2] == 0


@given(cases())
def test_every_window_fits_and_only_the_last_may_be_shorter(case):
    room, _, length = case
    *full, last = cut(case)
    assert all(window.stop - window.start == room for window in full)
    assert last.stop - last.start <= room
    assert last.stop == length


@given(cases())
def test_neighbours_share_exactly_the_stride(case):
    windows = cut(case)
    for left, right in zip(windows[:-1], windows[1:], strict=True):
        assert left.stop - right.start == case[1]


@given(cases())
def test_a_token_is_owned_by_the_window_where_it_stands_farthest_from_an_edge(case):
    windows = cut(case)

    def depth(window, place):
        # The ends of the example are no edges: nothing beyond them is missing.
        left = place - window.start + 1 if window.start else case[2]
        right = window.stop - place if window.stop < case[2] else case[2]
        return min(left, right)

    for owner in windows:
        for place in range(owner.first, owner.last):
            sees = [each for each in windows if each.start <= place < each.stop]
            # Between two windows the middle is as good for either, but for one token.
            assert depth(owner, place) >= max(depth(each, place) for each in sees) - 1


@given(cases())
def test_no_window_lies_within_another(case):
    windows = cut(case)
    for left, right in zip(windows[:-1], windows[1:], strict=True):
        assert left.start < right.start and left.stop < right.stop


@pytest.mark.parametrize("overflow", ["split", "truncate", "error"])
@pytest.mark.parametrize("length", [0, 1, 8])
def test_an_example_that_fits_is_one_window(overflow, length):
    found = Windowing(8, 2, overflow).cut(length, "a.txt:1")
    assert found == [Window(0, length, 0, length)]


def test_truncation_keeps_the_beginning():
    assert Windowing(8, 2, "truncate").cut(9, "a.txt:1") == [Window(0, 8, 0, 8)]


def test_an_overlong_example_is_refused_with_its_place_where_so_configured():
    with pytest.raises(UserError, match=r"^a\.txt:1: 9 tokens do not fit in 8 .*split"):
        Windowing(8, 2, "error").cut(9, "a.txt:1")


@pytest.mark.parametrize("stride", [8, 9])
def test_a_stride_that_leaves_no_advance_is_refused(stride):
    with pytest.raises(UserError, match=r"config\.data\.stride: .* less than the 8"):
        Windowing(8, stride, "split")
