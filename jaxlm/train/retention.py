"""Which checkpoints are kept, how they rank, and which of them are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import UserError
from jaxlm.train.damage import DAMAGED

if TYPE_CHECKING:
    from jaxlm.train.checkpoints import Checkpoints


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
        from orbax.checkpoint import path as paths  # late, as in Checkpoints

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


def choose(checkpoints: Checkpoints, wanted: str) -> list[int]:
    """The steps that ``best``, ``last``, ``all`` or a number means.

    Raises:
      UserError: there is no such checkpoint.
    """
    steps, left_out = checkpoints.steps(), checkpoints.left_out
    asked = list(left_out) if not steps else [int(wanted)] if wanted.isdecimal() else []
    for step in set(asked) & set(left_out):
        raise UserError(
            f"{checkpoints.directory}/{step}: is damaged ({left_out[step]}); start"
            f" jaxlm.main again, which moves it to {DAMAGED}/, or delete it"
        )
    if not steps:
        raise UserError(
            f"{checkpoints.directory}: no checkpoint yet; train with jaxlm.main first"
        )
    if wanted == "all":
        return steps
    if wanted == "last":
        return steps[-1:]
    if wanted == "best":
        best = checkpoints.best()
        return [steps[-1] if best is None else best]
    if not wanted.isdecimal() or int(wanted) not in steps:
        there = ", ".join(str(step) for step in steps)
        raise UserError(
            f"--step={wanted}: not there; allowed: best, last, all, {there}"
        )
    return [int(wanted)]
