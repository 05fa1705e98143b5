"""Predict: ``python -m jaxlm.predict --workdir=runs/ner --text "Ada left Paris."``.

With ``--model=SOURCE`` in place of a run, a decoder or T5 generates text.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jaxlm.core import cluster, door
from jaxlm.core.errors import UserError
from jaxlm.data.lines import bounded
from jaxlm.experiment.flags import add_flags, read_flags

if TYPE_CHECKING:
    from rich.console import Console

    from jaxlm.models.generation import Generation

COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
CHUNK = 1024
"""Inputs that are predicted at a time, so that long files stream."""


def main(arguments: list[str]) -> None:
    """Print predictions: coloured for a person, JSONL for a program."""
    parser = door.make_parser(
        "Predict with a trained run, or generate text with a language model.",
        model="a language model, which generates",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", action="append", help="a text; may be repeated")
    given.add_argument(
        "--input",
        action=Once,
        help="a file with a text, or a JSON object with text or tokens, on each line;"
        " - for standard input; ids are line numbers, and empty lines are passed over",
    )
    parser.add_argument(
        "--step", default="best", help="best (default), last, or a checkpoint's number"
    )
    parser.add_argument(
        "--json", action="store_true", help="JSONL for --text on a terminal too"
    )
    add_flags(parser)
    cluster.add_flags(parser)
    known, _ = parser.parse(arguments)
    place = cluster.read_flags(known)
    generation = read_flags(known)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if known.model and known.step != "best":
        raise UserError("--step chooses a checkpoint of --workdir; leave it out")
    if known.step == "all":
        raise UserError("--step=all: one checkpoint predicts; allowed: best, last, N")
    with ExitStack() as files:
        texts = known.text and given_texts(known.text)
        inputs = texts or read_inputs(known.input, files)
        if known.model:
            generate(known, generation, inputs)
            return
        from jaxlm.core.joining import joined

        with joined(place) as hosts:
            if hosts.count > 1 and known.input == "-":
                raise UserError(
                    "--input=-: several processes each read a file; name it"
                )
            hosts.log_to(Path(known.workdir) / "logs", "predict-", sys.stderr)
            hosts.alike(cluster.shared_flags(known))
            predict(known, inputs)


def generate(
    known: argparse.Namespace, generation: Generation, inputs: Iterator[dict[str, Any]]
) -> None:
    """Print what a language model makes of the inputs."""
    from jaxlm.experiment.generating import answer

    pretty = known.text and sys.stdout.isatty() and not known.json
    answer(known.model, inputs, generation, chat=known.chat, pretty=bool(pretty))


def predict(known: argparse.Namespace, inputs: Iterator[dict[str, Any]]) -> None:
    """Print what a run makes of the inputs; of several processes, on the first."""
    from rich.console import Console

    from jaxlm.experiment.runs import Run

    run = Run(known.workdir, say=lambda text: print(text, file=sys.stderr))
    step = run.choose(known.step)[0]
    pretty = known.text and sys.stdout.isatty() and not known.json
    console = Console(highlight=False)
    while chunk := list(islice(inputs, CHUNK)):
        for prediction in run.predict(chunk, step):
            if pretty:
                show(prediction, run.parts.task, console)
            else:
                print(json.dumps(prediction, ensure_ascii=False))
        sys.stdout.flush()


class Once(argparse.Action):
    """A flag whose second value would silently take the place of the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "one file at a time; cat joins several")
        setattr(namespace, self.dest, values)


def given_texts(texts: list[str]) -> Iterator[dict[str, Any]]:
    """The texts of the command line, numbered from 1 as lines are."""
    for number, text in enumerate(texts, start=1):
        yield {"id": str(number), "source": f"--text number {number}", "text": text}


def read_inputs(path: str, files: ExitStack) -> Iterator[dict[str, Any]]:
    """The lines of a file that hold anything: JSON objects, or texts.

    It is opened at once, as one of ``files``, and read as lines are asked for.

    Raises:
      UserError: no such file, that of standard output, not UTF-8, or an object
        without text or tokens.
    """
    if path == "-" and sys.stdin is None:
        raise UserError("--input=-: standard input is closed; name a file")
    try:
        file = sys.stdin.buffer if path == "-" else Path(path).open("rb")
        files.enter_context(file)
    except OSError as problem:
        raise UserError(f"--input={path}: {problem.strerror}") from problem
    if is_output(file):
        raise UserError(
            f"--input={path}: is where the predictions go, too; name another file"
            " for these"
        )
    return lines_of(file, "standard input" if path == "-" else path)


def lines_of(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """The inputs of an open file."""
    for number, line in bounded(file, name):
        where = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise UserError(f"{where}: not UTF-8 text") from problem
        if text.strip():  # of which only the line's end is not the user's text
            own = parse_input(text.rstrip("\r\n"), where)
            yield {"id": str(number), **own, "source": where}


def is_output(file: BinaryIO) -> bool:
    """Whether an open file is the one that standard output is written to."""
    try:
        out, read = (os.fstat(each.fileno()) for each in (sys.stdout, file))
    except (OSError, ValueError):  # no file at all
        return False
    return stat.S_ISREG(out.st_mode) and os.path.samestat(out, read)


def parse_input(text: str, where: str) -> dict[str, Any]:
    """One line of input: an object with ``text`` or ``tokens``, or a plain text."""
    if not text.lstrip().startswith("{"):
        return {"text": text}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(
            f"{where}: starts with {{ but is not a JSON object ({problem}); such a text"
            ' is written {"text": "..."}'
        ) from problem
    if value.get("text") is None and not (value.get("tokens") or "messages" in value):
        raise UserError(
            f"{where}: an object needs text (a string) or tokens (strings); for --model"
            " text or messages"
        )
    return value


def show(prediction: dict[str, Any], task: Any, console: Console) -> None:
    """A prediction for a person's eyes: entities in colour, or labels with bars.

    That of a task with neither is shown as it is.
    """
    from rich.text import Text

    if "probabilities" in prediction:
        for label, share in list(prediction["probabilities"].items())[:5]:
            bar = "█" * round(share * 30)
            console.print(Text(f"{label:>16} {share:6.1%} {bar}", style=""))
        return
    if "entities" not in prediction:
        console.print_json(data=prediction)
        return
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(task.types)}
    text = Text(prediction["text"])
    for entity in prediction["entities"]:
        style = f"bold {colors[entity['label']]}"
        text.stylize(style, entity["start_char"], entity["stop_char"])
    console.print(text)
    for entity in prediction["entities"]:
        line = Text(f"  {entity['label']:<6}", style=f"bold {colors[entity['label']]}")
        span = f"{entity['start_char']}-{entity['stop_char']}"
        line.append(f" {entity['score']:.3f}  {span:>9}  {entity['text']}", style="")
        console.print(line)


if __name__ == "__main__":
    door.start(main)
