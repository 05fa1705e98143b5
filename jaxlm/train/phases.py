"""A run as a list of phases: what is trained, and for how many steps.

A phase is written ``WHAT@LENGTH``: ``head@1epoch``, ``head+layers[4:6]@200steps``, and
at last ``all`` without a length. Gradual unfreezing (Howard and Ruder, 2018, section
3.3) is several such phases; freezing for good is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jaxlm.core.schema import ConfigError, nearest
from jaxlm.core.trees import (
    BACKBONE,
    flatten,
    has_part,
    layer_slice,
    parse_layers,
    unflatten,
)

KEY = "train.phases"
ALL, HEAD = "all", "head"
_WRITTEN = re.compile(
    r"(?P<what>[^@]+?)(?:@(?P<count>[1-9]\d{0,8})(?P<unit>epoch|step)s?)?"
)
_NAME = re.compile(r"[\w*]+(?:\[-?\d*:-?\d*\])?(?:/[\w*]+(?:\[-?\d*:-?\d*\])?)*")


@dataclass(frozen=True)
class Phase:
    """One phase as written: names of what is trained, and its length.

    A name is ``all``, ``head`` (all that the task adds to the backbone) or parts of
    parameters' names: see ``core.trees.has_part``. ``count`` is None for the last.
    """

    text: str
    names: tuple[str, ...]
    count: int | None
    unit: str


def parse_phases(texts: Sequence[str]) -> tuple[Phase, ...]:
    """``config.train.phases``; nothing written is one phase that trains all.

    Raises:
      ConfigError: how a phase is not written.
    """
    phases = []
    for text in texts or (ALL,):
        found = _WRITTEN.fullmatch(text.replace(" ", ""))
        names = tuple(found["what"].split("+")) if found else ()
        wrong = [name for name in names if not _NAME.fullmatch(name)]
        if not found or wrong:
            raise ConfigError(
                KEY,
                f"{text!r} is not allowed; WHAT@LENGTH, as head@1epoch or"
                " head+layers[4:6]@200steps; the last without a length, as all",
            )
        count = int(found["count"]) if found["count"] else None
        phases.append(Phase(text, names, count, found["unit"] or ""))
    for phase in phases[:-1]:
        if phase.count is None:
            raise ConfigError(
                KEY,
                f"{phase.text!r} is not allowed before another phase; give it a length,"
                f" as {phase.text}@1epoch",
            )
    if phases[-1].count is not None:
        raise ConfigError(
            KEY,
            f"{phases[-1].text!r} is not allowed as the last phase, which lasts to the"
            " end of the run; leave out its length",
        )
    return tuple(phases)


def cuts(phases: Iterable[Phase], layers: int) -> tuple[int, ...]:
    """The layers at which phases cut a model, so that each can be frozen apart.

    Raises:
      ConfigError: a phase names layers that the model does not have.
    """
    edges: set[int] = set()
    for phase in phases:
        for name in phase.names:
            for part in name.split("/"):
                written = parse_layers(part)
                if written is None:
                    continue
                try:
                    found = layer_slice(*written, layers)
                except ValueError:
                    raise ConfigError(
                        KEY,
                        f"{part!r} in {phase.text!r} is not allowed; the model has"
                        f" {layers} layers, layers[0:{layers}]",
                    ) from None
                edges |= {found.start, found.stop}
    return tuple(sorted(edges - {0, layers}))


@dataclass(frozen=True)
class Phases:
    """The phases of a run over a model: ``trainable[n]`` is trained from ``begins[n]``.

    A state belongs to the phase of the step that made it: at a border, a checkpoint is
    still of the phase that ends.
    """

    written: tuple[Phase, ...]
    begins: tuple[int, ...]
    trainable: tuple[frozenset[str], ...]

    def at(self, step: int) -> int:
        """The phase of the state after ``step`` steps."""
        return sum(begin < step for begin in self.begins[1:])

    def split(self, tree: Mapping[str, Any], phase: int) -> tuple[dict, dict]:
        """A tree like the parameters, as what a phase trains and what it freezes."""
        flat = flatten(tree)
        chosen = self.trainable[phase]
        return (
            unflatten({name: flat[name] for name in flat if name in chosen}),
            unflatten({name: flat[name] for name in flat if name not in chosen}),
        )


def make_phases(
    written: Sequence[Phase],
    names: Iterable[str],
    layers: int,
    epoch_ends: Sequence[int],
) -> Phases:
    """Phases over the parameters ``names`` of a model and the steps of a plan.

    Raises:
      ConfigError: a phase names no parameter, or leaves no step for the next.
    """
    names = list(names)
    trainable = []
    for phase in written:
        chosen: set[str] = set()
        for wanted in phase.names:
            found = {name for name in names if _chooses(wanted, name, layers)}
            if not found:
                raise _no_parameter(wanted, phase, names)
            chosen |= found
        trainable.append(frozenset(chosen))
    return Phases(tuple(written), _begins(written, epoch_ends), tuple(trainable))


def _chooses(wanted: str, name: str, layers: int) -> bool:
    if wanted == ALL:
        return True
    if wanted == HEAD:
        return not name.startswith(f"{BACKBONE}/")
    return has_part(name, wanted, layers)


def _no_parameter(wanted: str, phase: Phase, names: Sequence[str]) -> ConfigError:
    parts = sorted({part for name in names for part in name.split("/")})
    near = nearest(wanted, [ALL, HEAD, *parts])
    hint = f"; nearest: {near}" if near else ""
    return ConfigError(
        KEY,
        f"{wanted!r} in {phase.text!r} names no parameter{hint}; all, head, or parts of"
        f" names: {', '.join(parts)}",
    )


def _begins(written: Sequence[Phase], epoch_ends: Sequence[int]) -> tuple[int, ...]:
    """The step that each phase begins at; a phase of epochs ends where one ends."""
    total, begins = epoch_ends[-1], [0]
    for phase, after in pairwise(written):
        if phase.unit == "step":
            end = begins[-1] + (phase.count or 0)
        else:
            later = [each for each in epoch_ends if each > begins[-1]]
            count = phase.count or 0
            end = later[count - 1] if count <= len(later) else total
        if end >= total:
            raise ConfigError(
                KEY,
                f"{phase.text!r} is too long; it lasts to the end of the run, step"
                f" {total}, and leaves nothing for {after.text!r}",
            )
        begins.append(end)
    return tuple(begins)
