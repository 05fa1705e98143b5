"""What the host sees of sequences while they grow: text to stream, stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.models.generation import Generated, Generation

Decode = Callable[[Sequence[int]], str | None]


class Watch:
    """Sequences as they grow; ``decode`` gives a text, ``stops`` end a sequence."""

    def __init__(
        self,
        decode: Decode,
        rows: int,
        generation: Generation,
        stops: set[int],
        stream: Callable[[int, str], None] | None,
    ):
        self.decode, self.stop, self.stream = decode, generation.stop, stream
        self.stops = stops
        self.said = [""] * rows
        self.cut: dict[int, tuple[int, str]] = {}
        """By row, how many tokens and which text stand before a stop string."""

    def look(self, tokens: np.ndarray) -> np.ndarray:
        """Stream what is new of ``tokens [B, n]``; which rows met a stop string."""
        for row in range(len(self.said)):
            if row in self.cut:
                continue
            ids = ended(tokens[row].tolist(), self.stops)
            text = self.decode(ids) or ""
            at = first_of(text, self.stop)
            if at is not None:
                text = text[:at]
                self.cut[row] = self.shortest(ids, text), text
            finished = at is not None or ids[-1:] and ids[-1] in self.stops
            self.say(row, text, bool(finished))
        return np.array([row in self.cut for row in range(len(self.said))], bool)

    def shortest(self, ids: list[int], text: str) -> int:
        """How many tokens it takes to reach a stop string."""
        for count in range(1, len(ids) + 1):
            so_far = self.decode(ids[:count]) or ""
            if first_of(so_far, self.stop) is not None:
                return count
        return len(ids)

    def say(self, row: int, text: str, finished: bool) -> None:
        """Stream a text so far, but for what the next token may still change."""
        if self.stream is None:
            return
        if not finished:
            text = text.rstrip("\ufffd")  # half of a letter
            most = max((len(each) for each in self.stop), default=1) - 1
            text = text[: len(text) - most] if most else text
        if len(text) > len(self.said[row]):
            self.stream(row, text[len(self.said[row]) :])
            self.said[row] = text

    def finished(self, row: int, tokens: np.ndarray, logprobs: np.ndarray) -> Generated:
        """A sequence as the caller gets it; the rest of its text is streamed."""
        ids = ended(tokens.tolist(), self.stops)
        finish = "stop" if ids and ids[-1] in self.stops else "length"
        text = self.decode(ids)
        if row in self.cut:
            count, text = self.cut[row]
            ids, finish = ids[:count], "stop"
        if text is not None:
            self.say(row, text, True)
        values = [float(value) for value in logprobs[: len(ids)]]
        return Generated(ids, sum(values), finish, text, values)


def ended(ids: list[int], stops: set[int]) -> list[int]:
    """Tokens up to the first that ends a sequence, and that."""
    for place, token in enumerate(ids):
        if token in stops:
            return ids[: place + 1]
    return ids


def first_of(text: str, strings: Sequence[str]) -> int | None:
    """Where the first of some strings begins; None where none is."""
    places = [place for each in strings if (place := text.find(each)) >= 0]
    return min(places, default=None)
