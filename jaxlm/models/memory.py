"""What generating takes, against what the device has."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import jax

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.cache import empty_cache


def check_memory(config: TransformerConfig, rows: int, slots: int, dtype: Any) -> None:
    """Refuse so many sequences of so many slots where the memory has no room.

    Counted is what must be there: the cache, and the logits of one step.

    Raises:
      UserError: it is more than the device's whole memory.
    """
    needed, there = cache_bytes(config, rows, slots, dtype), memory_bytes()
    if needed > there:
        raise UserError(
            f"{rows:,} sequences of {slots:,} tokens need {needed / 2**30:,.1f} GiB,"
            f" and this device has {there / 2**30:,.1f}; lower samples, beams or"
            " max_new_tokens, or give fewer prompts at a time"
        )


def cache_bytes(config: TransformerConfig, rows: int, slots: int, dtype: Any) -> int:
    """Bytes of a cache, and of the logits f32[B, V] that are read from it."""
    one = jax.tree.leaves(jax.eval_shape(partial(empty_cache, config, 1, slots, dtype)))
    row = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in one)
    return rows * (row + 4 * config.vocab_size)


def memory_bytes() -> int:
    """The memory of the first device; on a CPU that of the machine."""
    found = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in found:
        return found["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
