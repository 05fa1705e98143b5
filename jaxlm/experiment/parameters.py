"""What a run's parameters are before its first step: loaded, adopted or drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxlm.core.trees import BACKBONE
from jaxlm.core.trees import flatten as flat
from jaxlm.core.trees import unflatten as unflat
from jaxlm.core.types import Params
from jaxlm.experiment.wiring import Parts, head_rngs
from jaxlm.models.checkpoint import Checkpoint, classifier_kind, own_head
from jaxlm.models.heads import LanguageModel
from jaxlm.models.pretrained import labels_of
from jaxlm.models.weights import load_weights

KINDS = {"hidden": "tokens", "pooled": "text"}
"""By what a task's head reads, the kind of a checkpoint's that computes the same."""
CLASSIFIER = ("classifier/kernel", "classifier/bias")
SHOWN = 8


@dataclass(frozen=True)
class StoredHead:
    """A checkpoint's classifier for the run's task.

    ``labels`` are its own, in its order, ``wanted`` those of the task.
    """

    kind: str
    labels: list[str]
    wanted: list[str]

    @property
    def fits(self) -> bool:
        """Whether it knows the task's labels, each once, and no others."""
        return sorted(self.labels) == sorted(self.wanted)

    @property
    def order(self) -> list[int]:
        """Which of its outputs each of the task's labels is."""
        return [self.labels.index(label) for label in self.wanted]

    @property
    def notice(self) -> str:
        """What a user is told of it."""
        if self.fits:
            return f"head   the checkpoint's own, of {len(self.labels)} labels"
        return (
            f"head   new: the checkpoint's is for {shown(self.labels)}, the data have"
            f" {shown(self.wanted)}"
        )


def shown(labels: list[str]) -> str:
    """Labels in a message, not all where they are many."""
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more


def stored_head(parts: Parts, checkpoint: Checkpoint) -> StoredHead | None:
    """The checkpoint's classifier, where it is of the kind that the task trains.

    Raises:
      UserError: config.json has labels that cannot be read.
    """
    kind = classifier_kind(checkpoint)
    reads = getattr(parts.model.skeleton, "reads", None)
    if checkpoint.weights is None or kind is None or KINDS.get(str(reads)) != kind:
        return None
    return StoredHead(kind, labels_of(checkpoint), parts.task.labels)


def stored_language(parts: Parts, checkpoint: Checkpoint) -> str | None:
    """``language``, where the run trains such a head and the checkpoint has one."""
    wanted = isinstance(parts.model.skeleton, LanguageModel)
    return "language" if wanted and own_head(checkpoint) == "language" else None


def new_params(parts: Parts, checkpoint: Checkpoint) -> Params:
    """Pretrained backbone, new head; all new for ``random:`` sources.

    A classifier that the checkpoint has for the same labels is taken, its outputs in
    the task's order, and so is a head over the vocabulary. Every leaf is born in its
    sharding. What of a backbone only a head needs, and its checkpoint lacks (the pooler
    of most families), is new too.
    """
    key = jax.random.key(parts.config.seed)
    if checkpoint.weights is None:
        return jax.jit(parts.model.init, out_shardings=parts.shardings)(key)
    fitted = replace(checkpoint, config=parts.transformer)
    stored = stored_head(parts, checkpoint)
    taken = stored if stored and stored.fits else None
    kind = taken.kind if taken else stored_language(parts, checkpoint)
    loaded = load_weights(
        fitted, parts.model.shapes, parts.shardings, kind, seed=parts.config.seed
    )
    held = flat(loaded)
    placed = flat(parts.shardings)
    if taken:
        for name in set(CLASSIFIER) & held.keys():
            held[name] = reordered(held[name], taken.order, placed[name])
    new = [name for name in flat(parts.model.shapes) if name not in held]
    return unflat({**held, **(draw(parts, key, new) if new else {})})


def reordered(leaf: jax.Array, order: list[int], placed: Any) -> jax.Array:
    """A classifier's leaf with its outputs, the last axis, in another order."""
    if order == sorted(order):
        return leaf
    index = np.array(order)
    take = jax.jit(lambda leaf: leaf[..., index], out_shardings=placed)
    return take(leaf)


def draw(parts: Parts, key: jax.Array, names: list[str]) -> dict[str, jax.Array]:
    """New leaves, the same however many of them are asked for."""

    def make(key: jax.Array) -> dict[str, jax.Array]:
        if any(name.startswith(f"{BACKBONE}/") for name in names):
            params = flat(parts.model.init(key))
        else:  # a head alone, without tracing what is loaded
            body: Any = parts.model.skeleton
            head = parts.task.build(body.backbone, head_rngs(nnx.Rngs(params=key)))
            params = flat(nnx.to_pure_dict(nnx.state(head)))
        return {name: params[name] for name in names}

    placed = flat(parts.shardings)
    out = {name: placed[name] for name in names}
    return jax.jit(make, out_shardings=out, compiler_options=hasty())(key)


def hasty() -> dict[str, Any] | None:
    """Options for a program that is run once.

    On a CPU, LLVM takes a second or two to optimise the random bits of a small matrix,
    which are drawn in no time either way.
    """
    if jax.default_backend() == "cpu":
        return {"xla_backend_optimization_level": 0}
    return None
