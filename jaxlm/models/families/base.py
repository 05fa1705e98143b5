"""What a family file declares: its config mapping, and its table of weight names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.trees import BACKBONE
from jaxlm.models.architecture import TransformerConfig

MOST_LAYERS, MOST_LABELS = 1000, 1_000_000
"""Names of labels and of every layer's weights are listed: a wrong
number must not be endless."""


@dataclass(frozen=True)
class Weight:
    """One row of a family's table: our name, theirs, and how theirs lies.

    ``{layer}`` in their name is the number of the layer along our stacked first axis.
    ``transpose`` reverses the axes: PyTorch keeps a linear layer as [out, in], we as
    [in, out]. Where several of ours are one of theirs, side by side along its outputs,
    ``part`` is (which, of how many); ``by_head``: side by side within every head.
    """

    ours: str
    theirs: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    by_head: bool = False


@dataclass(frozen=True)
class Family:
    """A declarative description of one architecture in the Hugging Face layout."""

    model_type: str
    to_config: Callable[[Mapping[str, Any]], TransformerConfig]
    weights: tuple[Weight, ...]
    """The backbone's, our names from its root."""
    prefix: str
    """What their names start with inside a checkpoint that has a head (``bert.``)."""
    heads: Mapping[str, tuple[Weight, ...]] = field(default_factory=dict)
    """By the kind of a head (``HEADS``), its weights, our names from the model's root.

    What it needs of the backbone and other checkpoints lack, a pooler say, is here too.
    """
    untied: tuple[Weight, ...] = ()
    """Rows of the head ``language`` that hold where it has a kernel of its own."""
    pretraining: str = "language"
    """The head of ``...ForPreTraining``."""
    ignored: tuple[str, ...] = ()
    """Patterns of their names that we have no use for: buffers, other heads."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Older spellings: (pattern, replacement), tried on every name of a checkpoint."""
    copies: tuple[str, ...] = ()
    """Names of the table of tokens besides that of its row."""
    spell: Callable[[Mapping[str, Any], str], str] = lambda hf, name: name
    """How transformers calls a canonical name where config.json is this one."""
    stem: str = ""
    """What the names of its classes in transformers start with (``Bert``)."""
    without: tuple[str, ...] = ()
    """The kinds of heads that transformers has no class for."""
    answers_prefix: str | None = None
    """The prefix of a question answerer, where it is another."""

    def table(self, head: str | None, tied: bool = True) -> dict[str, Weight]:
        """By our name, the rows of a whole model under one of the heads, or under none.

        A head that the family does not have has no rows.
        """
        rows = {f"{BACKBONE}/{row.ours}": row for row in self.weights}
        rows |= {row.ours: row for row in self.heads.get(head or "", ())}
        if head == "language" and not tied:
            rows |= {row.ours: row for row in self.untied}
        return rows

    def canonical(self, name: str) -> str:
        """A checkpoint's name without its prefix, in today's spelling."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def written(
        self, name: str, row: Weight, hf: Mapping[str, Any], head: str | None
    ) -> str:
        """The name that transformers gives a tensor of this row; see ``canonical``."""
        name = self.spell(hf, name)
        if head is None or row not in self.weights:
            return name
        if head == "answers" and self.answers_prefix is not None:
            return self.answers_prefix + name
        return self.prefix + name

    def class_name(self, head: str) -> str | None:
        """The class of transformers for a head of labels; None: there is none."""
        ends = {kind: end for end, kind in HEADS.items() if kind != "language"}
        if not self.stem or head not in self.heads or head in self.without:
            return None
        return self.stem + ends[head]

    def ignores(self, name: str) -> bool:
        """Whether a canonical name is known and not needed: of a head, or a buffer."""
        known = {row.theirs for rows in self.heads.values() for row in rows}
        known |= {row.theirs for row in self.untied} | set(self.copies)
        if name in known:
            return True
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


HEADS = {
    "ForMaskedLM": "language",
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForConditionalGeneration": "language",
    "ForTokenClassification": "tokens",
    "ForSequenceClassification": "text",
    "ForQuestionAnswering": "answers",
}
"""How the name of a transformers class ends, and the kind of its head."""


def linear(ours: str, theirs: str, bias: bool = True) -> tuple[Weight, ...]:
    """The rows of a linear layer."""
    kernel = Weight(f"{ours}/kernel", f"{theirs}.weight", transpose=True)
    return (kernel, Weight(f"{ours}/bias", f"{theirs}.bias"))[: 1 + bias]


def norm(ours: str, theirs: str, bias: bool = True) -> tuple[Weight, ...]:
    """The rows of a normalisation."""
    scale = Weight(f"{ours}/scale", f"{theirs}.weight")
    return (scale, Weight(f"{ours}/bias", f"{theirs}.bias"))[: 1 + bias]


def require(hf: Mapping[str, Any], key: str, allowed: Mapping[Any, Any]) -> Any:
    """Translate an option of config.json; one that we lack is refused by name."""
    value = hf.get(key, next(iter(allowed)))
    if value not in tuple(allowed):  # by ==, since a list of the file has no hash
        names = ", ".join(str(name) for name in allowed)
        raise UserError(
            f"config.json: {key}={value!r} is not supported; allowed: {names}"
        )
    return allowed[value]


def flag(hf: Mapping[str, Any], key: str, default: bool) -> bool:
    """An option of config.json that is true or false."""
    return require(hf, key, {default: default, not default: not default})


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(hf: Mapping[str, Any], key: str, default: str = "gelu") -> str:
    """Our name for an activation of config.json."""
    return require({key: default, **hf}, key, ACTIVATIONS)


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
    if default is None and key not in hf:
        raise UserError(f"config.json: {key} is missing; the model cannot be built")
    value = hf.get(key, default)
    kinds = int if kind is int else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not least <= value < below:  # as NaN and infinity are not
        what = "a whole number" if kind is int else "a number"
        shown = "null" if value is None else repr(value)
        raise UserError(
            f"config.json: {key}={shown} is not allowed; {what}, at least"
            f" {least} and below {below}"
        )
    return kind(value)


def optional(hf: Mapping[str, Any], key: str, kind: type, **limits: Any) -> Any:
    """A number of config.json, or None where it is absent or null."""
    return None if hf.get(key) is None else read(hf, key, kind, **limits)


def rate(hf: Mapping[str, Any], key: str, default: float) -> float:
    """A rate of dropout of config.json."""
    return read(hf, key, float, default, below=1)


def first_rate(hf: Mapping[str, Any], keys: Sequence[str], default: float) -> float:
    """The first rate that is there and not null."""
    given = [key for key in keys if hf.get(key) is not None]
    return rate(hf, given[0], default) if given else default


def divide(hf: Mapping[str, Any], width: str, heads: str) -> int:
    """The size of a head; refuses a width that the heads do not divide."""
    sizes = (read(hf, width, int, least=1), read(hf, heads, int, least=1))
    if sizes[0] % sizes[1]:
        raise UserError(
            f"config.json: {width}={sizes[0]} does not divide by {heads}={sizes[1]}"
        )
    return sizes[0] // sizes[1]


def layer_types(hf: Mapping[str, Any], layers: int, default: list[str]) -> list[str]:
    """Whether each layer is ``full_attention`` or ``sliding_attention``."""
    types = hf.get("layer_types") or default
    allowed = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or not all(each in allowed for each in types):
        raise UserError(
            f"config.json: layer_types={types!r} is not supported; a list of"
            f" {' and '.join(allowed)}"
        )
    if len(types) != layers:
        raise UserError(
            f"config.json: layer_types has {len(types)} layers, num_hidden_layers is"
            f" {layers}"
        )
    return types
