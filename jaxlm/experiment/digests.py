"""What other doors read of a run beside its checkpoints is as it was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jaxlm.core.config import FILE
from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json
from jaxlm.train.recorded import read_object

DIGESTS = Path("model") / "digests.json"
NAMES = (FILE, "model/config.json", "model/tokenizer.json", "model/labels.json")
NAMES += ("model/tokenizer_config.json",)  # which not all sources have


def write_digests(workdir: Path) -> None:
    """Note the sha256 of each file."""
    there = [name for name in NAMES if (workdir / name).exists()]
    digests = {name: _sha256(workdir, name) for name in there}
    atomic_write_json(workdir / DIGESTS, digests)


def check_digests(workdir: Path) -> None:
    """Refuse files that rotted: they could still be read, and mean something else.

    Raises:
      UserError: a file is not the one that was noted.
    """
    if not (workdir / DIGESTS).exists():
        return
    noted = read_object(workdir / DIGESTS)
    for name in NAMES:
        if (workdir / name).exists() and noted.get(name) != _sha256(workdir, name):
            raise UserError(
                f"{workdir / name}: is not as the run wrote it; bring it back from a"
                f" copy or, if you changed it, delete {workdir / DIGESTS}"
            )


def _sha256(workdir: Path, name: str) -> str:
    return hashlib.sha256((workdir / name).read_bytes()).hexdigest()
