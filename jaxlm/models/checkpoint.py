"""A checkpoint in the Hugging Face layout: its config.json, its head, its labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.files import read_json
from jaxlm.core.safetensors import Tensors
from jaxlm.core.sources import locate
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import FAMILIES, HEADS, MOST_LABELS, Family, read
from jaxlm.models.folders import find_weights
from jaxlm.models.ties import settle_tie

RANDOM = "random:"
BUILT_IN = {
    folder.name: folder
    for folder in sorted((Path(__file__).parent / "built_in").iterdir())
    if (folder / "config.json").exists()
}
"""Architectures that ship here; those of real size have no tokenizer beside them."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in the Hugging Face layout: config.json, weights, tokenizer.

    ``weights`` is None for ``random:`` sources, whose parameters are all new.
    """

    directory: Path
    family: Family
    config: TransformerConfig
    hf: dict[str, Any]
    weights: Tensors | None


def open_checkpoint(source: str) -> Checkpoint:
    """Find a source and read its config.json; of the weights only the names.

    Raises:
      UserError: no such source, no config.json, another architecture, or broken files.
    """
    random = source.startswith(RANDOM)
    place = source.removeprefix(RANDOM)
    if random and place in BUILT_IN:
        directory = BUILT_IN[place]
    else:
        try:
            directory = locate(place)
        except UserError as problem:
            built_in = ", ".join(f"{RANDOM}{name}" for name in BUILT_IN)
            hint = f"; built in are {built_in}" if random or place in BUILT_IN else ""
            raise UserError(f"config.model.pretrained: {problem}{hint}") from problem
    directory, open_files = find_weights(directory)
    family, config, hf = read_config(directory)
    if random:
        return Checkpoint(directory, family, config, hf, None)
    weights = open_files()
    config = settle_tie(directory, family, config, weights)
    return Checkpoint(directory, family, config, hf, weights)


def read_config(directory: Path) -> tuple[Family, TransformerConfig, dict[str, Any]]:
    """The family, our config and the raw dict of a directory's config.json."""
    path = directory / "config.json"
    if not path.exists():
        raise UserError(
            f"{directory}: no config.json; a model's directory has one"
            " (of a hub's GGUF repository, fetch one *.gguf into a folder, and give it)"
        )
    hf = read_json(path)
    kind = hf.get("model_type") if isinstance(hf, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{path}: model_type {kind!r} is not supported; allowed:"
            f" {', '.join(sorted(FAMILIES))}"
        )
    if hf.get("quantization_config") is not None:
        raise UserError(
            f"{path}: quantization_config is not supported: weights quantized by GPTQ,"
            " AWQ, bitsandbytes and their like are not read; take the model that they"
            " were made of, or a GGUF file of it"
        )
    family = FAMILIES[kind]
    try:
        return family, family.to_config(hf), hf
    except UserError as problem:
        raise UserError(f"{directory}/{problem}") from problem


def own_head(checkpoint: Checkpoint) -> str | None:
    """The kind of head that a checkpoint's class has (``HEADS``); None: a bare model.

    Raises:
      UserError: config.json names another class.
    """
    name, family = class_name(checkpoint.hf), checkpoint.family
    names = checkpoint.hf.get("architectures")
    if names and not isinstance(names, list):
        raise UserError(
            f"{checkpoint.directory}/config.json: architectures={names!r} is not"
            " allowed; a list of the name of a class"
        )
    if name.endswith("ForPreTraining"):
        return family.pretraining
    ends = [head for end, head in HEADS.items() if name.endswith(end)]
    if ends and ends[0] in family.heads:
        return ends[0]
    if ends or not name.endswith("Model"):
        allowed = ", ".join(("Model", "ForPreTraining", *HEADS))
        raise UserError(
            f"{checkpoint.directory}/config.json: architectures={names!r} is not"
            f" supported for {family.model_type}; a name that ends in one of {allowed}"
        )
    return None


def headless(checkpoint: Checkpoint) -> str:
    """Why a checkpoint is a bare model, for a message: by config.json's words."""
    names = checkpoint.hf.get("architectures")
    path = checkpoint.directory / "config.json"
    if names:
        return f"{path}: architectures={names!r} is a bare model without a head"
    return (
        f"{path}: architectures, which says which head the model has, is missing or"
        " empty"
    )


def stored_labels(hf: dict[str, Any]) -> list[str]:
    """The labels of a checkpoint's classifier, in order, by ``id2label``.

    As transformers has it, there are two where config.json says nothing.
    """
    names = hf.get("id2label")
    if names is None:
        count = read(hf, "num_labels", int, 2, least=1, below=MOST_LABELS + 1)
        return [f"LABEL_{number}" for number in range(count)]
    try:
        numbered = {int(number): str(label) for number, label in names.items()}
        return [numbered[number] for number in range(len(numbered))]
    except (AttributeError, KeyError, ValueError, TypeError) as problem:
        raise UserError(
            f"config.json: id2label={names!r} is not allowed; an object of the numbers"
            " from 0 on to labels"
        ) from problem


def class_name(hf: dict[str, Any]) -> str:
    """The transformers class that a config.json names first; a bare one where none."""
    names = hf.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "Model"


def classifier_kind(checkpoint: Checkpoint) -> str | None:
    """``tokens`` or ``text``, where a checkpoint has a classifier of these."""
    name = class_name(checkpoint.hf)
    ends = [head for end, head in HEADS.items() if name.endswith(end)]
    kind = ends[0] if ends else None
    known = kind in ("tokens", "text") and kind in checkpoint.family.heads
    return kind if known else None
