"""GGUF files of the Llama family: llama.cpp's tensors under Hugging Face's names.

One file holds all of a model, its tensors often quantized. The ``gguf`` library reads
and dequantizes them, ``jaxlm.models.gguf_metadata`` reads the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, cache_directory
from jaxlm.core.safetensors import Slice
from jaxlm.models.gguf_metadata import FACTORS, make_tokenizer, to_config_json

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
ROWS = 4096
"""Dequantized at a time."""


class GgufFiles:
    """The tensors of a GGUF file under Hugging Face's names, as f32.

    Nothing is read or dequantized before ``read`` asks for it. llama.cpp rotates
    neighbouring dimensions of a head where we, and transformers, rotate its halves: the
    rows of queries and keys were interleaved for that, and are put back.
    """

    def __init__(self, path: Path, reader: Any, heads: Mapping[str, int]):
        self._path, self._heads = path, heads
        self._tensors = {_their_name(each.name): each for each in reader.tensors}
        self._tensors.pop(FACTORS, None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> np.dtype:
        del name
        return np.dtype(np.float32)

    def read(self, name: str, slice: Slice | None = None) -> np.ndarray:
        """A tensor, or the part that slices name, in memory of its own."""
        if slice is None or slice is ...:
            slice = np.s_[:]
        index = slice if isinstance(slice, tuple) else (slice,)
        order = self._order(name)[index[0]]
        # A placeholder of no memory says what shape the part has.
        shape = np.broadcast_to(np.float32(0), self.shape(name))[index].shape
        found = np.empty(shape, np.float32)
        for start in range(0, len(order), ROWS):
            rows = self._rows(name, order[start : start + ROWS])
            found[start : start + ROWS] = rows[(np.s_[:], *index[1:])]
        return found

    def _order(self, name: str) -> np.ndarray:
        """Which row of the file each of ours is."""
        rows = np.arange(self.shape(name)[0])
        kind = name.rpartition(".")[0].rpartition(".")[2]
        if kind not in self._heads:
            return rows
        return rows.reshape(self._heads[kind], -1, 2).swapaxes(1, 2).reshape(-1)

    def _rows(self, name: str, order: np.ndarray) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        data = tensor.data
        try:
            if len(self.shape(name)) == 1:
                return gguf.quants.dequantize(data, tensor.tensor_type)[order]
            return gguf.quants.dequantize(data[order], tensor.tensor_type)
        except NotImplementedError as problem:
            raise UserError(
                f"{self._path}: tensor {tensor.name!r} is of type"
                f" {tensor.tensor_type.name}, which the gguf library cannot dequantize;"
                " take another file of the model, such as Q8_0 or F16"
            ) from problem


def _their_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{end}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER:
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{end}"
    return name


def find_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder.

    Raises:
      UserError: there are several.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        if PART.search(files[0].name):
            raise UserError(
                f"{folder}: a GGUF file in {len(files)} parts ({names}); put them"
                " together with llama.cpp: llama-gguf-split --merge FIRST_PART WHOLE"
            )
        raise UserError(
            f"{folder}: {len(files)} *.gguf files ({names}); put the one to be read,"
            " of one part, into a folder of its own"
        )
    return files[0] if files else None


def open_gguf(path: Path) -> tuple[Path, GgufFiles]:
    """A folder with config.json and tokenizer made of a file's metadata; its weights.

    The folder lies in the cache, and is made once for all files of this metadata, by
    this transformers.

    Raises:
      UserError: the gguf library is not installed, the file is broken, or it is of an
        architecture or has options that we lack.
    """
    if find_spec("gguf") is None:
        raise UserError(
            f"{path}: GGUF files are read by the gguf library, which is not installed:"
            " pip install 'jaxlm[gguf]'"
        )
    try:
        reader = _reader(path)
        facts = {name: reader.fields[name].contents() for name in reader.fields}
        stop = int(reader.data_offset)
    except Exception as problem:  # of many kinds, by what the file is
        raise UserError(
            f"{path}: is not a whole GGUF file ({type(problem).__name__}: {problem});"
            " fetch it again"
        ) from problem
    config = to_config_json(path, facts, reader.tensors)
    with open(path, "rb") as file:
        made_of = file.read(stop)
    made_of += json.dumps(config).encode() + version("transformers").encode()
    digest = hashlib.sha256(made_of).hexdigest()
    folder = cache_directory() / "gguf" / f"{path.stem}-{digest[:12]}"
    if not folder.is_dir():
        _make_folder(path, folder, config, facts)
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    return folder, GgufFiles(path, reader, heads)


def _reader(path: Path) -> Any:
    """The library's reader on a plain view of the file, which takes half the time."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = mapped.view(np.ndarray)

    return Reader(path)


def _make_folder(
    path: Path, folder: Path, config: dict[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write what a model's folder has besides weights; whole, or not at all."""
    tokenizer = make_tokenizer(path, facts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as made:
            whole = Path(made) / "model"
            atomic_write_json(whole / "config.json", config)
            tokenizer.save_pretrained(whole)
            whole.rename(folder)
    except OSError as problem:
        if folder.is_dir():  # another process was first
            return
        raise UserError(
            f"{path}: its tokenizer cannot be kept in {folder.parent} ({problem}); set"
            " JAXLM_CACHE to a folder with room"
        ) from problem
