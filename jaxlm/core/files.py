"""Files on the local disk: atomic writes, JSON, confined paths, the cache folder."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError

MOST_LEVELS = 100
"""How deep a JSON file may nest: less than Python recurses."""
HALF_WRITTEN_SECONDS = 600.0
"""No write of ours takes so long: a temporary file of that age is left over."""


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write_bytes` of a text in UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half.

    Missing parent folders are made. A write that fails leaves the old file as it was,
    and its OSError names the file.
    """
    path = Path(path)
    # Not tempfile.mkstemp: its mode 0600 would hide a shared run from its readers.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Delete what `atomic_write_bytes` of a killed process left in a folder.

    Only what is old: another process may be writing now.
    """
    name = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # it was being written after all
            old = time.time() - path.stat().st_mtime > HALF_WRITTEN_SECONDS
            if old and name.fullmatch(path.name):
                path.unlink()


def append_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Add to the end of a file all of ``content`` or, where that fails, nothing.

    Missing parent folders are made, and an OSError names the file.
    """
    path = Path(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            size, left = os.fstat(file.fileno()).st_size, content
            try:
                while left:  # a disk that fills up takes a part
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an OSError, which of a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON; NaN and infinities become ``null``.

    Arrays and array scalars (anything with ``tolist``) become lists and numbers.
    """
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


CHECKSUM = "checksum"


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object for a JSON file, with a checksum of the rest of it."""
    plain = to_plain(dict(value))
    return {**plain, CHECKSUM: checksum(plain)}


def checksum(value: Mapping[str, Any]) -> int:
    """Of all keys but the checksum's own, in any order."""
    rest = {name: value[name] for name in value if name != CHECKSUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def to_plain(value: Any) -> Any:
    """What strict JSON can hold: arrays as lists, paths as strings, NaN as None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a UTF-8 JSON file; UserError with line and column where it is broken.

    What is returned can be written again: no half surrogate pairs, no endless nesting.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}:{error.colno}: broken JSON: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: broken JSON: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: broken JSON: {error}") from error
    if fault := _fault(value):
        raise UserError(f"{path}: broken JSON: {fault}")
    return value


def _fault(value: Any) -> str | None:
    """Why a parsed value cannot be written as JSON in UTF-8; None where it can."""
    level = [value]
    for _ in range(MOST_LEVELS):
        if not level:
            return None
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not _is_unicode(item):
                return f"{item[:40]!r} holds half a surrogate pair"
        level = below
    return f"nested deeper than {MOST_LEVELS} levels"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a UTF-8 file without its byte order mark; else UserError."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise UserError(f"{path}: is not a regular file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """The path ``root/relative``, only if it cannot leave ``root``.

    Raises UserError for an absolute path, a ``..`` part, a NUL byte, or a symbolic link
    that leads outside. The path itself need not exist.
    """
    # Backslashes and drive letters too: a manifest may be written on another system.
    parts = relative.replace("\\", "/").split("/")
    if "\0" in relative or parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise UserError(
            f"path {relative!r} must be relative and stay inside {os.fspath(root)}"
        )
    path = Path(root) / relative
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(
            f"path {relative!r} leads outside {os.fspath(root)} by a symbolic link"
        )
    return path


def cache_directory() -> Path:
    """$JAXLM_CACHE, else $XDG_CACHE_HOME/jaxlm, else ~/.cache/jaxlm.

    Downloads, tables of lengths, compiled programs: all of it can be made again.
    """
    if own := os.environ.get("JAXLM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "jaxlm"
    return Path.home() / ".cache" / "jaxlm"
