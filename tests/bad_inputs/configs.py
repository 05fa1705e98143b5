"""Configs: every field of a wrong type, out of range, misspelt; and whole files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.core import schema
from jaxlm.experiment import ExperimentConfig
from tests.bad_inputs.cases import Case, flags

LEAVES = schema.leaves(ExperimentConfig)


def written(*lines: str) -> Callable[[Path], list[str]]:
    """A config file whose line 5 begins what is wrong."""
    text = (
        "from jaxlm.core.config import to_config_dict\n"
        "from jaxlm.experiment import ExperimentConfig\n"
        "def get_config():\n"
        "    config = to_config_dict(ExperimentConfig)\n"
        + "".join(f"    {line}\n" for line in lines)
        + "    return config\n"
    )
    return raw(text.encode())


def raw(content: bytes) -> Callable[[Path], list[str]]:
    """A config file of any content."""

    def make(folder: Path) -> list[str]:
        (folder / "own.py").write_bytes(content)
        return [f"--config={folder / 'own.py'}"]

    return make


def wrong_types() -> Iterator[Case]:
    """Set in a file, where a value has a type of its own."""
    for key, leaf in LEAVES.items():
        wrong = 7 if "str" in str(leaf.annotation) else "many"
        allowed = leaf.rule.describe(leaf.annotation)
        yield Case(
            f"{key}: wrong type",
            written(f"config.{key} = {wrong!r}"),
            (f"{{folder}}/own.py: config.{key}: {wrong!r} is not allowed", allowed),
            config=None,
        )


def out_of_range() -> Iterator[Case]:
    """Just beyond each limit, on the command line."""
    for key, leaf in LEAVES.items():
        rule, is_whole = leaf.rule, leaf.annotation in (int, int | None)
        least, most = rule.minimum, rule.maximum
        low = None if least is None else least - (1 if is_whole else 0.25)
        high = None if most is None else most + (1 if is_whole else most / 4)
        beyond = {
            "no choice": "blue" if rule.choices else None,
            "too small": low,
            "too large": high,
            "not above": rule.above,
            "not below": rule.below,
        }
        for kind, value in beyond.items():
            if value is not None:
                yield Case(
                    f"{key}: {kind}",
                    flags(f"--config.{key}={value}"),
                    (f"config.{key}: ", "not allowed", rule.describe(leaf.annotation)),
                )


def misspelt() -> Iterator[Case]:
    """The first letter of every key's last part, twice."""
    for key in LEAVES:
        section, dot, name = key.rpartition(".")
        spelling = f"{section}{dot}{name[0]}{name}"
        yield Case(
            f"{key}: misspelt",
            flags(f"--config.{spelling}=1"),
            (f"config.{spelling}: no such key; nearest: config.{key};",),
        )


WHOLE = [
    ("mixed batch", ["--config.train.batch_size=3", "--config.train.accumulation=2"],
     "a divisor of config.train.batch_size, which is 3"),
    ("stride beyond the row", ["--config.data.stride=14"], "at most 13"),
    ("two rests", ["--config.mesh.data=-1", "--config.mesh.fsdp=-1"],
     "config.mesh.data takes the rest already"),
    ("no devices", ["--config.mesh.tensor=0"], "a number of devices, or -1"),
    ("too many devices", ["--config.mesh.data=64"], "there are 8"),
    ("endless devices", [f"--config.mesh.data={10**30}"], "there are 8"),
    ("too many tokens", ["--config.data.max_length=4096"], "128 positions"),
    ("endless tokens", [f"--config.data.max_length={10**30}"], "128 positions"),
    ("one label twice", ["--config.task.labels=PER,PER"], "every label once"),
    ("nameless label", ["--config.task.labels=PER,,LOC"], "a list of strings"),
    ("half a character", ["--config.task.labels=PER,\udcff"], "config.task.labels"),
    ("half a path", ["--config.data.train=\udcff.jsonl"], "config.data.train"),
    ("no metric", ["--config.evaluate.metric=-"], "the name of a metric"),
    ("unknown metric", ["--config.evaluate.metric=f2"], "f2"),
    ("not a number", ["--config.optimizer.learning_rate=nan"], "learning_rate: nan"),
    ("infinite", ["--config.optimizer.epsilon=inf"], "epsilon: inf"),
    ("too many digits", ["--config.seed=" + "9" * 5000], "config.seed"),
    ("no value", ["--config.train.steps"], "needs a value"),
    ("a section", ["--config.train=3"], "is a section"),
    ("no data", ["--config.data.train="], "config.data.train: is empty"),
    ("columns of a form unknown", ["--config.data.columns=text"], "is not understood"),
    ("columns of two kinds", ["--config.data.columns=text=a,tokens=b"], "mixes"),
    ("a phase of no length", ["--config.train.phases=head,all"], "give it a length"),
    ("a last phase of a length", ["--config.train.phases=head@1epoch"], "last phase"),
    ("a phase of nothing", ["--config.train.phases=head@0epochs,all"], "WHAT@LENGTH"),
    ("a phase of no name", ["--config.train.phases=haed@1step,all"], "haed"),
    ("a phase of absent layers", ["--config.train.phases=layers[3:9]"], "2 layers"),
    ("an unknown flag", ["--stpes=3"], "--stpes: no such flag"),
    ("a stray word", ["stray"], "'stray': no such argument"),
    ("an unset variable", ["--workdir="], "is empty"),
]  # fmt: skip

ALONE = (
    "config.data.validation = config.data.test = ''",
    "config.model.pretrained = 'random:tiny'",
)
FILES = [
    ("no such file", flags("--config={folder}/none.py"), "no such file"),
    ("a folder", flags("--config={folder}"), "no such file"),
    ("a device", flags("--config=/dev/zero"), "no such file"),
    ("an empty file", raw(b""), "has no function get_config"),
    ("NUL bytes", raw(b"\0" * 99), "null bytes"),
    ("not UTF-8", raw(b"x = '\xff'\n"), "own.py"),
    ("broken Python", written("x = = 3"), "own.py:5: SyntaxError"),
    ("an exception", written("{}['tiny']"), "own.py:5: KeyError: 'tiny'"),
    ("endless recursion", written("get_config()"), "own.py:4: RecursionError"),
    ("an exit", written("raise SystemExit(0)"), "own.py:5: ends the process"),
    ("a misspelt key", written("config.train.stepz = 3"),
     "own.py:5: config.train.stepz: no such key; nearest: config.train.steps"),
    ("a number for a section", written("config.train = 3"), "config.train: 3 is not"),
    ("NUL in a path", written("config.data.train = 'a\\0b'", *ALONE),
     "cannot hold a NUL"),
    ("half a character", written("config.task.labels = ['\\ud800']"), "labels: "),
    ("records of another kind", written("config.data.train = ['a']"), "data.train"),
    ("records without labels",
     written("config.data.train = [{'tokens': ['a']}]", *ALONE),
     "record 0: no labels"),
]  # fmt: skip

CASES = [
    *wrong_types(),
    *out_of_range(),
    *misspelt(),
    *(Case(f"config: {name}", flags(*given), (word,)) for name, given, word in WHOLE),
    *(
        Case(f"config file: {name}", make, (word,), config=None)
        for name, make, word in FILES
    ),
]
