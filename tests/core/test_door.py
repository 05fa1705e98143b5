"""Doors: flags, exit codes, one-line errors, and how soon a wrong flag is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.core import door
from jaxlm.core.errors import UserError

TOY = """
import sys
from jaxlm.core import config, door
from jaxlm.core.errors import UserError
from jaxlm.experiment import ExperimentConfig

def main(arguments):
    parser = door.make_parser("A toy.", config=True)
    parser.add_argument("--do")
    args, overrides = parser.parse(arguments)
    resolved = config.resolve(ExperimentConfig, args.config, overrides)
    heavy = {"jax", "flax", "transformers", "datasets", "numpy"} & set(sys.modules)
    if args.do == "bug":
        raise ValueError("ours")
    if args.do == "interrupt":
        raise KeyboardInterrupt
    if args.do == "full":
        raise OSError(28, "No space left on device", "x.bin")
    if args.do == "nameless":
        raise OSError(9, "Bad file descriptor")
    if args.do == "long":
        open("x" * 999)
    if args.do == "memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 GiB.\\nAnd more")
    if args.do == "full-save":
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed writing a; [os_error_code='28']"
        )
    if args.do == "absent":
        open("nowhere.txt")
    if args.do == "lines":
        raise UserError("one\\ntwo")
    if args.do == "print":
        print("x\\n" * 100000)
    if args.explain:
        print(config.explain(resolved))
    print("heavy:", sorted(heavy))

door.start(main)
"""


@pytest.fixture
def toy(tmp_path: Path):
    (tmp_path / "toy.py").write_text(TOY)
    root = str(Path(__file__).parents[2])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(tmp_path / "toy.py"), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )

    return call


def parse(*arguments: str, config: bool = True):
    return door.make_parser("A toy.", config=config).parse(arguments)


def refused(*arguments: str, config: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        parse(*arguments, config=config)
    return str(caught.value)


def test_a_user_error_is_one_line_without_traceback_and_exits_with_2(toy):
    done = toy("--config.train.batch_size=-4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: config.train.batch_size: -4 is not allowed; a whole number, at least"
        " 1, at most 1048576\n"
    )


def test_a_message_of_two_lines_becomes_one(toy):
    assert toy("--do=lines").stderr == "error: one two\n"


def test_debug_shows_the_traceback_of_a_user_error(toy):
    done = toy("--config.seed=x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: config.seed: 'x'")


def test_debug_shows_the_traceback_of_an_unknown_flag(toy):
    assert "Traceback" in toy("--nope", "--debug").stderr


def test_a_bug_keeps_its_traceback(toy):
    done = toy("--do=bug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ValueError: ours" in done.stderr


def test_an_interrupt_exits_with_130(toy):
    done = toy("--do=interrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_full_disk_is_one_line(toy):
    done = toy("--do=full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: x.bin: No space left on device; free some space, then start again\n"
    )


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("long", f"error: {'x' * 999}: File name too long\n"),
        ("memory", "error: out of memory (RESOURCE_EXHAUSTED: Out of memory: 9 GiB."),
        ("full-save", "error: No space left on device (RESOURCE_EXHAUSTED: Failed"),
    ],
)
def test_trouble_of_the_machine_is_one_line(toy, do, words):
    done = toy(f"--do={do}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(words)
    assert "Traceback" in toy(f"--do={do}", "--debug").stderr


@pytest.mark.parametrize("do", ["nameless", "absent"])
def test_an_error_of_the_system_that_may_be_ours_is_a_bug(toy, do):
    done = toy(f"--do={do}")
    assert done.returncode == 1 and done.stderr.startswith("Traceback")


@pytest.mark.parametrize("workdir", ["", " ", "a\udcff"])
def test_a_workdir_that_is_no_name_is_refused(workdir):
    assert "--workdir" in refused(f"--workdir={workdir}")


def test_a_reader_that_goes_away_is_no_error(toy, tmp_path: Path):
    command = f"{sys.executable} {tmp_path / 'toy.py'} --do=print | head -n 1"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        (">&-", 2, "error: standard output is closed; give it a file, or /dev/null\n"),
        ("2>&-", 0, ""),
    ],
)
def test_a_closed_stream_is_one_line_or_none(toy, tmp_path: Path, closed, code, said):
    command = f"{sys.executable} {tmp_path / 'toy.py'} --do=print {closed}"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_config_is_resolved_without_a_heavy_import(toy):
    assert toy("--config.seed=3").stdout == "heavy: []\n"


def test_explain_prints_the_table(toy):
    assert "config.optimizer" in toy("--explain").stdout


def test_help_names_the_shared_flags(toy):
    text = toy("--help").stdout
    flags = ("--config FILE[:VARIANT]", "--workdir", "--explain", "--debug")
    assert all(flag in text for flag in flags)


def test_overrides_are_kept_apart_from_flags():
    known, overrides = parse(
        "--config=configs/ner.py",
        "--config.seed=1",
        "--workdir",
        "runs/x",
        "--config.train.steps",
        "-4",
        "--config.model.scan",
        "--debug",
    )
    assert overrides == [
        "--config.seed=1",
        "--config.train.steps",
        "-4",
        "--config.model.scan",
    ]
    assert (known.config, known.workdir, known.debug, known.explain) == (
        "configs/ner.py",
        "runs/x",
        True,
        False,
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--explan", "--explan: no such flag; nearest: --explain; --help lists"),
        ("--wordir=x", "--wordir: no such flag; nearest: --workdir; --help"),
        ("--zzz", "--zzz: no such flag; --help lists the flags"),
        ("--train.steps=3", "--train.steps: no such flag; nearest: --config.train.st"),
        ("--work=x", "--work: no such flag; nearest: --workdir"),
        ("words", "'words': no such argument; --help lists the flags"),
        ("--config", "argument --config: expected one argument"),
        ("--workdir=", "argument --workdir: is empty"),
        ("--config=", "argument --config: is empty"),
    ],
)
def test_a_wrong_flag_is_told_the_nearest(flag: str, message: str):
    assert refused(flag).startswith(message)


def test_a_door_without_config_requires_a_workdir():
    assert "required: --workdir" in refused(config=False)


def test_a_misspelt_flag_is_not_reported_as_a_missing_one():
    assert refused("--wordir=x", config=False).startswith("--wordir: no such flag")


def test_a_door_without_config_refuses_overrides():
    message = refused("--workdir=x", "--config.seed=1", config=False)
    assert message.startswith("--config.seed=1: this door reads the config of --work")


def test_a_writable_directory_is_made_with_its_parents(tmp_path: Path):
    path = door.writable_directory(tmp_path / "a" / "b")
    assert path.is_dir() and not list(path.iterdir())


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_file_where_a_directory_is_needed_is_refused(tmp_path: Path, below: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a directory is needed"):
        door.writable_directory(tmp_path / "file" / below)


def test_a_directory_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match="/proc/jaxlm: cannot be written"):
        door.writable_directory("/proc/jaxlm")
