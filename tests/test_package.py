"""What importing jaxlm costs, and what is shipped with it."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import jaxlm

ROOT = Path(__file__).parents[1]
HEAVY = ("datasets", "flax", "jax", "numpy", "optax", "orbax", "transformers")
FOREIGN = ("tensorflow", "torch")


def loaded_by(statement):
    """The top-level packages that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import jaxlm").isdisjoint(HEAVY + FOREIGN)


def test_doors_and_configs_answer_without_jax():
    statement = "import jaxlm.main, jaxlm.evaluate, jaxlm.predict, jaxlm.export"
    statement += ", jaxlm.experiment"
    assert loaded_by(statement).isdisjoint(HEAVY + FOREIGN)


def test_data_of_ones_own_beside_the_sample_is_answered_without_jax():
    statement = (
        "from jaxlm import main\ntry: main.main(['--config=configs/ner.py',"
        " '--config.data.train=mine.conll'])\nexcept main.UserError: pass"
    )
    assert loaded_by(statement).isdisjoint(HEAVY + FOREIGN)


def test_importing_the_trainer_loads_neither_torch_nor_tensorflow():
    assert loaded_by("import jaxlm.experiment.training").isdisjoint(FOREIGN)


@pytest.mark.parametrize(
    "package, name",
    [
        ("jaxlm", "py.typed"),
        ("jaxlm.data", "sample/train.jsonl"),
        ("jaxlm.data", "sample/validation.jsonl"),
        ("jaxlm.data", "sample/test.jsonl"),
        ("jaxlm.data", "sample/LICENSE"),
        ("jaxlm.models", "built_in/tiny/config.json"),
        ("jaxlm.models", "built_in/tiny/tokenizer.json"),
        ("jaxlm.models", "built_in/llama-7b/config.json"),
    ],
)
def test_package_data_is_there(package, name):
    assert (files(package) / name).is_file()


def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'\nversion = "{jaxlm.__version__}"\n' in project
    assert re.search(rf"^## \[{re.escape(jaxlm.__version__)}\]", changelog, re.M)
