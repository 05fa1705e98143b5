"""The checkpoint that is being written in the background, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.pages import give_back
from jaxlm.train.damage import machine_reason, quietly, settle_down


class NotSaved(UserError):
    """A checkpoint that could not be written, as on a full disk."""


class Saving:
    """One save at a time, by Orbax's manager, which ``open_manager`` makes.

    With ``go_on``, a save that fails is said and left out, until ``finish``.
    """

    def __init__(
        self,
        open_manager: Callable[[], Any],
        directory: Path,
        go_on: bool,
        say: Callable[[str], None],
    ):
        self._open_manager, self.manager = open_manager, open_manager()
        self.directory, self.go_on, self.say = directory, go_on, say
        self._under_way: tuple[int, Any] | None = None
        self._failed: NotSaved | None = None

    def ready(self) -> None:
        """Until the save before is done, and its memory is free for the next."""
        self.settle()
        give_back()  # or it would stand beside what a save copies

    def begin(self, step: int, items: Mapping[str, Any], metrics: Any) -> None:
        """Save, when ``ready``."""
        self._failed = None

        def begin() -> None:
            response = self.manager.save_checkpointables_async(
                step, items, metrics=metrics, force=True, overwrite=True
            )
            self._under_way = step, response

        self._try(step, begin)

    def settle(self) -> None:
        """Take the result of a save: until then Orbax keeps a thread and its files."""
        if self._under_way is not None:
            (step, response), self._under_way = self._under_way, None
            self._try(step, response.result)

    def finish(self) -> None:
        """Until all is on disk.

        Raises:
          NotSaved: the newest is not.
        """
        self.settle()
        if self._failed is not None:
            raise self._failed
        self.manager.wait()

    def _try(self, step: int, act: Callable[[], object]) -> None:
        with quietly():
            try:
                act()
                return
            except Exception as problem:  # Orbax and TensorStore raise many kinds
                reason = machine_reason(problem)
                if reason is None:
                    raise
            if here().count == 1:  # of several, the others wait for this one; it ends
                with suppress(Exception):  # what failed would be raised again and again
                    self.manager.close()
                self.manager = self._open_manager()  # which removes the half of it
            settle_down()
        name = f"{self.directory}/{step}"
        self._failed = NotSaved(
            f"{name}: cannot be saved: {reason}; the checkpoints before it are whole;"
            " mend this and start again, which goes on from there"
        )
        if not self.go_on:
            raise self._failed
        self.say(f"{name} is not saved: {reason}; training goes on")
