"""A model's config.json: options that we lack, sizes that cannot be, no JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.cases import Case, flags, own_model


def options(**changed: object) -> Callable[[Path], list[str]]:
    """The tiny model's config.json with other options."""

    def make(folder: Path) -> list[str]:
        path = own_model(folder) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return [f"--config.model.pretrained=random:{path.parent}"]

    return make


def content(text: str | bytes | None) -> Callable[[Path], list[str]]:
    """A config.json of any content; None: there is none."""

    def make(folder: Path) -> list[str]:
        path = own_model(folder) / "config.json"
        path.unlink()
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return [f"--config.model.pretrained=random:{path.parent}"]

    return make


def source(text: str) -> Callable[[Path], list[str]]:
    return flags(f"--config.model.pretrained={text}")


MODEL = [
    ("another architecture", options(model_type="mamba"), "model_type 'mamba'"),
    ("no architecture", options(model_type=None), "model_type None"),
    ("architectures", options(model_type=["bert"]), "model_type ['bert']"),
    ("relative positions", options(position_embedding_type="relative_key"),
     "position_embedding_type='relative_key'"),
    ("a decoder", options(is_decoder=True), "is_decoder=True"),
    ("cross attention", options(add_cross_attention=True), "add_cross_attention"),
    ("an unknown activation", options(hidden_act="softplus"), "hidden_act='softplus'"),
    ("a list of activations", options(hidden_act=["gelu"]), "hidden_act=['gelu']"),
    ("uneven heads", options(num_attention_heads=3), "num_attention_heads=3"),
    ("no layers", options(num_hidden_layers=0), "num_hidden_layers=0"),
    ("endless layers", options(num_hidden_layers=10**9), "num_hidden_layers=100"),
    ("an endless vocabulary", options(vocab_size=10**12), "below 2147483648"),
    ("no size", options(hidden_size=None), "hidden_size=null"),
    ("text for a size", options(hidden_size="64"), "hidden_size='64'"),
    ("a fraction for a size", options(hidden_size=64.5), "hidden_size=64.5"),
    ("a negative size", options(intermediate_size=-1), "intermediate_size=-1"),
    ("true for a size", options(hidden_size=True), "hidden_size=True"),
    ("an infinite size", options(vocab_size=float("inf")), "vocab_size=inf"),
    ("NaN", options(layer_norm_eps=float("nan")), "layer_norm_eps=nan"),
    ("all dropout", options(hidden_dropout_prob=1.0), "hidden_dropout_prob=1.0"),
    ("text for a rate", options(classifier_dropout="x"), "classifier_dropout='x'"),
    ("no types", options(type_vocab_size=0), "type_vocab_size=0"),
    ("too few rows", options(vocab_size=100), "the embedding 100 rows"),
    ("half a character", options(name="\ud800"), "holds half a surrogate pair"),
    ("endless digits", content('{"a": ' + "9" * 5000 + "}"), "broken JSON: Exceeds"),
    ("nesting", content('{"a": ' + "[" * 500 + "]" * 500 + "}"), "nested deeper than"),
    ("endless nesting", content("[" * 100_000), "nested too deeply"),
    ("cut off", content('{"model_type": '), "config.json:1:16: broken JSON"),
    ("a list", content("[]"), "model_type None is not supported"),
    ("an empty file", content(""), "config.json:1:1: broken JSON"),
    ("UTF-16", content('{"model_type": "bert"}'.encode("utf-16")), "not UTF-8"),
    ("NUL bytes", content("\0" * 99), "config.json:1:1: broken JSON"),
    ("no file", content(None), "no config.json"),
]  # fmt: skip
SOURCES = [
    ("too few positions", options(max_position_embeddings=8), "has 8 positions"),
    ("no such folder", source("{folder}/none"), "no such folder"),
    ("a file", flags(f"--config.model.pretrained={__file__}"), "is a file"),
    ("the hub's name alone", source("google-bert/bert-base-cased"), "write 'hf:"),
    ("a hub's name of three parts", source("hf:a/b/c"), "must read hf:org/name"),
    ("a wheel without a version", source("pypi:tiny"), "must read pypi:name=="),
    ("a wheel without a hash", source("pypi:tiny==1.0"), "pypi:tiny==1.0#sha256="),
    ("a wheel that is a flag", source("pypi:--index-url==1"), "must read pypi:name"),
    ("nothing", source(""), "give a folder"),
    ("a name too long", source("a" * 5000), "is no path"),
    ("an unknown built-in", source("random:tny"), "built in are random:bert-base"),
]  # fmt: skip

CASES = [
    *(
        Case(f"model: {name}", make, ("{folder}/model", word))
        for name, make, word in MODEL
    ),
    *(Case(f"model source: {name}", make, (word,)) for name, make, word in SOURCES),
]
