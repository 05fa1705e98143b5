"""jaxlm in a notebook: ``from jaxlm import api``; the doors, as functions.

Not in ``jaxlm`` itself, whose ``train``, ``evaluate``, ``predict`` and ``export`` are
modules.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.core import schema
from jaxlm.core.errors import UserError
from jaxlm.experiment import presets
from jaxlm.experiment.config import ExperimentConfig

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxlm.core.types import Prediction, Record
    from jaxlm.experiment.runs import Run

NAMES = {
    "ner": "token_classification",
    "token_classification": "token_classification",
    "classify": "text_classification",
    "text_classification": "text_classification",
    "masked_lm": "masked_lm",
    "causal_lm": "causal_lm",
}


def config(task: str, *, tiny: bool = False) -> ConfigDict:
    """The config of a task, to be changed by attribute: ``config.train.epochs = 3``.

    ``task`` is ``ner`` (or ``token_classification``), ``classify`` (or
    ``text_classification``), ``masked_lm`` or ``causal_lm``. The keys are those of the
    config files and the values those of ``configs/``; ``tiny`` is their variant, a very
    small random model that needs no download. ``config.data.train``,
    ``validation`` and ``test`` take a source string or a list of records; ``""`` or
    ``[]`` for none.

    Raises:
      UserError: no such task.
    """
    made = presets.start(among(task, NAMES, "task"))
    if tiny:
        presets.tiny(made)
    return made


def train(
    config: ConfigDict | ExperimentConfig,
    workdir: str | Path,
    *,
    overwrite: bool = False,
) -> Run:
    """Train, or resume what the workdir holds; the run, with its final ``metrics``.

    Raises:
      UserError: something in the config, the data or the workdir that a user can mend.
    """
    from jaxlm.experiment import training
    from jaxlm.experiment.runs import Run

    if not isinstance(config, ExperimentConfig):
        if not hasattr(config, "to_dict"):
            raise UserError(
                f"config is {schema.show(config)}; start from api.config('ner')"
            )
        config = schema.build(ExperimentConfig, config.to_dict())
    workdir = directory(workdir)
    training.train(config, workdir, overwrite=overwrite)
    return Run(workdir)


def evaluate(
    run: Run | str | Path,
    data: str | Sequence[Record] | None = None,
    *,
    split: str | None = None,
    step: str | int = "best",
    format: str = "auto",
    columns: str = "",
    scheme: str = "auto",
) -> dict[str, Any]:
    """Score a checkpoint on a split of the run's config, or on other labelled data.

    ``data`` is a source string or a list of records, which ``format``, ``columns`` and
    ``scheme`` tell how to read (as the keys of ``config.data``). ``split``: ``test``
    where none is given. As the door, writes ``results/`` and ``predictions/``, under
    the name ``records-`` and a hash for a list.

    Raises:
      UserError: there is no such run, checkpoint or data.
    """
    from jaxlm.experiment.runs import SPLITS, result_name

    if split is not None:
        among(split, {each: each for each in SPLITS}, "split")
    run = opened(run)
    number = chosen(run, step)
    reading = {"format": format, "columns": columns, "scheme": scheme}
    for name, value in reading.items():
        schema.check(schema.leaves(ExperimentConfig)[f"data.{name}"], value)
    dataset = run.dataset(split or "test", data, **reading)
    return run.evaluate(dataset, result_name(data, split), number).metrics


def predict(
    run: Run | str | Path,
    inputs: str | Sequence[str | Sequence[str] | Record],
    *,
    step: str | int = "best",
) -> list[Prediction]:
    """Predictions for texts, lists of words or records, in their order.

    Raises:
      UserError: there is no such run or checkpoint, or an input is none of these.
    """
    run = opened(run)
    if isinstance(inputs, str | Mapping):
        inputs = [inputs]
    return run.predict(inputs, chosen(run, step))


def export(
    run: Run | str | Path,
    output: str | Path,
    *,
    step: str | int = "best",
    dtype: str = "fp32",
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint as a folder that transformers opens; its path.

    ``dtype`` is ``fp32``, ``bf16`` or ``fp16``; files of weights are at most
    ``max_shard_size``. ``overwrite`` replaces an export that is there.

    Raises:
      UserError: there is no such run or checkpoint, or the folder is in use.
    """
    from jaxlm.experiment.exporting import export_run
    from jaxlm.models.exporting import Layout

    layout, output = (
        Layout(dtype, max_shard_size, overwrite),
        directory(output, "output"),
    )
    layout.check(output)
    run = opened(run)
    export_run(run, chosen(run, step), output, layout, run.say)
    return output


def opened(run: Run | str | Path) -> Run:
    """The run itself, or that of a workdir."""
    from jaxlm.experiment.runs import Run

    return run if isinstance(run, Run) else Run(directory(run))


def directory(path: str | Path, name: str = "workdir") -> Path:
    """The path of a directory; an empty one would mean the current directory."""
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        raise UserError(f"{name} is {schema.show(path)}; a path is needed")
    return Path(path)


def chosen(run: Run, step: str | int) -> int:
    """The one checkpoint that ``best``, ``last`` or a number means."""
    if step == "all":
        raise UserError("step='all' is not allowed; best, last or a number")
    return run.choose(str(step))[0]


def among(word: str, allowed: Mapping[str, str], what: str) -> str:
    """What a word of ``allowed`` stands for."""
    if not isinstance(word, str) or word not in allowed:
        raise UserError(f"no such {what}: {word!r}; one of {', '.join(allowed)}")
    return allowed[word]
