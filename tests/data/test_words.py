"""Running text to words."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.words import split_words


def words(text: str) -> list[str]:
    return [word for word, _, _ in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada left Paris.", "Ada|left|Paris|."),
        ("(U.S., 9 a.m.)", "(|U.S.|,|9|a.m.|)"),
        ("Dr. Who met Mr. O'Neil's dog.", "Dr.|Who|met|Mr.|O'Neil|'s|dog|."),
        ("I can't; we'll wait", "I|ca|n't|;|we|'ll|wait"),
        ("Don\u2019t take Ada\u2019s", "Do|n\u2019t|take|Ada|\u2019s"),
        ("AT&T beat Jean-Luc 2-1", "AT&T|beat|Jean-Luc|2-1"),
        ("$1,200.50 (3%) at 14:30", "$|1,200.50|(|3%|)|at|14:30"),
        ("Wait... what?! -- yes", "Wait|...|what|?!|--|yes"),
        ("See https://x.org/a_b. Or www.y.org, ok", "See|https://x.org/a_b|.|Or|www.y.org|,|ok"),
        ("write to a.b@c.org!", "write|to|a.b@c.org|!"),
        ("the 'old' one", "the|'|old|'|one"),
        ("東京へ 行く", "東|京|へ|行|く"),
        ("", ""),
    ],
)  # fmt: skip
def test_words_are_split_as_conll_has_them(text, expected):
    assert "|".join(words(text)) == expected


MARKED = ["cafe\u0301", "हिन्दी", "עִבְרִית", "می\u200cخواهم", "❤\ufe0f"]


@pytest.mark.parametrize("word", MARKED)
def test_marks_and_joiners_stay_in_their_word(word):
    assert words(f"a {word}, b") == ["a", word, ",", "b"]


@given(st.text(max_size=60) | st.text("a1.-'’@/:é\u0301東 \t\n%", max_size=40))
def test_every_character_but_space_stands_in_one_word_at_its_offset(text):
    end, between = 0, ""
    for word, start, stop in split_words(text):
        assert start >= end and start < stop and text[start:stop] == word
        between += text[end:start]
        end = stop
    assert not (between + text[end:]).strip()


@pytest.mark.parametrize("part", ["ab.", "a-", "a@", "x", "@", "'s", "https://", "n't"])
def test_a_long_line_without_spaces_takes_no_long_time(part):
    began = time.perf_counter()
    split_words(part * (60_000 // len(part)))
    assert time.perf_counter() - began < 5  # seconds; quadratic would be minutes
