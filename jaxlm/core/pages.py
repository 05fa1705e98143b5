"""The host's memory: huge pages for what XLA takes, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
AGAIN = "JAXLM_STARTED_AGAIN"
"""Set beside it: a secure or wrapped Python may drop the other, and would never end."""
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
    if useful() and sys.executable and not debugged():
        os.environ[VARIABLE], os.environ[AGAIN] = HUGE, "1"
        with suppress(OSError):  # not worth ending for
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def debugged() -> bool:
    """Whether a debugger holds this process, which it would lose."""
    monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12 on
    if monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None:
        return True
    return sys.gettrace() is not None


def useful() -> bool:
    """Whether this system leaves huge pages to those who ask, and its malloc can."""
    if sys.platform != "linux" or {VARIABLE, AGAIN} & set(os.environ):
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
