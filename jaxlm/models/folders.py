"""A model's folder: which of its files are the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxlm.core.pickles import has_pickles, open_pickles
from jaxlm.core.safetensors import Tensors, has_safetensors, open_weights
from jaxlm.models.gguf import find_gguf, open_gguf


def find_weights(folder: Path) -> tuple[Path, Callable[[], Tensors]]:
    """The folder of config.json and tokenizer, and what opens the weights.

    Safetensors come first, then what PyTorch pickled, then a GGUF file, whose metadata
    become a folder in the cache.

    Raises:
      UserError: there are several GGUF files, or one that cannot be read; by the call
        of what is returned: there are no weights, or they cannot be read.
    """
    if not has_safetensors(folder):
        if has_pickles(folder):
            return folder, partial(open_pickles, folder)
        if path := find_gguf(folder):
            made, tensors = open_gguf(path)
            return made, lambda: tensors
    return folder, partial(open_weights, folder)
