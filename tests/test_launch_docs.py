"""docs/launch.md and the Dockerfiles: commands that are understood, files that fit."""

import re
import shlex
import tomllib
from pathlib import PurePosixPath

import pytest
from packaging.requirements import Requirement

from tests.launching import ROOT, launch

PAGE = (ROOT / "docs/launch.md").read_text(encoding="utf-8")
DOCKERFILES = sorted((ROOT / "launch/docker").glob("*.Dockerfile"))


def commands():
    """(launcher, arguments) of each call of a launcher on the page."""
    for text in re.findall(r"^ *```bash\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL):
        for line in text.replace("\\\n", " ").splitlines():
            _, found, rest = line.partition("python -m launch.")
            if found:
                launcher, *arguments = shlex.split(rest)
                yield launcher, arguments


def test_the_page_shows_every_launcher_and_every_verb():
    shown = {(launcher, arguments[0]) for launcher, arguments in commands()}
    verbs = ("train", "create", "install", "start", "logs", "status", "stop", "delete")
    assert shown == {
        *(("tpu_vm", verb) for verb in verbs),
        ("slurm", "ner"),
        ("jobset", "tpu"),
        ("jobset", "gpu"),
    }


@pytest.mark.parametrize(("launcher", "arguments"), [*commands()])
def test_a_command_of_the_page_is_understood(tmp_path, launcher, arguments):
    filled = [each.replace("BUCKET", "mine") for each in arguments]
    at = filled.index("--") if "--" in filled else len(filled)
    given = [*filled[:at], "--dry-run", *filled[at:]]
    done = launch(tmp_path, launcher, *given, HF_TOKEN="hunter2")
    assert done.code == 0, done.err
    assert done.out and "hunter2" not in done.out


def instructions(path):
    """(instruction, rest) of a Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def let_in(path):
    """Whether .dockerignore, whose first line shuts all out, lets a path in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [PurePosixPath(rule[1:]) for rule in rules if rule.startswith("!")]
    return any(PurePosixPath(path).is_relative_to(each) for each in allowed)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_what_is_there_and_let_in(path):
    sources = [
        source
        for word, rest in instructions(path)
        if word == "COPY"
        for source in rest.split()[:-1]
    ]
    assert {"pyproject.toml", "jaxlm", "configs"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and let_in(source), source


@pytest.mark.parametrize("path", [".git", ".env", "runs/ner", "build/launch/ner", "id"])
def test_an_image_has_no_run_no_history_and_no_secret(path):
    assert not let_in(path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_the_trainer_as_an_ordinary_user(path):
    found = list(instructions(path))
    words = dict(found)
    assert words["USER"] == "1000:1000"
    assert words["ENTRYPOINT"] == '["python", "-m", "jaxlm.main"]'
    assert [word for word, _ in found].index("USER") > [w for w, _ in found].index(
        "RUN"
    )
    for word, rest in found:
        assert word not in ("ARG", "ENV") or not re.search(
            "TOKEN|KEY|SECRET|PASS", rest
        )


def test_images_install_an_extra_of_each_platform():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = extras["optional-dependencies"]
    wanted = {path.stem: path.read_text() for path in DOCKERFILES}
    assert wanted.keys() == {"cpu", "tpu", "cuda"}
    assert '"/src[tpu]"' in wanted["tpu"] and '"/src[cuda${CUDA}]"' in wanted["cuda"]
    assert {"tpu", "cuda12", "cuda13"} <= names.keys()


def test_images_have_a_version_for_all_that_jaxlm_needs_and_one_that_it_allows():
    lines = (ROOT / "launch/docker/constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {_plain(name): version for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for each in map(Requirement, project["dependencies"]):
        assert pinned[_plain(each.name)] in each.specifier, each


def _plain(name):
    return name.lower().replace("_", "-")
