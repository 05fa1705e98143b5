"""What a family file declares: its config mapping, and its table of weight names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.config import TransformerConfig


@dataclass(frozen=True)
class Weight:
    """One row of a family's table: our name, theirs, and whether it is transposed.

    ``{layer}`` in their name is the number of the layer along our stacked first axis.
    PyTorch keeps a linear layer as [out, in], we as [in, out].
    """

    ours: str
    theirs: str
    transpose: bool = False


@dataclass(frozen=True)
class Family:
    """A declarative description of one architecture in the Hugging Face layout."""

    model_type: str
    to_config: Callable[[Mapping[str, Any]], TransformerConfig]
    weights: tuple[Weight, ...]
    prefix: str
    """What their names start with inside a checkpoint that has a head (``bert.``)."""
    ignored: tuple[str, ...] = ()
    """Patterns of their names that a backbone does not need: buffers, other heads."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Older spellings: (pattern, replacement), tried on every name of a checkpoint."""

    def canonical(self, name: str) -> str:
        """A checkpoint's name without its prefix, in today's spelling."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        """Whether a canonical name is known and not needed."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def require(hf: Mapping[str, Any], key: str, allowed: Mapping[Any, Any]) -> Any:
    """Translate an option of config.json; one that we lack is refused by name."""
    value = hf.get(key, next(iter(allowed)))
    if value not in tuple(allowed):  # by ==, since a list of the file has no hash
        names = ", ".join(str(name) for name in allowed)
        raise UserError(
            f"config.json: {key}={value!r} is not supported; allowed: {names}"
        )
    return allowed[value]


def read(
    hf: Mapping[str, Any],
    key: str,
    kind: type,
    default: Any = None,
    *,
    least: float = 0,
    below: float = 2**31,
) -> Any:
    """A number of config.json, checked; without a default it must be there."""
    value = hf.get(key, default)
    if value is None:
        raise UserError(f"config.json: {key} is missing; the model cannot be built")
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = fits and math.isfinite(value) and kind(value) == value
    if not fits or not least <= value < below:
        what = "a whole number" if kind is int else "a number"
        raise UserError(
            f"config.json: {key}={value!r} is not allowed; {what}, at least {least} and"
            f" below {below}"
        )
    return kind(value)
