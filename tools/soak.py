"""Kill a run at random moments, again and again; it must end with the same bits.

python -m tools.soak --workdir=/tmp/soak --kills=50 --devices=8

A reference run is trained undisturbed. Then come rounds: each is the same run from
nothing to its end, with several SIGKILLs on the way. After a round every parameter and
every part of the optimizer's state, metrics.jsonl, results/ and predictions/ must be
those of the reference. Start it again, and it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core import door
from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, read_json
from jaxlm.train.recorded import read_metrics, read_status

TIMES = ("seconds", "tokens_per_second", "input_wait", "save_seconds")
"""What differs between two runs of the same bits."""
STEPS, EVALUATE_STEPS = 60, 6
SMALL = {
    "data.train": "sample:ner[:96]",
    "data.validation": "sample:ner[:16]",
    "data.test": "sample:ner[:8]",
    "data.max_length": 32,
    "model.dropout": 0.1,
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.accumulation": 2,
    "train.log_every_steps": 1,
    "train.phases": "head+layers[-1:]@2epochs,all",
    "evaluate.every_steps": EVALUATE_STEPS,
    "checkpoint.every_steps": 4,
}
MESHES = {1: {"mesh.data": 1}, 8: {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}}
KILLS_OF_A_ROUND, TIMEOUT_SECONDS = 6, 600
START_SHARE, EVALUATION_SHARE = 0.15, 0.2
"""Of the kills, those at any moment of a start, and those around an evaluation."""
START_SECONDS, LATE_SECONDS = 10.0, 0.2
"""A kill falls within that time: of a start, or of a step, an evaluation or a save."""


def environment(devices: int, cache: Path) -> dict[str, str]:
    """For processes with so many CPU devices, which share what they compile."""
    name = "--xla_force_host_platform_device_count"
    flags = re.sub(rf"{name}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} {name}={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def command(workdir: Path, changes: dict[str, Any]) -> list[str]:
    """Trains the tiny config with these changes."""
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    start = [sys.executable, "-m", "jaxlm.main", "--config=configs/ner.py:tiny"]
    return [*start, f"--workdir={workdir}", *overrides]


def arrays(workdir: Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, parameters and optimizer state, by name."""
    import jax
    from orbax.checkpoint import v1 as ocp

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.training.Checkpointer(str(workdir / "checkpoints")) as checkpoints:
        described = checkpoints.checkpointables_metadata(step).metadata
        items = {name: described[name] for name in ("params", "training")}
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            items,
        )
        found = checkpoints.load_checkpointables(step, abstract)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree.leaves_with_path(found)
    }


def lines(workdir: Path) -> dict[str, dict[str, Any]]:
    """metrics.jsonl by split and step, without times; no two of a kind."""
    found: dict[str, dict[str, Any]] = {}
    for line in read_metrics(workdir):
        key = f"{line['split']} {line['step']}"
        if key in found:
            raise UserError(f"{workdir}/metrics.jsonl: {key} stands twice")
        found[key] = {name: line[name] for name in line if name not in TIMES}
    return found


def files(workdir: Path) -> dict[str, list[str]]:
    """results/ and predictions/ by name, as lines, without times."""
    return {
        str(path.relative_to(workdir)): [
            line
            for line in path.read_text().splitlines()
            if not any(f'"{name}"' in line for name in (*TIMES, "checksum"))
        ]
        for folder in ("results", "predictions")
        for path in workdir.glob(f"{folder}/[!.]*")
    }


def everything(workdir: Path, step: int) -> dict[str, Any]:
    """What two runs of the same bits have alike, by name."""
    return {**arrays(workdir, step), **lines(workdir), **files(workdir)}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names that two runs do not have alike."""
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def saving(workdir: Path) -> set[str]:
    """The checkpoints that are being written, by Orbax's temporary names."""
    return {path.name for path in workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")}


def saved(workdir: Path) -> int:
    """The step of the newest checkpoint that is whole; 0: none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def trained(workdir: Path) -> int:
    """The step of the newest training line; 0: none."""
    found = [each["step"] for each in read_metrics(workdir) if each["split"] == "train"]
    return max(found, default=0)


def running(workdir: Path, pid: int) -> bool:
    """Whether this process has begun or resumed the run."""
    return (read_status(workdir) or {}).get("pid") == pid


def doing(workdir: Path, pid: int, began: int) -> str:
    """What a killed process, which resumed from step ``began``, was doing."""
    if not running(workdir, pid):
        return "start"
    step, seen = trained(workdir), lines(workdir)
    if step == STEPS or (
        step % EVALUATE_STEPS == 0 and f"validation {step}" not in seen
    ):
        return "evaluation"
    if step == began == saved(workdir):
        return "compile"
    return "training"


class Soak:
    """A soak and its progress, which is kept in ``soak.json``."""

    def __init__(self, known: argparse.Namespace):
        self.workdir = door.writable_directory(known.workdir)
        self.wanted, self.save_share = known.kills, known.save_share
        self.path = self.workdir / "soak.json"
        settings = {"devices": known.devices, "seed": known.seed}
        fresh = {"settings": settings, "reference": False, "kills": [], "rounds": []}
        self.done = read_json(self.path) if self.path.exists() else fresh
        if self.done["settings"] != settings:
            raise UserError(
                f"{self.path}: is of {self.done['settings']}; name another --workdir"
            )
        self.environment = environment(known.devices, self.workdir / "compiled")
        self.changes = {**SMALL, **MESHES[known.devices]}
        self.began, self.before = time.monotonic(), len(self.kills)

    @property
    def kills(self) -> list[dict[str, Any]]:
        return self.done["kills"]

    def run(self) -> dict[str, Any]:
        """The reference and all rounds that are left; the verdict."""
        if not self.done["reference"]:
            self.finish("reference")
            self.done["reference"] = True
            self._keep()
        reference = everything(self.workdir / "reference", STEPS)
        while sum(each["kills"] for each in self.done["rounds"]) < self.wanted:
            number = len(self.done["rounds"])
            self._kill_again_and_again(number)
            found = everything(self.workdir / f"round-{number}", STEPS)
            wrong = differences(reference, found)
            mine = sum(each["round"] == number for each in self.kills)
            self.done["rounds"].append({"kills": mine, "different": wrong})
            self._keep()
            print(
                f"round {number}: {mine} kills, {len(found)} compared: {wrong or 'ok'}"
            )
        self.done["verdict"] = self._verdict(
            len(arrays(self.workdir / "reference", STEPS)), len(reference)
        )
        self._keep()
        return self.done["verdict"]

    def start(self, name: str) -> subprocess.Popen:
        with open(self.workdir / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command(self.workdir / name, self.changes),
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self, name: str) -> None:
        """Run to the end."""
        process = self.start(name)
        try:
            if process.wait(TIMEOUT_SECONDS) != 0:
                raise UserError(f"{self.workdir}/{name}.log: it failed; see its end")
        finally:
            process.kill()

    def _kill_again_and_again(self, number: int) -> None:
        name = f"round-{number}"
        while len(self.kills) < self.wanted:
            if sum(each["round"] == number for each in self.kills) >= KILLS_OF_A_ROUND:
                break
            began, process = saved(self.workdir / name), self.start(name)
            try:
                self._wait(process, self._moment(self.workdir / name, process.pid))
            finally:
                process.kill()
            if process.wait() == 0:  # it was done before its time came
                break
            if process.returncode != -signal.SIGKILL:
                raise UserError(f"{self.workdir}/{name}.log: it failed; see its end")
            self._note(number, process.pid, began)
        self.finish(name)

    def _wait(self, process: subprocess.Popen, moment: Callable[[], bool]) -> None:
        until = time.monotonic() + TIMEOUT_SECONDS
        while process.poll() is None and not moment():
            time.sleep(0.001)
            if time.monotonic() > until:
                raise UserError(f"{' '.join(map(str, process.args))}: hangs")

    def _moment(self, workdir: Path, pid: int) -> Callable[[], bool]:
        """Tells when it is time for the next kill, as the seed has it."""
        settings, began, due = self.done["settings"], time.monotonic(), []
        place = f"{settings['seed']} {workdir.name} {len(self.kills)}"
        kind, share, late = np.random.default_rng(list(place.encode())).random(3)
        if kind < START_SHARE:
            return lambda: time.monotonic() - began > share * START_SECONDS
        at_save = kind > 1 - self.save_share
        before = saved(workdir)
        target = min(before + 1 + int(share * (STEPS - before) / 2), STEPS)
        if kind < START_SHARE + EVALUATION_SHARE:
            target = -(-target // EVALUATE_STEPS) * EVALUATE_STEPS

        def moment() -> bool:
            if not due and running(workdir, pid) and trained(workdir) >= target:
                if not at_save or target == STEPS or saving(workdir):
                    due.append(time.monotonic() + late * LATE_SECONDS)
            return bool(due) and time.monotonic() >= due[0]

        return moment

    def _note(self, number: int, pid: int, began: int) -> None:
        workdir = self.workdir / f"round-{number}"
        step, what = trained(workdir), doing(workdir, pid, began)
        half = bool(saving(workdir))
        self.kills.append({"round": number, "step": step, "doing": what, "half": half})
        self._keep()
        pace = (time.monotonic() - self.began) / (len(self.kills) - self.before)
        left = pace * (self.wanted - len(self.kills)) / 60
        print(
            f"kill {len(self.kills)} of {self.wanted}: round {number}, step {step},"
            f" {what}{', half a save' if half else ''}; about {left:.1f} min left",
            flush=True,
        )

    def _keep(self) -> None:
        atomic_write_json(self.path, self.done)

    def _verdict(self, leaves: int, compared: int) -> dict[str, Any]:
        rounds = self.done["rounds"]
        return {
            **self.done["settings"],
            "kills": len(self.kills),
            "during": dict(Counter(each["doing"] for each in self.kills).most_common()),
            "left_half_a_save": sum(each["half"] for each in self.kills),
            "rounds": len(rounds),
            "leaves": leaves,
            "compared": compared,
            "all_equal": not any(each["different"] for each in rounds),
        }


def main(arguments: list[str]) -> None:
    parser = door.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--devices", type=int, choices=MESHES, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--save-share", type=float, default=0.4, help="kills that wait for a save"
    )
    known, _ = parser.parse(arguments)
    verdict = Soak(known).run()
    print(json.dumps(verdict))
    during = ", ".join(f"{count} {name}" for name, count in verdict["during"].items())
    print(
        f"{verdict['kills']} kills ({during}; {verdict['left_half_a_save']} left half a"
        f" save) in {verdict['rounds']} rounds,"
        f" {verdict['leaves']} arrays and {verdict['compared'] - verdict['leaves']}"
        f" records each: {'all equal' if verdict['all_equal'] else 'NOT EQUAL'}"
    )
    sys.exit(0 if verdict["all_equal"] else 1)


if __name__ == "__main__":
    door.run(main)
