"""Attention's kernels on a GPU: against the dense reference, and how fast they are.

python tools/gpu_attention.py

Numbers first: outputs and gradients in bf16 of tests/models/test_attention_kernels.py's
rows (several segments and padding at once, and one segment with padding for cuDNN's
other way), as norms of the difference from the dense reference in fp32, beside those of
the dense one in bf16, which rounds at other places. A kernel that is more than three
times as far off ends it with an error. Then milliseconds of a forward pass and of one
with its backward pass, and the share of the card's peak that they reach, by its sheet.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.attention import Visibility
from jaxlm.models.backends import DENSE, Backend
from jaxlm.models.kernels.dispatch import attention
from jaxlm.planning.devices import DEVICES
from tests.models.test_attention_kernels import CASES, outputs_and_gradients

PADDED = (np.arange(150) < np.array([150, 97, 1, 130])[:, None]).astype(np.int32)
MOST = ("full", "causal", "grouped", "one key")
CAN = {"triton": MOST, "cudnn": (*MOST, "window", "itself")}
SHAPES = (  # rows, tokens, heads, their size; causal
    ((16, 1024, 25, 64), True),
    ((4, 4096, 32, 128), True),
    ((16, 512, 16, 64), False),
)
WAYS = (("cudnn", 1), ("cudnn", 2), ("cudnn", 16), ("triton", 2), ("xla", 2))
"""Backends, and how many segments a row may hold; it holds two where it may."""
RUNS, TIMES = 5, 5


def main() -> None:
    """Print a line for each comparison and for each timing; end by what is wrong."""
    kind = jax.devices()[0].device_kind
    print(json.dumps({"device": kind, "jax": jax.__version__}), flush=True)
    ways = [(name, None, case) for name, cases in CAN.items() for case in cases]
    ways += [("cudnn", 1, case) for case in ("full", "causal", "window")]
    wrong = [
        f"{name} {most} {case}"
        for name, most, case in ways
        if not agrees(name, most, case)
    ]
    peak = next(each.flops for name, each in DEVICES.items() if name in kind.lower())
    for shape, causal in SHAPES:
        for way in WAYS:
            print(json.dumps(timing(*way, shape, causal, peak)), flush=True)
    if wrong:
        raise SystemExit(f"not as the dense reference: {', '.join(wrong)}")


def agrees(name: str, most: int | None, case: str) -> bool:
    """Whether a kernel is about as near to the reference as XLA in bf16 is."""
    rows: dict[str, Any] = {"rows": PADDED} if most == 1 else {}
    with jax.default_matmul_precision("highest"):
        wanted = outputs_and_gradients(DENSE, *CASES[case], **rows)
    rows |= {"dtype": jnp.bfloat16}
    found = outputs_and_gradients(Backend(name), *CASES[case], **rows, most=most)
    dense = outputs_and_gradients(DENSE, *CASES[case], **rows)
    line: dict[str, Any] = {"backend": name, "segments": most or "any", "case": case}
    good = True
    for each, one, other, exact in zip("yqkv", found, dense, wanted, strict=True):
        # The gradient of scores that alone are seen is nothing: not to be divided by.
        least = 1e-2 * np.linalg.norm(np.asarray(wanted[-1], np.float64))
        ours, theirs = apart(one, exact, least), apart(other, exact, least)
        line[each] = f"{ours:.2g} (dense {theirs:.2g})"
        good &= ours <= 3 * theirs
    print(json.dumps(line), flush=True)
    return bool(good)


def apart(found: jax.Array, wanted: jax.Array, least: Any) -> float:
    """The norm of the difference over that of what is wanted, or over ``least``."""
    one, other = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), least))


def timing(
    name: str, most: int, shape: tuple[int, ...], causal: bool, peak: float
) -> dict[str, Any]:
    """Milliseconds of a backend, forward and with the backward pass."""
    rows, length, heads, size = shape
    keys = jax.random.split(jax.random.key(0), 4)
    whole = (rows, length, heads, size)
    arrays = [jax.random.normal(key, whole, jnp.bfloat16) for key in keys]
    segments = np.ones((rows, length), np.int32)
    if most > 1:
        segments[:, length // 3 :] = 2

    def attend(*arrays: jax.Array) -> jax.Array:
        seen = jnp.asarray(segments)
        given: Any = {"causal": causal, "most": most, "backend": Backend(name)}
        visible = Visibility(seen, seen, **given).with_bias()
        return attention(*arrays, visible, scale=size**-0.5)

    def loss(query: Any, key: Any, value: Any, weights: Any) -> jax.Array:
        return (attend(query, key, value) * weights).astype(jnp.float32).sum()

    seen = [length // 3, length - length // 3] if most > 1 else [length]
    pairs = sum(count * (count + 1) / 2 if causal else count**2 for count in seen)
    products = rows * heads * 2.0 * pairs * size
    line: dict[str, Any] = {"backend": name, "segments": most, "shape": shape}
    line["causal"] = causal
    both = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    for what, function, given, count in (
        ("forward", jax.jit(attend), arrays[:3], 2),
        ("both", both, arrays, 7),
    ):
        try:
            seconds = median_seconds(function, given)
        except jax.errors.JaxRuntimeError as problem:
            line[what] = str(problem)[:200]
            continue
        line[f"{what}_ms"] = round(seconds * 1e3, 3)
        line[f"{what}_of_peak"] = round(count * products / seconds / peak, 3)
    return line


def median_seconds(function: Callable[..., Any], given: Any) -> float:
    """Of one call, where several are under way at a time."""
    jax.block_until_ready(function(*given))
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(TIMES):
            last = function(*given)
        jax.block_until_ready(last)
        taken.append((time.perf_counter() - began) / TIMES)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
