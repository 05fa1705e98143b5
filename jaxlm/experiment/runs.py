"""A run on disk, for the doors that read it: evaluation and prediction."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from jaxlm.core import config as configs
from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.meeting import meet
from jaxlm.core.mesh import make_mesh
from jaxlm.core.programs import keep_programs
from jaxlm.core.types import Prediction, Record
from jaxlm.data.dataset import Dataset
from jaxlm.experiment.config import ExperimentConfig, MeshConfig
from jaxlm.experiment.digests import check_digests
from jaxlm.experiment.inputs import as_records
from jaxlm.experiment.scoring import record, scorer
from jaxlm.experiment.wiring import Parts, load_records, make_parts, read_labels
from jaxlm.train.checkpoints import Checkpoints, Damaged
from jaxlm.train.evaluator import Evaluation, Evaluator
from jaxlm.train.recorded import read_results, read_status
from jaxlm.train.records import RunRecords
from jaxlm.train.retention import choose

SPLITS = ("train", "validation", "test")


class Run:
    """What ``jaxlm.main`` left in a workdir, ready to score and to predict.

    Raises:
      UserError: the workdir holds no run, or none that this machine can load.
    """

    def __init__(self, workdir: str | Path, say: Callable[[str], None] = print):
        keep_programs()
        self.workdir = Path(workdir)
        self.config = configs.read(self.workdir / configs.FILE, ExperimentConfig)
        check_digests(self.workdir)  # last: what is wrong with a config says more
        self.say = say
        self._params: tuple[int, Any] | None = None
        model = self.workdir / "model"
        if not (model / "config.json").exists():
            raise UserError(f"{model}: no model yet; has the run begun?")
        self.parts = self._parts(model)
        self.records = RunRecords(self.workdir, here().first)

    def _parts(self, folder: Path) -> Parts:
        """By the run's mesh and attention; rows on all devices where they do not fit.

        Depth is not cut by phases, which is for training alone.
        """

        def parts(mesh: MeshConfig, attention: str) -> Parts:
            whole = replace(self.config.train, phases=())
            model = replace(self.config.model, attention=attention)
            config = replace(self.config, mesh=mesh, train=whole, model=model)
            made = make_mesh(mesh.sizes)[0]
            meet(made)
            return make_parts(config, made, folder, labels)

        labels = read_labels(folder, self.config.task.name)
        try:
            return parts(self.config.mesh, self.config.model.attention)
        except UserError:
            found = parts(MeshConfig(), "auto")  # raises the same if it was neither
            count = found.mesh.size
            self.say(
                "the run's mesh or attention does not fit here; rows go over"
                f" {count} devices"
            )
            return found

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores at the end of training, of the best checkpoint.

        Those of the test set or, of a run without, of validation; empty where the run
        has not ended.
        """
        best = (read_status(self.workdir) or {}).get("best")
        final = "test" if self.config.data.test else "validation"
        for each in read_results(self.workdir):
            if (each["split"], each["step"]) == (final, best):
                return each
        return {}

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """What the run has saved.

        Raises:
          UserError: nothing yet.
        """
        folder = self.workdir / "checkpoints"
        if not folder.is_dir():  # a reader does not make it
            raise UserError(f"{folder}: no checkpoint yet; train with jaxlm.main first")
        return Checkpoints(folder, score=scorer(self.config, self.parts.task.headline))

    @cached_property
    def evaluator(self) -> Evaluator:
        """Compiled once, for all checkpoints and data sets."""
        return self.parts.evaluator()

    def params(self, step: int) -> Any:
        """The parameters of a checkpoint.

        Raises:
          UserError: the checkpoint is damaged or gone.
        """
        if self._params is None or self._params[0] != step:
            self._params = None
            try:
                params = self.checkpoints.restore_params(
                    step, self.parts.abstract_params
                )
            except Damaged as problem:
                raise UserError(
                    f"{self.checkpoints.directory}/{step}: the checkpoint is gone or"
                    f" damaged ({problem}); choose another by --step"
                ) from problem
            self._params = (step, params)
        return self._params[1]

    def dataset(
        self,
        split: str,
        source: Any = None,
        *,
        format: str = "auto",
        columns: str = "",
        scheme: str = "auto",
    ) -> Dataset:
        """A labelled data set of the config, or of any other source, encoded.

        ``format``, ``columns`` and ``scheme`` are those of `DataConfig`, for another
        source: the run's own need not fit it.

        Raises:
          UserError: there is no such data.
        """
        ours = getattr(self.config.data, split)
        if source is None and not ours:
            raise UserError(f"--split={split}: the run's config.data.{split} is empty")
        if source is None and str(ours).startswith("memory:"):
            raise UserError(
                f"--split={split}: the run's config.data.{split} was records in memory,"
                " which are gone; name a source by --data"
            )
        data = self.config.data
        if source is not None:
            data = replace(data, format=format, columns=columns, scheme=scheme)
        records = load_records(data, split, source, task=self.config.task.name)
        return self.parts.encode(records, cached=source is None)

    def evaluate(self, data: Dataset, name: str, step: int) -> Evaluation:
        """Score one checkpoint; writes ``results/`` and ``predictions/``.

        Nothing else: ``metrics.jsonl`` belongs to the process that trains.
        """
        for folder in ("results", "predictions") if here().first else ():
            writable_directory(self.workdir / folder)
        with jax.set_mesh(self.parts.mesh):
            evaluation = self.evaluator.evaluate(self.params(step), data)
        record(evaluation, name, step, self.records, line=False)
        return evaluation

    def watch(
        self, data: Dataset, name: str, every_seconds: float = 5.0
    ) -> Iterator[tuple[int, Evaluation]]:
        """Score each checkpoint of a live run once, until the run ends.

        Steps that ``results/`` has already are skipped. A checkpoint that is deleted
        before it was read, or is damaged, is passed over with a word.
        """
        decide = here().decide

        def scored() -> list[int]:
            results = read_results(self.workdir)
            return [each["step"] for each in results if each["split"] == name]

        done = set(decide(scored))
        while True:
            # First, or the last checkpoint is missed.
            alive = decide(lambda: is_alive(self.workdir))
            for step in self._saved():
                if step in done:
                    continue
                done.add(step)
                try:
                    self.params(step)
                except UserError as problem:
                    reason = str(problem)
                    if not (self.workdir / "checkpoints" / str(step)).exists():
                        reason = "the run has deleted it, as older than those it keeps"
                    self.say(f"step {step} is passed over: {reason}")
                else:
                    yield step, self.evaluate(data, name, step)
            if not alive:
                return
            time.sleep(every_seconds)

    def _saved(self) -> list[int]:
        """The steps on disk now, oldest first."""
        if not here().decide((self.workdir / "checkpoints").is_dir):
            return []
        self.checkpoints.reload()
        return here().decide(self.checkpoints.steps)

    def choose(self, wanted: str) -> list[int]:
        """The steps that ``best``, ``last``, ``all`` or a number means."""
        checkpoints = self.checkpoints
        return here().decide(lambda: choose(checkpoints, wanted))

    def predict(
        self, inputs: Sequence[str | Sequence[str] | Record], step: int | None = None
    ) -> list[Prediction]:
        """Predictions for texts, lists of words, or records, in their order.

        Of several processes, all are given the inputs, and the first has the
        predictions. ``step`` is the best checkpoint where it is not given.
        """
        step = self.choose("best")[0] if step is None else step
        records = as_records(inputs, self.parts.task.content)
        if not records:
            return []
        with jax.set_mesh(self.parts.mesh):
            data = self.parts.encode(records)
            return self.evaluator.predict(self.params(step), data)


def is_alive(workdir: Path) -> bool:
    """Whether a process trains in the workdir: by the lock that it holds there.

    A process of another host, whose locks may not be seen here, is believed.
    """
    held = is_claimed(workdir)
    status = read_status(workdir) or {}
    if held or status.get("state") != "running":
        return bool(held)
    if status.get("host") != socket.gethostname():
        return True
    if held is not None or status.get("pid") is None:
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_claimed(workdir: Path) -> bool | None:
    """Whether ``workdir.claim`` is held; None on a file system without locks."""
    import fcntl  # no such thing on Windows

    handle = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def result_name(data: Any, split: str | None) -> str:
    """What an evaluation is called in ``results/`` and ``predictions/``.

    The split of the run's config (``test`` where none is asked for); the name of other
    data, with the split that was asked for, which tells two results of one source
    apart; or ``records-`` and a hash of them.
    """
    if data is None:
        return split or "test"
    if not isinstance(data, str | os.PathLike):
        digest = hashlib.sha256(repr(list(data)).encode(errors="replace"))
        return f"records-{digest.hexdigest()[:6]}"
    return "-".join(filter(None, (source_name(os.fspath(data)), split)))


def source_name(source: str) -> str:
    """A data source as part of a file name: ``x.conll``, ``data-x.conll-1f0c2a``.

    A hash keeps apart what would read the same, as ``data/x`` and ``../data/x``.
    """
    name = re.sub(r"[^\w.]+", "-", source).strip("-.")
    reserved = (*SPLITS, "records")  # as a whole, or as what `result_name` adds
    if name == source and len(name) <= 80 and not name.endswith(reserved):
        return name
    digest = hashlib.sha256(source.encode()).hexdigest()[:6]
    return f"{name[-80:].lstrip('-.') or 'data'}-{digest}"
