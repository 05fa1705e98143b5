"""A step compiled for another machine: in a process of its own, timed, and kept.

The process is another because a compiler may die of a program, takes its environment
before jax is imported, and returns its memory only at its end. What it made is kept in
``<cache>/plans``, by the content of what was compiled: program, topology, versions.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from jaxlm.core.door import machine_trouble, writable_directory
from jaxlm.core.errors import UserError
from jaxlm.core.files import (
    atomic_write_bytes,
    atomic_write_json,
    cache_directory,
    read_json,
)
from jaxlm.planning import meshes
from jaxlm.planning.topology import Topology

FOLDER = "plans"
FORMAT = 1
"""Of what is kept; another number forgets what was kept before."""
EXHAUSTED = "RESOURCE_EXHAUSTED"
CONSTANT = re.compile(r"(= (?!s8)\w+\[[^ ]* constant\()[^)]{200,}\)")
"""A large constant in a program's text; those of s8 are masks of attention's blocks."""
KERNEL = re.compile(
    r"memory space vmem .*?for %?([\w.\-]+).*?Scoped allocation with size ([\d.]+\w)"
    r" and limit ([\d.]+\w)",
    re.DOTALL,
)
"""How a TPU's compiler refuses a kernel that needs too much of a core's own memory."""
MADE = ("exhausted", "compile_seconds", "memory", "cost_analysis")
"""The facts that only a compilation tells."""
MADE_WHOLE = frozenset(MADE) - {"exhausted"}
"""Those of a step that fits."""
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Where a user tells the compilers more: variables of the environment."""
MEMORY = ("argument", "output", "alias", "temp", "generated_code")

Build = Callable[[Any, Any], Any]
"""``build(config, mesh)``: see ``experiment.planned.Planned`` for what it returns."""


@dataclass(frozen=True)
class Job:
    """What is to be compiled."""

    config: Any
    topology: Topology
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Compiled:
    """What a compiler said: ``facts`` (see ``work``), and the program, if it has one.

    ``facts["exhausted"]`` is its message where the program did not fit.
    """

    facts: dict[str, Any]
    program: str

    @property
    def exhausted(self) -> str:
        return self.facts.get("exhausted", "")


class Compilation:
    """A job in its process. ``poll`` tells its stage, ``result`` waits for its end."""

    def __init__(self, build: Build, job: Job):
        context = multiprocessing.get_context("spawn")
        self.began = time.monotonic()
        self.stage = "starting"
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_job, args=(build, job, sender), daemon=True
        )
        self.process.start()
        sender.close()
        self._end: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self, timeout: float = 0.0) -> bool:
        """Whether it is done; waits up to ``timeout`` seconds for news."""
        while self._end is None and self.receiver.poll(timeout):
            try:
                news = self.receiver.recv()
            except EOFError:
                self.process.join()
                code = self.process.exitcode
                self._end = {"died": code}
                break
            if "stage" in news:
                self.stage = news["stage"]
                return False
            self._end = news
        return self._end is not None

    def result(self) -> Compiled:
        """What it made.

        Raises:
          UserError: what the config or the machine is to blame for.
          RuntimeError: the compiler, or this package, has a bug.
        """
        while not self.poll(1.0):
            pass
        self.process.join()
        end = self._end or {}
        if "refused" in end:
            raise UserError(end["refused"])
        if "trace" in end:
            raise RuntimeError(f"the step was not compiled:\n{end['trace']}")
        if "died" in end:
            raise UserError(
                f"the compiler's process ended with code {end['died']} while"
                f" {self.stage}{_why(end['died'])}"
            )
        found = load(Path(end["folder"]))
        if kernel := KERNEL.search(found.exhausted):
            name, size, limit = kernel.groups()
            raise UserError(
                f"the kernel {name} needs {size} of a core's own memory, which allows"
                f" {limit}; a smaller config.model.attention_block needs less"
            )
        return found

    def stop(self) -> None:
        """End the process, done or not."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _why(code: int | None) -> str:
    if code == -9:
        return ": killed, most likely as the machine has no memory left for it"
    return "; its words are in the lines above"


def load(folder: Path) -> Compiled:
    """What was kept of a compilation."""
    facts = read_json(folder / "facts.json")
    path = folder / "program.hlo.gz"
    text = gzip.decompress(path.read_bytes()).decode() if path.exists() else ""
    return Compiled(facts, text)


def kept_folder() -> Path:
    """Where compilations are kept, tried by a file.

    Raises:
      UserError: nothing can be written there.
    """
    return writable_directory(cache_directory() / FOLDER)


def kept(folder: Path) -> dict[str, Any] | None:
    """The facts of an earlier compilation; None where there is none, or it is damaged.

    A damaged one is as good as none: it is made again in its place.
    """
    try:
        compiled = load(folder)
    except (UserError, OSError, EOFError, ValueError, zlib.error):
        return None
    facts = compiled.facts
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        return None
    whole = compiled.exhausted or (compiled.program and MADE_WHOLE <= facts.keys())
    return facts if whole else None


def run_job(build: Build, job: Job, news: Connection) -> None:
    """In the new process: compile, keep, and tell how it goes."""
    Thread(target=_end_with_parent, daemon=True).start()
    meshes.prepare_environment()
    os.dup2(2, 1)  # what compilers print is not what a door prints for machines
    try:
        news.send({"folder": str(_compile(build, job, news))})
    except UserError as problem:
        news.send({"refused": str(problem)})
    except KeyboardInterrupt:
        pass  # the parent has it, too
    except Exception as problem:
        reason = machine_trouble(problem)  # such as a full disk
        trace = {"trace": traceback.format_exc()}
        news.send({"refused": reason} if reason else trace)
    finally:
        news.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the compiler's own threads would hold the process


def _end_with_parent() -> None:
    """A plan that is killed cannot stop its compilers; they would go on for minutes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _compile(build: Build, job: Job, news: Connection) -> Path:
    clock = {}

    def stage(name: str) -> None:
        clock[name] = time.monotonic()
        news.send({"stage": name})

    cache = kept_folder()
    stage("importing")
    import jax

    stage("tracing")
    mesh = meshes.make_mesh(job.topology, job.sizes)
    planned = build(job.config, mesh)
    lowered = planned.lower()
    versions, flags = compiler_versions(job.topology), compiler_flags()
    key = content_key(lowered.as_text(), planned.options, job, versions, flags)
    folder = cache / key
    begin = time.monotonic()
    facts: dict[str, Any] = {
        **planned.facts,
        "format": FORMAT,
        "topology": job.topology.text,
        "mesh": dict(job.sizes),
        "places": meshes.places(job.topology, mesh),
        "versions": versions,
        "flags": flags,
        "trace_seconds": begin - clock["tracing"],
    }
    if before := kept(folder):  # what was not compiled may be said otherwise
        facts |= {name: before[name] for name in MADE if name in before}
        atomic_write_json(folder / "facts.json", facts)
        return folder
    stage("compiling")
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as problem:
        if EXHAUSTED not in str(problem):
            raise
        facts |= {"exhausted": str(problem), "compile_seconds": _since(begin)}
        atomic_write_json(folder / "facts.json", facts)
        return folder
    facts |= {"compile_seconds": _since(begin), **measured(compiled)}
    text = gzip.compress(program(compiled).encode(), 5)
    atomic_write_bytes(folder / "program.hlo.gz", text)
    atomic_write_json(folder / "facts.json", facts)  # last: it says that all is there
    return folder


def _since(begin: float) -> float:
    return time.monotonic() - begin


def content_key(
    program: str,
    options: Mapping[str, str],
    job: Job,
    versions: Mapping[str, str],
    flags: Mapping[str, str],
) -> str:
    """A name for what is compiled, how, for whom, by what."""
    target = [job.topology.text, job.topology.wraps, dict(job.sizes), FORMAT]
    told = [dict(flags)] if flags else []
    facts = json.dumps([target, dict(options), dict(versions), *told], sort_keys=True)
    return hashlib.sha256(f"{facts}\n{program}".encode()).hexdigest()[:32]


def compiler_flags() -> dict[str, str]:
    """What the environment tells the compilers, by variable; of those that are set."""
    given = {name: os.environ.get(name, "").strip() for name in FLAGS}
    return {name: value for name, value in given.items() if value}


def compiler_versions(topology: Topology) -> dict[str, str]:
    """Of jax and of the compiler."""
    from importlib.metadata import PackageNotFoundError, version

    names = ["jax", "jaxlib"]
    if topology.device.platform == "tpu":
        names += ["libtpu"]
    else:
        names += ["jax-cuda12-plugin", "jax-cuda13-plugin"]
        names += ["nvidia-cudnn-cu12", "nvidia-cudnn-cu13"]
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measured(compiled: Any) -> dict[str, Any]:
    """The compiler's own figures: bytes of a device, and what it takes the step for."""
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
    peak = getattr(stats, "peak_memory_in_bytes", 0)
    names = ("flops", "bytes accessed", "optimal_seconds")
    return {
        "memory": memory | {"peak": peak},
        "cost_analysis": {name: cost.get(name) for name in names},
    }


def program(compiled: Any) -> str:
    """The program's text, with the constants that are masks of attention."""
    from jaxlib import _hlo  # pyright: ignore[reportAttributeAccessIssue]

    options = _hlo.HloPrintOptions()
    options.print_large_constants = True
    modules = compiled.runtime_executable().hlo_modules()
    text = "\n\n".join(module.to_string(options) for module in modules)
    return CONSTANT.sub(r"\1{...})", text)
