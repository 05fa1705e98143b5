"""Which checkpoints are kept, and how they rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orbax.checkpoint import path as paths


class Keep:
    """Orbax's preservation policy: the newest, and the best with a score."""

    def __init__(self, last: int, best: int, rank: Callable[[Any], float]):
        self.last, self.best, self.rank = last, best, rank

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        kept = {each.step for each in checkpoints[-self.last :]}
        kept.update(ranked(checkpoints, self.rank)[: self.best])
        return [each.step in kept for each in checkpoints]


class Names:
    """Orbax's format of step names, but for steps that are left out."""

    def __init__(self, left_out: Mapping[int, str]):
        self._left_out, self._format = left_out, paths.step.standard_name_format()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._format, name)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        found = self._format.find_all(base_path)
        return (each for each in found if each.step not in self._left_out)


def ranked(checkpoints: Sequence[Any], rank: Callable[[Any], float]) -> list[int]:
    """The steps that have a score, best first, the earliest of equals first."""
    scored = [(-rank(each.metrics), each.step) for each in checkpoints]
    return [step for value, step in sorted(scored) if value < math.inf]
