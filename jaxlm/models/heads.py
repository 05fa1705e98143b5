"""What turns hidden states into a task's logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.types import Batch, Outputs
from jaxlm.models.config import TransformerConfig
from jaxlm.models.layers import Linear, dropout, split_key


class Head(nnx.Module):
    """A backbone under a dropout and a linear map to L labels.

    ``reads`` says which output of the backbone is classified: ``hidden [B, S, D]`` (a
    label for every token), ``pooled [B, P, D]`` (a label for every example, by its
    first token through the pooler) or ``mean [B, P, D]`` (by the mean of its tokens).
    The result is ``logits f32[B, S, L]`` or ``f32[B, P, L]``.
    """

    def __init__(self, backbone: nnx.Module, reads: str, labels: int, rngs: nnx.Rngs):
        config: TransformerConfig = backbone.config  # pyright: ignore
        self.reads = reads
        self.dropout = config.head_dropout
        self.backbone = backbone
        self.classifier = Linear(
            (config.width, labels),
            ("width", "labels"),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=backbone.rules,  # pyright: ignore
        )

    def __call__(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Any = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        backbone_key, head_key = split_key(key, 2)
        outputs = self.backbone(batch, backbone_key, cache=cache, collect=collect)
        if self.reads == "mean":
            x = segment_mean(outputs["hidden"], batch)
        else:
            x = outputs[self.reads]
        # In fp32 whatever the layers run in: losses are, and a head is small.
        x = dropout(x.astype(jnp.float32), self.dropout, head_key)
        return {**outputs, "logits": self.classifier(x)}


def segment_mean(hidden: jax.Array, batch: Batch) -> jax.Array:
    """The mean hidden state of every segment: ``[B, S, D] -> [B, P, D]``.

    Segment p + 1 of a row is example p; an absent example gives zeros. Summed and
    counted in fp32: bf16 cannot count beyond 256.
    """
    numbers = jnp.arange(1, batch["starts"].shape[1] + 1)[None, :, None]
    member = (batch["segments"][:, None, :] == numbers).astype(jnp.float32)
    count = jnp.maximum(member.sum(-1, keepdims=True), 1)
    total = jnp.einsum("bps,bsd->bpd", member, hidden.astype(jnp.float32))
    return (total / count).astype(hidden.dtype)
