"""What the host sees of sequences while they grow: text to stream, stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.models.detokenizer import Detokenizer
from jaxlm.models.generation import Generated

Stream = Callable[[int, str], None]


class Watch:
    """Sequences as they grow: ``stops`` are tokens that end one, ``strings`` texts.

    Without a ``detokenizer`` there are no texts.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | None,
        rows: int,
        stops: Sequence[int],
        strings: Sequence[str],
        stream: Stream | None,
    ):
        self.detokenizer, self.stream = detokenizer, stream
        self.stops, self.strings = frozenset(stops), strings
        self.said = [""] * rows
        self.cut: dict[int, tuple[int, str]] = {}
        """By row, how many tokens and which text stand before a stop string."""

    @property
    def reader(self) -> Detokenizer:
        """What gives texts.

        Raises:
          ValueError: there is none.
        """
        if self.detokenizer is None:
            raise ValueError("to look at texts takes a detokenizer")
        return self.detokenizer

    def look(self, tokens: np.ndarray, last: bool) -> np.ndarray:
        """Stream what is new of ``tokens [B, n]``; which rows met a stop string.

        ``last``: no more tokens will come.
        """
        for row in range(len(self.said)):
            if row in self.cut:
                continue
            ids = ended(tokens[row].tolist(), self.stops)
            finished = last or bool(ids and ids[-1] in self.stops)
            reader = self.reader
            text = reader.text(ids) if finished else reader.settled(ids)
            at = first_of(text, self.strings)
            if at is not None:
                text = text[:at]
                self.cut[row] = self.shortest(ids), text
            self.say(row, text, finished or at is not None)
        return np.array([row in self.cut for row in range(len(self.said))], bool)

    def shortest(self, ids: list[int]) -> int:
        """How many tokens it takes to reach a stop string."""
        for count in range(1, len(ids)):
            if first_of(self.reader.text(ids[:count]), self.strings) is not None:
                return count
        return len(ids)

    def say(self, row: int, text: str, finished: bool) -> None:
        """Stream a text so far, but for what may become a stop string."""
        if self.stream is None:
            return
        held = max((len(each) for each in self.strings), default=1) - 1
        if held and not finished:
            text = text[:-held]
        if len(text) > len(self.said[row]):
            self.stream(row, text[len(self.said[row]) :])
            self.said[row] = text

    def finished(self, row: int, tokens: np.ndarray, logprobs: np.ndarray) -> Generated:
        """A sequence as the caller gets it; the rest of its text is streamed."""
        ids = ended(tokens.tolist(), self.stops)
        finish = "stop" if ids and ids[-1] in self.stops else "length"
        text = self.detokenizer and self.detokenizer.text(ids)
        if row in self.cut:
            count, text = self.cut[row]
            ids, finish = ids[:count], "stop"
        if text is not None:
            self.say(row, text, True)
        values = [float(value) for value in logprobs[: len(ids)]]
        return Generated(ids, sum(values), finish, text, values)


def ended(ids: list[int], stops: frozenset[int]) -> list[int]:
    """Tokens up to the first that ends a sequence, and that."""
    for place, token in enumerate(ids):
        if token in stops:
            return ids[: place + 1]
    return ids


def first_of(text: str, strings: Sequence[str]) -> int | None:
    """Where the first of some strings begins; None where none is."""
    places = [place for each in strings if (place := text.find(each)) >= 0]
    return min(places, default=None)
