"""What a case is: an input that a door refuses, and the words it refuses it with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.models.checkpoint import BUILT_IN

ROOT = Path(__file__).parents[2]
NER = f"--config={ROOT}/configs/ner.py:tiny"
TOPICS = f"--config={ROOT}/configs/classify.py:tiny"
QUICK = (
    "--config.data.validation=",
    "--config.data.test=",
    "--config.data.max_length=16",
    "--config.train.steps=1",
    "--config.train.batch_size=2",
    "--config.mesh.data=1",
)


@dataclass(frozen=True)
class Case:
    """``make`` writes the input into an empty folder and gives the door's arguments.

    ``words`` are parts of the one message; ``{folder}`` in them is that folder.
    ``door`` is the module called: main is given a new workdir and ``config`` (None:
    the case has its own), the others the workdir of a run.
    """

    name: str
    make: Callable[[Path], list[str]]
    words: tuple[str, ...]
    door: str = "main"
    config: str | None = NER


def flags(*arguments: str) -> Callable[[Path], list[str]]:
    """An input that is the command line itself."""
    return lambda folder: [each.format(folder=folder) for each in arguments]


def own_model(folder: Path) -> Path:
    """A folder like a pretrained model's, without weights, to be spoilt."""
    return Path(shutil.copytree(BUILT_IN["tiny"], folder / "model"))
