"""What may happen to a file on a disk: ways to damage one, for tests."""

import random
from functools import partial

import pytest


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deleted(path):
    path.unlink()


def flipped(path, place=0.5, bit=0):
    """One bit of the byte at a place: 0 is the first, and 1 the last."""
    data = bytearray(path.read_bytes())
    if data:
        data[int(place * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def flips(count):
    """Flips at random places, for tests that take their time."""
    chance = random.Random(count)
    return [
        pytest.param(
            partial(flipped, place=chance.random(), bit=chance.randrange(8)),
            id=f"flip {number}",
            marks=pytest.mark.slow,
        )
        for number in range(count)
    ]


DAMAGES = [
    emptied,
    truncated,
    deleted,
    flipped,
    pytest.param(partial(flipped, place=0.0), id="first byte", marks=pytest.mark.slow),
    pytest.param(
        partial(flipped, place=1.0, bit=5), id="last byte", marks=pytest.mark.slow
    ),
    *flips(12),
]
