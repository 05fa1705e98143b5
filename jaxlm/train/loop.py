"""The training loop: steps, and what is due between them.

The loop knows neither the task nor the model: it drives a step over planned batches,
fetches figures only for the lines that it writes, and at set steps evaluates, saves and
writes down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.pages import give_back
from jaxlm.core.types import Batch
from jaxlm.data.loader import Loader
from jaxlm.data.plan import RunPlan
from jaxlm.train.checkpoints import Checkpoints
from jaxlm.train.config import CheckpointConfig, EvaluateConfig
from jaxlm.train.evaluator import Interrupted
from jaxlm.train.figures import words
from jaxlm.train.progress import Progress
from jaxlm.train.records import RunRecords
from jaxlm.train.state import State
from jaxlm.train.step import Step

Evaluate = Callable[[State], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Due:
    """What happens after which steps."""

    plan: RunPlan
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    log_every_steps: int

    def evaluation(self, step: int) -> bool:
        """Every so many steps or epochs, and at the end."""
        if step == len(self.plan):
            return True
        if self.evaluate.every_steps is not None:
            return step % self.evaluate.every_steps == 0
        epoch = self.plan.ended(step)
        return epoch is not None and epoch % self.evaluate.every_epochs == 0

    def save(self, step: int) -> bool:
        """At every evaluation, and every so many steps."""
        every = self.checkpoint.every_steps
        return self.evaluation(step) or (every is not None and step % every == 0)

    def log(self, step: int) -> bool:
        """Every so many steps, at the end of an epoch and wherever we wait anyway."""
        return (
            step % self.log_every_steps == 0 or self.epoch_end(step) or self.save(step)
        )

    def epoch_end(self, step: int) -> bool:
        """Whether an epoch is done."""
        return self.plan.ended(step) is not None


@dataclass
class Meter:
    """Figures of steps that have been dispatched, fetched late and summed."""

    waiting: list[tuple[int, Any]] = field(default_factory=list)
    sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    losses: tuple[str, ...] = ()

    def add(self, step: int, figures: Any) -> None:
        """Note a step's device figures without waiting for them."""
        self.waiting.append((step, figures))

    def fetch(self) -> None:
        """Bring all figures to the host, waiting for the newest."""
        ready, self.waiting = self.waiting, []
        for _, figures in jax.device_get(ready):
            names = {**figures["losses"], **figures["measures"]}
            for window in ("line", "epoch"):
                sums = self.sums.setdefault(window, {})
                for name, each in names.items():
                    pair = np.array([each.total, each.weight], np.float64)
                    sums[name] = sums.get(name, np.zeros(2)) + pair
            self.losses = tuple(figures["losses"])
            self.last = {
                "loss": float(figures["loss"]),
                "gradient_norm": float(figures["gradient_norm"]),
            }

    def means(self, window: str, *, close: bool = True) -> dict[str, float]:
        """``loss`` and every measure since this window, ``line`` or ``epoch``, began.

        A new one begins, unless it is not to ``close``.
        """
        sums = self.sums.pop(window, {}) if close else self.sums.get(window, {})
        means = {name: pair[0] / max(pair[1], 1e-8) for name, pair in sums.items()}
        losses = [means.pop(name) for name in self.losses if name in means]
        return {"loss": sum(losses), **means} if losses else {}

    def weight(self, window: str) -> float:
        """What the losses of a window weigh together."""
        sums = self.sums.get(window, {})
        return sum(float(sums[name][1]) for name in self.losses if name in sums)


class Diverged(Exception):
    """The loss or its gradient is not a number any more."""

    def __init__(self, step: int, problem: str):
        super().__init__(f"{problem} by step {step}")
        self.step = step


def fit(
    state: State,
    step: Step,
    loader: Loader,
    due: Due,
    *,
    schedule: Callable[[int], Any],
    evaluate: Evaluate,
    checkpoints: Checkpoints,
    records: RunRecords,
    progress: Progress,
    headline: str,
    turns: Mapping[int, Callable[[State], State]] | None = None,
    elapsed: float = 0.0,
    stopped: Callable[[int], bool] = lambda step: False,
    ready: Callable[[int, Batch], bool] = lambda step, batch: True,
) -> State:
    """Train from the state's step to the end of the plan, or one that is ``stopped``.

    ``headline`` names the validation metric that an epoch's line shows. ``turns`` are
    the steps after which a phase begins, and what makes its first state. ``elapsed`` is
    the seconds that the run has trained before. ``ready`` is asked after so many steps
    whether to take the next, of this batch; it may take the time to compile.

    Raises:
      Diverged: the loss became NaN or infinite; the last checkpoint is from before.
      UserError: there is nothing to learn from.
    """
    plan, meter, clock = due.plan, Meter(), Clock(loader, elapsed)
    number = start = written = int(state.step)
    turns = turns or {}

    def line(number: int) -> float | None:
        """Write the line of a step; how many tokens a second it has."""
        nonlocal written
        written = number
        meter.fetch()
        for name in meter.last:
            if not np.isfinite(meter.last[name]):
                raise Diverged(number, f"the {words(name)} is {meter.last[name]}")
        speed = clock.lap()
        means = meter.means("line")
        if start == 0 and plan.ended(number) == 1 and not meter.weight("epoch"):
            raise UserError(
                "config.data.train: nothing in the whole first epoch counts in the"
                " loss; does the tokenizer know the characters?"
            )
        progress.update(
            number,
            loss=means.get("loss"),
            tokens_per_second=speed,
            epoch=plan.epoch(number),
            line=not (due.epoch_end(number) or due.evaluation(number)),
        )
        records.append(
            number,
            "train",
            **means,
            learning_rate=float(schedule(number - 1)),
            gradient_norm=meter.last.get("gradient_norm"),
            tokens_per_second=speed,
            input_wait=clock.input_wait,
            save_seconds=round(clock.save_seconds, 3),
            epoch=round(plan.epoch(number), 4),
            seconds=round(clock.elapsed, 3),
            **({"phase": int(state.phase) + 1} if turns else {}),
        )
        return speed

    if checkpoints.unscored(number) and due.evaluation(number):
        try:  # which was interrupted
            checkpoints.save(state, evaluate(state))
        except Interrupted:
            return state
    clock.pause()
    for planned, batch in loader.iterate(number):
        if number in turns:  # a phase begins
            meter.fetch()
            clock.pause()
        if not ready(number, batch):
            clock.resume()
            if number > written:
                line(number)
            if number > start:  # as the phase before left it
                checkpoints.save(state)
            break
        if number in turns:
            state = turns[number](state)
        state, figures = step(state, batch)
        number += 1
        meter.add(number, figures)
        if clock.paused:  # compiling is not training
            meter.fetch()
            give_back()
            clock.resume()
        else:
            clock.count(planned.tokens)
        stop = stopped(number)
        if not (due.log(number) or stop):
            progress.update(number, epoch=plan.epoch(number))
            continue
        speed = line(number)
        try:
            scores = evaluate(state) if due.evaluation(number) else None
        except Interrupted:  # the checkpoint is given its scores when the run goes on
            checkpoints.save(state)
            break
        if due.save(number):
            with clock.saving():
                checkpoints.save(state, scores)
        if due.epoch_end(number) or scores is not None:
            epoch = meter.means("epoch", close=due.epoch_end(number))
            progress.epoch_line(
                number,
                epoch=round(plan.epoch(number), 2),
                tokens_per_second=speed,
                validation={headline: scores[headline]} if scores else None,
                **{name: epoch[name] for name in SHOWN if name in epoch},
            )
        if due.save(number):
            records.write_status("running", number, len(plan))
        clock.restart()
        if stop:
            checkpoints.save(state)
            break
    checkpoints.wait()
    return state


SHOWN = ("loss", "accuracy")


class Clock:
    """Time spent in training, without evaluation, saving and the first compilation."""

    def __init__(self, loader: Loader, elapsed: float = 0.0):
        self.loader = loader
        self.elapsed, self.input_wait, self.save_seconds = elapsed, 0.0, 0.0
        self._paused: tuple[float, float] | None = None
        self.restart()

    def restart(self) -> None:
        """Begin a lap now."""
        self._began, self._lap_tokens = time.perf_counter(), 0
        self._waited = self.loader.wait_seconds

    @property
    def paused(self) -> bool:
        """Whether what happens now is left out of the lap."""
        return self._paused is not None

    def pause(self) -> None:
        """Leave out what happens from now on."""
        self._paused = self._paused or (time.perf_counter(), self.loader.wait_seconds)

    def resume(self) -> None:
        """Go on with the lap where ``pause`` left it, if it did."""
        if self._paused is None:
            return
        began, waited = self._paused
        self._began += time.perf_counter() - began
        self._waited += self.loader.wait_seconds - waited
        self._paused = None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Add up the seconds for which saves hold training up, in this process."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.save_seconds += time.perf_counter() - began

    def count(self, tokens: int) -> None:
        """Real tokens of a dispatched step."""
        self._lap_tokens += tokens

    def lap(self) -> float | None:
        """End a lap: real tokens per second in it; None for one without a step."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        waited = self.loader.wait_seconds - self._waited
        self.elapsed += seconds
        self.input_wait = round(waited / seconds, 4)
        return round(self._lap_tokens / seconds, 1) if self._lap_tokens else None
