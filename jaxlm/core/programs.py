"""Compiled programs kept on disk: a second start compiles nothing."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from jaxlm.core.files import cache_directory

PROGRAMS = "programs"
MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


COMPILER_OPTIONS = {
    # Collectives run beside computations, fused with them; MaxText's flags for dense
    # models (benchmarks/xla_flags_library.py, CF_FOR_ALL_GATHER). Without them each
    # gather of a layer's weights stops the chip.
    "tpu": {
        "xla_enable_async_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
}
"""What a training step is compiled with, by platform, beside the defaults."""


def keep_programs() -> None:
    """Let jax keep what it compiles in ``<cache>/programs/<processor>``.

    Whatever the user told jax stands: ``JAX_COMPILATION_CACHE_DIR`` names another
    place, and ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing. An entry that a
    killed process left half written is compiled again at each start, with a warning,
    until the folder is deleted, as it may be at any time.
    """
    config: Any = jax.config  # whose attributes no annotation names
    if config.jax_compilation_cache_dir is None:
        folder = cache_directory() / PROGRAMS / processor()
        config.update("jax_compilation_cache_dir", str(folder))
        if MIN_SECONDS not in os.environ:
            config.update(MIN_SECONDS.lower(), 0.0)


def processor() -> str:
    """A name for this processor's instruction set: a cache may lie on a shared disk."""
    facts = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        kinds = ("flags", "Features", "model name")
        lines = info.read_text(errors="replace").splitlines()
        facts = "\n".join(sorted({each for each in lines if each.startswith(kinds)}))
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
