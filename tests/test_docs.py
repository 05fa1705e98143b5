"""README and docs: the commands that they show are understood, their links lead on."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jaxlm.core.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*([^)\s]+?)(?:#([^)\s]*))?\s*\)|(?:src|srcset)=\"([^\"]+)\"")
MADE = "generated/"
"""Where pages lie that are made when the site is built."""


def commands():
    """(page, door, arguments) of each ``python -m jaxlm...`` in a block of bash.

    Those of CONTRIBUTING.md have a test of their own, which runs them.
    """
    for page in PAGES:
        if page.name == "CONTRIBUTING.md":
            continue
        for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
            lines = text.replace("\\\n", " ").splitlines() if kind == "bash" else ()
            for line in lines:
                _, found, rest = line.rpartition("python -m jaxlm.")
                if found:
                    door, *arguments = shlex.split(rest, comments=True)
                    yield page.name, door, arguments


def links():
    """(page, target, anchor) of each link to a file of the repository."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target, anchor, source in LINK.findall(text):
            if not re.match(r"https?:", target) and not target.startswith(MADE):
                yield page, target or source, anchor


def test_there_are_commands_of_every_door_and_links():
    assert {door for _, door, _ in commands()} == {
        "main",
        "evaluate",
        "predict",
        "export",
        "plan",
    }
    assert len(list(links())) > 20


@pytest.mark.parametrize(("page", "door", "arguments"), [*commands()])
def test_a_command_is_understood(page, door, arguments, capsys, monkeypatch, tmp_path):
    del page
    main = importlib.import_module(f"jaxlm.{door}").main
    if door in ("main", "plan"):
        monkeypatch.chdir(ROOT)
        main([*arguments, "--explain"])
        assert "config.train" in capsys.readouterr().out
    else:  # past its flags, and no further
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("jaxlm.models.checkpoint.locate", absent)
        (tmp_path / "prompts.jsonl").touch()
        with pytest.raises(
            UserError, match=r"runs/\w+/config.json: no such file|no such folder"
        ):
            main(arguments)


def absent(source):
    raise UserError(f"{source}: no such folder")


def test_links_lead_to_files_and_to_headings():
    for page, target, anchor in links():
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each.lower()) for each in titles}
            anchors = {each.replace(" ", "-") for each in anchors}
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def test_the_pictures_are_small():
    pictures = list(ROOT.glob("docs/images/*"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 300_000, picture.name
