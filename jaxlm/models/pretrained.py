"""Pretrained models: a source string to config, parameters and a pure apply.

``logits(source, tokens, mask)`` is the one-line check of a checkpoint; ``load(source)``
gives the parts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.core.errors import UserError
from jaxlm.core.files import read_json
from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.core.types import Apply, Batch, Params
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.checkpoint import (
    Checkpoint,
    headless,
    open_checkpoint,
    own_head,
    stored_labels,
)
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.folders import has_tokenizer, open_tokenizer
from jaxlm.models.functional import functional
from jaxlm.models.heads import Bare, Detector, Head, LanguageModel
from jaxlm.models.transformer import Transformer
from jaxlm.models.vocabulary import resize
from jaxlm.models.weights import load_weights


def labels_of(checkpoint: Checkpoint) -> list[str]:
    """``stored_labels`` of a checkpoint; its place stands before what is wrong."""
    try:
        return stored_labels(checkpoint.hf)
    except UserError as problem:
        raise UserError(f"{checkpoint.directory}/{problem}") from problem


def build(
    checkpoint: Checkpoint, head: str | None, rngs: nnx.Rngs, **options: Any
) -> nnx.Module:
    """The module of a checkpoint under a head; ``options`` of ``Transformer``."""
    config, rows = checkpoint.config, checkpoint.family.table(head)
    backbone = make_backbone(config, rngs, **options)
    if head is None:
        return Bare(backbone)
    if head == "language":
        return LanguageModel(backbone, rngs)
    if head == "detector":
        return Detector(backbone, rngs)
    labels = 2 if head == "answers" else len(labels_of(checkpoint))
    reads = "pooled" if head == "text" else "hidden"
    bias, rate = "classifier/bias" in rows, getattr(config.dropout, head)
    return Head(backbone, reads, labels, rngs, bias=bias, dropout=rate)


def make_backbone(
    config: TransformerConfig, rngs: nnx.Rngs, **options: Any
) -> nnx.Module:
    """The module of an architecture; ``options`` are those of ``Transformer``."""
    kind = Transformer if config.decoder is None else EncoderDecoder
    return kind(config, rngs, **options)


def check_heads(
    config: TransformerConfig, mesh: jax.sharding.Mesh, rules: Rules
) -> None:
    """Refuse uneven heads: the width, which a kernel has, may divide where they do not.

    Raises:
      UserError: the heads, or the inside of each, do not divide by their devices.
    """
    for heads in (config.heads, config.kv_heads):
        shape = (heads, config.head_size)
        rules.sharding(mesh, ("heads", "head_size"), shape, "the model")


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint as a library sees it.

    ``apply(params, batch)`` gives ``logits`` of the checkpoint's own head, where it has
    one, and ``hidden``; ``labels`` are those of a classifier.
    """

    config: TransformerConfig
    apply: Apply
    params: Params
    checkpoint: Checkpoint
    head: str | None
    dtype: Any = jnp.float32
    kept: dict[str, Any] = field(default_factory=dict, repr=False)
    """What is made of the model once and kept with it."""

    def setting(self, name: str) -> Any:
        """What generation_config.json says, else config.json; None: neither does."""
        path = self.checkpoint.directory / "generation_config.json"
        own = read_json(path) if path.exists() else {}
        found = own.get(name) if isinstance(own, dict) else None
        return self.checkpoint.hf.get(name) if found is None else found

    def tokens(self, name: str) -> tuple[int, ...]:
        """The tokens of a setting, one or a list; none where it is absent or null.

        Raises:
          UserError: it has another value.
        """
        found = self.setting(name)
        ids = found if isinstance(found, list) else [found] * (found is not None)
        if not all(type(token) is int and token < 2**31 for token in ids):
            raise UserError(
                f"{self.checkpoint.directory}: {name}={found!r} is not allowed; the"
                " number of a token, or a list of some"
            )
        return tuple(ids)

    @property
    def start_token(self) -> int:
        """What a decoder begins with: by default, as in transformers, the bos token.

        Raises:
          UserError: there is none, or it is no token of the vocabulary.
        """
        names = ("decoder_start_token_id", "bos_token_id")
        where, size = self.checkpoint.directory, self.config.vocab_size
        name = next((n for n in names if self.setting(n) is not None), None)
        if name is None:
            raise UserError(
                f"{where}: neither {' nor '.join(names)} says what the decoder begins"
                " with; write it into generation_config.json"
            )
        found = self.setting(name)
        if type(found) is not int or not 0 <= found < size:
            raise UserError(
                f"{where}: {name}={found!r} is not allowed; one token of 0 to"
                f" {size - 1}"
            )
        return found

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer in the checkpoint's directory."""
        return has_tokenizer(self.checkpoint.directory)

    @property
    def labels(self) -> list[str]:
        return labels_of(self.checkpoint)

    @property
    def tokenizer(self) -> Any:
        """The ``transformers`` tokenizer of the directory.

        Raises:
          UserError: there is none, or it cannot be read.
        """
        if "tokenizer" not in self.kept:
            self.kept["tokenizer"] = open_tokenizer(self.checkpoint.directory)
        return self.kept["tokenizer"]


REMATS = ("none", "block", "dots")
"""What ``models.stacks`` computes again."""


def check_options(remat: str, dtype: Any, vocab_size: Any, multiple: Any) -> None:
    """Refuse options of ``load`` that are not allowed, before anything is read."""
    if remat not in REMATS:
        raise UserError(f"remat={remat!r} is not allowed; one of {', '.join(REMATS)}")
    try:
        floats = dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except (TypeError, ValueError):
        floats = False
    if not floats:
        raise UserError(
            f"dtype={dtype!r} is not allowed; one of floats, such as jnp.bfloat16"
        )
    if vocab_size is not None and type(vocab_size) is not int:
        raise UserError(
            f"vocab_size={vocab_size!r} is not allowed; a whole number, or None for"
            " the model's own"
        )
    if type(multiple) is not int or multiple < 1:
        raise UserError(
            f"vocab_multiple={multiple!r} is not allowed; a whole number, at least 1"
        )


def load(
    source: str | os.PathLike[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = NO_RULES,
    scan: bool | None = None,
    remat: str = "none",
    dtype: Any = jnp.float32,
    vocab_size: int | None = None,
    vocab_multiple: int = 1,
) -> Pretrained:
    """A checkpoint with its own head, in f32, each device its part by byte range.

    Without a ``mesh`` all is on the first device. ``scan`` runs layers by ``lax.scan``:
    None where that is no CPU, since a program of every layer takes a GPU's compiler
    minutes, and a CPU reads layers faster that lie apart.
    ``vocab_size`` and ``vocab_multiple`` are the config's: see ``models.vocabulary``.

    Raises:
      UserError: no such source, another architecture, weights that do not fit, or heads
        that the mesh does not divide; or an option that is not allowed.
    """
    check_options(remat, dtype, vocab_size, vocab_multiple)
    checkpoint = open_checkpoint(os.fspath(source))
    head = own_head(checkpoint)
    scan = jax.default_backend() != "cpu" if scan is None else scan
    config = resize(fitted(checkpoint, head, scan), vocab_size, vocab_multiple)
    checkpoint = replace(checkpoint, config=config)
    make = partial(build, checkpoint, head, rules=rules, remat=remat, dtype=dtype)
    model = functional(lambda rngs: make(rngs=rngs))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(lambda _: device, model.shapes)
    else:
        check_heads(config, mesh, rules)
        placed = rules.shardings(mesh, model.axes, model.shapes)
    if checkpoint.weights is None:
        params = jax.jit(model.init, out_shardings=placed)(jax.random.key(0))
    else:
        params = load_weights(checkpoint, model.shapes, placed, head)
    return Pretrained(checkpoint.config, model.apply, params, checkpoint, head, dtype)


def fitted(
    checkpoint: Checkpoint, head: str | None, scan: bool = False
) -> TransformerConfig:
    """The config with the pooler that a head needs, and depth cut to run unrolled."""
    config = checkpoint.config
    pooler = head == "text" or (
        head in ("tokens", "answers") and config.pooling.every_token
    )
    if not scan:
        config = unrolled(config)
    return replace(config, pooler=pooler)


def unrolled(config: TransformerConfig) -> TransformerConfig:
    """The same with a stack for every layer."""
    decoder = None if config.decoder is None else unrolled(config.decoder)
    return replace(config, splits=tuple(range(1, config.layers)), decoder=decoder)


def logits(
    source: str | os.PathLike[str],
    tokens: Sequence[Any] | np.ndarray,
    mask: Sequence[Any] | np.ndarray | None = None,
    *,
    targets: Sequence[Any] | np.ndarray | None = None,
    target_mask: Sequence[Any] | np.ndarray | None = None,
) -> jax.Array:
    """The logits of a checkpoint's own head, f32, deterministic.

    ``tokens i32[B, S]``, ``mask bool[B, S]`` (True = real; by default all are). A head
    of tokens or of language gives [B, S, L or V], one of texts [B, L]. An
    encoder-decoder also takes ``targets i32[B, T]``, what its decoder has read, and
    gives [B, T, V]. Positions are counted over real tokens: padding on either side
    changes nothing.

    Raises:
      UserError: as ``load``, and where the checkpoint has no head, a token is not in
        the vocabulary or there are more tokens than positions.
    """
    model = load(source)
    where = model.checkpoint.directory
    if model.head is None:
        raise UserError(
            f"{headless(model.checkpoint)}: there are no logits; take load(source) and"
            " its outputs' hidden, or write the class with its head into architectures"
        )
    batch = make_batch(model.config, tokens, mask, str(where))
    if model.config.decoder is not None:
        if targets is None:
            raise UserError(
                f"{where}: an encoder-decoder needs targets, the tokens that its"
                " decoder has read"
            )
        read = make_batch(model.config.decoder, targets, target_mask, str(where))
        names = ("tokens", "segments", "positions")
        batch |= {f"target_{name}": read[name] for name in names}
    found = jax.jit(model.apply)(model.params, batch)["logits"]
    return found[:, 0] if model.head == "text" else found


def as_array(name: str, rows: Any) -> np.ndarray:
    """Rows as an array; those of different lengths are refused."""
    try:
        return np.asarray(rows)
    except ValueError as problem:
        raise UserError(
            f"{name}: rows of different lengths are not allowed; pad them to the"
            " longest, and give a mask that is False at padding"
        ) from problem


def make_batch(config: TransformerConfig, tokens: Any, mask: Any, where: str) -> Batch:
    """One example a row, as ``apply`` wants it; see ``jaxlm.core.types.Batch``.

    Raises:
      UserError: shapes that do not fit, a token outside the vocabulary, or too many.
    """
    tokens = as_array("tokens", tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"tokens: {tokens.dtype}{list(tokens.shape)} is not allowed; integers"
            " [B, S]"
        )
    if not tokens.size:
        raise UserError(
            f"tokens: {list(tokens.shape)} is not allowed; at least one row of one"
            " token"
        )
    mask = np.ones(tokens.shape, bool) if mask is None else as_array("mask", mask)
    if mask.dtype.kind not in "bui" or not np.isin(mask, (0, 1)).all():
        raise UserError(
            f"mask: {mask.dtype} that is not true and false, or 1 and 0, is not"
            " allowed; true at real tokens, false at padding"
        )
    mask = mask.astype(bool)
    if mask.shape != tokens.shape:
        raise UserError(
            f"mask: {list(mask.shape)} is not the shape of tokens, {list(tokens.shape)}"
        )
    real = tokens[mask]
    if real.size and not 0 <= real.min() <= real.max() < config.vocab_size:
        raise UserError(
            f"{where}: tokens from {real.min()} to {real.max()}; its vocabulary has"
            f" 0 to {config.vocab_size - 1}"
        )
    longest = int(mask.sum(1).max(initial=0))
    if longest > config.max_positions:
        raise UserError(
            f"{where}: {longest} tokens are more than its {config.max_positions}"
            " positions"
        )
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    fields = {
        "tokens": np.where(mask, tokens, 0),
        "segments": mask,
        "positions": positions,
        "starts": mask.argmax(1)[:, None],
    }
    return {
        **{name: jnp.asarray(value, jnp.int32) for name, value in fields.items()},
        "mask": jnp.asarray(mask),
    }
