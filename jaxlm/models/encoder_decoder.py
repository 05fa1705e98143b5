"""An encoder and a decoder that reads it, with one table of tokens (T5)."""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.core.types import Batch, Outputs
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.cache import Cache
from jaxlm.models.layers import dropout, folded, split_key
from jaxlm.models.transformer import Embeddings, Layers

TARGET = "target_"
"""Before the fields of a batch that the decoder reads."""


class EncoderDecoder(nnx.Module):
    """Source tokens and target tokens to the decoder's hidden states.

    The batch's fields are the encoder's; ``target_tokens``, ``target_segments`` and
    ``target_positions i32[B, T]`` are what the decoder has read so far, beginning with
    its start token. A target's segment attends to the source's of the same number.
    Returns ``hidden [B, T, D]`` and ``memory [B, S, D]``, the encoder's. ``collect``
    adds what the decoder's layers have (see ``Transformer``), and the encoder's under
    ``encoder_``.

    With a ``cache`` (``jaxlm.models.cache``) whose memory is filled in, a batch without
    ``tokens`` continues: the encoder is not run again.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        rules: Rules = NO_RULES,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
    ):
        assert config.decoder is not None
        self.config, self.rules, self.dtype = config, rules, dtype
        self.embeddings = Embeddings(config, rngs, rules)
        self.encoder = Layers(config, rngs, rules=rules, remat=remat)
        self.decoder = Layers(config.decoder, rngs, rules=rules, remat=remat)

    def __call__(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Cache | None = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        keys = split_key(key, 2)
        found: Outputs = {}
        memory = None
        if "tokens" in batch:
            inner = self.half(self.encoder, batch, keys[0], None, None, collect)
            memory, segments = inner.pop("hidden"), batch["segments"]
            found = {f"encoder_{name}": value for name, value in inner.items()}
            found["memory"] = memory
        elif cache is not None:
            segments = cache["memory_segments"]
        else:
            raise ValueError("an encoder-decoder needs tokens, or a cache")
        target = {
            name.removeprefix(TARGET): value
            for name, value in batch.items()
            if name.startswith(TARGET)
        }
        reads = memory, segments
        outputs = self.half(self.decoder, target, keys[1], cache, reads, collect)
        if cache is not None:
            outputs["cache"]["memory_segments"] = segments  # pyright: ignore
        return {**outputs, **found}

    def half(
        self,
        layers: Layers,
        batch: Batch,
        key: jax.Array | None,
        cache: Cache | None,
        memory: tuple[jax.Array | None, jax.Array] | None,
        collect: Collection[str],
    ) -> Outputs:
        """Tokens through one of the two; dropout also after its last norm, as in T5."""
        keys = split_key(key, 2)
        with jax.named_scope("embeddings"):
            x = self.embeddings(batch, self.dtype, keys[0])
        outputs = layers.run(
            x, batch, keys[1], cache=cache, memory=memory, collect=collect
        )
        rate = layers.config.dropout.embeddings
        outputs["hidden"] = dropout(outputs["hidden"], rate, folded(key, 2))
        return outputs
