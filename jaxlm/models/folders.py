"""A model's folder: which of its files are the weights, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.pickles import has_pickles, open_pickles
from jaxlm.core.safetensors import Tensors, has_safetensors, open_weights
from jaxlm.core.sources import VOCABULARIES
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


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a model's folder."""
    return any((folder / name).exists() for name in VOCABULARIES)


def open_tokenizer(folder: Path) -> Any:
    """The ``transformers`` tokenizer of a model's folder; code in it is never run.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder}: no tokenizer; one of {', '.join(VOCABULARIES)} must lie"
            " beside config.json"
        )
    # Or it says, where there is no torch, that models cannot be had: not from us.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # of many kinds, by what is broken
        reason = str(problem).strip().partition("\n")[0].rstrip(".: ")
        raise UserError(
            f"{folder}: its tokenizer cannot be read ({type(problem).__name__}:"
            f" {reason[:200]}); fetch it again, or save it with transformers as"
            " tokenizer.json"
        ) from problem
