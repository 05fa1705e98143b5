"""Generation on an accelerator: logits against the CPU's, and tokens per second.

python tools/gpu_generate.py MODEL      MODEL: a directory with a config.json

The weights are random, drawn on the CPU; nothing is fetched. Logits are those of one
batch in fp32 at the highest precision of products; speeds are greedy ones of the second
half of 128 new tokens after 32.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.generate import generate
from jaxlm.models.pretrained import Pretrained, load, make_batch

PROMPT, NEW = 32, 128


def main() -> None:
    source = f"random:{sys.argv[1]}"
    model = load(source)
    print(json.dumps({"logits_against_cpu": difference(model)}), flush=True)
    for dtype in (jnp.float32, jnp.bfloat16):
        made = load(source, dtype=dtype)
        if dtype == jnp.bfloat16:
            halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), made.params)
            made = replace(made, params=halved)
        for rows in (1, 64):
            line = {"dtype": jnp.dtype(dtype).name, "batch": rows}
            line["tokens_per_second"] = round(rows * speed(made, rows), 1)
            print(json.dumps(line), flush=True)


def difference(model: Pretrained) -> float:
    """The norm of the difference of logits over their norm."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, model.config.vocab_size, (2, 64))
    batch = make_batch(model.config, tokens, None, "here")
    found = []
    with jax.default_matmul_precision("highest"):
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            placed: Any = jax.device_put((model.params, batch), device)
            found.append(np.asarray(jax.jit(model.apply)(*placed)["logits"], float))
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))


def speed(model: Pretrained, rows: int) -> float:
    """Steps per second of the second half, the median of three, by one program."""
    random = np.random.default_rng(0)
    prompts = random.integers(0, model.config.vocab_size, (rows, PROMPT)).tolist()

    def seconds(new: int) -> float:
        began = time.perf_counter()
        generate(model, prompts, max_new_tokens=new, stop_tokens=())
        return time.perf_counter() - began

    half = NEW // 2 + 1  # in the same bucket
    seconds(NEW)  # compiles
    steps = [(NEW - half) / (seconds(NEW) - seconds(half)) for _ in range(3)]
    return sorted(steps)[1]


if __name__ == "__main__":
    main()
