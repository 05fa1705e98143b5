"""Headless Chromium over a pipe: open a page, measure it, take its picture.

Speaks the DevTools protocol by ``--remote-debugging-pipe``, so that it needs nothing
but the standard library and a Chromium (on Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_SECONDS = 60.0
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # Chromium refuses to run as root with one; pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


def find() -> str | None:
    """The Chromium of this machine: ``$CHROMIUM``, or one on the path."""
    return os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )


class Browser:
    """One Chromium and one page in it."""

    def __init__(self, program: str, profile: str):
        # Chromium reads commands from descriptor 3 and writes to 4, each ended by NUL.
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        wiring = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", wiring, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._buffer = 0, b""
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and what it answers."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method}
        message["params"] = parameters
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") != self._number:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(
        self, url: str, *, width: int, dark: bool = False, scale: float = 1
    ) -> None:
        """Load a page as a screen of a width shows it, in the light or dark scheme."""
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(
            each.get("method") == "Page.loadEventFired" for each in self._events
        ):
            self._events.append(self._message())

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script[:80]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def complaints(self) -> list[str]:
        """Errors and warnings that the page has given since it was opened."""
        self.evaluate("0")  # what came before this answer has been read
        found = []
        for event in self._events:
            details = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(details["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded":
                found.append(details["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(str(details["args"]))
        return found

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """The page as a PNG, whole or down to a height in CSS pixels."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "scale": 1}
        clip["height"] = min(height or size["height"], size["height"])
        found = self.call(
            "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)  # it ends when nobody can command it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], TIMEOUT_SECONDS)[0]:
                raise TimeoutError(f"Chromium was silent for {TIMEOUT_SECONDS} s")
            if not (part := os.read(self._read, 1 << 20)):
                raise RuntimeError("Chromium ended; does it run by hand?")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium that ends with the block, and leaves nothing behind.

    Raises:
      FileNotFoundError: this machine has none.
    """
    program = find()
    if program is None:
        raise FileNotFoundError(f"no Chromium: none of {', '.join(NAMES)} on the path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(program, profile)
        try:
            yield opened
        finally:
            opened.close()
