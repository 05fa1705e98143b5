"""Checkpoints by Orbax: the whole state, asynchronous, the last few and the best few.

A checkpoint ``<step>`` holds two items, ``params`` (all that a model needs, one tree)
and ``training`` (what only training needs), each with fingerprints of its arrays: a
file that rots is noticed when it is read, on whatever layout it is read.

Of several processes each writes and reads its own shards, in one folder that all see.
What is there, and what is damaged, process 0 decides, or all agree on: a process may
meet damage in a file that no other reads.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.grouping import named, regroup_like
from jaxlm.core.hosts import here
from jaxlm.train.damage import (
    DAMAGED,
    attempt,
    layout_difference,
    metrics_problem,
    numbers_with_checksum,
)
from jaxlm.train.objective import join as join_params
from jaxlm.train.retention import Keep, Names, ranked
from jaxlm.train.saving import NotSaved, Saving
from jaxlm.train.staging import Staging, marked
from jaxlm.train.state import State

PARAMS, TRAINING = "params", "training"
RACE_TRIES, RACE_SECONDS = 20, 0.05
RACES = (FileNotFoundError, NotADirectoryError, ValueError)
"""What Orbax raises for a checkpoint that is deleted while it looks."""


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those saved."""


class OtherLayout(UserError):
    """A checkpoint of other names, shapes or dtypes than this model and version has."""


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    ``score`` turns the metrics of an evaluation into the figure that the best are kept
    by, greater being better; None for metrics that lack it. ``clean`` removes what a
    killed save left behind: for the run itself alone, never for its readers. Those
    leave out a checkpoint whose metrics are damaged, and ``say`` so. With ``go_on``, a
    save that fails is only said, unless it is the last.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        score: Callable[[Mapping[str, Any]], float | None] = lambda _: None,
        clean: bool = False,
        go_on: bool = False,
        say: Callable[[str], None] = _complain,
    ):
        from orbax.checkpoint import v1 as ocp  # late: slow, and the step compiles

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # we report by ourselves
        self.directory, self.score, self._clean = directory, score, clean
        self._say, self._hosts = say, here()
        self._saving: Any = None  # not before metrics that rotted are out of its way
        self._moved: list[str] = []
        self.left_out: dict[int, str] = {}
        # Any: Orbax's own annotations do not fit one another.
        decisions: Any = ocp.training.save_decision_policies
        names: Any = Names(self.left_out)
        context: Any = ocp.Context()
        context.array.saving.use_compression = False  # slower, for little
        # Orbax would wait at the end of a load for a process that met damage in it.
        self._reading: Any = ocp.Context(context)
        own = self._reading.multiprocessing
        own.primary_host, own.active_processes = self._hosts.index, {self._hosts.index}
        own.barrier_sync_key_prefix = f"process-{self._hosts.index}"
        self._load_items = ocp.load_checkpointables

        def open_manager() -> Any:
            self._check_metrics()
            return self._all_steadily(make_manager)

        def make_manager() -> Any:
            return ocp.training.Checkpointer(
                str(directory.absolute()),
                context=context,
                save_decision_policy=decisions.FixedIntervalPolicy(1),
                preservation_policy=Keep(keep_last, keep_best, self._rank),
                step_name_format=names,
                cleanup_tmp_directories=clean,
            )

        self._saving = Saving(open_manager, directory, go_on, say)
        self._staging = Staging()
        self._regroupings: dict[str, tuple[Any, Callable[[Any], Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None and self._hosts.count > 1:
            return  # the others may never come to where Orbax waits for them
        try:
            self._saving.settle()
        except NotSaved as problem:
            if kind is None:
                raise
            self._say(str(problem))  # which must not hide why the run ends
        finally:
            self._manager.close()

    @property
    def _manager(self) -> Any:
        return self._saving.manager

    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return [each.step for each in self._manager.checkpoints]

    def reload(self) -> None:
        """Look again at what is on disk; another process may write there."""
        self._check_metrics()
        self._all_steadily(self._manager.reload)

    def best(self) -> int | None:
        """The step of the best score, the earliest of equals; None if none has one."""
        return next(iter(ranked(self._manager.checkpoints, self._rank)), None)

    def unscored(self, step: int) -> bool:
        """Whether a step is on disk without the scores of an evaluation."""
        return any(
            each.step == step and not each.metrics for each in self._manager.checkpoints
        )

    def save(self, state: State, metrics: Mapping[str, float] | None = None) -> None:
        """Begin to save; the state may be donated as soon as this returns.

        A step that is on disk stays as it is, unless only now it has metrics.

        Raises:
          NotSaved: this one, or the one before, cannot be written.
        """
        step = int(state.step)
        self._saving.ready()
        if step in self.steps() and not (metrics and self.unscored(step)):
            return
        items = self._staging.stage(split(state), int(state.phase))
        self._saving.begin(step, items, numbers_with_checksum(metrics or {}) or None)

    def wait(self) -> None:
        """Until all that was saved is on disk.

        Raises:
          NotSaved: the newest is not.
        """
        self._saving.finish()

    def restore(self, step: int, abstract: State) -> State:
        """The whole state at a step; ``abstract`` has shapes, dtypes and shardings.

        Its layers may be grouped in stacks in another way than those on disk.

        Raises:
          Damaged: it cannot be read, or its arrays are not those that were saved.
          OtherLayout: it is whole but of another model or version.
          UserError: this machine cannot read now.
        """
        return join(self._read(step, split(abstract)), abstract)

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Parameters alone, frozen ones among them, as one tree; see ``restore``."""
        return self._read(step, {PARAMS: abstract_params})[PARAMS]

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """Items of a checkpoint, their layers in stacks as wanted, however they lie."""
        layouts, written = self._layouts(step), dict(wanted)
        for name in set(wanted) & set(layouts):
            with suppress(ValueError):  # another model, which is refused by name
                written[name] = regroup_like(wanted[name], layouts[name])
        items = self._load(step, written, layouts)
        for name, part in wanted.items():
            if written[name] is not part:
                items[name] = self._regrouping(name, part)(items[name])
        return items

    def _regrouping(self, name: str, like: Any) -> Callable[[Any], Any]:
        """Compiled once for an item that is read again and again, as by a watcher."""
        if name not in self._regroupings or self._regroupings[name][0] != like:
            placed = jax.tree.map(lambda leaf: leaf.sharding, like)
            change = jax.jit(partial(regroup_like, like=like), out_shardings=placed)
            self._regroupings[name] = like, change
        return self._regroupings[name][1]

    def restore_latest(
        self, abstract: Callable[[int], State], say: Callable[[str], None]
    ) -> State | None:
        """The newest state that is whole, or None; damaged ones are reported.

        ``abstract(step)`` has shapes, dtypes and shardings of the state at a step.
        A damaged checkpoint is not deleted but moved, to ``damaged/`` in the workdir.
        One of another layout is damaged where one before it is not.

        Raises:
          UserError: there were checkpoints, and all were damaged; or this machine, or
            this version, cannot read them, and none was moved.
        """
        for moved in self._moved:
            say(moved)
        self._moved.clear()
        damaged: dict[int, Exception] = {}
        state = None
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, abstract(step))
                break
            except (Damaged, OtherLayout) as problem:
                damaged[step] = problem
        for problem in damaged.values():
            if state is None and isinstance(problem, OtherLayout):
                raise problem
        for step, problem in damaged.items():
            say(f"{self._move(step, problem)}, the one before it is tried")
        if damaged and state is None:
            raise UserError(
                f"{self.directory}: every checkpoint was damaged and is now in"
                f" {DAMAGED}/; the same command again starts from the beginning"
            )
        return state

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint out of the way of a new one of the same step."""
        folder = self.directory.parent / DAMAGED

        def move() -> str:
            target, number = folder / str(step), 1
            while target.exists():
                number += 1
                target = folder / f"{step}-{number}"
            folder.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(target)
            return str(target)

        target = Path(self._hosts.decide(move))
        if self._saving is not None:
            self._manager.reload()
        return target

    def _move(self, step: int, problem: object) -> str:
        aside = self.set_aside(step)
        return f"checkpoint {step} is damaged ({problem}); moved to {aside}"

    def _check_metrics(self) -> None:
        """Find metrics that rotted, at which Orbax would fail or mistake the best."""
        look = partial(self._steadily, self._rotted_metrics)
        for step, path, problem in self._hosts.decide(look):
            if self._clean:
                self._moved.append(self._move(step, problem))
            else:
                self.left_out[step] = problem
                self._say(f"checkpoint {step} is left out: {path} is damaged")

    def _rotted_metrics(self) -> list[tuple[int, str, str]]:
        """The step, the file and what is wrong with it."""
        found = []
        for folder in sorted(self.directory.glob("*/metrics")):
            path, step = folder / "metrics", folder.parts[-2]
            problem = metrics_problem(path) if step.isdecimal() else None
            if problem is not None and int(step) not in self.left_out:
                found.append((int(step), str(path), problem))
        return found

    def _steadily(self, look: Callable[[], Any]) -> Any:
        """What ``look`` gives; again, where a run deleted a checkpoint meanwhile."""
        for _ in range(0 if self._clean else RACE_TRIES):
            try:
                return look()
            except RACES:
                time.sleep(RACE_SECONDS)
        return look()

    def _all_steadily(self, look: Callable[[], Any]) -> Any:
        """The same on all processes: again on each, where it fails on one."""
        if self._hosts.count == 1:
            return self._steadily(look)
        for _ in range(0 if self._clean else RACE_TRIES):
            found = failed = None
            try:
                found = look()
            except RACES as problem:
                failed = repr(problem)
            if not any(self._hosts.gather(failed)):
                return found
            time.sleep(RACE_SECONDS)
        return look()

    def _layouts(self, step: int) -> dict[str, Any]:
        """The arrays of each item, as shapes and dtypes, where Orbax can say them."""
        found, problem = attempt(partial(self._manager.checkpointables_metadata, step))
        self._agree(problem)
        layouts = {}
        for name, item in found.metadata.items():
            if isinstance(item, dict) and "arrays" in item:
                if isinstance(item.get("fingerprints"), dict):
                    raise self._other(step, f"{name}/fingerprints is a tree")
                layouts[name] = item["arrays"]
        return layouts

    def _check_layout(
        self, step: int, wanted: dict[str, Any], layouts: dict[str, Any]
    ) -> None:
        """Refuse arrays that Orbax says are others; what it cannot say is passed."""
        for name in set(layouts) & set(wanted):
            difference = layout_difference(layouts[name], wanted[name])
            if difference:
                raise self._other(step, f"{name}/{difference}")

    def _other(self, step: int, difference: str) -> OtherLayout:
        return OtherLayout(
            f"{self.directory}/{step}: was written by another version or layout:"
            f" {difference}; nothing was moved or deleted; use the version that wrote"
            " it, or name another --workdir"
        )

    def _load(
        self, step: int, wanted: dict[str, Any], layouts: dict[str, Any]
    ) -> dict[str, Any]:
        self._check_layout(step, wanted, layouts)
        mesh = jax.tree.leaves(wanted)[0].sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        found = {}
        for name, part in wanted.items():  # Orbax forgets those of several that wait
            marks = jax.ShapeDtypeStruct(
                (len(jax.tree.leaves(part)),), np.uint32, sharding=whole
            )
            one = {name: {"arrays": part, "fingerprints": marks}}
            part, problem = attempt(partial(self._read_item, step, one))
            self._agree(problem)
            found |= part
        arrays = {name: item["arrays"] for name, item in found.items()}
        wrong = [
            name
            for item, part in arrays.items()
            for name, here, there in zip(
                sorted(named(part)),
                np.array(marked(part)),
                np.array(found[item]["fingerprints"]),
                strict=True,
            )
            if here != there
        ]
        changed = f"arrays changed on disk: {', '.join(wrong[:3])}"
        self._agree(changed if wrong else None)
        return arrays

    def _read_item(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """This process's shards of it, whatever the others meet in theirs."""
        with self._reading:
            return self._load_items(str(self.directory.absolute() / str(step)), wanted)

    def _agree(self, problem: str | None) -> None:
        """Call a checkpoint damaged on all processes where it is so on any.

        Raises:
          Damaged: it is.
        """
        for index, each in enumerate(self._hosts.gather(problem)):
            if each is not None:
                where = f"process {index}: " if self._hosts.count > 1 else ""
                raise Damaged(f"{where}{each}")

    def _rank(self, metrics: Any) -> float:
        value = self.score(metrics) if metrics else None
        return -math.inf if value is None or math.isnan(value) else value


def split(state: State) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    whole = state._asdict()
    params = join_params(whole.pop("trainable"), whole.pop("frozen"))
    return {PARAMS: params, TRAINING: whole}


def join(items: Mapping[str, Any], like: State) -> State:
    """The items of a checkpoint as a state, its params split as those of ``like``."""
    params = items[PARAMS]
    return State(
        trainable=_only(params, like.trainable),
        frozen=_only(params, like.frozen),
        **items[TRAINING],
    )


def _only(params: Any, like: Any) -> Any:
    """The branches of a tree that another has too."""
    if not isinstance(like, Mapping):
        return params
    return {name: _only(params[name], like[name]) for name in like}
