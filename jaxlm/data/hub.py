"""Data sets of the `datasets` library: from the Hugging Face hub and from disk."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record
from jaxlm.data.columns import Columns, class_names, record, resolve

_NAME = re.compile(
    r"(?P<name>[^/@:\s]+(?:/[^/@:\s]+)?)(?:/(?P<subset>[^/@:\s]+))?"
    r"(?:@(?P<revision>[^@:\s]+))?(?::(?P<split>.+))?"
)

TIMEOUT_SECONDS = 10.0
_NETWORK = re.compile("Connect|Timeout|Offline|reach")  # of requests, httpx, datasets


def from_hub(source: str, split: str, columns: Columns) -> list[Record]:
    """Load ``hf:name[/subset][@revision][:split]`` with ``datasets.load_dataset``.

    Two parts are always ``org/name``; a subset needs all three, ``org/name/subset``.
    Code that comes with a data set is never run. Without ``:split`` it is ``split``.
    """
    found = _NAME.fullmatch(source.removeprefix("hf:"))
    if found is None:
        raise UserError(
            f"{source!r} is not understood; write hf:org/name:split, "
            "hf:org/name/subset:split or hf:org/name@revision:split"
        )
    import datasets

    name, split = found["name"], found["split"] or split
    unreached = _unreached(name, found["revision"])
    try:
        with _offline() if unreached else nullcontext():
            dataset = datasets.load_dataset(
                name, found["subset"], split=split, revision=found["revision"]
            )
    except Exception as error:  # whatever the hub, the network or a builder may raise
        raise UserError(_refusal(source, name, unreached or error)) from error
    if unreached:
        which = ", of whichever revision" if found["revision"] else ""
        print(
            f"{source}: the hub is not reached ({_reason(unreached)}); the newest copy"
            f" in the local cache is used{which}",
            file=sys.stderr,
        )
    return _records(dataset, columns, source)


def _unreached(name: str, revision: str | None) -> Exception | None:
    """Why the hub does not answer; None where it does, whatever it says.

    One question, not asked again.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # those of the HTTP library, which changes
        answered = getattr(error, "response", None) is not None
        return None if answered or not _is_network(error) else error
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries take what they have in their cache, and ask nobody.

    Unasked, they try each file of a data set for half a minute.
    """
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def is_saved(path: Path) -> bool:
    """Tell whether a directory was written by ``save_to_disk``."""
    marks = ("state.json", "dataset_dict.json")
    return any(os.path.isfile(path / mark) for mark in marks)


def from_disk(path: Path, split: str, columns: Columns) -> list[Record]:
    """Load what ``save_to_disk`` wrote; of several splits, the one asked for."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged files raise anything, from pyarrow to json
        raise UserError(
            f"{path}: cannot be loaded as a save_to_disk directory: {_reason(error)}"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            splits = [str(name) for name in dataset]
            raise UserError(
                f"{path}: has no split {split!r}; there are: {', '.join(splits)}; name "
                f"a split's own directory, as in {path / (splits or ['train'])[0]}"
            )
        dataset = dataset[split]
    return _records(dataset, columns, str(path))


def _records(dataset: Any, columns: Columns, where: str) -> list[Record]:
    columns = {field: str(column) for field, column in columns.items()}
    chosen = resolve(dataset.column_names, columns, where)
    classes = class_names(dataset.features.to_dict())
    # Only the chosen columns are decoded: a row may hold images too.
    rows = dataset.with_format(None).select_columns(sorted(set(chosen.values())))
    return [
        record(row, chosen, f"{where}:{number}", classes)
        for number, row in enumerate(rows, 1)
    ]


def _refusal(source: str, name: str, error: Exception) -> str:
    reason = _reason(error)
    if "scripts are no longer supported" in reason:
        remedy = (
            "data sets made by a script are not run; use its Parquet copy: "
            f"hf:{name}@refs/convert/parquet:split"
        )
    elif _is_network(error):
        remedy = (
            "the hub is unreachable (or HF_HUB_OFFLINE is set) and the data set is not "
            "in the local cache; load it once while online, or give a local file or "
            "save_to_disk directory"
        )
    else:
        remedy = (
            "check the name (hf:org/name/subset@revision:split), the subset and the "
            "split; a private data set needs `hf auth login`; or give a local file"
        )
    return f"{source}: data set {name!r} cannot be loaded: {reason}; {remedy}"


def _is_network(error: Exception) -> bool:
    told = type(error).__name__ + _reason(error)
    return isinstance(error, ConnectionError) or bool(_NETWORK.search(told))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
