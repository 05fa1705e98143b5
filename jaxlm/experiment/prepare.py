"""Before training: objects, data sets, the plan of steps, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxlm.core import config as configs
from jaxlm.core import trees
from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, with_checksum
from jaxlm.core.meeting import meet
from jaxlm.core.mesh import make_mesh
from jaxlm.core.sources import locate
from jaxlm.data import sources
from jaxlm.data.config import check_sources, shown
from jaxlm.data.dataset import Dataset
from jaxlm.data.loader import Loader
from jaxlm.data.plan import RunPlan, plan_run
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.digests import write_digests
from jaxlm.experiment.parameters import stored_head
from jaxlm.experiment.wiring import (
    LABELS,
    Parts,
    label_set,
    load_records,
    make_parts,
    read_labels,
    save_labels,
    save_model,
)
from jaxlm.models.checkpoint import Checkpoint, open_checkpoint
from jaxlm.models.folders import has_tokenizer
from jaxlm.train.phases import Phases, make_phases, parse_phases
from jaxlm.train.recorded import read_object

DATA = "data.json"
NOTICE_SECONDS = 5.0


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train: objects, data sets and the plan of its steps."""

    parts: Parts
    checkpoint: Checkpoint
    data: dict[str, Dataset]
    plan: RunPlan
    phases: Phases
    segments: int
    labels: list[str]


def prepare(
    config: ExperimentConfig, workdir: Path | None, say: Callable[[str], None]
) -> Prepared:
    """Load the model's description and the data, and plan the steps.

    Raises:
      UserError: something does not fit, or the labels or the data are not those that
        the run in ``workdir`` began with.
    """
    check_sources(config.data)
    mesh, notice = make_mesh(config.mesh.sizes)
    meet(mesh)
    if notice:
        say(notice)
    checkpoint = open_checkpoint(config.model.pretrained)
    task = config.task.name
    loaded = {
        split: load_records(config.data, split, task=task)
        for split in ("train", "validation", "test")
        if getattr(config.data, split)
    }
    labels = label_set(config, loaded["train"])
    if workdir is not None:
        check_labels(workdir, labels, task)
    tokenizer = open_tokenizer(config, checkpoint)
    parts = make_parts(config, mesh, checkpoint.directory, labels, tokenizer)
    if parts.attention.notice:
        say(parts.attention.notice)
    stored = stored_head(parts, checkpoint)
    if stored and not (workdir and (workdir / "checkpoints").exists()):
        say(stored.notice)
    data = {
        split: parts.encode(records, cached=True) for split, records in loaded.items()
    }
    if workdir is not None:
        check_data(workdir, data)
    plan = plan_run(
        data["train"].table,
        epochs=config.train.epochs,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        max_length=config.data.max_length,
        packing=config.data.packing,
        seed=config.seed,
        notice=planning(say),
    )
    phases = make_phases(
        parse_phases(config.train.phases),
        trees.flatten(parts.model.shapes),
        parts.transformer.layers,
        plan.epoch_ends,
    )
    segments = -(-plan.segments // 8) * 8 if config.data.packing else 1
    return Prepared(parts, checkpoint, data, plan, phases, segments, labels)


def open_tokenizer(config: ExperimentConfig, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that the config names, or else the model's own.

    Raises:
      UserError: there is none.
    """
    if config.model.tokenizer:
        try:
            return Tokenizer(locate(config.model.tokenizer))
        except UserError as problem:
            raise UserError(f"config.model.tokenizer: {problem}") from problem
    if not has_tokenizer(checkpoint.directory):
        raise UserError(
            f"config.model.tokenizer: {config.model.pretrained} has no tokenizer; name"
            " a source that has one, such as hf:openai-community/gpt2"
        )
    return Tokenizer(checkpoint.directory)


def planning(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Says every few seconds how far the plan is: many epochs take a while."""
    last = time.monotonic()

    def notice(epochs: int, steps: int) -> None:
        nonlocal last
        if time.monotonic() - last > NOTICE_SECONDS:
            last = time.monotonic()
            say(f"planning the order of data: {epochs:,} epochs, {steps:,} steps")

    return notice


def check_labels(workdir: Path, labels: list[str], task: str) -> None:
    """Refuse to resume where the labels changed: the head would mean other things."""
    if not (workdir / "model" / LABELS).exists():
        return
    before = read_labels(workdir / "model", task)
    if before != labels:
        changed = sorted(set(before) ^ set(labels)) or labels
        raise UserError(
            f"config.data.train: its labels changed since {workdir} began"
            f" ({', '.join(changed[:5])}); name another --workdir, or --overwrite to"
            " start anew"
        )


def check_data(workdir: Path, data: dict[str, Dataset]) -> None:
    """Refuse to resume where the data changed: the plan of steps would be another."""
    path = workdir / DATA
    if not path.exists():
        return
    before = read_object(path)
    for split, dataset in data.items():
        if before.get(split, {}).get("sha256") != dataset.digest:
            raise UserError(
                f"config.data.{split}: its content, or how it is encoded, changed since"
                f" {workdir} began; name another --workdir, or --overwrite to start"
                " anew"
            )


def describe_on_disk(run: Prepared, workdir: Path) -> None:
    """What the other doors need to read the run."""
    save_model(workdir / "model", run.checkpoint, run.parts.tokenizer)
    save_labels(workdir / "model", run.labels)
    facts = {
        split: {
            "examples": len(data.records),
            "tokens": data.tokens,
            "sha256": data.digest,
        }
        for split, data in run.data.items()
    }
    atomic_write_json(workdir / DATA, with_checksum(facts))
    configs.write(workdir / configs.FILE, run.parts.config, configs.versions())
    write_digests(workdir)


def describe(run: Prepared, say: Callable[[str], None]) -> None:
    """Say what is about to be trained on what."""
    config, parts = run.parts.config, run.parts
    count = sum(leaf.size for leaf in jax.tree.leaves(parts.model.shapes))
    say(f"model  {config.model.pretrained}, {count:,} parameters")
    for phase in range(len(run.phases.begins) if config.train.phases else 0):
        say(phase_line(run, phase))
    axes = {axis: size for axis, size in parts.mesh.shape.items() if size > 1}
    kind = parts.mesh.devices.flat[0].device_kind
    say(f"device {parts.mesh.size} x {kind} {axes or ''}".rstrip())
    for split, data in run.data.items():
        source = shown(getattr(config.data, split))
        say(f"{split:<10} {source}: {sources.describe(data.records)}")
        if data.truncated:
            say(f"{split:<10} {data.truncated:,} examples truncated to max_length")
    plan = run.plan
    say(
        f"steps  {len(plan):,} of {rows_of(run)} rows, examples_per_step"
        f" {plan.examples_per_step:.1f}, {plan.tokens / plan.places:.0%} of places are"
        " tokens"
    )


def phase_line(run: Prepared, phase: int) -> str:
    """What a phase trains, of how many parameters, and from which step on."""
    phases, sizes = run.phases, trees.flatten(run.parts.model.shapes)
    count = sum(sizes[name].size for name in phases.trainable[phase])
    return (
        f"phase {phase + 1} of {len(phases.begins)} trains"
        f" {', '.join(phases.written[phase].names)}: {count:,} parameters, from step"
        f" {phases.begins[phase] + 1}"
    )


def rows_of(run: Prepared) -> int:
    """The rows of a step; of a batch_size beyond all data, the rest were padding."""
    return min(run.parts.config.train.batch_size, run.plan.rows)


def loader(run: Prepared) -> Loader:
    """The batches of the plan, this process's rows of each."""
    parts = run.parts
    rows = parts.rows(rows_of(run), parts.accumulation)
    return Loader(
        run.data["train"].windows,
        run.plan,
        own=rows.own,
        segments=run.segments,
        fills=parts.task.fills,
        place=rows.place,
        workers=parts.config.data.workers,
    )
