"""Huge pages: when a program starts itself again for them, and how it arrives."""

import json
import os
import subprocess
import sys

import pytest

from jaxlm.core import pages

PROGRAM = """
import json, os, sys
from jaxlm.core.pages import ask_for_huge_pages
print("begins", flush=True)
ask_for_huge_pages()
print(json.dumps([os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES")]))
"""


def run(environment):
    ours = (pages.VARIABLE, pages.AGAIN)
    plain = {name: os.environ[name] for name in os.environ if name not in ours}
    arguments = [sys.executable, "-c", PROGRAM, "--text", "two words", ""]
    process = subprocess.Popen(
        arguments, env=plain | environment, stdout=subprocess.PIPE, text=True
    )
    *begins, last = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    return process.pid, len(begins), json.loads(last)


@pytest.fixture
def asks(monkeypatch, tmp_path):
    """A system that leaves huge pages to those who ask, whatever this one does."""
    monkeypatch.delenv(pages.VARIABLE, raising=False)
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "SYSTEM", mode)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    return mode


def test_a_program_starts_again_once_with_its_number_and_arguments(monkeypatch):
    monkeypatch.delenv(pages.VARIABLE, raising=False)
    if not pages.useful():
        pytest.skip("this system's pages are huge anyway, or never")
    pid, begins, found = run({})
    assert begins == 2
    assert found == [pid, ["--text", "two words", ""], pages.HUGE]


def test_what_the_user_tells_malloc_stands():
    mine = "glibc.malloc.arena_max=3"
    pid, begins, found = run({pages.VARIABLE: mine})
    assert begins == 1 and found == [pid, ["--text", "two words", ""], mine]


def test_a_program_whose_variable_is_dropped_does_not_start_for_ever():
    pid, begins, found = run({pages.AGAIN: "1"})
    assert begins == 1 and found == [pid, ["--text", "two words", ""], None]


def test_huge_pages_are_useful_where_they_must_be_asked_for(asks):
    assert pages.useful()


@pytest.mark.parametrize(
    "mode", ["[always] madvise never", "always madvise [never]", None]
)
def test_they_are_not_where_they_come_anyway_or_never(asks, mode):
    asks.unlink() if mode is None else asks.write_text(mode)
    assert not pages.useful()


@pytest.mark.parametrize("libc", ["glibc 2.34", "musl 1.2", "", None])
def test_they_are_not_where_malloc_does_not_know_them(asks, monkeypatch, libc):
    monkeypatch.setattr(os, "confstr", lambda name: libc)
    assert not pages.useful()


def test_they_are_not_under_a_debugger_or_on_another_system(asks, monkeypatch):
    def refuse(*_):
        pytest.fail("the debugger would lose the program")

    monkeypatch.setattr(os, "execv", refuse)
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        pages.ask_for_huge_pages()
    finally:
        sys.settrace(before)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not pages.useful()


def test_freed_memory_goes_back_to_the_system():
    if sys.platform != "linux":
        pytest.skip("only glibc keeps it")
    code = """
import ctypes, resource
from jaxlm.core.pages import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
kept = [bytes(100_000) for _ in range(2_000)]
pins = kept[1::2]  # so that the heap does not shrink from its end
full = resident()
del kept[:]
held = resident()
give_back()
assert held - resident() > 50_000_000, (full, held, resident())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
