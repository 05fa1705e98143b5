"""Take the pictures of README and docs, and look for faults of layout.

python tools/screenshots.py runs/ner
python tools/screenshots.py runs/ner --output=/tmp/pictures

Opens the run's report.html in headless Chromium, light and dark, on a desk and on a
phone, and writes a PNG of each; and the run's prediction of a sentence as a terminal
shows it, as SVG. Exit code 1 where ``tools/layout.py`` finds a fault.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxlm.experiment.runs import Run  # noqa: E402
from jaxlm.predict import show  # noqa: E402
from tools.browser import Browser, browser  # noqa: E402
from tools.layout import faults  # noqa: E402

DESK, PHONE = 1120, 390
CURVES = "document.querySelector('section').getBoundingClientRect().bottom + 24"
"""How far down the picture on a desk reaches, and that on a phone, in CSS pixels."""
SCREEN = "844"
TEXT = "Marta Oliveira left Reuters in Toronto for the Finnish embassy in Nairobi."


def main() -> int:
    """The exit code; pictures go to --output, faults to stdout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="a finished run")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--text", default=TEXT, help="the sentence that is predicted")
    known = parser.parse_args()
    known.output.mkdir(parents=True, exist_ok=True)
    (known.output / "predict.svg").write_text(terminal(known.workdir, known.text))
    with browser() as page:
        found = report(page, known.workdir / "report.html", known.output)
    print("\n".join(found) or f"no fault; pictures are in {known.output}")
    return 1 if found else 0


def report(page: Browser, path: Path, output: Path) -> list[str]:
    """Pictures of a report, and what is wrong with them."""
    found = []
    for scheme in ("light", "dark"):
        for name, width, height in (("desk", DESK, CURVES), ("phone", PHONE, SCREEN)):
            url = path.resolve().as_uri()
            page.open(url, width=width, dark=scheme == "dark", scale=1.5)
            found += [f"{name}, {scheme}: {each}" for each in faults(page)]
            picture = output / f"report-{name}-{scheme}.png"
            page.picture(picture, height=round(page.evaluate(height)))
    return found


def terminal(workdir: Path, text: str) -> str:
    """What ``jaxlm.predict`` shows of a text, with its command, as SVG."""
    console = Console(
        record=True, width=88, file=io.StringIO(), force_terminal=True, highlight=False
    )
    # The documents' name for the run, whatever folder it lies in here.
    name = f"runs/{workdir.resolve().name}"
    command = f'$ python -m jaxlm.predict --workdir={name} \\\n    --text "{text}"\n'
    console.print(command, markup=False)
    run = Run(workdir, say=lambda _: None)
    (prediction,) = run.predict([text], run.choose("best")[0])
    show(prediction, run.parts.task, console)
    made = console.export_svg(title="", theme=MONOKAI, unique_id="predict")
    # Its fonts would be fetched from a server; any monospaced one will do.
    return re.sub(r"@font-face \{.*?\}\n?", "", made, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
