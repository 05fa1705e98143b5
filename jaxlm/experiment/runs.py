"""A run on disk, for the doors that read it: evaluation and prediction."""

from __future__ import annotations

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
from jaxlm.core.errors import UserError
from jaxlm.core.mesh import make_mesh
from jaxlm.core.schema import flatten
from jaxlm.core.types import Prediction, Record
from jaxlm.data.dataset import Dataset
from jaxlm.data.words import split_words
from jaxlm.experiment.config import ExperimentConfig, MeshConfig
from jaxlm.experiment.training import record, scorer
from jaxlm.experiment.wiring import Parts, load_records, make_parts, read_labels
from jaxlm.train.checkpoints import Checkpoints, Damaged, choose
from jaxlm.train.evaluator import Evaluation, Evaluator
from jaxlm.train.records import RunRecords, read_results, read_status


class Run:
    """What ``jaxlm.main`` left in a workdir, ready to score and to predict.

    Raises:
      UserError: the workdir holds no run, or none that this machine can load.
    """

    def __init__(self, workdir: str | Path, say: Callable[[str], None] = print):
        self.workdir = Path(workdir)
        self.config = configs.read(self.workdir / configs.FILE, ExperimentConfig)
        self.say = say
        self._params: tuple[int, Any] | None = None
        model = self.workdir / "model"
        if not (model / "config.json").exists():
            raise UserError(f"{model}: no model yet; has the run begun?")
        self.parts: Parts = make_parts(
            self.config, self._mesh(), model, read_labels(model)
        )
        self.records = RunRecords(self.workdir)
        self.checkpoints = Checkpoints(
            self.workdir / "checkpoints",
            score=scorer(self.config, self.parts.task.headline),
        )

    def _mesh(self) -> jax.sharding.Mesh:
        """The run's mesh, or all devices by data where this machine is smaller."""
        try:
            mesh, _ = make_mesh(flatten(self.config.mesh))
        except UserError:
            mesh, _ = make_mesh(flatten(MeshConfig()))
            self.say(f"the run's mesh does not fit here; rows go over {mesh.size} devices")
        rows = mesh.size * self.config.train.accumulation
        if self.config.train.batch_size % rows:  # of training; nothing to a reader
            train = replace(self.config.train, batch_size=rows)
            self.config = replace(self.config, train=train)
        return mesh

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
            abstract = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                self.parts.model.shapes,
                self.parts.shardings,
            )
            self._params = None
            try:
                trainable, _ = self.checkpoints.restore_params(step, abstract, {})
            except Damaged as problem:
                raise UserError(
                    f"{self.checkpoints.directory}/{step}: the checkpoint is gone or"
                    f" damaged ({problem}); choose another by --step"
                ) from problem
            self._params = (step, trainable)
        return self._params[1]

    def dataset(self, split: str, source: Any = None) -> Dataset:
        """A labelled data set of the config, or of any other source, encoded.

        Raises:
          UserError: there is no such data.
        """
        if source is None and not getattr(self.config.data, split):
            raise UserError(f"--split={split}: the run's config.data.{split} is empty")
        records = load_records(
            self.config.data, split, source, task=self.config.task.name
        )
        return self.parts.encode(records)

    def evaluate(self, data: Dataset, name: str, step: int) -> Evaluation:
        """Score one checkpoint; writes ``results/`` and ``predictions/``."""
        with jax.set_mesh(self.parts.mesh):
            evaluation = self.evaluator.evaluate(self.params(step), data)
        record(evaluation, name, step, self.records)
        self.records.close()
        return evaluation

    def watch(
        self, data: Dataset, name: str, every_seconds: float = 5.0
    ) -> Iterator[tuple[int, Evaluation]]:
        """Score each checkpoint of a live run once, until the run ends.

        Steps that ``results/`` has already are skipped. A checkpoint that is deleted
        before it was read is passed over.
        """
        done = {each["step"] for each in read_results(self.workdir) if each["split"] == name}
        while True:
            alive = is_alive(self.workdir)
            self.checkpoints.reload()
            for step in self.checkpoints.steps():
                if step in done:
                    continue
                done.add(step)
                try:
                    yield step, self.evaluate(data, name, step)
                except UserError as problem:
                    if (self.checkpoints.directory / str(step)).exists():
                        raise
                    self.say(f"checkpoint {step} was deleted before it was read")
                    del problem
            if not alive:
                return
            time.sleep(every_seconds)

    def choose(self, wanted: str) -> list[int]:
        """The steps that ``best``, ``last``, ``all`` or a number means."""
        return choose(self.checkpoints, wanted)

    def predict(
        self, inputs: Sequence[str | Sequence[str] | Record], step: int | None = None
    ) -> list[Prediction]:
        """Predictions for texts, lists of words, or records, in their order.

        ``step`` is the best checkpoint where it is not given.
        """
        step = self.choose("best")[0] if step is None else step
        records = [self._record(each, place) for place, each in enumerate(inputs)]
        if not records:
            return []
        with jax.set_mesh(self.parts.mesh):
            data = self.parts.encode(records)
            return self.evaluator.predict(self.params(step), data)

    def _record(self, given: str | Sequence[str] | Record, place: int) -> Record:
        number = f"input {place + 1}"
        if isinstance(given, dict):
            record = {"id": str(place), "source": number, **given}
        elif isinstance(given, str):
            record = {"id": str(place), "source": number, "text": given}
        else:
            record = {"id": str(place), "source": number, "tokens": list(given)}
        words = record.get("tokens")
        if self.config.task.name == "token_classification" and words is None:
            found = split_words(str(record.get("text", "")))
            record["tokens"] = [word for word, _, _ in found]
            record["offsets"] = [(start, stop) for _, start, stop in found]
        for field in ("labels", "label"):
            record.pop(field, None)
        return record


def is_alive(workdir: Path) -> bool:
    """Whether the run is still going: it says so, and its process is there.

    A process of another host is believed.
    """
    status = read_status(workdir)
    if status is None or status["state"] != "running":
        return False
    if status.get("host") != socket.gethostname():
        return True
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def source_name(source: str) -> str:
    """A data source as part of a file name: ``../data/x.conll`` to ``data-x.conll``."""
    return re.sub(r"[^\w.]+", "-", source).strip("-.") or "data"
