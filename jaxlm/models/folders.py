"""A model's folder: which of its files are the weights."""

from __future__ import annotations

from pathlib import Path

from jaxlm.core.pickles import has_pickles, open_pickles
from jaxlm.core.safetensors import Tensors, has_safetensors, open_weights
from jaxlm.models.gguf import find_gguf, open_gguf


def open_folder(folder: Path, *, weights: bool) -> tuple[Path, Tensors | None]:
    """The folder of config.json and tokenizer, and the weights where asked for.

    Safetensors come first, then what PyTorch pickled, then a GGUF file, whose metadata
    become a folder in the cache.

    Raises:
      UserError: there are no weights, or they cannot be read.
    """
    if has_safetensors(folder):
        return folder, open_weights(folder) if weights else None
    if has_pickles(folder):
        return folder, open_pickles(folder) if weights else None
    if path := find_gguf(folder):
        made, tensors = open_gguf(path)
        return made, tensors if weights else None
    return folder, open_weights(folder) if weights else None
