"""What a planning run found: the best plan, and what else was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.planning.estimate import Plan
from jaxlm.planning.report import gib, holders, report


@dataclass(frozen=True)
class Trial:
    """A change of the config, and its plan; None, and why, where it is refused."""

    overrides: tuple[str, ...]
    plan: Plan | None
    refused: str = ""

    @property
    def text(self) -> str:
        """The change as it is written on a command line."""
        return " ".join(self.overrides) or "(as it is)"

    @property
    def line(self) -> str:
        """One line: what came of it."""
        if self.plan is None:
            return f"refused: {self.refused}"
        size = f"{gib(self.plan.needed)} of {gib(self.plan.capacity)}"
        if not self.plan.fits:
            return f"does not fit, {size}"
        return f"fits, {size}; MFU {self.plan.mfu:.1%}, {self.plan.step_seconds:.4g} s"

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        plan = self.plan
        found: dict[str, Any] = {"overrides": list(self.overrides)}
        if plan is None:
            return found | {"refused": self.refused}
        found |= {"fits": plan.fits, "bytes_per_device": plan.needed}
        if plan.fits:
            found |= {"mfu": plan.mfu, "step_seconds": plan.step_seconds}
        return found


@dataclass(frozen=True)
class Outcome:
    """``best`` is the plan asked for, or that of the best trial of a search."""

    best: Plan
    overrides: tuple[str, ...] = ()
    trials: Sequence[Trial] = field(default_factory=tuple)
    searched: bool = False

    def to_dict(self, tokens: float | None, price: float | None) -> dict[str, Any]:
        """For machines: the plan, and beside it what was tried."""
        found = self.best.to_dict(tokens, price)
        if not self.best.compiled.exhausted:
            found["held_by"] = [
                {"seconds": seconds, "what": what}
                for seconds, what in holders(self.best)
            ]
        if self.searched:
            found["overrides"] = list(self.overrides)
        if self.trials:
            found["tried"] = [trial.to_dict() for trial in self.trials]
        return found


def as_text(found: Outcome, tokens: float | None, price: float | None) -> str:
    """The plan and what was tried, for people."""
    sections = [report(found.best, tokens, price)]
    if found.trials:
        what = "tried, best first" if found.searched else "what would help, each tried"
        width = max(len(trial.text) for trial in found.trials)
        lines = [f"  {trial.text:<{width}}  {trial.line}" for trial in found.trials]
        sections.append("\n".join([what, *lines]))
    if found.searched:
        sections.append("best: " + (" ".join(found.overrides) or "the config as it is"))
    return "\n\n".join(sections)
