"""What turns hidden states into logits: of a task's labels, or of the vocabulary."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.core.types import Batch, Outputs
from jaxlm.models.architecture import LanguageHead, TransformerConfig
from jaxlm.models.layers import (
    ACTIVATIONS,
    Linear,
    along_last,
    dropout,
    make_norm,
    parameter,
    scores_of,
    split_key,
)
from jaxlm.models.places import taken
from jaxlm.models.transformer import pool

LEAST = float(jnp.finfo(jnp.float32).min)
"""The logit of what is no token."""


class Head(nnx.Module):
    """A backbone under a dropout and a linear map to L labels.

    ``reads`` says which output of the backbone is classified: ``hidden [B, S, D]`` (a
    label for every token), ``pooled [B, P, D]`` (a label for every example, by its
    pooler) or ``mean [B, P, D]`` (by the mean of its tokens). The result is ``logits
    f32[B, S, L]`` or ``f32[B, P, L]``. ``dropout`` is by default the model's rate for a
    classifier of tokens or of texts.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        reads: str,
        labels: int,
        rngs: nnx.Rngs,
        *,
        bias: bool = True,
        dropout: float | None = None,
    ):
        config: TransformerConfig = backbone.config  # pyright: ignore
        rates = config.dropout
        self.reads = reads
        self.dropout = rates.tokens if reads == "hidden" else rates.text
        if dropout is not None:
            self.dropout = dropout
        self.through_pooler = config.pooler and config.pooling.every_token
        self.backbone = backbone
        self.classifier = Linear(
            (config.width, labels),
            ("width", "labels"),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=backbone.rules,  # pyright: ignore
            bias=bias,
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
            x = pool(outputs["hidden"], batch, "mean")
        else:
            x = outputs[self.reads]
        if self.reads != "pooled" and self.through_pooler:
            x = self.backbone.pooler(x)  # pyright: ignore
        # In fp32 whatever the layers run in: losses are, and a head is small.
        x = dropout(x.astype(jnp.float32), self.dropout, head_key)
        return {**outputs, "logits": self.classifier(x)}


class LanguageModel(nnx.Module):
    """A backbone under the head that ``config.language`` describes.

    ``logits f32[B, S, V]``: of the tokens that are masked, or of the next ones. With a
    ``cache`` those of the last token alone, [B, 1, V]: what comes next. Of a batch with
    ``places i32[B, P]``, where something is asked (S: nowhere), those there alone, [B,
    P, V], and ``places`` is among the outputs; but not where devices split the rows.
    """

    def __init__(self, backbone: nnx.Module, rngs: nnx.Rngs):
        config: TransformerConfig = backbone.config  # pyright: ignore
        assert config.language is not None
        self.backbone = backbone
        rules: Rules = backbone.rules  # pyright: ignore
        self.language = VocabularyHead(config, config.language, rngs, rules)

    def __call__(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Any = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        outputs = self.backbone(batch, key, cache=cache, collect=collect)
        table = self.backbone.embeddings.tokens.embedding  # pyright: ignore
        hidden = outputs["hidden"] if cache is None else outputs["hidden"][:, -1:]
        if "places" in batch and not self.backbone.rules.splits("sequence"):  # pyright: ignore
            hidden = taken(hidden, batch["places"], hidden.shape[1])
            outputs = {**outputs, "places": batch["places"]}
        return {**outputs, "logits": self.language(hidden, table[...])}


class VocabularyHead(nnx.Module):
    """Hidden states to logits f32[..., V]; see ``LanguageHead``.

    Its kernel, where it is not tied, is f32[V, E] as the table of tokens is. Rows that
    pad these have the least logits there are: no probability, and no gradient.
    """

    def __init__(
        self,
        config: TransformerConfig,
        head: LanguageHead,
        rngs: nnx.Rngs,
        rules: Rules = NO_RULES,
    ):
        self.rules = rules
        self.head, self.vocab_size = head, config.vocab_size
        draw = jax.nn.initializers.normal(config.initializer_range)
        width = config.width
        if head.activation:
            width = config.embedding_width
            self.transform = Linear(
                (config.width, width),
                ("width", "width_out"),
                initializer=draw,
                rngs=rngs,
                rules=rules,
                bias=head.transform_bias,
            )
            self.norm = make_norm(config, width)
        if not head.tied:
            shape = (config.vocab_rows, width)
            self.kernel = parameter(
                draw(rngs.params(), shape, jnp.float32), ("vocab", "width")
            )
        if head.bias:
            zeros = jnp.zeros(config.vocab_rows, jnp.float32)
            self.bias = parameter(zeros, ("vocab",))

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        head = self.head
        if head.activation:
            x = self.norm(ACTIVATIONS[head.activation](self.transform(x)))
        kernel = table if head.tied else self.kernel[...]
        kernel = self.rules.gather(kernel, ("vocab", "width"), x.dtype)
        if head.scale != 1.0:
            x = x * jnp.asarray(head.scale, x.dtype)
        logits = scores_of(x, kernel)
        if head.bias:
            logits = logits + along_last(self.bias[...], logits)
        if head.cap is not None:
            logits = head.cap * jnp.tanh(logits / head.cap)
        if logits.shape[-1] > self.vocab_size:
            real = jnp.arange(logits.shape[-1]) < self.vocab_size
            logits = jnp.where(along_last(real, logits), logits, LEAST)
        return logits


class Bare(nnx.Module):
    """A backbone under no head; its outputs are those of the backbone."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(self, batch: Batch, key: Any = None, **options: Any) -> Outputs:
        return self.backbone(batch, key, **options)  # pyright: ignore


class Detector(nnx.Module):
    """A backbone that tells which tokens were replaced (ELECTRA): ``logits f32[B, S]``.

    A linear map, the model's activation, and a linear map to one number.
    """

    def __init__(self, backbone: nnx.Module, rngs: nnx.Rngs):
        config: TransformerConfig = backbone.config  # pyright: ignore
        draw = jax.nn.initializers.normal(config.initializer_range)
        self.activation = config.activation
        self.backbone = backbone
        self.transform = Linear(
            (config.width, config.width),
            ("width", "width_out"),
            initializer=draw,
            rngs=rngs,
            rules=backbone.rules,  # pyright: ignore
        )
        self.classifier = Linear(
            (config.width, 1),
            ("width", "labels"),
            initializer=draw,
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
        outputs = self.backbone(batch, key, cache=cache, collect=collect)
        x = ACTIVATIONS[self.activation](self.transform(outputs["hidden"]))
        logits = self.classifier(x.astype(jnp.float32))[..., 0]
        return {**outputs, "logits": logits}
