"""Pages that are made from the code and from the repository's other texts.

Written to ``docs/generated/``, which git ignores: the keys of the config from their
declarations, a page for each package from its docstrings, and CONTRIBUTING.md and
CHANGELOG.md, whose one home is the root. So none of them can go stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from jaxlm.core import schema
from jaxlm.experiment.config import ExperimentConfig

ROOT = Path(__file__).parents[1]
DOORS = ("api", "main", "evaluate", "predict", "export", "plan")
PACKAGES = {
    "core": "What every room shares; no room but this one is known here.",
    "data": "Sources to rows: formats, tokenizer, windows, plan, packing.",
    "models": "One Transformer, its families and heads, pretrained weights.",
    "tasks": "One file a task: encode, head, losses, decode, combine, score.",
    "train": "State, step, loop, checkpoints, evaluation, records and report.",
    "planning": "A step compiled for machines that are not here, and its costs.",
    "experiment": "Config to objects to a run.",
}


def write_pages(docs: Path) -> None:
    """All pages of ``docs/generated/``, anew."""
    folder = docs / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    (folder / "keys.md").write_text(keys_page(ExperimentConfig))
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name.lower()}.md").write_text(with_links(text))
    (folder / "api" / "index.md").write_text(api_index())
    (folder / "api" / "doors.md").write_text(
        modules_page("Doors", [f"jaxlm.{name}" for name in DOORS])
    )
    for package in PACKAGES:
        page = modules_page(f"jaxlm.{package}", modules_of(package))
        (folder / "api" / f"{package}.md").write_text(page)


def with_links(text: str) -> str:
    """A text of the repository's root, its links as seen from ``generated/``."""
    text = re.sub(r"\]\(docs/", "](../", text)
    return re.sub(r"\]\((CHANGELOG|CONTRIBUTING)\.md", _lowered, text)


def _lowered(link: re.Match[str]) -> str:
    return link[0].lower()


def keys_page(cls: type) -> str:
    """Every key of a config class, with its default, what is allowed and its help."""
    parts = ["# All keys", "`--config.KEY=VALUE` sets any of them."]
    for section, kind in schema.sections(cls).items():
        inside = f"{section}." if section else ""
        leaves = [
            leaf
            for key, leaf in schema.leaves(cls).items()
            if key.rpartition(".")[0] == section
        ]
        rows = ["| key | default | allowed | what it is for |", "|---|---|---|---|"]
        rows += [key_row(leaf) for leaf in leaves]
        title = f"## `config.{section}`" if section else "## `config`"
        summary = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
        parts += [f"(config.{inside})=\n{title}", summary.replace("``", "`")]
        parts += ["\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def key_row(leaf: schema.Leaf) -> str:
    """One key as a row of a table."""
    name = leaf.key.rpartition(".")[2]
    allowed = leaf.rule.describe(leaf.annotation)
    cells = (f"`{name}`", f"`{spelled(leaf.default)}`", allowed, leaf.rule.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spelled(value: Any) -> str:
    """A default as a command line has it."""
    if dataclasses.is_dataclass(value):
        raise TypeError(f"{value} is a section, not a value")
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "''"
    return str(value) if value != "" else "''"


def modules_of(package: str) -> list[str]:
    """The modules of a package that have something to say, by name."""
    folder = ROOT / "jaxlm" / package
    found = []
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.read_text(encoding="utf-8").startswith('"""'):
            found.append(name.removesuffix(".__init__"))
    return found


def modules_page(title: str, modules: list[str]) -> str:
    """A page of the API: each module by its docstrings.

    Of a package its own words alone: what it hands on is told of where it is made.
    """
    parts = [f"# {title}"]
    for name in modules:
        is_package = (ROOT / name.replace(".", "/")).is_dir()
        options = "\n   :no-members:" * is_package
        directive = f".. automodule:: {name}{options}"
        parts += [f"## `{name}`", f"```{{eval-rst}}\n{directive}\n```"]
    return "\n\n".join(parts) + "\n"


def api_index() -> str:
    """The floors of the house, each with its page."""
    rows = [f"- [`jaxlm.{name}`]({name}.md): {what}" for name, what in PACKAGES.items()]
    pages = "\n".join(["doors", *PACKAGES])
    return (
        "# API\n\nFrom the docstrings. A notebook needs `jaxlm.api` alone.\n\n"
        "- [Doors](doors.md): `jaxlm.api`, and what the commands call.\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )
