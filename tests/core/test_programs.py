"""Compiled programs on disk: where they lie, and whose word stands."""

import os
import subprocess
import sys
from pathlib import Path

from jaxlm.core.programs import PROGRAMS, processor

PROGRAM = """
import jax
from jaxlm.core.programs import keep_programs
keep_programs()
jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()
"""


def kept(folder: Path, **environment: str) -> set[str]:
    """The files under a cache after a program has run."""
    plain = {name: os.environ[name] for name in os.environ if "COMPILATION" not in name}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=plain | {"JAXLM_CACHE": str(folder)} | environment,
        check=True,
        timeout=120,
    )
    return {str(path.relative_to(folder)) for path in folder.rglob("*-cache")}


def test_programs_are_kept_by_processor_and_found_again(tmp_path):
    first = kept(tmp_path)
    assert first
    assert {Path(name).parent for name in first} == {Path(PROGRAMS) / processor()}
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in first}
    assert kept(tmp_path) == first
    assert times == {name: (tmp_path / name).stat().st_mtime_ns for name in first}


def test_what_the_user_tells_jax_stands(tmp_path):
    own = tmp_path / "own"
    found = kept(
        tmp_path,
        JAX_COMPILATION_CACHE_DIR=str(own),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert found and all(Path(name).parts[0] == "own" for name in found)
    assert not kept(tmp_path / "none", JAX_ENABLE_COMPILATION_CACHE="false")
