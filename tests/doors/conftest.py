"""One tiny run of each task."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import jax
import pytest

from jaxlm.core import config as configs
from jaxlm.experiment import ExperimentConfig

ROOT = Path(__file__).parents[2]
STEPS = (60, 120, 160)
NER = (
    "--config.data.train=sample:ner:train[:64]",
    "--config.data.validation=sample:ner:train[:40]",
    "--config.data.test=sample:ner:train[20:64]",
    "--config.optimizer.learning_rate=1e-3",
)
TOPICS = (
    "--config.data.validation=sample:topics:train[:40]",
    "--config.data.test=sample:topics:train[:40]@0.5,sample:topics:test@0.5",
    "--config.optimizer.learning_rate=1e-3",
)
SHARED = (
    "--config.model.dropout=0",
    "--config.train.steps=160",
    "--config.train.batch_size=8",
    "--config.evaluate.every_steps=60",
    "--config.evaluate.at_start=false",
    "--config.checkpoint.keep_last=3",
    "--config.mesh.data=1",
)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """A cache of compiled programs: many a test builds the same run again."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        os.environ.pop(name.upper())


def trained(workdir: Path, spec: str, overrides: tuple[str, ...]) -> Path:
    from jaxlm.experiment.training import train

    spec = str(ROOT / "configs" / spec)
    resolved = configs.resolve(ExperimentConfig, spec, [*SHARED, *overrides])
    train(resolved.config, workdir, say=lambda _: None)
    return workdir


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """``run_of(spec, overrides)``: one worker of pytest-xdist trains for all."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run_of(spec: str, overrides: tuple[str, ...]) -> Path:
        name = spec.partition(".")[0]
        whole = shared / f"{name}-of-all-workers"
        with open(f"{whole}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                made = trained(tmp_path_factory.mktemp("made") / name, spec, overrides)
                made.rename(whole)
        return shutil.copytree(whole, tmp_path_factory.mktemp("runs") / name)

    return run_of


@pytest.fixture(scope="session")
def ner_run(run_of):
    """A run whose F1 is neither 0 nor 1; tests may evaluate in it, not harm it."""
    return run_of("ner.py:tiny", NER)


@pytest.fixture(scope="session")
def topics_run(run_of):
    """The same of text classification."""
    return run_of("classify.py:tiny", TOPICS)


@pytest.fixture
def ner_copy(ner_run, tmp_path):
    """A run of the test's own, to be harmed."""
    return shutil.copytree(ner_run, tmp_path / "copy")


def edit_config(workdir, **sections):
    """Change the config of a run by hand, which is asked to be said: see digests.py."""
    path = workdir / "config.json"
    document = json.loads(path.read_text())
    for name, changes in sections.items():
        document["config"][name] |= changes
    path.write_text(json.dumps(document))
    (workdir / "model" / "digests.json").unlink()
