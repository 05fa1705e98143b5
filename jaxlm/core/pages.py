"""The host's memory: huge pages for what XLA takes, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

VARIABLE, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SINCE = (2, 35)
"""The first glibc that knows the setting."""


def ask_for_huge_pages() -> None:
    """Start this program again, once, with a malloc that asks for huge pages.

    XLA takes some hundred MB for each step on a CPU and gives them back; the system,
    handing them out by 4 KiB, took a quarter of a small model's step. glibc reads the
    setting when a program starts, and nowhere else. The process keeps its number, its
    arguments and its terminal. Nothing happens where the system's pages are huge
    anyway or never, under a debugger, or where the user has set ``GLIBC_TUNABLES``.
    """
    if useful() and sys.executable and sys.gettrace() is None:
        os.environ[VARIABLE] = HUGE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def useful() -> bool:
    """Whether this system leaves huge pages to those who ask, and its malloc can."""
    if sys.platform != "linux" or VARIABLE in os.environ:
        return False
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        mode = SYSTEM.read_text()
    except (OSError, ValueError):
        return False
    numbers = tuple(int(part) for part in version.split(".") if part.isdecimal())
    return name == "glibc" and numbers >= SINCE and "[madvise]" in mode


def give_back() -> None:
    """Return to the system what malloc keeps of freed memory, where it is glibc's.

    After a burst, as loading or saving is, that is hundreds of MB of many threads'
    heaps, which would stand beside whatever is taken next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if sys.platform == "linux" and trim is not None:
        trim(0)
