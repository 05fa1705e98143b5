"""Plans what is asked for; where it does not fit, tries what would help; searches."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.planning.candidates import blocks, mesh_choices, remedies, variants
from jaxlm.planning.compiling import Build, Compilation, Job
from jaxlm.planning.estimate import Plan
from jaxlm.planning.outcome import Outcome, Trial
from jaxlm.planning.topology import Topology, sizes_on

Say = Callable[[str], None]
NOTICE_SECONDS = 10.0
MEMORY_EACH = 5 * 2**30
"""What a compilation of a large step was seen to take of this machine, and room."""
HELP = 3
"""Changes that are shown of those that help a step that does not fit."""
COMPILED = 8
"""Candidates of a search that are compiled, the likeliest first."""
TIE = 0.005
"""Blocks of attention whose speeds differ by less than this share are as fast."""


@dataclass(frozen=True)
class Wanted:
    """What to plan. ``build`` makes a step of a config (see ``compiling``), and
    ``configure`` a config of further overrides, as ``--config.KEY=VALUE``."""

    build: Build
    configure: Callable[[tuple[str, ...]], Any]
    topology: Topology
    jobs: int | None = None

    def job(self, overrides: tuple[str, ...]) -> Job:
        """That of the config with some overrides.

        Raises:
          UserError: such a config is not allowed, or does not fit the topology.
        """
        chosen = self.configure(overrides)
        sizes = sizes_on(self.topology, chosen.mesh.sizes)
        return Job(chosen, self.topology, sizes)


def plan(wanted: Wanted, say: Say) -> Outcome:
    """The plan of a config as it is; what would help, where it does not fit.

    Raises:
      UserError: something a user can mend.
    """
    (trial,) = run(wanted, [()], say, alone=True)
    if trial.plan is None:
        raise UserError(trial.refused)
    if trial.plan.fits:
        return Outcome(trial.plan)
    say("it does not fit; trying what would help")
    config = wanted.configure(())
    tried = run(wanted, remedies(config, wanted.topology), say)
    useful = [each for each in tried if _helps(each, trial.plan)]
    useful.sort(key=lambda each: (not each.plan.fits, each.plan.needed))  # pyright: ignore
    return Outcome(trial.plan, trials=useful[:HELP])


def _helps(trial: Trial, plan: Plan) -> bool:
    """Whether a change fits, or needs less than a plan; a need of 0 is not known."""
    if trial.plan is None:
        return False
    return trial.plan.fits or 0 < trial.plan.needed < (plan.needed or math.inf)


def search(wanted: Wanted, say: Say) -> Outcome:
    """The best of meshes, microbatches and rematerialisation that fits, with the best
    block of attention for it.

    Raises:
      UserError: nothing fits.
    """
    config, topology = wanted.configure(()), wanted.topology
    tried = run(wanted, [()], say)
    if tried[0].plan is None:  # its own mesh, perhaps, which is searched for
        tried += run(wanted, mesh_choices(topology)[:1], say)
    first = tried[-1].plan
    if first is None:
        raise UserError(tried[0].refused)
    chosen = variants(config, topology, first.facts, first.capacity)[:COMPILED]
    say(f"searching: {len(chosen)} configurations are compiled")
    tried += run(wanted, chosen, say)
    ranked = sorted(tried, key=_rank)
    best = ranked[0]
    if best.plan is None or not best.plan.fits:
        raise UserError(
            f"--search: nothing of what was tried fits {wanted.topology.text}: "
            + "; ".join(f"{each.text}: {each.line}" for each in ranked[:3])
        )
    return with_blocks(wanted, best.plan, ranked, say)


def with_blocks(wanted: Wanted, plan: Plan, ranked: list[Trial], say: Say) -> Outcome:
    """The outcome of a search whose best has ``plan``, once its best is tried with
    other blocks of attention.

    Of blocks that are as fast the largest is best: it has the fewest steps, which no
    plan counts (docs.jax.dev/en/latest/pallas/tpu/details.html).
    """
    best = ranked[0]
    config = wanted.configure(best.overrides)
    others = [(*best.overrides, *each) for each in blocks(config, plan.facts)]
    if not others:
        return Outcome(plan, best.overrides, ranked, searched=True)
    say(f"searching: {len(others)} other blocks of attention are compiled")
    found = [best, *run(wanted, others, say)]
    fastest = max(_speed(each) for each in found)
    alike = [each for each in found if _speed(each) >= (1 - TIE) * fastest]

    def block(trial: Trial) -> int:
        return wanted.configure(trial.overrides).model.attention_block

    chosen = max(alike, key=block)
    rest = [each for each in [*found, *ranked[1:]] if each is not chosen]
    trials = [chosen, *sorted(rest, key=_rank)]
    return Outcome(chosen.plan or plan, chosen.overrides, trials, searched=True)


def choose_mesh(wanted: Wanted, say: Say) -> dict[str, int]:
    """The sizes of the fastest mesh that fits, all else being as the config has it.

    Raises:
      UserError: none fits.
    """
    tried = run(wanted, mesh_choices(wanted.topology), say)
    best = min(tried, key=_rank)
    if best.plan is None or not best.plan.fits:
        raise UserError(
            f"config.mesh.layout: auto finds no mesh of {wanted.topology.text} on which"
            f" the step fits; the nearest: {best.text}: {best.line}"
        )
    return dict(best.plan.facts["mesh"])


def _speed(trial: Trial) -> float:
    """Tokens a second; 0 of what does not fit."""
    plan = trial.plan
    return plan.tokens_per_second if plan is not None and plan.fits else 0.0


def _rank(trial: Trial) -> tuple[int, float]:
    """Those that fit by their speed, then those that do not by their size."""
    if trial.plan is None:
        return 2, 0.0
    if not trial.plan.fits:
        return 1, float(trial.plan.needed)
    return 0, -trial.plan.tokens_per_second


def run(
    wanted: Wanted,
    chosen: Iterable[tuple[str, ...]],
    say: Say,
    *,
    alone: bool = False,
) -> list[Trial]:
    """A trial of each set of overrides, as many at a time as memory allows.

    Raises:
      RuntimeError: the compiler of one that is asked for ``alone`` failed; another's
        failure is its trial's.
    """
    waiting, running, done = list(chosen), dict[int, Compilation](), dict[int, Trial]()
    order = list(waiting)
    most = wanted.jobs or jobs_allowed()
    last = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                overrides = waiting.pop(0)
                place = len(order) - len(waiting) - 1
                try:
                    running[place] = Compilation(wanted.build, wanted.job(overrides))
                except UserError as problem:
                    done[place] = Trial(overrides, None, str(problem))
            for place, each in list(running.items()):
                if each.poll(0.2):
                    trial = _trial(wanted, order[place], each, alone)
                    done[place] = trial
                    del running[place]
                    end = "done" if trial.plan is not None else "refused"
                    say(f"{each.seconds:4.0f} s  {_named(order[place])}{end}")
            if time.monotonic() - last > NOTICE_SECONDS:
                last = time.monotonic()
                for place, each in running.items():
                    say(f"{each.seconds:4.0f} s  {_named(order[place])}{each.stage}")
    finally:
        for each in running.values():
            each.stop()
    return [done[place] for place in sorted(done)]


def _trial(
    wanted: Wanted, overrides: tuple[str, ...], each: Compilation, alone: bool
) -> Trial:
    """What came of a compilation; one that is not ``alone`` may fail by anything."""
    try:
        return Trial(overrides, Plan(wanted.topology, each.result()))
    except UserError as problem:
        return Trial(overrides, None, str(problem))
    except RuntimeError as problem:
        if alone:
            raise
        return Trial(overrides, None, str(problem).strip().splitlines()[-1])


def _named(overrides: Sequence[str]) -> str:
    return f"{' '.join(overrides)}: " if overrides else ""


def jobs_allowed() -> int:
    """Compilations that memory and processors allow at a time, at least one."""
    info = Path("/proc/meminfo")
    free = MEMORY_EACH
    if info.exists():
        lines = [line.split() for line in info.read_text().splitlines()]
        free = next(
            (int(each[1]) * 1024 for each in lines if each[0] == "MemAvailable:"), free
        )
    return max(1, min((os.cpu_count() or 2) // 2, free // MEMORY_EACH))
