"""Config to objects: mesh, tokenizer, task, model, data, as every door needs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, read_json
from jaxlm.core.mesh import Rules
from jaxlm.core.rows import Rows
from jaxlm.core.schema import flatten, to_dict
from jaxlm.core.types import Params, Record, Task
from jaxlm.data import sources
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import Dataset
from jaxlm.data.plan import row_lengths
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.models.architecture import Dropout, TransformerConfig
from jaxlm.models.backends import Backend, Need, choose, compute_capability
from jaxlm.models.checkpoint import Checkpoint, read_config
from jaxlm.models.exporting import SETTINGS, copy_files
from jaxlm.models.functional import Model, functional
from jaxlm.models.pretrained import check_heads
from jaxlm.models.transformer import Transformer
from jaxlm.models.vocabulary import resize
from jaxlm.tasks.registry import TASKS
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.phases import cuts, parse_phases

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}
LABELS = "labels.json"
HEAD = 2**31 - 1
"""Beyond the numbers that a backbone draws."""


@dataclass(frozen=True)
class Parts:
    """The objects of an experiment, without parameters."""

    config: ExperimentConfig
    mesh: jax.sharding.Mesh
    rules: Rules
    tokenizer: Tokenizer
    windowing: Windowing
    task: Task
    transformer: TransformerConfig
    model: Model
    shardings: Params
    attention: Backend

    @property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters, as a restore wants them."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            self.model.shapes,
            self.shardings,
        )

    @property
    def accumulation(self) -> int:
        """The microbatches that a step is cut into."""
        devices = self.rules.devices_of_rows(self.mesh)
        return self.config.train.microbatches(devices)

    def rows(self, count: int, accumulation: int = 1) -> Rows:
        """A batch of at least so many rows, which divide over the mesh."""
        whole = self.rules.rows_on_mesh(self.mesh, count, accumulation)
        return Rows(self.rules.batch_sharding(self.mesh), whole)

    def evaluator(self) -> Evaluator:
        """An evaluator whose batch divides over the mesh."""
        data = self.config.data
        return Evaluator(
            self.task,
            self.model.apply,
            self.mesh,
            rows=self.rows(self.config.evaluate.batch_size),
            max_length=data.max_length,
            packing=data.packing,
        )

    def encode(self, records: Sequence[Record], *, cached: bool = False) -> Dataset:
        """Records to windows, by the task; their lengths ``cached`` for later runs."""
        return Dataset(records, self.task.encode, encoding=self.encoding, cached=cached)

    @cached_property
    def encoding(self) -> str:
        """A sha256 of what decides how a record becomes windows."""
        facts = {
            "tokenizer": self.tokenizer.serialised,
            "task": to_dict(self.config.task),
            "labels": self.task.labels,
            "windowing": asdict(self.windowing),
            "frame": asdict(self.tokenizer.frame),
        }
        if self.task.target == self.task.content:  # running text, which ends
            facts["end"] = self.tokenizer.end
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def make_parts(
    config: ExperimentConfig,
    mesh: jax.sharding.Mesh,
    directory: Path,
    labels: Sequence[str],
    tokenizer: Tokenizer | None = None,
) -> Parts:
    """Build everything from a config and a directory with config.json and tokenizer.

    ``tokenizer`` is another than that in the directory.

    Raises:
      UserError: the tokenizer, the lengths or the mesh do not fit the model.
    """
    tokenizer = tokenizer or Tokenizer(directory)
    data, kind = config.data, TASKS[config.task.name]
    stride = kind.stride(data.max_length) if data.stride is None else data.stride
    room = data.max_length - tokenizer.frame.length
    windowing = Windowing(room, min(stride, room - 1), data.overflow)
    task = kind.make(config.task, labels, tokenizer, windowing)
    family, transformer, _ = read_config(directory)
    if transformer.decoder is not None:
        raise UserError(
            f"config.model.pretrained: {family.model_type} is an encoder-decoder, which"
            f" {config.task.name} cannot read; take an encoder or a decoder"
        )
    transformer = adapt(transformer, config, task)
    check_fit(config, transformer, tokenizer, directory)
    rules = Rules.of(flatten(config.mesh.rules))
    if rules["layers"] and not config.model.scan:
        raise UserError(
            f"config.mesh.rules.layers: {','.join(rules['layers'])} would split stacks"
            " of layers, which config.model.scan=true makes"
        )
    check_heads(transformer, mesh, rules)
    for length in row_lengths(data.max_length, data.packing):
        rules.sharding(mesh, ("sequence",), (length,), "a row")
    device = mesh.devices.flat[0]
    attention = choose(
        config.model.attention,
        Need.of(
            transformer,
            platform=device.platform,
            capability=compute_capability(device),
            dtype=jnp.dtype(DTYPES[config.train.precision]).name,
            split=any(mesh.shape[axis] > 1 for axis in rules["sequence"]),
            packing=data.packing,
        ),
        config.model.attention_block,
    )
    backbone = partial(
        Transformer,
        transformer,
        rules=rules,
        remat=config.model.remat,
        dtype=DTYPES[config.train.precision],
        attention=attention,
    )

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return task.build(backbone(rngs), head_rngs(rngs))

    model = functional(make)
    placed = rules.shardings(mesh, model.axes, model.shapes)
    return Parts(
        config,
        mesh,
        rules,
        tokenizer,
        windowing,
        task,
        transformer,
        model,
        placed,
        attention,
    )


def adapt(
    transformer: TransformerConfig, config: ExperimentConfig, task: Task
) -> TransformerConfig:
    """The checkpoint's architecture with what the run changes."""
    rate = config.model.dropout
    layers = transformer.layers
    splits = cuts(parse_phases(config.train.phases), layers)
    changes: dict[str, Any] = {
        "pooler": task.pooler or transformer.pooling.every_token,
        "splits": splits if config.model.scan else tuple(range(1, layers)),
    }
    if rate is not None:
        changes["dropout"] = Dropout.of(rate)
    model = config.model
    resized = resize(transformer, model.vocab_size, model.vocab_multiple)
    return replace(resized, **changes)


def check_fit(
    config: ExperimentConfig,
    transformer: TransformerConfig,
    tokenizer: Tokenizer,
    directory: Path,
) -> None:
    """Refuse a length or a vocabulary that the embeddings do not reach."""
    if config.data.max_length > transformer.max_positions:
        raise UserError(
            f"config.data.max_length: {config.data.max_length} is not allowed; the"
            f" model has {transformer.max_positions} positions"
        )
    if tokenizer.vocab_size > transformer.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the"
            f" embedding {transformer.vocab_size} rows; take the model's own tokenizer,"
            f" or config.model.vocab_size={tokenizer.vocab_size} for new rows"
        )


def head_rngs(rngs: nnx.Rngs) -> nnx.Rngs:
    """What a head draws from: the same, however much its backbone draws, or nothing."""
    return nnx.Rngs(params=jax.random.fold_in(rngs.params.key[...], HEAD))


def load_records(
    data: DataConfig,
    split: str,
    source: Any = None,
    *,
    task: str,
) -> list[Record]:
    """The records of a split of the config, or of any other source.

    Raises:
      UserError: the source is bad, or lacks what the task reads.
    """
    source = getattr(data, split) if source is None else source
    field = TASKS[task].target
    records = sources.load(
        source,
        split,
        format=data.format,
        columns=data.columns,
        scheme=data.scheme,
        running=field == TASKS[task].content,
    )
    for record in records:
        if record.get(field) is None:
            raise UserError(
                f"{record['source']}: no {field}; {task} needs them in {split} data"
                " (name a column by config.data.columns, or take configs/ner.py for"
                " labelled words, configs/classify.py for labelled texts)"
            )
    return records


def label_set(config: ExperimentConfig, records: Sequence[Record]) -> list[str]:
    """The labels that the config names, else those of the training records.

    Raises:
      UserError: there is nothing to tell apart.
    """
    task = TASKS[config.task.name]
    labels = list(config.task.labels) or task.label_set(records)
    if len(labels) < task.least_labels:
        there = f"only the label {labels[0]!r}" if labels else "no label"
        outside = " but O" if task.target == "labels" else ""
        raise UserError(
            f"config.data.train: {len(records):,} examples with {there}{outside};"
            f" {task.name} needs at least {task.least_labels}"
        )
    return labels


def save_model(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """What other doors need of the pretrained source: config.json and tokenizer.

    And what an export hands on: how the tokenizer is opened, how to generate.
    """
    tokenizer.save(folder)
    copy_files(checkpoint.directory, folder, SETTINGS)
    if tokenizer.directory != checkpoint.directory:
        copy_files(tokenizer.directory, folder, SETTINGS)
    atomic_write_json(folder / "config.json", checkpoint.hf)


def save_labels(folder: Path, labels: Sequence[str]) -> None:
    """The resolved label set, for other doors."""
    atomic_write_json(folder / LABELS, list(labels))


def read_labels(folder: Path, task: str) -> list[str]:
    """What ``save_labels`` wrote of a task's labels."""
    labels = read_json(folder / LABELS)
    if (
        not isinstance(labels, list)
        or len(labels) < TASKS[task].least_labels
        or not all(isinstance(label, str) for label in labels)
    ):
        raise UserError(f"{folder / LABELS}: is not a list of labels")
    return labels
