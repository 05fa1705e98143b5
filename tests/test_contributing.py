"""CONTRIBUTING.md: each way of adding something, done step by step in a copy."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import FLAGS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(600)  # a recipe is three processes, one after another
COPIED = ("jaxlm", "configs", "tests", "pyproject.toml")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:`(?P<path>[^`\n]+)`:\n\n)?^ *```(?P<kind>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
"""A fenced block, and the path that the line before it ends in."""


class Copy:
    """A copy of the repository, in which a section's steps are done."""

    def __init__(self, folder: Path):
        self.folder = folder
        # With what Python compiled of it, but not what it is just compiling.
        ignored = shutil.ignore_patterns("*.pyc.*")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy(source, folder / name)

    def follow(self, section: str) -> str:
        """Do every step of a section; what its last commands print."""
        blocks = steps(section)
        assert {"python", "diff", "bash"} <= {kind for _, kind, _ in blocks}
        printed = ""
        for path, kind, text in blocks:
            if kind == "bash":
                printed = self.run(text)
            elif kind == "diff":
                file = self.folder / path
                file.write_text(patched(file.read_text(), text, path))
            else:
                file = self.folder / path
                assert not file.exists(), f"{path}: is there already"
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
        return printed

    def run(self, commands: str) -> str:
        """What commands print, in a process of one device, in this copy."""
        environment = {
            # In CI a test that lacks torch fails; that of parity is asked for apart.
            **{name: os.environ[name] for name in os.environ if name != "CI"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            "XLA_FLAGS": " ".join(each for each in FLAGS if "device_count" not in each),
        }
        done = subprocess.run(
            ["bash", "-euc", commands],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def steps(section: str) -> list[tuple[str, str, str]]:
    """(path or None, language, text) of each block of a section."""
    body = GUIDE.partition(f"\n### {section}\n")[2].partition("\n### ")[0]
    assert body, f"CONTRIBUTING.md has no section {section!r}"
    found = [
        (each["path"], each["kind"], textwrap.dedent(each["text"]))
        for each in BLOCK.finditer(body)
    ]
    pathless = [text for path, kind, text in found if kind != "bash" and not path]
    assert not pathless, f"no path before: {pathless[0][:200]}"
    return found


def patched(text: str, diff: str, path: str) -> str:
    """A file after a diff, whose parts, each at one place of it, stand between @@."""
    for part in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = [(line[:1], line[1:]) for line in part.splitlines(keepends=True)]
        before = "".join(line or "\n" for sign, line in lines if sign != "+")
        after = "".join(line or "\n" for sign, line in lines if sign != "-")
        assert text.count(before) == 1, f"{path}: these lines are not in it:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "jaxlm")


def test_a_task_is_added_by_its_steps(copy):
    prediction = json.loads(copy.follow("A task").splitlines()[-1])
    assert isinstance(prediction["predicted"], float)
    results = copy.folder / "runs" / "ratings" / "results"
    before, after = (
        json.loads((results / f"validation-{step}.json").read_text())["r2"]
        for step in (0, 20)
    )
    assert after > before


def test_a_family_is_added_by_its_steps(copy):
    prediction = json.loads(copy.follow("A model family").splitlines()[-1])
    assert prediction["tokens"] == ["Ada", "left", "Paris", "."]
    model = json.loads((copy.folder / "runs/starcoder2/model/config.json").read_text())
    assert model["model_type"] == "starcoder2"


def test_the_added_family_equals_that_of_torch(torch, copy, monkeypatch):
    commands = []
    with monkeypatch.context() as patch:
        patch.setattr(copy, "run", commands.append)
        copy.follow("A model family")
    (tests,) = [each.strip() for each in commands if "-m pytest" in each]
    # Of two cases, logits at three places, gradients and names.
    assert "10 passed" in copy.run(f"{tests} -m parity")


def test_a_format_is_added_by_its_steps(copy):
    prediction = json.loads(copy.follow("A data format").splitlines()[-1])
    assert set(prediction["probabilities"]) == {"good", "bad"}


def test_a_diff_that_no_longer_fits_is_named():
    with pytest.raises(
        AssertionError, match=r"a.py: these lines are not in it:\s+b = 2"
    ):
        patched("a = 1\n", "-b = 2\n+b = 3\n", "a.py")


def test_a_diff_of_two_parts_changes_both():
    diff = " a = 1\n+a = 2\n\n@@\n-b = 1\n"
    assert patched("a = 1\n\nb = 1\n", diff, "a.py") == "a = 1\na = 2\n\n"
