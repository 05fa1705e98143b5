"""The counts of conlleval, the official scorer of CoNLL-2000 to 2003, from its rules.

E. F. Tjong Kim Sang's Perl script, version of 2004-01-26. It goes over the words once
and knows of each only the tag before it: ``starts`` and ``ends`` are its startOfChunk
and endOfChunk, for all the tags that it knows, E and the brackets too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

OPENS = {"BB", "IB", "OB", "OI", "EE", "EI", "OE"}
CLOSES = {"BB", "BO", "IB", "IO", "EE", "EI", "EO"}
Tag = tuple[str, str]  # (prefix, type)
OUTSIDE = ("O", "")


class Counts(NamedTuple):
    """Entities by type, and words: those with the right tag, and all."""

    correct: Counter[str]
    guessed: Counter[str]
    found: Counter[str]
    right: int
    words: int


def starts(before: Tag, tag: Tag) -> bool:
    """Whether an entity begins with ``tag``."""
    changes = tag[0] not in ("O", ".") and before[1] != tag[1]
    return before[0] + tag[0] in OPENS or changes or tag[0] in ("[", "]")


def ends(before: Tag, tag: Tag) -> bool:
    """Whether an entity ended before ``tag``."""
    changes = before[0] not in ("O", ".") and before[1] != tag[1]
    return before[0] + tag[0] in CLOSES or changes or before[0] in ("[", "]")


def conlleval(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Counts:
    """Count as the script does: an entity is right while both sides go on alike."""
    correct, guessed, found = Counter[str](), Counter[str](), Counter[str]()
    right = words = 0
    last = last_guess = OUTSIDE
    going_well = False
    for real, guess in _pairs(true, predicted):
        tag, other = real or OUTSIDE, guess or OUTSIDE
        stop, guess_stop = ends(last, tag), ends(last_guess, other)
        if going_well and stop and guess_stop and last[1] == last_guess[1]:
            correct[last[1]] += 1
            going_well = False
        elif stop != guess_stop or tag[1] != other[1]:
            going_well = False
        start, guess_start = starts(last, tag), starts(last_guess, other)
        if start and guess_start and tag[1] == other[1]:
            going_well = True
        found[tag[1]] += start
        guessed[other[1]] += guess_start
        if real:
            right += tag == other
            words += 1
        last, last_guess = tag, other
    return Counts(+correct, +guessed, +found, right, words)


def _pairs(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Iterator[tuple[Tag | None, Tag | None]]:
    """Tags side by side; None at the end of a sentence, which is outside."""
    for tags, guesses in zip(true, predicted, strict=True):
        for tag, guess in zip(tags, guesses, strict=True):
            yield _split(tag), _split(guess)
        yield None, None


def _split(tag: str) -> Tag:
    prefix, _, kind = tag.partition("-")
    return prefix, kind
