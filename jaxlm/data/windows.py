"""Cutting a long example into windows, and who speaks for which token."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.errors import UserError


@dataclass(frozen=True)
class Window:
    """Tokens ``[start, stop)`` of an example; of them it owns ``[first, last)``.

    Windows overlap, so that every token is seen with context; each token is owned by
    one window, the one in which it stands farther from an edge. Only the owner's label
    counts in the loss and only the owner's prediction is used, so nothing is counted
    twice.
    """

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Windowing:
    """How examples meet the length of a row.

    ``room`` is how many tokens fit besides the special ones.
    """

    room: int
    stride: int
    overflow: str

    def __post_init__(self) -> None:
        if self.room <= self.stride:
            raise UserError(
                f"config.data.stride: {self.stride} is not allowed; less than the"
                f" {self.room} tokens that a window holds besides the special ones"
            )

    def cut(self, length: int, source: str) -> list[Window]:
        """The windows of an example of ``length`` tokens; at least one.

        Raises:
          UserError: the example does not fit and ``overflow`` is ``error``.
        """
        if length <= self.room:
            return [Window(0, length, 0, length)]
        if self.overflow == "error":
            raise UserError(
                f"{source}: {length} tokens do not fit in {self.room} and"
                " config.data.overflow is error; raise config.data.max_length or choose"
                " split or truncate"
            )
        if self.overflow == "truncate":
            return [Window(0, self.room, 0, self.room)]
        step = self.room - self.stride
        starts = list(range(0, length - self.stride, step))
        stops = [min(start + self.room, length) for start in starts]
        # The border between two windows is the middle of what they share.
        borders = [
            (after + before) // 2
            for before, after in zip(stops[:-1], starts[1:], strict=True)
        ]
        firsts, lasts = [0, *borders], [*borders, length]
        return [
            Window(*each) for each in zip(starts, stops, firsts, lasts, strict=True)
        ]
