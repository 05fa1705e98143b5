"""What a GGUF file's metadata say: a config.json of the Llama family, and a tokenizer.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core.errors import UserError

FACTORS = "rope_freqs.weight"
"""What rotations are divided by, one for each pair (Llama 3.1 and later)."""


def to_config_json(
    path: Path, facts: Mapping[str, Any], tensors: Any
) -> dict[str, Any]:
    """What a config.json would say of a file's model.

    Raises:
      UserError: another architecture, or an option that we lack.
    """
    named = {each.name: each for each in tensors}
    if facts.get("split.count", 0) > 1:
        raise UserError(
            f"{path}: is one of {facts['split.count']} parts of a model; put them"
            " together with llama.cpp: llama-gguf-split --merge FIRST_PART WHOLE"
        )
    kind = facts.get("general.architecture")
    if kind != "llama":
        raise UserError(
            f"{path}: general.architecture={kind!r} is not supported as GGUF; allowed:"
            " llama; take the model's safetensors"
        )

    def fact(name: str, default: Any = None) -> Any:
        value = facts.get(f"llama.{name}", default)
        if value is None or isinstance(value, (list, str)):
            raise UserError(
                f"{path}: llama.{name}={value!r} is not supported; one number for all"
                " layers"
            )
        return value

    heads = fact("attention.head_count")
    head_size = fact("attention.key_length", fact("embedding_length") // max(heads, 1))
    same = {
        "rope.dimension_count": head_size,
        "attention.value_length": head_size,
        "expert_count": 0,
        "rope.scaling.attn_factor": 1.0,
    }
    for name, needed in same.items():
        if fact(name, needed) != needed:
            raise UserError(
                f"{path}: llama.{name}={fact(name)} is not supported; {needed} is"
            )
    if "token_embd.weight" not in named:
        raise UserError(f"{path}: has no tensor token_embd.weight; fetch it again")
    ids = partial(_ids, facts)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(named["token_embd.weight"].shape[1]),
        "hidden_size": fact("embedding_length"),
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": fact("context_length"),
        "rms_norm_eps": fact("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(path, facts, named, head_size),
        "attention_bias": "blk.0.attn_output.bias" in named,
        "mlp_bias": "blk.0.ffn_down.bias" in named,
        "tie_word_embeddings": "output.weight" not in named,
        "hidden_act": "silu",
        **ids("bos_token_id", "bos"),
        **_ends(facts),
        **ids("pad_token_id", "padding"),
    }


def _ids(facts: Mapping[str, Any], name: str, theirs: str) -> dict[str, Any]:
    value = facts.get(f"tokenizer.ggml.{theirs}_token_id")
    return {} if value is None else {name: value}


def _ends(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What ends a text, and what a turn of a conversation, where that is another."""
    found = [_ids(facts, "id", name).get("id") for name in ("eos", "eot")]
    ends = list(dict.fromkeys(each for each in found if each is not None))
    return {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}


def _rope(
    path: Path, facts: Mapping[str, Any], named: Mapping[str, Any], size: int
) -> dict[str, Any]:
    """Their rotation as ``rope_parameters``.

    Factors of every pair are what transformers calls ``longrope``, the same for texts
    of any length.
    """
    theta = facts.get("llama.rope.freq_base", 10_000.0)
    found: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    scaling = "llama.rope.scaling."
    kind = facts.get(f"{scaling}type", "none")
    linear = facts.get("llama.rope.scale_linear")  # of the first files
    positions = facts.get(f"{scaling}original_context_length")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(
            f"{path}: {scaling}type={kind!r} is not supported; allowed: none, linear,"
            " yarn"
        )
    if FACTORS in named:
        factors = np.asarray(named[FACTORS].data, np.float32).tolist()
        if len(factors) != size // 2 or kind != "none":
            raise UserError(
                f"{path}: {FACTORS} of {len(factors)} numbers beside heads of {size}"
                f" and {scaling}type={kind!r} is not supported"
            )
        context = facts.get("llama.context_length")
        return found | {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }
    if kind == "none" and linear in (None, 1.0):
        return found
    found["factor"] = facts.get(f"{scaling}factor", linear)
    if kind != "yarn":
        return found | {"rope_type": "linear"}
    found["rope_type"] = "yarn"
    for name in ("beta_fast", "beta_slow"):
        if f"{scaling}yarn_{name}" in facts:
            found[name] = facts[f"{scaling}yarn_{name}"]
    return found | {"original_max_position_embeddings": positions}


def make_tokenizer(path: Path, facts: Mapping[str, Any]) -> Any:
    """The ``transformers`` tokenizer that a file's metadata describes.

    Raises:
      UserError: it has none, or one of a kind that transformers cannot build.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = facts.get("tokenizer.ggml.tokens")
    try:
        if not isinstance(tokens, list):
            raise ValueError("tokenizer.ggml.tokens is missing")
        convert, table = _transformers()
        given, options = (
            {
                ours: facts[f"tokenizer.{name}"]
                for name, ours in table[group].items()
                if f"tokenizer.{name}" in facts
            }
            for group in ("tokenizer", "tokenizer_config")
        )
        if given.get("tokenizer_type") == "llama":  # which adds it unless told not to
            options.setdefault("add_bos_token", True)
        for name, theirs in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        ):
            for number in _ids(facts, name, theirs).values():
                options[name] = tokens[number]
        backend, more = convert(facts["general.architecture"], given)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **options, **more)
    except Exception as problem:  # among others the tokenizers' bare Exception
        reason = str(problem).strip().partition("\n")[0]
        raise UserError(
            f"{path}: its tokenizer cannot be built ({type(problem).__name__}:"
            f" {reason}); take the model's safetensors, or a newer transformers"
        ) from problem


def _transformers() -> tuple[Any, Any]:
    """What builds a tokenizer, and its table of keys; both moved within transformers 5.

    Not by ``AutoTokenizer(gguf_file=...)``, which reads files through torch.
    """
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as found
    except ImportError:
        from transformers.integrations import ggml as found
    return found.convert_gguf_tokenizer, found.GGUF_TOKENIZER_MAPPING  # pyright: ignore
