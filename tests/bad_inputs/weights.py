"""Weights: safetensors files that lie, indices of shards, and values no model has."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core import pickles
from jaxlm.core.safetensors import INDEX, SINGLE, write
from jaxlm.models.families.bert import BERT
from tests.bad_inputs.cases import Case, own_model

QUERY = "encoder.layer.1.attention.self.query.weight"


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; ``length`` is what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start: int, stop: int, dtype: str = "U8", shape: Any = None) -> dict:
    """A tensor in a header."""
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@cache
def sound() -> dict[str, np.ndarray]:
    """Weights that fit the built-in tiny model."""
    width, mlp = 64, 128
    shapes = {
        "embeddings.word_embeddings.weight": (2000, width),
        "embeddings.position_embeddings.weight": (128, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "encoder.layer.{layer}.intermediate.dense.weight": (mlp, width),
        "encoder.layer.{layer}.intermediate.dense.bias": (mlp,),
        "encoder.layer.{layer}.output.dense.weight": (width, mlp),
    }
    tensors = {}
    for weight in BERT.weights:
        square = (width, width) if weight.transpose else (width,)
        for layer in range(2 if "{layer}" in weight.theirs else 1):
            shape = shapes.get(weight.theirs, square)
            tensors[weight.theirs.format(layer=layer)] = np.zeros(shape, np.float32)
    return tensors


def saved(files: dict[str, bytes | str]) -> Callable[[Path], list[str]]:
    """A model's folder with these files in it."""

    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (model / name).write_bytes(data)
        return _trained_from(model)

    return make


def changed(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable:
    """A model's folder whose sound weights are changed."""

    def make(folder: Path) -> list[str]:
        model, tensors = own_model(folder), dict(sound())
        change(tensors)
        write(model / SINGLE, tensors)
        return _trained_from(model)

    return make


def configured(**options: Any) -> Callable[[Path], list[str]]:
    """Sound weights beside a config.json that says something else."""

    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        write(model / SINGLE, sound())
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | options))
        return _trained_from(model)

    return make


def _trained_from(model: Path) -> list[str]:
    return [f"--config.model.pretrained={model}", "--config.data.train=sample:ner[:4]"]


def query(value: Any, dtype: Any = np.float32) -> Callable:
    """Sound weights but for one number, or one tensor's type."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[QUERY] = tensors[QUERY].astype(dtype)
        tensors[QUERY][3, 2] = value

    return changed(change)


CLASSIFIER = {
    "architectures": ["BertForTokenClassification"],
    "id2label": dict(enumerate(("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"))),
}


def index(weight_map: Any) -> str:
    return json.dumps({"metadata": {}, "weight_map": weight_map})


ONE = pack({"a": tensor(0, 1)}, b"1")
HEADERS = {
    "an empty file": (b"", "0 bytes cannot hold the header"),
    "cut in the length": (b"\1\0", "cut off"),
    "a length beyond the file": (pack({}, length=1000), "cut off"),
    "an enormous length": (pack({}, length=2**63), "cut off"),
    "no JSON": (pack(b"{"), "not JSON"),
    "no UTF-8": (pack(b'{"\xff":1}'), "not JSON"),
    "too deep": (pack(b"[" * 100_000), "not JSON"),
    "endless digits": (pack(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "no object": (pack([]), "must be a JSON object"),
    "a name twice": (pack(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata of numbers": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "an entry of another form": (pack({"a": 1}), "'a' must have exactly"),
    "no offsets": (pack({"a": {"dtype": "U8", "shape": []}}), "'a' must have exactly"),
    "an unknown dtype": (pack({"a": tensor(0, 1, "F7")}, b"1"), "'a' has dtype 'F7'"),
    "a dtype of another form": (
        pack({"a": {**tensor(0, 1), "dtype": []}}, b"1"),
        "'a' has dtype",
    ),
    "a negative shape": (pack({"a": tensor(0, 1, shape=[-1])}, b"1"), "'a' has shape"),
    "true for a shape": (
        pack({"a": tensor(0, 1, shape=[True])}, b"1"),
        "'a' has shape",
    ),
    "a fraction for a shape": (
        pack({"a": tensor(0, 1, shape=[1.0])}, b"1"),
        "'a' has shape",
    ),
    "offsets backwards": (
        pack({"a": tensor(1, 0, shape=[1])}, b"1"),
        "'a' has data_offsets",
    ),
    "negative offsets": (pack({"a": tensor(-1, 0)}, b"1"), "'a' has data_offsets"),
    "a size that is a lie": (
        pack({"a": tensor(0, 1, "F32", [1])}, b"1"),
        "'a' has 1 bytes, but F32[1] takes 4",
    ),
    "an enormous shape": (
        pack({"a": tensor(0, 0, shape=[2**62, 4])}),
        "'a' has 0 bytes",
    ),
    "an end beyond the file": (
        pack({"a": tensor(0, 9)}, b"12345678"),
        "'a' ends at byte ",
    ),
    "overlapping ranges": (
        pack({"a": tensor(0, 2), "b": tensor(1, 3)}, b"123"),
        "'b' overlaps another",
    ),
    "the same range twice": (
        pack({"a": tensor(0, 2), "b": tensor(0, 2)}, b"12"),
        "'b' overlaps another",
    ),
    "a hole": (
        pack({"a": tensor(0, 1), "b": tensor(2, 3)}, b"123"),
        "'b' follows a hole",
    ),
    "a hole at the start": (pack({"a": tensor(1, 2)}, b"12"), "'a' follows a hole"),
    "bytes behind": (pack({"a": tensor(0, 1)}, b"12"), "1 bytes after the last"),
    "a page of HTML": (b"<html>not found</html>", "cut off"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1", "cut off"),
}
SHARDS = {
    "a list for an index": ({INDEX: "[]"}, "weight_map must be an object"),
    "no weight_map": ({INDEX: "{}"}, "weight_map must be an object"),
    "numbers for shards": ({INDEX: index({"a": 1})}, "weight_map must be an object"),
    "a broken index": ({INDEX: '{"weight_map":'}, f"{INDEX}:1:15: broken JSON"),
    "an absent shard": (
        {INDEX: index({"a": "x.safetensors"})},
        "'x.safetensors' is ab",
    ),
    "a shard above": ({INDEX: index({"a": "../x.safetensors"})}, "beside the index"),
    "a shard elsewhere": ({INDEX: index({"a": "/x.safetensors"})}, "beside the index"),
    "a pickle for a shard": ({INDEX: index({"a": "x.bin"})}, "beside the index"),
    "an absent tensor": (
        {INDEX: index({"b": "x.safetensors"}), "x.safetensors": ONE},
        "tensor 'b' is not in 'x.safetensors'",
    ),
    "a broken shard": (
        {INDEX: index({"a": "x.safetensors"}), "x.safetensors": ONE[:-1]},
        "x.safetensors: tensor 'a' ends at byte",
    ),
}
VALUES = [
    ("NaN", query(np.nan), f"{QUERY} contains NaN or infinity"),
    ("infinity", query(np.inf), f"{QUERY} contains NaN or infinity"),
    ("NaN in bf16", query(np.nan, "bfloat16"), f"{QUERY} contains NaN or infinity"),
    ("beyond fp32", query(1e300, np.float64), f"{QUERY} contains NaN or infinity"),
    ("whole numbers", query(1, np.int8), f"not floats: {QUERY} (int8)"),
    ("complex numbers", query(1, np.complex64), f"not floats: {QUERY} (complex64)"),
    ("a missing name", changed(lambda all: all.pop(QUERY)), f"missing: {QUERY}"),
    ("an unexpected name", changed(lambda all: all.update(x=all[QUERY])),
     "unexpected: x"),
    ("another shape", changed(lambda all: all.update({QUERY: np.zeros((3, 64), "f4")})),
     f"misshapen: {QUERY} [3, 64] (config.json asks for [64, 64])"),
    ("one weight twice", changed(lambda all: all.update({f"bert.{QUERY}": all[QUERY]})),
     f"bert.{QUERY}"),
    ("no weights", saved({}), "no model.safetensors"),
    ("a shape that config.json contradicts", configured(intermediate_size=99),
     "(config.json asks for [99, 64])"),
    ("fewer layers than config.json has", configured(num_hidden_layers=3),
     "missing: encoder.layer.2."),
    ("more layers than config.json has", configured(num_hidden_layers=1),
     "unexpected: encoder.layer.1."),
    ("a classifier that is not there", configured(**CLASSIFIER),
     "missing: classifier.bias, classifier.weight"),
    ("labels that are no object", configured(**CLASSIFIER | {"id2label": 7}),
     "id2label=7"),
    ("labels out of number", configured(**CLASSIFIER | {"id2label": {"3": "O"}}),
     "id2label={'3': 'O'}"),
]  # fmt: skip
OTHERS = [
    ("a pickle", {pickles.SINGLE: b"\x80\x04."}, "can run code"),
    ("a page of HTML for a pickle", {pickles.SINGLE: b"<html>"}, "can run code"),
    ("an absent shard of pickles", {pickles.INDEX: index({"a": "x.bin"})},
     "shard 'x.bin' is absent"),
    ("safetensors for a shard of pickles", {pickles.INDEX: index({"a": "x.st"})},
     "must be a .bin file beside the index"),
    ("a pickle called safetensors", {SINGLE: b"\x80\x04\x95\x10" + bytes(40)},
     "is a pickle of PyTorch by another name"),
    ("an archive of PyTorch called safetensors", {SINGLE: b"PK\3\4" + bytes(40)},
     "is a pickle of PyTorch by another name"),
    ("an empty GGUF file", {"a.gguf": b""}, "is not a whole GGUF file"),
    ("a GGUF file cut off", {"a.gguf": b"GGUF\3\0\0\0"}, "is not a whole GGUF file"),
    ("a page of HTML for GGUF", {"a.gguf": b"<html>" * 9}, "is not a whole GGUF file"),
    ("several GGUF files", {"a.gguf": b"", "b.gguf": b""}, "2 *.gguf files"),
]  # fmt: skip

CASES = [
    *(
        Case(f"weights: {name}", saved({SINGLE: content}), (f"{SINGLE}: ", word))
        for name, (content, word) in HEADERS.items()
    ),
    *(
        Case(f"shards: {name}", saved(files), ("{folder}/model", word))
        for name, (files, word) in SHARDS.items()
    ),
    *(
        Case(f"weights: {name}", make, ("{folder}/model", word))
        for name, make, word in VALUES
    ),
    *(
        Case(f"weights: {name}", saved(files), ("{folder}/model", word))
        for name, files, word in OTHERS
    ),
]
