"""What a person sees while a run goes on: a bar, or plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from jaxlm.train.figures import duration, figure, score_changes, signed, words

PLAIN_WIDTH = 200
"""Columns that a table may take in a log, where there is no window to fit."""


class Progress:
    """How far a run has come.

    On a terminal, a bar below whatever else is printed. Elsewhere, one line at most
    every ``interval_seconds``, and the last step always. ``clock`` gives seconds.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        epochs: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_seconds: float = 10.0,
    ):
        self.console = console or Console()
        self.total_steps, self.epochs = total_steps, epochs
        self._clock, self._interval = clock, interval_seconds
        self._began = self._line_at = clock()
        self._start = self._step = self._line_step = start_step
        self._shown: dict[str, Any] = {"epoch": None, "loss": None, "speed": None}
        self._bar = self._make_bar() if is_live(self.console) else None

    def __enter__(self) -> Self:
        self._began = self._line_at = self._clock()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._step != self._line_step:
            self._print_line()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        epoch: float | None = None,
        line: bool = True,
    ) -> None:
        """Note that a step is done; a figure left out keeps its last value.

        Without ``line`` a log gets none: that of the epoch follows.
        """
        self._step = step
        new = {"epoch": epoch, "loss": loss, "speed": tokens_per_second}
        self._shown |= {name: value for name, value in new.items() if value is not None}
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, **self._columns())
        elif line and self._clock() - self._line_at >= self._interval:
            self._print_line()

    def epoch_line(
        self,
        step: int,
        *,
        epoch: float,
        loss: float | None = None,
        accuracy: float | None = None,
        validation: Mapping[str, float | None] | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """Print one line for a finished epoch, which stays on the screen."""
        self._step = step
        train = {"loss": loss, "accuracy": accuracy}
        scores = [
            f"{name} {figure(train[name])}" for name in train if train[name] is not None
        ]
        for name, value in (validation or {}).items():
            scores.append(f"validation {words(name)} {figure(value)}")
        self._say_line(self._place(step, epoch), *scores, _speed(tokens_per_second))

    def say(self, text: str) -> None:
        """Print a line above the bar, as it is: no markup, no wrapping."""
        self.console.print(Text(text), soft_wrap=True)

    def _make_bar(self) -> Bar:
        bar = Bar(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TextColumn("{task.fields[loss]}", style="bold"),
            TextColumn("{task.fields[speed]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            get_time=self._clock,
            refresh_per_second=4,
            expand=True,
        )
        columns = self._columns()
        bar.add_task("", total=self.total_steps, completed=self._step, **columns)
        return bar

    def _columns(self) -> dict[str, Any]:
        epoch, loss = self._shown["epoch"], self._shown["loss"]
        return {
            "epoch": "compiling" if epoch is None else self._epoch(epoch),
            "loss": "" if loss is None else f"loss {figure(loss)}",
            "speed": _speed(self._shown["speed"]),
        }

    def _print_line(self) -> None:
        columns = self._columns()
        place = self._place(self._step, self._shown["epoch"])
        self._say_line(place, columns["loss"], columns["speed"])

    def _say_line(self, *parts: str) -> None:
        now = self._clock()
        self._line_at, self._line_step = now, self._step
        times = duration(now - self._began) + self._left(now - self._began)
        self.say("  ".join(filter(None, [*parts, times])))

    def _left(self, seconds: float) -> str:
        """The time left, had all steps the pace of those done in ``seconds``."""
        done, left = self._step - self._start, self.total_steps - self._step
        if done <= 0 or left <= 0 or seconds < 1:
            return ""
        return f", {duration(seconds / done * left)} left"

    def _place(self, step: int, epoch: float | None) -> str:
        steps = f"step {step:,}/{self.total_steps:,}"
        return steps if epoch is None else f"{self._epoch(epoch)}  {steps}"

    def _epoch(self, epoch: float) -> str:
        shown = f"epoch {round(epoch, 2):g}"
        return f"{shown}/{self.epochs}" if self.epochs else shown


def is_live(console: Console) -> bool:
    """Whether a person looks on, so that what was printed can be drawn over."""
    return console.is_terminal and not console.is_dumb_terminal


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table, without rules where the output is not a terminal."""
    console = console or Console()
    if is_live(console):
        console.print(table)
    else:
        table.box = None
        table.title_justify = "left"
        # A console without a window takes itself to be 80 columns wide.
        Console(file=console.file, width=PLAIN_WIDTH).print(table)


def score_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """The scores of a split before training and after it, side by side."""
    headers = ["", f"step {before.get('step', 0)}", f"step {after.get('step', '')}"]
    rows = [
        (words(name), first, last, signed(moved))
        for name, first, last, moved in score_changes(before, after)
    ]
    return make_table([*headers, "change"], rows, words(str(after.get("split", ""))))


def make_table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], title: str = ""
) -> Table:
    """A table whose first column is text and whose others are right-aligned figures.

    Every cell is shown as it is: a label like ``[red]`` is not markup.
    """
    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None)
    for number, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(figure(cell)) for cell in row))
    return table


def _speed(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f"{tokens_per_second:,.0f} tokens/s"
