"""Compare jaxlm with transformers' Trainer: fidelity, speed, memory, time to start.

`default` is ours alone: the job of README, word for word, over three seeds.

python tools/compare.py fidelity --shared=../shared --output=runs/compare
python tools/compare.py speed --shared=../shared --output=runs/compare
python tools/compare.py start --shared=../shared --output=runs/compare
python tools/compare.py default --shared=../shared --output=runs/compare
python tools/compare.py report --output=runs/compare

Both sides train MiniLM (fp32) on the same files, in processes of their own, one after
another: ours by `python -m jaxlm.main`, theirs by tools/peer.py. Every result is a line
of OUTPUT/results.jsonl; the same command again goes on where it was stopped. On two
cores fidelity takes about an hour, speed ten minutes, start five. Needs the extras
`parity` and `test`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jaxlm.core.files import cache_directory
from jaxlm.core.sources import locate
from jaxlm.data.sources import load
from jaxlm.models.config import DEFAULT_PRETRAINED

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, STEPS = 5, 60
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """One comparison: what is trained, how long, and over how many seeds."""

    config: str
    epochs: int
    learning_rate: float
    seeds: int
    columns: str = ""


JOBS = {
    "wikigold": Job("ner", 4, 3e-4, 5),
    "banking77": Job("classify", 4, 2e-4, 3, "text=text,label=category"),
    "wnut17": Job("ner", 2, 3e-4, 5),
}
START = Job("ner", 12, 3e-4, 3)


def main() -> None:
    flags = parse()
    flags.output.mkdir(parents=True, exist_ok=True)
    if flags.what != "report":
        make_data(flags.shared, flags.output / "data")
        kinds = (fidelity, speed, start, default)
        {kind.__name__: kind for kind in kinds}[flags.what](flags)
    report(flags.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=("fidelity", "speed", "start", "default", "report")
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--jobs", default=",".join(JOBS), help="fidelity: which")
    return parser.parse_args()


def make_data(shared: Path, folder: Path) -> None:
    """The files of every job; wikigold by documents 70/10/20, seed 0."""
    if folder.exists():
        return
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    ner, intents = shared / "data" / "ner", shared / "data" / "intents" / "banking77"
    split = [sys.executable, ROOT / "tools" / "split_documents.py"]
    wikigold = ner / "wikigold" / "wikigold.conll.txt"
    subprocess.run([*split, wikigold, made / "wikigold"], check=True)
    for source, name in (
        ("wnut17train.conll", "train"),
        ("emerging.dev.conll", "validation"),
        ("emerging.test.annotated", "test"),
    ):
        target = made / "wnut17" / f"{name}.conll"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(ner / "wnut17" / source, target)
    with (intents / "train.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    # The file is sorted by label: three rows of ten train, one of twenty validates.
    parts = {
        "train": [row for number, row in enumerate(rows) if number % 10 < 3],
        "validation": [row for number, row in enumerate(rows) if number % 20 == 7],
    }
    (made / "banking77").mkdir()
    for name, part in parts.items():
        with (made / "banking77" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *part])
    shutil.copyfile(intents / "test.csv", made / "banking77" / "test.csv")
    (made / "sample").mkdir()
    for name in ("train", "validation", "test"):
        lines = [
            json.dumps({"tokens": list(each["tokens"]), "labels": list(each["labels"])})
            for each in load("sample:ner", name)
        ]
        (made / "sample" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    made.rename(folder)


def fidelity(flags: argparse.Namespace) -> None:
    """Test scores of both sides, seed by seed."""
    for name in flags.jobs.split(","):
        job = JOBS[name]
        for seed in range(job.seeds):
            ours = once(
                flags, f"fidelity/{name}/ours/{seed}", run_ours, name, job, seed
            )
            once(
                flags, f"fidelity/{name}/theirs/{seed}", run_theirs, name, job, seed,
                "--batch-size", round(ours["examples_per_step"]),
            )  # fmt: skip


def speed(flags: argparse.Namespace) -> None:
    """Useful tokens a second of training: ours and theirs in turn, without scoring."""
    for number in range(ROUNDS):
        for name in ("wnut17",):
            ours = once(
                flags, f"speed/{name}/ours/{number}", run_ours, name, JOBS[name], 0,
                "--config.data.validation=", "--config.data.test=",
                f"--config.train.steps={STEPS}",
            )  # fmt: skip
            batch = ("--batch-size", round(ours["examples_per_step"]))
            for kind, more in (("dynamic", ()), ("grouped", ("--group-by-length",))):
                once(
                    flags, f"speed/{name}/{kind}/{number}", run_theirs, name,
                    JOBS[name], 0, *batch, "--stop-after", STEPS, *more,
                )  # fmt: skip


def start(flags: argparse.Namespace) -> None:
    """Seconds from the command to the end of the first optimizer step."""
    for scored in (False, True):
        word = "scored" if scored else "plain"
        for number in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                cache = Path(folder)
                (cache / "pypi").symlink_to(cache_directory() / "pypi")
                for kind in ("cold", "warm"):
                    key = f"start/{word}/{kind}/{number}"
                    once(flags, key, start_ours, cache, scored)
            once(
                flags, f"start/{word}/theirs/{number}", run_theirs, "sample", START, 0,
                "--batch-size", 21, "--stop-after", 2,
                *(("--score-at-start",) if scored else ()),
            )  # fmt: skip


def default(flags: argparse.Namespace) -> None:
    """README's first command, seed by seed."""
    for seed in range(START.seeds):
        once(flags, f"default/ours/{seed}", default_job, seed)


def default_job(flags, seed):
    workdir = Path(tempfile.mkdtemp(dir=flags.output))
    command = [sys.executable, "-m", "jaxlm.main", f"--config={ROOT}/configs/ner.py"]
    usage = process([*command, f"--workdir={workdir}", f"--config.seed={seed}"])
    found = figures_of(workdir, "f1")
    shutil.rmtree(workdir)
    return found | usage


def once(flags, key, run, *arguments):
    """The result of a run, which is made unless it is there."""
    found = read(flags.output).get(key)
    if found is None:
        print(f"{time.strftime('%H:%M:%S')} {key}", flush=True)
        found = run(flags, *arguments)
        with (flags.output / "results.jsonl").open("a") as file:
            file.write(json.dumps({"key": key, **found}) + "\n")
    return found


def read(output: Path) -> dict[str, dict]:
    path = output / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {each.pop("key"): each for each in map(json.loads, lines)}


def run_ours(flags, name, job, seed, *overrides):
    workdir = Path(tempfile.mkdtemp(dir=flags.output))
    usage = process(ours_command(flags, name, job, workdir, seed, overrides))
    found = figures_of(workdir, "f1" if job.config == "ner" else "accuracy")
    shutil.rmtree(workdir)
    return found | usage


def figures_of(workdir, metric):
    """What a finished run of ours says of itself."""
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").open()]
    train = [line for line in lines if line["split"] == "train"]
    status = json.loads((workdir / "status.json").read_text())
    found = {
        "examples_per_step": status["examples_per_step"],
        "steps": status["step"],
        "best": status.get("best"),
        # Without the line of the first steps, as at the peer's.
        "tokens_per_second": statistics.median(
            line["tokens_per_second"] for line in train[1:]
        ),
        "input_wait": statistics.median(line["input_wait"] for line in train),
    }
    for split in ("validation", "test"):
        path = workdir / "results" / f"{split}-{found['best']}.json"
        if path.exists():
            found[split] = json.loads(path.read_text())[metric]
    return found


def ours_command(flags, name, job, workdir, seed, overrides):
    folder = flags.output / "data" / name
    files = {each.stem: each for each in folder.iterdir()}
    return [
        sys.executable, "-m", "jaxlm.main",
        f"--config={ROOT}/configs/{job.config}.py", f"--workdir={workdir}",
        *(f"--config.data.{split}={path}" for split, path in files.items()),
        f"--config.data.columns={job.columns}",
        f"--config.train.epochs={job.epochs}", f"--config.seed={seed}",
        f"--config.optimizer.learning_rate={job.learning_rate}",
        "--config.evaluate.at_start=false", *overrides,
    ]  # fmt: skip


def run_theirs(flags, name, job, seed, *more):
    output = flags.output / "peer.json"
    output.unlink(missing_ok=True)
    folder = flags.output / "data" / name
    began = time.time()
    usage = process([
        sys.executable, ROOT / "tools" / "peer.py",
        f"--model={locate(DEFAULT_PRETRAINED)}",
        *(f"--{each.stem}={each}" for each in folder.iterdir()),
        f"--columns={job.columns}", f"--epochs={job.epochs}", f"--seed={seed}",
        f"--learning-rate={job.learning_rate}", f"--output={output}",
        *map(str, more),
    ])  # fmt: skip
    found = json.loads(output.read_text())
    return {**found, **usage, "first_step": found["first_step"] - began}


def start_ours(flags, cache, scored):
    """Until metrics.jsonl has the line of the first step; the run is killed then."""
    workdir = Path(tempfile.mkdtemp(dir=flags.output))
    last = ["--config.train.log_every_steps=1"]
    if scored:
        last.append("--config.evaluate.at_start=true")
    command = ours_command(flags, "sample", START, workdir, 0, last)
    began = time.time()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"JAXLM_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        metrics = workdir / "metrics.jsonl"
        while not metrics.exists() or '"split": "train"' not in metrics.read_text():
            if child.poll() is not None:
                raise RuntimeError(f"{command} ended with {child.returncode}")
            time.sleep(POLL_SECONDS)
        found = {"first_step": time.time() - began}
        child.kill()
    shutil.rmtree(workdir)
    return found


def process(command):
    """Run a command; its seconds, processor seconds and peak memory."""
    began = time.time()
    child = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command} ended with {child.returncode}")
    return {
        "seconds": round(time.time() - began, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": usage.ru_maxrss // 1024,
    }


def report(output: Path) -> None:
    """Tables for docs/benchmarks.md of what there is so far."""
    results = read(output)

    def figures(prefix, name):
        found = [r.get(name) for key, r in results.items() if key.startswith(prefix)]
        return [each for each in found if each is not None]

    for name in JOBS:
        ours, theirs = (
            figures(f"fidelity/{name}/{side}/", "test") for side in ("ours", "theirs")
        )
        if len(ours) > 1 and len(theirs) > 1:
            error = (
                statistics.variance(ours) / len(ours)
                + statistics.variance(theirs) / len(theirs)
            ) ** 0.5
            difference = statistics.mean(ours) - statistics.mean(theirs)
            print(f"\n{name}: difference {difference:+.4f}, standard error {error:.4f}")
            for side, scores in (("ours", ours), ("theirs", theirs)):
                print(
                    side, f"{statistics.mean(scores):.4f}", [f"{x:.4f}" for x in scores]
                )
            show(results, f"fidelity/{name}/", ("ours", "theirs"))
    for name in JOBS:
        show(results, f"speed/{name}/", ("ours", "dynamic", "grouped"))
    for key, result in results.items():
        if key.startswith("default/"):
            print(key, result["test"], result["seconds"], result["tokens_per_second"])
    for word in ("plain", "scored"):
        show(results, f"start/{word}/", ("cold", "warm", "theirs"))


def show(results, prefix, kinds):
    """Medians of each figure, and the ratio of the first kind's to the others'."""
    for name in (
        "tokens_per_second", "input_wait", "peak_mb", "seconds", "processor_seconds",
        "first_step", "steps",
    ):  # fmt: skip
        middle = {}
        for kind in kinds:
            found = [
                result[name]
                for key, result in results.items()
                if key.startswith(f"{prefix}{kind}/") and result.get(name) is not None
            ]
            if found:
                middle[kind] = statistics.median(found)
        if middle:
            print(prefix, name, {kind: round(x, 4) for kind, x in middle.items()})


if __name__ == "__main__":
    main()
