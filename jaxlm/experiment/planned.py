"""The step of a run as it would be compiled elsewhere: with neither data nor devices.

Everything is made as ``main`` makes it (``make_parts``, ``States``, ``compiled_step``),
but on a mesh of devices that are not here, and for a batch of which only shapes exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.core import trees
from jaxlm.core.errors import UserError
from jaxlm.core.grouping import stack_names
from jaxlm.core.mesh import replicated
from jaxlm.core.programs import COMPILER_OPTIONS
from jaxlm.core.schema import leaves
from jaxlm.data.packing import collate
from jaxlm.data.tokenizer import Frame, Pieces, Tokenizer
from jaxlm.experiment.ahead import compiled_step
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.prepare import open_tokenizer
from jaxlm.experiment.wiring import Parts, make_parts
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.backends import compute_capability
from jaxlm.models.checkpoint import Checkpoint, open_checkpoint
from jaxlm.models.kernels.cudnn import planned_for
from jaxlm.planning.formulas import model_flops
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.registry import TASKS
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.phases import make_phases, parse_phases
from jaxlm.train.schedule import make_schedule
from jaxlm.train.state import State, States

SEGMENTS = 8
"""Examples of a packed row: as main rounds it up to, where rows have that many."""
STEPS = 100_000
"""Of a schedule whose length only the data would tell; no program hangs on it."""
LABELS: tuple[str, ...] = ("A", "B")
"""Stand for those that only the data would tell."""


@dataclass(frozen=True)
class Planned:
    """A step to be compiled, and what a plan says of it."""

    step: Any
    mesh: jax.sharding.Mesh
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]
    facts: dict[str, Any]

    @property
    def options(self) -> dict[str, str]:
        """What main tells the compiler, too."""
        return COMPILER_OPTIONS.get(self.mesh.devices.flat[0].platform, {})

    def lower(self) -> jax.stages.Lowered:
        """Traced and sharded, not compiled."""
        capability = compute_capability(self.mesh.devices.flat[0])
        with jax.set_mesh(self.mesh), planned_for(capability):
            return self.step.lower(self.state, self.batch)


class NoTokenizer:
    """In the place of a tokenizer that is not here: only its numbers are in a program.

    Which ids are special is a constant that costs nothing.
    """

    frame = Frame((0,), (0,))
    mask: int | None = 0
    end: int | None = 0
    serialised = ""

    def __init__(self, vocab_size: int, directory: Path):
        self.vocab_size, self.directory = vocab_size, directory

    def text(self, text: str) -> np.ndarray:
        return np.zeros(8, np.int32)

    def words(self, words: list[str]) -> Pieces:
        return Pieces(np.zeros(8, np.int32), np.zeros(8, np.int32))


def build(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> Planned:
    """The step that main would run by a config on such a mesh.

    Raises:
      UserError: the model, the mesh or the batch do not fit one another.
    """
    checkpoint = open_checkpoint(config.model.pretrained)
    assumed: list[str] = []
    tokenizer = find_tokenizer(config, checkpoint, assumed)
    labels = find_labels(config, assumed)
    parts = make_parts(config, mesh, checkpoint.directory, labels, tokenizer)
    steps = config.train.steps or STEPS
    phases = make_phases(
        parse_phases(config.train.phases),
        trees.flatten(parts.model.shapes),
        parts.transformer.layers,
        [steps],
    )
    peak = config.optimizer.learning_rate
    states = States(
        make_optimizer(config.optimizer, make_schedule(config.schedule, peak, steps)),
        phases,
        parts.model.shapes,
        parts.shardings,
        replicated(mesh),
    )
    # Outside of jax.set_mesh: a constant would be computed on devices that are not.
    state = states.abstract(0)
    batch = abstract_batch(parts, labels, assumed)
    step = compiled_step(parts, states)
    facts = describe(parts, state, batch) | {"assumed": assumed}
    return Planned(step, mesh, state, batch, facts)


def find_tokenizer(
    config: ExperimentConfig, checkpoint: Checkpoint, assumed: list[str]
) -> Tokenizer:
    """The run's tokenizer where it is at hand; else what stands for one."""
    local = config.model.tokenizer or config.model.pretrained
    if not local.startswith("hf:"):
        try:
            return open_tokenizer(config, checkpoint)
        except UserError:
            if config.model.tokenizer:
                raise
    assumed.append(
        f"no tokenizer was read; ids up to {checkpoint.config.vocab_size - 1}, by the"
        " model's config.json"
    )
    stand_in: Any = NoTokenizer(checkpoint.config.vocab_size, checkpoint.directory)
    return stand_in


def find_labels(config: ExperimentConfig, assumed: list[str]) -> list[str]:
    """The labels of the config; those of data, which is not read, are assumed."""
    labels: list[str] = list(config.task.labels)
    if not labels and TASKS[config.task.name].least_labels:
        labels = [*LABELS]
        assumed.append(
            f"{len(labels)} labels, as no data is read; config.task.labels has yours"
        )
    return labels


def abstract_batch(
    parts: Parts, labels: list[str], assumed: list[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """A whole batch's shapes: the fields that the task gives an example, collated."""
    config, task = parts.config, parts.task
    example: dict[str, Any] = {"id": "0", "source": "plan", "text": "a"}
    if task.content == "tokens":
        example = {**example, "tokens": ["a"], "labels": ["O"]}
    elif labels:
        example["label"] = labels[0]
    like = next(iter(task.encode(example, 0)))
    segments = 1
    if config.data.packing:
        segments = SEGMENTS
        assumed.append(f"up to {SEGMENTS} examples in a packed row")
    one = collate(
        [],
        like=like,
        length=config.data.max_length,
        segments=segments,
        batch_size=1,
        fills=task.fills,
    )
    train = config.train
    rows = parts.rules.rows_on_mesh(parts.mesh, train.batch_size, parts.accumulation)
    if more := rows - train.batch_size:
        assumed.append(
            f"{more:,} rows of padding beside the {train.batch_size:,} of a step, so"
            " that all divide over devices and microbatches; they are computed, and"
            " count neither as tokens nor as FLOPs of the model"
        )
    split = parts.rules.batch_sharding(parts.mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (rows, *value.shape[1:]), value.dtype, sharding=split
        )
        for name, value in one.items()
    }


def describe(
    parts: Parts, state: State, batch: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """What a plan is told of the step: sizes, bytes of a device, FLOPs of the model."""
    config, transformer = parts.config, parts.transformer
    rows, length = config.train.batch_size, batch["tokens"].shape[1]
    task = parts.task
    language = isinstance(task, LanguageModeling)
    asked = task.asked_share if isinstance(task, LanguageModeling) else 1.0
    flops = model_flops(
        transformer,
        length,
        vocabulary=language,
        labels=len(parts.task.labels),
        asked=asked,
    )
    trainable, frozen = count(state.trainable), count(state.frozen)
    share = trainable / (trainable + frozen)
    return {
        "task": config.task.name,
        "model": config.model.pretrained,
        "parameters": trainable + frozen,
        "trainable": trainable,
        "rows": rows,
        "length": length,
        "tokens_per_step": rows * length,
        "causal": transformer.causal,
        "layers": transformer.layers * transformer.repeats,
        "width": transformer.width,
        "mlp_width": transformer.mlp_width * (2 if transformer.gated else 1),
        "vocab_size": transformer.vocab_size,
        "attention_blocks": attention_blocks(parts),
        "outputs": transformer.vocab_rows if language else len(parts.task.labels),
        "parameter_bytes": held(state.trainable) + held(state.frozen),
        "optimizer_bytes": held(state.optimizer),
        "batch_bytes": held(batch),
        "model_flops_per_token": flops.training(*backward(transformer, state)),
        "layer_flops_per_token": flops.layers,
        "head_flops_per_token": flops.head,
        "attention_flops_per_token": flops.attention,
        "trainable_share": share,
    }


def backward(transformer: TransformerConfig, state: State) -> tuple[float, float]:
    """The shares of ``ModelFlops.training``: of matrices trained, of layers reached."""
    stacks = dict(stack_names(transformer.stacks))
    trained, frozen = (
        [(path.split("/"), leaf.size) for path, leaf in trees.flatten(part).items()]
        for part in (state.trainable, state.frozen)
    )

    def matrices(leaves: list[tuple[list[str], int]]) -> int:
        return sum(
            size
            for parts, size in leaves
            if parts[-1] == "kernel" and not stacks.keys().isdisjoint(parts)
        )

    lowest = [
        stacks[name].start for parts, _ in trained for name in parts if name in stacks
    ]
    below = any({"embeddings", "relative"} & {*parts} for parts, _ in trained)
    first = 0 if below else min(lowest, default=transformer.layers)
    whole = matrices(trained) + matrices(frozen)
    return matrices(trained) / whole, 1 - first / transformer.layers


def attention_blocks(parts: Parts) -> dict[str, int]:
    """Tokens of a block of splash attention by ``config.model.attention_block``.

    Empty where something else computes attention, as on all that are no TPUs.
    """
    if parts.attention.name != "splash":
        return {}
    from jaxlm.models.kernels.splash import LANES, block_size

    length = parts.config.data.max_length
    padded = length + -length % LANES
    choices = leaves(ExperimentConfig)["model.attention_block"].rule.choices or ()
    return {str(most): block_size(padded, int(most)) for most in choices}


def count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def held(tree: Any) -> int:
    """Bytes of a tree that one device holds."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
