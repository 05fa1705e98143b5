"""A model's folder: which of its files are the weights."""

from __future__ import annotations

from pathlib import Path

from jaxlm.core.pickles import has_pickles, open_pickles
from jaxlm.core.safetensors import Tensors, has_safetensors, open_weights


def open_files(folder: Path) -> Tensors:
    """The weights of a folder: safetensors, or else what PyTorch pickled.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    if has_pickles(folder) and not has_safetensors(folder):
        return open_pickles(folder)
    return open_weights(folder)
