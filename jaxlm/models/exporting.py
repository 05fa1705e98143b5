"""Models in the Hugging Face layout: what transformers opens, written without torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json
from jaxlm.core.folders import check_apart, check_free, whole_folder
from jaxlm.core.shards import Outgoing, parse_size, write_shards
from jaxlm.core.sources import VOCABULARIES
from jaxlm.core.types import Params
from jaxlm.models.checkpoint import Checkpoint, open_checkpoint, own_head
from jaxlm.models.families import Weight
from jaxlm.models.folders import has_tokenizer, open_tokenizer
from jaxlm.models.functional import functional
from jaxlm.models.pretrained import build, fitted, load
from jaxlm.models.weights import lazy_tensors, stored_tensors

DTYPES = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
}
MAX_SHARD_SIZE = "5GB"
CARD = "README.md"
SETTINGS = (
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip
"""What may lie beside a config.json and a vocabulary, and we hand on as it is."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """How an export is written; ``max_shard_size`` is ``5GB`` or a number of bytes."""

    dtype: str = "fp32"
    max_shard_size: str | int = MAX_SHARD_SIZE
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(
                f"no such dtype: {self.dtype!r}; one of {', '.join(DTYPES)}"
            )
        parse_size(self.max_shard_size)

    def check(self, output: Path) -> None:
        """Refuse an output that is in use, before anything is loaded."""
        check_free(output, self.overwrite)

    def folder(
        self, output: Path, sources: Iterable[Path]
    ) -> AbstractContextManager[Path]:
        """A folder to fill, which becomes ``output`` when all is in it.

        Raises:
          UserError: the output is in use, or one of what is read, in it or around it.
        """
        check_apart(output, sources)
        return whole_folder(output, self.overwrite)

    def write(
        self, folder: Path, hf: Mapping[str, Any], tensors: list[Outgoing], say: Say
    ) -> None:
        """Write config.json, which says the dtype, and the weights."""
        atomic_write_json(folder / "config.json", with_dtype(hf, self.dtype))
        write_shards(folder, tensors, parse_size(self.max_shard_size), say)


def with_dtype(hf: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that says the dtype: by it transformers chooses how to load.

    One that says none, beside fp32, stays as it was: then the weights' own counts.
    """
    named = [key for key in ("dtype", "torch_dtype") if key in hf]
    if not named and dtype == "fp32":
        return dict(hf)
    return {**hf, **dict.fromkeys(named or ["dtype"], DTYPES[dtype].name)}


def param_tensors(
    checkpoint: Checkpoint, params: Params, head: str | None, dtype: str
) -> list[Outgoing]:
    """A model's parameters under the names of transformers, fetched one by one."""
    family, hf = checkpoint.family, checkpoint.hf
    found = []
    for name, (source, fetch) in lazy_tensors(checkpoint, params, head).items():
        written = family.written(name, source.row, hf, head)
        read = partial(converted, fetch, written, DTYPES[dtype], checkpoint.directory)
        found.append(Outgoing(written, DTYPES[dtype], source.their_shape, read))
    return found


def file_tensors(
    checkpoint: Checkpoint, head: str | None, dtype: str
) -> list[Outgoing]:
    """All tensors of a checkpoint's files; those that we read in today's spelling.

    What our model has no use for, as buffers and a pooler, keeps its name, and its
    dtype where that is not one of floats.

    Raises:
      UserError: the names or shapes do not fit config.json.
    """
    files = checkpoint.weights
    assert files is not None
    fit = replace(checkpoint, config=fitted(checkpoint, head, scan=True))
    shapes = functional(lambda rngs: build(fit, head, rngs)).shapes
    ours = stored_tensors(fit, shapes, head)
    found = []
    for name in files.names:
        written, kept = name, files.dtype(name)
        if jnp.issubdtype(kept, jnp.floating):
            kept = DTYPES[dtype]
        if name in ours:
            canonical, source = ours[name]
            row: Weight = source.row
            written = checkpoint.family.written(canonical, row, checkpoint.hf, head)
        fetch = partial(files.read, name)
        where = checkpoint.directory
        read = partial(converted, fetch, name, kept, where, strict=name in ours)
        found.append(Outgoing(written, kept, files.shape(name), read))
    return found


def converted(
    fetch: Callable[[], np.ndarray],
    name: str,
    dtype: np.dtype,
    where: Path,
    strict: bool = True,
) -> np.ndarray:
    """A tensor in another dtype, rounded to the nearest.

    Raises:
      UserError: with ``strict``, it is not finite then.
    """
    value = fetch()
    with np.errstate(over="ignore"):
        value = value.astype(dtype, copy=False)
    if strict and not np.isfinite(value).all():
        raise UserError(
            f"{where}: {name} contains NaN or infinity (as {dtype.name}); "
            + ("take --dtype=bf16 or fp32, or " if dtype == np.float16 else "")
            + "fetch the model again, or take another"
        )
    return value


def copy_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Those of the files that are there, with the content of what links lead to."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def export_source(
    source: str,
    output: Path,
    layout: Layout,
    card: Callable[[Checkpoint, str | None], str],
    say: Say = print,
) -> None:
    """Write a checkpoint again as it is: its own head, config.json and tokenizer.

    A ``random:`` source is written with new weights. ``card`` gives the README.md.

    Raises:
      UserError: no such source, weights that do not fit it, a tokenizer that cannot be
        read, or an output in use.
    """
    checkpoint = open_checkpoint(source)
    head = own_head(checkpoint)
    check_apart(output, [checkpoint.directory])
    if has_tokenizer(checkpoint.directory):
        open_tokenizer(checkpoint.directory)  # what nobody can open is not handed on
    if checkpoint.weights is None:
        made = load(source, scan=True)
        tensors = param_tensors(made.checkpoint, made.params, head, layout.dtype)
    else:
        tensors = file_tensors(checkpoint, head, layout.dtype)
    with layout.folder(output, [checkpoint.directory]) as folder:
        copy_files(checkpoint.directory, folder, (*VOCABULARIES, *SETTINGS))
        layout.write(folder, checkpoint.hf, tensors, say)
        (folder / CARD).write_text(card(checkpoint, head), encoding="utf-8")
